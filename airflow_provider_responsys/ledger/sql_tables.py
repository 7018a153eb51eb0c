"""The tables of the SQL ledger."""

import hashlib
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    DateTime,
    Float,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
)
from sqlalchemy.dialects import mysql
from sqlalchemy.engine import Dialect
from sqlalchemy.types import TypeEngine

from airflow_provider_responsys.ledger.interface import FINGERPRINT_BYTES

VERSION = 3
"""Of the tables. Versions 1 and 2 were never released."""

MYSQL = ("mysql", "mariadb")

SENT, NOT_SENT = "sent", "not sent"
"""How a person resolves a doubt."""

PERSON = 100  # characters

CORRELATION_ID = 200  # characters that are kept of it


class Moment(TypeDecorator[datetime]):
    """A point in time, kept as UTC without saying so: SQLite and MySQL know no zones."""

    impl = DateTime
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[datetime]:
        """Keep microseconds: MySQL rounds to seconds unless told otherwise."""
        return mysql.DATETIME(fsp=6) if dialect.name in MYSQL else DateTime()

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002 -- SQLAlchemy's signature
        """Drop the zone."""
        return value and value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002 -- the same
        """Put the zone back."""
        return value and value.replace(tzinfo=UTC)


class Fingerprint(TypeDecorator[bytes]):
    """A recipient's fingerprint. MySQL indexes binary columns of a fixed length alone."""

    impl = LargeBinary
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[bytes]:
        """Give it a length in MySQL."""
        kind = mysql.BINARY if dialect.name in MYSQL else LargeBinary
        return kind(FINGERPRINT_BYTES)


metadata = MetaData()

# Whatever the database's defaults: transactions, every script, and no two texts that only look alike.
ON_MYSQL: dict[str, Any] = {
    f"{name}_{option}": value
    for name in MYSQL
    for option, value in {"engine": "InnoDB", "charset": "utf8mb4", "collate": "utf8mb4_bin"}.items()
}

ledger_table = Table(
    "responsys_ledger",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),  # always 1
    Column("version", Integer, nullable=False),
    Column("fingerprint_key", String(64), nullable=False),
    Column("fingerprint_key_id", String(32), nullable=False),
    Column("created_at", Moment, nullable=False),
    **ON_MYSQL,
)

sends = Table(
    "responsys_sends",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("send_hash", String(64), nullable=False, unique=True),  # a key is longer than MySQL can index
    Column("send_key", Text, nullable=False),
    Column("account", Text, nullable=False),  # also in the identity
    Column("identity", Text, nullable=False),  # JSON: the settings that make a recipient's identity
    Column("fingerprint_key_id", String(32), nullable=False),
    Column("created_at", Moment, nullable=False),
    **ON_MYSQL,
)

task_instances = Table(
    "responsys_task_instances",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name_hash", String(64), nullable=False, unique=True),
    Column("name", Text, nullable=False),  # dag/task/run/map index
    # Raised by each transaction that claims, and told outside of this database before a request leaves.
    Column("claim_count", BigInteger, nullable=False),
    Column("current_try_id", BigInteger, nullable=False),  # the only one that may claim
    Column("created_at", Moment, nullable=False),
    **ON_MYSQL,
)

tries = Table(
    "responsys_tries",
    metadata,
    # Drawn at random: in a database that was put back, no later try gets the id of one that was lost.
    Column("id", BigInteger, primary_key=True, autoincrement=False),
    Column("send_id", Integer, nullable=False),
    Column("task_instance_id", Integer, nullable=False),
    Column("start", Integer, nullable=False),  # counts the starts of this task instance, whatever Airflow's number
    Column("try_number", Integer, nullable=False),
    Column("max_tries", Integer, nullable=False),
    Column("instance_id", String(36), nullable=False),  # Airflow's id of the try; a later one is greater
    Column("answer_within", Float, nullable=False),  # seconds after which every answer has come or is lost
    Column("began_at", Moment, nullable=False),
    Column("last_write_at", Moment, nullable=False),
    Column("ended_at", Moment),
    Column("ended_as", String(100)),
    Index("responsys_tries_by_task_instance", "task_instance_id", "start", unique=True),
    Index("responsys_tries_by_send", "send_id"),
    **ON_MYSQL,
)

batches = Table(
    "responsys_batches",
    metadata,
    Column("id", BigInteger, primary_key=True, autoincrement=False),  # its request's X-Request-Id
    Column("send_id", Integer, nullable=False),
    Column("try_id", BigInteger, nullable=False),
    Column("number", Integer, nullable=False),
    Column("size", Integer, nullable=False),
    Column("moved", Integer, nullable=False, default=0),  # recipients who left it for the batch that sends again
    Column("claimed_at", Moment, nullable=False),
    Column("settled_at", Moment),  # without it, the batch is in doubt
    Column("request_id", String(512)),
    Column("correlation_id", String(CORRELATION_ID)),
    Column("forgotten_at", Moment),  # its claims were given up: by a restart, by hand, or all of them moved
    Column("resolved_at", Moment),
    Column("resolved_as", String(20)),
    Column("resolved_by", String(PERSON)),
    Column("resolve_reason", Text),
    Column("polls", Integer, nullable=False, default=0),
    Column("outcome_at", Moment),
    Column("succeeded", Integer),
    Column("failed", Text),  # JSON: positions in the request by error code
    Column("request_error", String(100)),  # the code of a request that ended without results
    Index("responsys_batches_by_try", "try_id", "number"),
    Index("responsys_batches_by_send", "send_id"),
    Index("responsys_batches_by_request", "request_id"),
    **ON_MYSQL,
)

claims = Table(
    "responsys_claims",
    metadata,
    Column("send_id", Integer, primary_key=True, autoincrement=False),
    Column(
        "fingerprint",
        Fingerprint,
        primary_key=True,
    ),
    Column("batch_id", BigInteger, nullable=False),
    # Of those that a batch won, the order in its request.
    Column("position", Integer, nullable=False),
    Index("responsys_claims_by_batch", "batch_id", "position"),
    sqlite_with_rowid=False,
    **ON_MYSQL,
)

traces = Table(
    "responsys_traces",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("done_at", Moment, nullable=False),
    Column("done_by", String(PERSON), nullable=False),
    Column("action", String(20), nullable=False),
    Column("about", Text, nullable=False),  # a batch or an age, never a recipient
    Column("count", Integer, nullable=False),  # of recipients or sends
    Column("reason", Text, nullable=False),
    **ON_MYSQL,
)


def digest(text: str) -> str:
    """Return what a long text is found by."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
