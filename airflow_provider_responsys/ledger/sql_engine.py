"""From an Airflow database hook to a SQLAlchemy engine on the connections that the hook itself makes."""

import threading
from collections.abc import Callable
from contextlib import suppress
from contextvars import copy_context
from queue import Empty, SimpleQueue
from typing import Any, Final

from sqlalchemy import create_engine
from sqlalchemy.engine import URL, Engine
from sqlalchemy.pool import NullPool

from airflow_provider_responsys.databases import MISPLACED, driver_of, file_of, is_misplaced, use_plain_rows
from airflow_provider_responsys.errors import InvalidSettings, LedgerFailed, LedgerUnreachable

CONNECT: Final = 20
"""Seconds for a new connection: few drivers have a limit of their own, and the system's is two minutes."""

DRIVERS: Final = {
    "sqlite": "sqlite3",
    "postgresql+psycopg": "psycopg",
    "postgresql+psycopg2": "psycopg2",
    "mysql+mysqldb": "MySQLdb",
    "mysql+mysqlconnector": "mysql",
    "mysql+pymysql": "pymysql",
}
"""SQLAlchemy's name of each dialect that a ledger is kept in, and the driver it speaks through."""

WITHOUT_DRIVER: Final = {
    "postgresql": "postgresql+psycopg2",
    "postgres": "postgresql+psycopg2",
    "mysql": "mysql+mysqldb",
}
"""What Airflow's hooks mean by a name without a driver; SQLAlchemy's own answer depends on its version."""


def hook_engine(hook: Any, conn_id: str, database: str | None) -> Engine:
    """Return an engine whose connections are those of *hook*, so that all extras of connection *conn_id* hold.

    *database* is how the engine speaks of its database; where that is, the hook
    knows. Nothing is opened yet.
    """
    dialect = _dialect(hook, conn_id)
    if is_misplaced(hook):
        raise InvalidSettings(f"connection {conn_id!r} can't be the ledger: {MISPLACED}")
    is_file = dialect == "sqlite"
    engine: Engine

    def connect() -> Any:
        try:
            # A file's connection must stay in its thread, and needs no limit.
            connection = hook.get_conn() if is_file else within(CONNECT, hook.get_conn)
        except (LedgerFailed, engine.dialect.dbapi.Error):  # type: ignore[union-attr]  # it is loaded by now
            raise
        except Exception as error:
            reason = f"connection {conn_id!r} leads to no database: {type(error).__name__}: {error}"
            raise (InvalidSettings if isinstance(error, (ValueError, ImportError)) else LedgerUnreachable)(
                reason
            ) from error
        return _checked(connection, dialect, conn_id)

    # Of a file, each transaction opens its own: those of a pool would be used by other threads, too.
    pool: dict[str, Any] = {"poolclass": NullPool} if is_file else {}
    try:
        database = file_of(hook.get_uri()) if is_file else database
        engine = create_engine(URL.create(dialect, database=database), creator=connect, **pool)
    except ImportError as error:
        raise InvalidSettings(f"connection {conn_id!r} can't be the ledger: {error}") from error
    return engine


def within(seconds: float, connect: Callable[[], Any]) -> Any:
    """Return what *connect* returns, or raise `LedgerUnreachable` after *seconds*; close what comes later."""
    answers: SimpleQueue[tuple[Any, BaseException | None]] = SimpleQueue()
    late = threading.Event()

    def run() -> None:
        try:
            connection = connect()
        except BaseException as error:  # noqa: BLE001 -- it is raised where it is waited for
            answers.put((None, error))
            return
        answers.put((connection, None))
        if late.is_set():
            with suppress(Exception):
                connection.close()

    threading.Thread(target=copy_context().run, args=(run,), name="responsys-connect", daemon=True).start()
    try:
        connection, error = answers.get(timeout=seconds)
    except Empty:
        late.set()
        raise LedgerUnreachable(f"The ledger's database took no connection for {seconds:.0f} s") from None
    if error:
        raise error
    return connection


def _dialect(hook: Any, conn_id: str) -> str:
    """Return SQLAlchemy's name for the database and driver of *hook*, without asking for an address or a password."""
    named = getattr(hook, "sqlalchemy_scheme", None)
    if not named:
        try:
            named = hook.sqlalchemy_url.drivername
        except (NotImplementedError, AttributeError):
            named = str(hook.get_uri() if hasattr(hook, "get_uri") else "").partition(":")[0]
    dialect = WITHOUT_DRIVER.get(named, named)
    if dialect not in DRIVERS:
        raise InvalidSettings(
            f"connection {conn_id!r} can't be the ledger: its hook names {dialect or 'no database'}. "
            "Use a SQLite, PostgreSQL or MySQL connection"
        )
    return str(dialect)


def _checked(connection: Any, dialect: str, conn_id: str) -> Any:
    """Return *connection* with rows as SQLAlchemy reads them, or raise `InvalidSettings` if it is not of *dialect*."""
    driver = driver_of(connection)
    if driver != DRIVERS[dialect]:
        with suppress(Exception):
            connection.close()
        raise InvalidSettings(
            f"connection {conn_id!r} can't be the ledger: its hook connects with {driver}, and names {dialect} to "
            "SQLAlchemy. Take sqlalchemy_scheme out of its extras, or use a connection of Airflow's own provider"
        )
    use_plain_rows(connection)
    if driver == "mysql":
        connection.buffered = True  # SQLAlchemy closes cursors with rows left
    return connection
