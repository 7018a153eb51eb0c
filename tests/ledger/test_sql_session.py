import logging
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from sqlalchemy import create_engine
from sqlalchemy.engine import URL, Connection

from airflow_provider_responsys.errors import LedgerFailed
from airflow_provider_responsys.ledger import sql_session
from airflow_provider_responsys.ledger.sql_schema import Database
from tests.support.servers import Proxy

SLEEP = {"postgresql": "SELECT pg_sleep(30)", "mariadb": "SELECT SLEEP(30)"}


class Place:
    """A real database with a table of one row, and the ledger's way to it."""

    def __init__(self, url: URL, **connect: Any) -> None:
        self.url = url
        self.connect = connect
        self.database = Database(create_engine(url, connect_args=connect))

    @contextmanager
    def other(self) -> Iterator[Connection]:
        """Give a connection of another program."""
        engine = create_engine(self.url, connect_args=self.connect)
        with engine.connect() as connection, connection.begin():
            yield connection
        engine.dispose()

    def run(self, statement: str) -> Any:
        """Return the first column of *statement*'s first row, run in a transaction of the ledger's."""
        with self.database.transaction() as connection:
            result = connection.exec_driver_sql(statement)
            return result.scalar() if result.returns_rows else None


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Give what sets the limits of this test, in seconds."""

    def limits(**seconds: float) -> None:
        for name, value in seconds.items():
            monkeypatch.setattr(sql_session, name, value)
        forget()

    def forget() -> None:
        sql_session._postgresql_settings.cache_clear()
        sql_session._mysql_settings.cache_clear()
        sql_session._warn.cache_clear()

    forget()
    yield limits
    forget()


@pytest.fixture(params=["postgresql", "mariadb", "sqlite"])
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    """Give each database in turn, with the driver that the tests of ledgers use."""
    source = request.getfixturevalue(request.param)
    place = Place(source.url, **source.connect)
    with place.other() as connection:
        connection.exec_driver_sql("CREATE TABLE stalled (id INTEGER PRIMARY KEY, n INTEGER)")
        connection.exec_driver_sql("INSERT INTO stalled VALUES (1, 0)")
    yield place
    place.database.dispose()
    with place.other() as connection:
        connection.exec_driver_sql("DROP TABLE stalled")


on_servers = pytest.mark.parametrize("place", ["postgresql", "mariadb"], indirect=True)
on_postgresql = pytest.mark.parametrize("place", ["postgresql"], indirect=True)
on_mariadb = pytest.mark.parametrize("place", ["mariadb"], indirect=True)


@pytest.fixture(params=["postgresql+psycopg", "postgresql+psycopg2"])
def behind(request: pytest.FixtureRequest, proxy: Proxy, fresh_postgres: dict[str, Any]) -> Iterator[Place]:
    """Give a PostgreSQL behind the proxy, through each driver in turn."""
    url = URL.create(
        str(request.param),
        host="127.0.0.1",
        port=proxy.port,
        username=str(fresh_postgres["login"]),
        database=str(fresh_postgres["schema"]),
    )
    place = Place(url)
    yield place
    place.database.dispose()


def test_a_lock_is_not_waited_for_for_long(place: Place, limits: Callable[..., None]) -> None:
    """Another session that holds a row, and stands still, stops no send for long; the failure names the lock."""
    limits(LOCK_WAIT=1)

    with place.other() as other:
        other.exec_driver_sql("UPDATE stalled SET n = 1")
        with pytest.raises(LedgerFailed, match=r"waited for \d+ s for a lock that another session holds"):
            place.database.attempt(lambda connection: connection.exec_driver_sql("UPDATE stalled SET n = 2"))

    assert place.run("SELECT n FROM stalled") == 1


@on_servers
def test_a_statement_does_not_take_for_ever(
    place: Place, limits: Callable[..., None], request: pytest.FixtureRequest
) -> None:
    """The server cancels it, and the failure says for how long it worked."""
    limits(STATEMENT=1)

    with pytest.raises(LedgerFailed, match=r"worked for \d+ s without finishing a statement, so it was cancelled"):
        place.run(SLEEP[request.node.callspec.params["place"]])


@on_servers
def test_what_has_much_to_delete_says_so(place: Place, limits: Callable[..., None]) -> None:
    """Its statements may take longer, and so may its transaction."""
    limits(STATEMENT=1, TRANSACTION=1)
    sleep = "SELECT pg_sleep(3)" if "postgresql" in place.url.drivername else "SELECT SLEEP(3)"
    engine = place.database._engine.execution_options(**{sql_session.LONGEST: 60})

    with engine.begin() as connection:
        slept = connection.exec_driver_sql(sleep).scalar()

    assert slept in {"", 0}


@on_servers
def test_a_transaction_that_ended_is_watched_no_more(place: Place, limits: Callable[..., None]) -> None:
    """Its connection serves the next one, however long that is after."""
    limits(TRANSACTION=1)
    Database(place.database._engine)  # a second one on the same engine sets no second watch
    mine = {"postgresql": "pg_backend_pid()", "mysql": "CONNECTION_ID()"}[place.url.get_backend_name()]
    number = place.run(f"SELECT {mine}")

    time.sleep(2.0)

    assert place.run(f"SELECT {mine}") == number


@on_servers
def test_a_worker_that_stands_still_in_a_transaction(place: Place, limits: Callable[..., None]) -> None:
    """The server ends its transaction, so that its locks stop no other task."""
    limits(IDLE=1)

    def freeze(connection: Connection) -> None:
        connection.exec_driver_sql("UPDATE stalled SET n = 3")
        time.sleep(4.0)
        connection.exec_driver_sql("UPDATE stalled SET n = 4")

    with pytest.raises(LedgerFailed, match=r"stood still for \d+ s|Lost connection|gone away"):
        place.database.attempt(freeze)

    assert place.run("SELECT n FROM stalled") == 0


def test_an_address_that_falls_silent(behind: Place, proxy: Proxy, limits: Callable[..., None]) -> None:
    """Its kernel acknowledges and its server says nothing: the socket is ended here, and the failure says why."""
    limits(TRANSACTION=2)

    def work(connection: Connection) -> None:
        connection.exec_driver_sql("SELECT 1")
        proxy.silence()
        connection.exec_driver_sql("SELECT 2")

    with pytest.raises(LedgerFailed, match=r"did not answer for \d+ s, so the connection was closed"):
        behind.database.attempt(work)


def test_an_address_that_falls_silent_at_a_commit(behind: Place, proxy: Proxy, limits: Callable[..., None]) -> None:
    """What was not acknowledged does not count as done."""
    limits(TRANSACTION=2)

    def work(connection: Connection) -> None:
        connection.exec_driver_sql("CREATE TABLE new (id INTEGER)")
        proxy.silence()

    with pytest.raises(LedgerFailed, match=r"did not answer for \d+ s"):
        behind.database.attempt(work)


def test_a_connection_that_fell_silent_while_it_idled(behind: Place, proxy: Proxy, limits: Callable[..., None]) -> None:
    """It is asked before it is used, and replaced."""
    limits(PING=1)
    behind.run("SELECT 1")
    proxy.silence()

    assert behind.run("SELECT 2") == 2


@on_servers
def test_a_connection_that_was_closed_while_it_idled(place: Place) -> None:
    """It is replaced before anything is asked of it."""
    mine = {"postgresql": "pg_backend_pid()", "mysql": "CONNECTION_ID()"}[place.url.get_backend_name()]
    number = place.run(f"SELECT {mine}")
    with place.other() as other, suppress(Exception):
        other.exec_driver_sql(
            f"SELECT pg_terminate_backend({number})" if mine.startswith("pg") else f"KILL CONNECTION {number}"
        )

    assert place.run(f"SELECT {mine}") != number


def test_an_address_gone_dark_is_looked_for(behind: Place) -> None:
    """The system asks the other end of an idle connection, and gives up what is not acknowledged."""
    with behind.database.transaction() as connection:
        driver: Any = connection.connection.dbapi_connection
        with socket.fromfd(driver.fileno(), socket.AF_INET, socket.SOCK_STREAM) as found:
            keepalive = found.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            after = found.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE)
            unacknowledged = found.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)

    assert (keepalive, after, unacknowledged) == (1, 5, 20_000)


@on_postgresql
@pytest.mark.parametrize(
    ("given", "used"), [("off", "on"), ("local", "on"), ("on", "on"), ("remote_apply", "remote_apply")]
)
def test_a_claim_is_durable(place: Place, given: str, used: str) -> None:
    """A server or role that commits before its disk has it is overruled, one that demands more is not."""
    weak = Place(place.url, options=f"{place.connect['options']} -c synchronous_commit={given}")

    assert weak.run("SHOW synchronous_commit") == used
    weak.database.dispose()


@on_postgresql
def test_a_stricter_limit_stays(place: Place) -> None:
    """What the connection's extras ask for holds."""
    options = f"{place.connect['options']} -c lock_timeout=700 -c statement_timeout=1h"
    strict = Place(place.url, options=options)

    assert strict.run("SHOW lock_timeout") == "700ms"
    assert strict.run("SHOW statement_timeout") == f"{sql_session.STATEMENT}s"
    strict.database.dispose()


