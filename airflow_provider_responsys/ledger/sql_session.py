"""What holds on each connection of the ledger, however it was made: isolation, durability, how long an answer may take.

The server is told its limits at the start of each transaction, which also holds
behind a pooler that gives each transaction another session. What the server
can't notice, a watch does: it ends the socket of a transaction that is overdue.
"""

import logging
import socket
import threading
import time
from collections.abc import Callable
from contextlib import closing
from functools import cache
from typing import Any, Final, Self

from sqlalchemy import event, exc
from sqlalchemy.engine import Connection, Engine

from airflow_provider_responsys.databases import socket_of
from airflow_provider_responsys.errors import LedgerUnreachable

IDLE: Final = 10
"""Seconds after which the server ends a transaction whose worker does nothing: it is frozen, and holds locks."""

LOCK_WAIT: Final = 15
"""Seconds to wait for a lock: longer than `IDLE`, so that a frozen worker stops no other one."""

STATEMENT: Final = 20
"""Seconds for one statement: longer than `LOCK_WAIT`, so that the server names the lock."""

TRANSACTION: Final = 30
"""Seconds for a transaction, after which its socket is ended here: longer than `STATEMENT`, so that a server that
still answers says what took so long."""

PING: Final = 5
"""Seconds for the question whether a connection that has idled still works: there is another one to be had."""

LONGEST: Final = "responsys_longest"
"""Execution option: seconds for a transaction, and for each of its statements, that has much to delete."""

READS: Final = "responsys_reads"
"""Execution option: whether a transaction only reads, so that it need not keep writers out of a file."""

KEEPALIVE: Final = {"TCP_KEEPIDLE": 5, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 20_000}
"""TCP: an address gone dark is noticed after 20 seconds, also while an answer is awaited. The last in milliseconds."""

LOCKED = frozenset({"55P03", 1205, "SQLITE_BUSY"})
"""What PostgreSQL, MySQL and SQLite call: another session held the lock for too long."""

TOO_LONG = frozenset({"57014", 1969, 3024})
"""PostgreSQL's, MariaDB's and MySQL's codes for: the statement took too long."""

IDLED = frozenset({"25P03"})
"""PostgreSQL's code for: the worker did nothing for too long within a transaction."""

log = logging.getLogger(__name__)


class Watch:
    """Ends the socket of *connection* unless `end` is called within *seconds*."""

    def __init__(self, connection: Any, seconds: float) -> None:
        self.cut = False
        self._began = time.monotonic()
        self._ended = False
        self._lock = threading.Lock()
        self._socket = socket_of(connection)
        self._timer = threading.Timer(seconds, self._overdue)
        self._timer.daemon = True
        if self._socket:
            self._timer.start()
        else:
            _warn(
                f"{type(connection).__module__} shows no socket: "
                "only the system's own limits end a wait for a silent database"
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    @property
    def age(self) -> float:
        """For how many seconds it has watched."""
        return time.monotonic() - self._began

    def end(self) -> None:
        """Watch no more."""
        self._timer.cancel()
        with self._lock:
            self._ended = True
            if self._socket:
                self._socket.close()

    def _overdue(self) -> None:
        with self._lock:
            if self._socket and not self._ended:
                self.cut = True
                self._socket.shutdown(socket.SHUT_RDWR)


def ready(engine: Engine) -> Engine:
    """Return *engine* as the ledger needs it: transactions lock early, are durable, and wait for nothing for long."""
    event.listen(engine, "handle_error", _name)
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _leave_transactions_to_us)
        event.listen(engine, "begin", _begin_immediately)
        return engine
    event.listen(engine, "connect", _connected)
    event.listen(engine, "checkout", _checks_of(engine))
    event.listen(engine, "checkin", _checked_in)
    if engine.dialect.name == "postgresql":
        event.listen(engine, "connect", _keep_no_statements)
        event.listen(engine, "begin", _begin_on_postgresql)
    else:
        event.listen(engine, "first_connect", _warn_of_risks)
        event.listen(engine, "begin", _begin_on_mysql)
    # MySQL's default would not see who won a claim meanwhile.
    return engine.execution_options(isolation_level="READ COMMITTED")


def keep_alive(connection: Any) -> None:
    """Let the system notice that the address at the other end of *connection* has gone dark."""
    if not (found := socket_of(connection)):
        return
    with found:
        if found.family not in {socket.AF_INET, socket.AF_INET6}:
            return
        found.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in KEEPALIVE.items():
            if hasattr(socket, option):  # not every system has each
                found.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


def _connected(connection: Any, record: Any) -> None:
    record.info["fresh"] = True
    keep_alive(connection)


def _checks_of(engine: Engine) -> Callable[[Any, Any, Any], None]:
    def check_out(connection: Any, record: Any, proxy: Any) -> None:  # noqa: ARG001 -- SQLAlchemy's signature
        if not record.info.pop("fresh", False):
            try:
                with Watch(connection, PING):
                    engine.dialect.do_ping(connection)
            except Exception as error:
                # SQLAlchemy then connects anew, as it does for what it asks itself.
                raise exc.InvalidatePoolError("the database closed an idle connection") from error
        _watch(record.info, connection, TRANSACTION)

    return check_out


def _watch(info: dict[Any, Any], connection: Any, seconds: float) -> None:
    """Watch *connection*, instead of what watches it already."""
    if earlier := info.get("watch"):
        earlier.end()
    info["watch"] = Watch(connection, seconds)


def _checked_in(connection: Any, record: Any) -> None:  # noqa: ARG001 -- SQLAlchemy's signature
    if watch := record.info.pop("watch", None):
        watch.end()


