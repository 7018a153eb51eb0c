"""The tables of the SQL ledger, and how they are made, locked and written."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, NamedTuple, TypeVar

from sqlalchemy import (
    BigInteger,
    Column,
    DateTime,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    func,
    insert,
    inspect,
    select,
)
from sqlalchemy.dialects import mysql
from sqlalchemy.engine import Connection, Dialect, Engine
from sqlalchemy.exc import IntegrityError, SQLAlchemyError
from sqlalchemy.types import TypeEngine

from airflow_provider_responsys.errors import InvalidSettings, LedgerFailed
from airflow_provider_responsys.ledger.fingerprint import new_key
from airflow_provider_responsys.ledger.interface import FINGERPRINT_BYTES
from airflow_provider_responsys.ledger.sql_session import LOCK_WAIT, ready

VERSION = 2
"""Of the tables. Version 1, which was never released, did not tell the tries of a remade DAG run apart."""

ROWS_PER_INSERT = 5_000  # 300 kB of SQL: MySQL takes by default 4 MB or more

MET_ANOTHER = frozenset({"40001", "40P01", "42710", "42P07", 1050, 1205, 1213, 1684})
"""PostgreSQL's and MySQL's codes for: serialization failure, deadlock, type or table exists or is being made, lock
wait timeout."""

MYSQL = ("mysql", "mariadb")

ATTEMPTS = 5

T = TypeVar("T")


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
    Column("created_at", Moment, nullable=False),
    **ON_MYSQL,
)

sends = Table(
    "responsys_sends",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("send_hash", String(64), nullable=False, unique=True),  # a key is longer than MySQL can index
    Column("send_key", Text, nullable=False),
    Column("identity", Text, nullable=False),  # JSON: the settings that make a recipient's identity
    Column("created_at", Moment, nullable=False),
    **ON_MYSQL,
)

tries = Table(
    "responsys_tries",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("send_id", Integer, nullable=False),
    Column("owner_hash", String(64), nullable=False),
    Column("owner", Text, nullable=False),
    Column("try_number", Integer, nullable=False),
    Column("max_tries", Integer, nullable=False),
    Column("instance_id", String(36), nullable=False),  # Airflow's id of the try; a later one is greater
    Column("began_at", Moment, nullable=False),
    Index("responsys_tries_by_owner", "owner_hash", "id"),
    Index("responsys_tries_by_send", "send_id"),
    **ON_MYSQL,
)

batches = Table(
    "responsys_batches",
    metadata,
    Column("id", BigInteger, primary_key=True, autoincrement=False),  # drawn at random: no round trip for each
    Column("send_id", Integer, nullable=False),
    Column("try_id", Integer, nullable=False),
    Column("number", Integer, nullable=False),
    Column("size", Integer, nullable=False),
    Column("claimed_at", Moment, nullable=False),
    Column("settled_at", Moment),  # without it, the batch is in doubt
    Column("request_id", String(250)),
    Column("forgotten_at", Moment),  # its claims were given up, by a restart or by hand
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
        LargeBinary(FINGERPRINT_BYTES).with_variant(mysql.BINARY(FINGERPRINT_BYTES), *MYSQL),
        primary_key=True,
    ),
    Column("batch_id", BigInteger, nullable=False),
    # Of those that a batch won, the order in its request.
    Column("position", Integer, nullable=False),
    Index("responsys_claims_by_batch", "batch_id", "position"),
    sqlite_with_rowid=False,
    **ON_MYSQL,
)


class ClaimRow(NamedTuple):
    """A row of `claims` about to be inserted; sorts by fingerprint."""

    fingerprint: bytes
    batch_id: int
    position: int


def digest(text: str) -> str:
    """Return what a long text is found by."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