@on_mariadb
def test_what_mysql_may_forget_is_told_once(
    place: Place, limits: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    """One line names the setting and what it risks."""
    limits()
    with place.other() as other:
        other.exec_driver_sql("SET GLOBAL innodb_flush_log_at_trx_commit = 2")

    try:
        for _ in range(2):
            database = Database(create_engine(place.url, connect_args=place.connect))
            with database.transaction():
                pass
            database.dispose()
    finally:
        with place.other() as other:
            other.exec_driver_sql("SET GLOBAL innodb_flush_log_at_trx_commit = 1")

    [told] = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert told == (
        "The ledger's database: innodb_flush_log_at_trx_commit = 2, so claims may be lost when its server fails, and "
        "recipients pushed twice. Set each to 1"
    )


@on_mariadb
def test_a_mysql_that_forgets_nothing_is_not_warned_of(
    place: Place, limits: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    """Without a binary log, sync_binlog does not matter."""
    limits()

    place.run("SELECT 1")

    assert [record.message for record in caplog.records if record.levelno == logging.WARNING] == []


def test_a_driver_without_a_socket_is_told_once(limits: Callable[..., None], caplog: pytest.LogCaptureFixture) -> None:
    """A wait for a silent database has no limit of ours there."""
    limits()

    for _ in range(2):
        sql_session.Watch(object(), 60.0).end()

    [told] = [record.message for record in caplog.records]
    assert "shows no socket" in told


@pytest.mark.parametrize("place", ["sqlite"], indirect=True)
def test_how_long_sqlite_waits_for_another_writer(place: Place, limits: Callable[..., None]) -> None:
    """As long as the servers wait for a lock."""
    limits(LOCK_WAIT=7)

    assert place.run("PRAGMA busy_timeout") == 7_000