def _leave_transactions_to_us(connection: Any, record: object) -> None:  # noqa: ARG001 -- SQLAlchemy's signature
    """Keep Python's sqlite3 from beginning transactions late, where two writers would deadlock."""
    connection.isolation_level = None
    connection.execute(f"PRAGMA busy_timeout={LOCK_WAIT * 1000}")
    connection.execute("PRAGMA synchronous=FULL")


def _begin_immediately(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN" if connection.get_execution_options().get(READS) else "BEGIN IMMEDIATE")


def _keep_no_statements(connection: Any, record: object) -> None:  # noqa: ARG001 -- SQLAlchemy's signature
    """Keep psycopg 3 from remembering the last hundred statements: of claims, 300 kB each and no two the same."""
    if hasattr(connection, "prepare_threshold"):
        connection.prepare_threshold = None


def _begin_on_postgresql(connection: Connection) -> None:
    connection.exec_driver_sql(_postgresql_settings(_longest(connection)))


def _begin_on_mysql(connection: Connection) -> None:
    connection.exec_driver_sql(_mysql_settings(_longest(connection), is_mariadb=bool(connection.dialect.is_mariadb)))  # type: ignore[attr-defined]  # of MySQL's dialects


def _longest(connection: Connection) -> int:
    """Return how many seconds a statement of this transaction may take, and watch it accordingly."""
    asked = connection.get_execution_options().get(LONGEST)
    if asked is None:
        return STATEMENT
    _watch(connection.info, connection.connection.dbapi_connection, asked + TRANSACTION - STATEMENT)
    return int(asked)


@cache
def _postgresql_settings(longest: int) -> str:
    """Return the statement that sets what holds for one transaction; what is stricter already stays."""

    def at_most(name: str, seconds: int) -> str:
        now = f"current_setting('{name}')"
        strict = f"{now}::interval BETWEEN '1ms' AND '{seconds}s'"
        return f"set_config('{name}', CASE WHEN {strict} THEN {now} ELSE '{seconds}s' END, true)"

    now = "current_setting('synchronous_commit')"
    # With less, a claim that was acknowledged is lost when the server fails.
    durable = f"set_config('synchronous_commit', CASE WHEN {now} IN ('off', 'local') THEN 'on' ELSE {now} END, true)"
    limits = {"lock_timeout": LOCK_WAIT, "statement_timeout": longest, "idle_in_transaction_session_timeout": IDLE}
    return ", ".join([f"SELECT {durable}", *(at_most(name, seconds) for name, seconds in limits.items())])


@cache
def _mysql_settings(longest: int, *, is_mariadb: bool) -> str:
    """Return the statement that sets the limits of a session."""
    limits = {"innodb_lock_wait_timeout": LOCK_WAIT, "lock_wait_timeout": LOCK_WAIT}
    # MySQL limits only what reads, in milliseconds.
    limits |= (
        {"max_statement_time": longest, "idle_transaction_timeout": IDLE}
        if is_mariadb
        else {"max_execution_time": longest * 1000}
    )
    return "SET " + ", ".join(f"SESSION {name} = {value}" for name, value in limits.items())


def _warn_of_risks(connection: Any, record: object) -> None:  # noqa: ARG001 -- SQLAlchemy's signature
    """Say in one line what this MySQL may forget after it has acknowledged it."""
    try:
        with closing(connection.cursor()) as cursor:
            cursor.execute("SELECT @@GLOBAL.innodb_flush_log_at_trx_commit, @@GLOBAL.log_bin, @@GLOBAL.sync_binlog")
            [(flush, has_log, sync)] = cursor.fetchall()
    except Exception:  # noqa: BLE001 -- every driver has errors of its own
        _warn("could not read innodb_flush_log_at_trx_commit and sync_binlog, so how durable it is is not known")
        return
    risks = {
        f"innodb_flush_log_at_trx_commit = {flush}, so claims may be lost when its server fails": int(flush) in {0, 2},
        f"sync_binlog = {sync}, so a replica may lack claims when its server fails": bool(int(has_log))
        and int(sync) != 1,
    }
    if told := [risk for risk, is_taken in risks.items() if is_taken]:
        _warn(f"{'; '.join(told)}, and recipients pushed twice. Set each to 1")


def _name(context: Any) -> None:
    """Raise what a failure at a limit means."""
    error = context.original_exception
    watch: Watch | None = None
    if context.connection is not None and not context.connection.invalidated:
        watch = context.connection.info.get("watch")
    codes = {getattr(error, name, None) for name in ("sqlstate", "pgcode", "sqlite_errorname")}
    codes |= set(error.args[:1]) if error.args and isinstance(error.args[0], int) else set()
    told = f" for {watch.age:.0f} s" if watch else ""
    if watch and watch.cut:
        context.is_disconnect = True
        raise LedgerUnreachable(f"The ledger's database did not answer{told}, so the connection was closed")
    if not codes.isdisjoint(LOCKED):
        told = told or f" for {LOCK_WAIT} s"
        raise LedgerUnreachable(f"The ledger's database waited{told} for a lock that another session holds")
    if not codes.isdisjoint(TOO_LONG):
        raise LedgerUnreachable(
            f"The ledger's database worked{told} without finishing a statement, so it was cancelled"
        )
    if not codes.isdisjoint(IDLED):
        raise LedgerUnreachable(f"The ledger's database ended a transaction in which this worker stood still{told}")


@cache
def _warn(message: str) -> None:
    log.warning("The ledger's database: %s", message)
