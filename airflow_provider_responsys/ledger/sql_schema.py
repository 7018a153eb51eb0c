"""The database of the SQL ledger: how its tables are made, locked and written."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import NamedTuple, TypeVar

from sqlalchemy import func, insert, inspect, select
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from airflow_provider_responsys.databases import is_permanent
from airflow_provider_responsys.errors import InvalidSettings, LedgerFailed, LedgerUnreachable, StateLost
from airflow_provider_responsys.ledger.fingerprint import key_id, new_key
from airflow_provider_responsys.ledger.sql_session import LOCK_WAIT, LONGEST, READS, ready
from airflow_provider_responsys.ledger.sql_tables import MYSQL, VERSION, claims, ledger_table, metadata

ROWS_PER_INSERT = 5_000  # 300 kB of SQL: MySQL takes by default 4 MB or more

MET_ANOTHER = frozenset({"40001", "40P01", "42710", "42P07", 1050, 1205, 1213, 1684})
"""PostgreSQL's and MySQL's codes for: serialization failure, deadlock, type or table exists or is being made, lock
wait timeout."""

ATTEMPTS = 5

MUCH = 600
"""Seconds for a transaction that deletes the claims of whole sends: a million took 14 s in a MariaDB on two cores."""

KEY_LOST = (
    "The ledger's fingerprint key is gone or damaged (table responsys_ledger), and without it no recipient whom the "
    "ledger has claimed can be recognised, so nothing is sent. Restore that table from a backup; or, if all recipients "
    "may be pushed again, drop the tables responsys_*."
)

T = TypeVar("T")


class ClaimRow(NamedTuple):
    """A row of `claims` about to be inserted; sorts by fingerprint."""

    fingerprint: bytes
    batch_id: int
    position: int


class Database:
    """An engine of the ledger's own: each transaction is short, locks early, and sees what others committed."""

    def __init__(self, engine: Engine) -> None:
        dialect = engine.dialect.name
        if dialect not in INSERT:
            raise InvalidSettings(f"the ledger is kept in SQLite, PostgreSQL or MySQL, not in {dialect}")
        self.dialect = dialect
        self._engine = ready(engine)

    @contextmanager
    def transaction(self, *, seconds: int | None = None) -> Iterator[Connection]:
        """Give a connection whose work is durable on leaving; name what goes wrong.

        It may take *seconds* where that is more than usual: there is much to delete.
        """
        engine = self._engine if seconds is None else self._engine.execution_options(**{LONGEST: seconds})
        with _named(engine) as connection:
            yield connection

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """Give a connection that reads one state of the tables, and keeps no writer out."""
        with _named(self._engine.execution_options(**{READS: True})) as connection:
            yield connection

    def attempt(self, work: Callable[[Connection], T], *, seconds: int | None = None) -> T:
        """Do *work* in a transaction, again where it came to nothing because it met another one."""
        for _ in range(ATTEMPTS - 1):
            try:
                with self.transaction(seconds=seconds) as connection:
                    return work(connection)
            except LedgerFailed as failure:
                if not met_another(failure.__cause__):
                    raise
        with self.transaction(seconds=seconds) as connection:
            return work(connection)

    def prepare(self, now: datetime) -> bytes:
        """Make the tables where there are none, check their version, and return the fingerprint key."""
        return self.attempt(lambda connection: _prepare(connection, now))

    def fingerprint_key(self) -> bytes | None:
        """Check the version of the tables and return the fingerprint key; make no tables: None where there are none."""
        with self.reading() as connection:
            key = _find_key(connection)
            if key is None:
                _check_no_claims(connection)
            return key

    def insert_claims(self, connection: Connection, send_id: int, rows: Sequence[ClaimRow]) -> int:
        """Insert those of *rows*, in their order, that no batch holds; return how many.

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


@contextmanager
def _named(engine: Engine) -> Iterator[Connection]:
    """Give a connection in a transaction of *engine*; name what goes wrong."""
    try:
        with engine.connect() as connection:
            if connection.get_execution_options().get(READS) and engine.dialect.name != "sqlite":
                # On the connection: as the engine's, what `ready` set would win.
                connection = connection.execution_options(isolation_level="REPEATABLE READ")  # noqa: PLW2901 -- the same
            with connection.begin():
                yield connection
    except SQLAlchemyError as error:
        raise _failure(error, engine.url.database) from error


def _failure(error: SQLAlchemyError, database: str | None) -> LedgerFailed:
    """Return *error* of *database* without its statement and parameters, named for whether it may pass."""
    original = getattr(error, "orig", None)
    cause = error if original is None else original
    may_pass = getattr(error, "connection_invalidated", False) or met_another(error)
    kind = LedgerUnreachable if may_pass or not is_permanent(cause, database) else LedgerFailed
    return kind(f"The ledger's database failed ({type(cause).__name__}): {str(cause).strip()}")


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
    key = _find_key(connection)
    return _make(connection, now) if key is None else key


def _find_key(connection: Connection) -> bytes | None:
    """Return the fingerprint key, None where there are no tables; raise for tables of another version."""
    # Only the version is asked for by itself: another version's table may lack the other columns.
    version = select(ledger_table.c.version)
    row = connection.execute(version).first() if inspect(connection).has_table(ledger_table.name) else None
    if row is None:
        return None
    if row.version < VERSION:
        raise LedgerFailed(
            f"The ledger's tables have version {row.version}, of before the first release, and this provider writes "
            f"{VERSION}: point ledger_conn_id to another database, or drop its tables responsys_* if no one needs to "
            "know any more whom they say was pushed"
        )
    if row.version > VERSION:
        raise LedgerFailed(
            f"The ledger's tables have version {row.version}, this provider writes {VERSION}: run the same version of "
            "the provider on every worker"
        )
    found = connection.execute(select(ledger_table.c.fingerprint_key, ledger_table.c.fingerprint_key_id)).one()
    return _checked(found.fingerprint_key, found.fingerprint_key_id)


def _make(connection: Connection, now: datetime) -> bytes:
    """Make the tables and a fingerprint key, unless there are claims that were made with another key."""
    _check_no_claims(connection)
    metadata.create_all(connection)
    key = new_key()
    row = {"id": 1, "version": VERSION, "fingerprint_key": key.hex(), "fingerprint_key_id": key_id(key)}
    connection.execute(insert(ledger_table).values(**row, created_at=now))
    return key


def _check_no_claims(connection: Connection) -> None:
    """Raise where there is no fingerprint key, and claims that were made with one."""
    if inspect(connection).has_table(claims.name) and connection.execute(select(claims.c.batch_id).limit(1)).first():
        raise StateLost(KEY_LOST)


def _checked(text: str, its_id: str) -> bytes:
    """Return the fingerprint key that *text* spells, if it is the one that *its_id* names."""
    try:
        key = bytes.fromhex(text)
    except ValueError:
        key = b""
    if not key or key_id(key) != its_id:
        raise StateLost(KEY_LOST)
    return key