class Database:
    """An engine of the ledger's own: each transaction is short, locks early, and sees what others committed."""

    def __init__(self, engine: Engine) -> None:
        dialect = engine.dialect.name
        if dialect not in INSERT:
            raise InvalidSettings(f"the ledger is kept in SQLite, PostgreSQL or MySQL, not in {dialect}")
        self.dialect = dialect
        self._engine = ready(engine)

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """Give a connection whose work is durable on leaving; name what goes wrong."""
        try:
            with self._engine.begin() as connection:
                yield connection
        except SQLAlchemyError as error:
            raise _failure(error) from error

    def attempt(self, work: Callable[[Connection], T]) -> T:
        """Do *work* in a transaction, again where it came to nothing because it met another one."""
        for _ in range(ATTEMPTS - 1):
            try:
                with self.transaction() as connection:
                    return work(connection)
            except LedgerFailed as failure:
                if not met_another(failure.__cause__):
                    raise
        with self.transaction() as connection:
            return work(connection)

    def prepare(self, now: datetime) -> bytes:
        """Make the tables where there are none, check their version, and return the fingerprint key."""
        return self.attempt(lambda connection: _prepare(connection, now))

    def insert_claims(self, connection: Connection, send_id: int, rows: Sequence[ClaimRow]) -> int:
        """Insert those of *rows*, in their order, that nobody holds; return how many.

        Written out where there is a server, which is ten times faster than
        parameters, and safe: the rows are numbers and hexadecimal digits. Python's
        sqlite3 would keep the last hundred such statements in memory.
        """
        verb, literal, suffix = INSERT[self.dialect]
        if self.dialect == "sqlite":
            statement = f"{verb} INTO {CLAIM_COLUMNS} VALUES (?,?,?,?)"
            return connection.exec_driver_sql(statement, [(send_id, *row) for row in rows]).rowcount
        inserted = 0
        for start in range(0, len(rows), ROWS_PER_INSERT):
            values = ",".join(
                f"({send_id},{literal}{fingerprint.hex()}',{batch_id},{position})"
                for fingerprint, batch_id, position in rows[start : start + ROWS_PER_INSERT]
            )
            inserted += connection.exec_driver_sql(f"{verb} INTO {CLAIM_COLUMNS} VALUES {values}{suffix}").rowcount
        return inserted

    def dispose(self) -> None:
        """Close every connection."""
        self._engine.dispose()


CLAIM_COLUMNS = "responsys_claims (send_id,fingerprint,batch_id,position)"
INSERT = {
    "sqlite": ("INSERT OR IGNORE", "", ""),
    "postgresql": ("INSERT", r"'\x", " ON CONFLICT DO NOTHING"),
    "mysql": ("INSERT IGNORE", "X'", ""),
    "mariadb": ("INSERT IGNORE", "X'", ""),
}
"""How each database inserts what is not there yet: verb, start of a binary literal, suffix."""


def met_another(error: BaseException | None) -> bool:
    """Tell whether a transaction was undone only because of another one, so that it may be repeated.

    What is unique here is written twice only by two that start at once; claims
    never raise.
    """
    original = getattr(error, "orig", None)
    codes = {getattr(original, "sqlstate", None), getattr(original, "pgcode", None), *getattr(original, "args", ())[:1]}
    return isinstance(error, IntegrityError) or not codes.isdisjoint(MET_ANOTHER)


def _failure(error: SQLAlchemyError) -> LedgerFailed:
    """Return *error* without its statement and parameters."""
    original = getattr(error, "orig", None)
    cause = error if original is None else original
    return LedgerFailed(f"The ledger's database failed ({type(cause).__name__}): {str(cause).strip()}")


def _prepare(connection: Connection, now: datetime) -> bytes:
    if connection.dialect.name not in MYSQL:
        return _prepare_alone(connection, now)
    # There, tables are made outside of any transaction, one by one.
    lock = f"{connection.engine.url.database}.{ledger_table.name}"[-64:]
    connection.execute(select(func.get_lock(lock, LOCK_WAIT)))
    try:
        return _prepare_alone(connection, now)
    finally:
        connection.execute(select(func.release_lock(lock)))


def _prepare_alone(connection: Connection, now: datetime) -> bytes:
    columns = (ledger_table.c.version, ledger_table.c.fingerprint_key)
    row = connection.execute(select(*columns)).first() if inspect(connection).has_table(ledger_table.name) else None
    if row is None:
        metadata.create_all(connection)
        key = new_key()
        made = insert(ledger_table).values(id=1, version=VERSION, fingerprint_key=key.hex(), created_at=now)
        connection.execute(made)
        return key
    if row.version < VERSION:
        raise LedgerFailed(
            f"The ledger's tables have version {row.version}, of before the first release, and this provider writes "
            f"{VERSION}: point ledger_conn_id to another database, or drop its tables responsys_* if nobody needs to "
            "know any more whom they say was pushed"
        )
    if row.version > VERSION:
        raise LedgerFailed(
            f"The ledger's tables have version {row.version}, this provider writes {VERSION}: run the same version of "
            "the provider on every worker"
        )
    return bytes.fromhex(row.fingerprint_key)
