import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pymysql
import pytest
from sqlalchemy import create_engine
from sqlalchemy.engine import URL, Connection

from airflow_provider_responsys.databases import is_permanent
from airflow_provider_responsys.errors import LedgerFailed, LedgerUnreachable
from airflow_provider_responsys.ledger import sql_session
from airflow_provider_responsys.ledger.sql_schema import Database
from tests.support.places import SqlPlace
from tests.support.servers import Proxy

Failure = Callable[..., LedgerFailed]

SERVERS = ["postgresql", "mariadb"]
BOTH_PSYCOPGS = pytest.mark.parametrize("driver", ["postgresql+psycopg", "postgresql+psycopg2"])


@contextmanager
def session(place: SqlPlace) -> Iterator[Connection]:
    """Give a transaction of another program."""
    engine = create_engine(place.url, connect_args=place.connect)
    with engine.begin() as connection:
        yield connection
    engine.dispose()


@pytest.fixture
def failure() -> Iterator[Failure]:
    """Give what returns how a statement of the ledger's fails; the database is empty but for a table with a row."""
    opened: list[Database] = []

    def failure(url: URL, statement: str = "SELECT 1", **connect: Any) -> LedgerFailed:
        database = Database(create_engine(url, connect_args=connect))
        opened.append(database)
        with pytest.raises(LedgerFailed) as raised, database.transaction() as connection:
            connection.exec_driver_sql(statement)
        return raised.value

    yield failure
    for database in opened:
        database.dispose()


@pytest.fixture(params=["postgresql", "mariadb", "sqlite"])
def place(request: pytest.FixtureRequest) -> SqlPlace:
    """Give each database in turn, with a table."""
    place: SqlPlace = request.getfixturevalue(request.param)
    with session(place) as connection:
        connection.exec_driver_sql("CREATE TABLE kept (id INTEGER PRIMARY KEY)")
    return place


@pytest.fixture
def stranger(request: pytest.FixtureRequest, place: SqlPlace) -> Iterator[URL]:
    """Give the URL of a login that may connect, and has no other right."""
    name = f"u{uuid4().hex[:12]}"
    postgres = place.url.get_backend_name() == "postgresql"
    schema = place.connect["options"].partition("=")[2] if postgres else place.url.database
    login = name if postgres else f"{name}@localhost"
    make = (
        [f"CREATE ROLE {name} LOGIN", f"GRANT USAGE ON SCHEMA {schema} TO {name}"]
        if postgres
        else [f"CREATE USER {login}", f"GRANT INSERT ON {schema}.kept TO {login}"]
    )
    with session(place) as connection:
        for statement in make:
            connection.exec_driver_sql(statement)
    yield place.url.set(username=name)
    with session(place) as connection:
        if postgres:
            connection.exec_driver_sql(f"DROP OWNED BY {name}")
        connection.exec_driver_sql(f"DROP {'ROLE' if postgres else 'USER'} {login}")


@pytest.mark.parametrize(
    "statement", ["SELECT id FROM lost", "SELECT lost FROM kept", "INSERT INTO kept (lost) VALUES (1)"]
)
def test_a_table_or_column_that_is_not_there(place: SqlPlace, failure: Failure, statement: str) -> None:
    """It will not be there the next time either."""
    assert type(failure(place.url, statement, **place.connect)) is LedgerFailed


@pytest.mark.parametrize("place", SERVERS, indirect=True)
def test_a_value_that_does_not_fit(place: SqlPlace, failure: Failure) -> None:
    """The same value will not fit the next time."""
    assert type(failure(place.url, "INSERT INTO kept VALUES (99999999999)", **place.connect)) is LedgerFailed


@pytest.mark.parametrize("place", SERVERS, indirect=True)
def test_a_login_without_the_right_to_read(place: SqlPlace, stranger: URL, failure: Failure) -> None:
    """A grant that is missing is for a person to make."""
    assert type(failure(stranger, "SELECT id FROM kept", **place.connect)) is LedgerFailed


@BOTH_PSYCOPGS
def test_a_login_that_postgresql_refuses(postgresql: SqlPlace, failure: Failure, driver: str) -> None:
    """Its client library tells it by its message alone."""
    unknown = postgresql.url.set(drivername=driver, username="unknown")
    no_database = postgresql.url.set(drivername=driver, database="unknown")

    failures = [failure(unknown), failure(no_database)]

    assert [type(found) for found in failures] == [LedgerFailed, LedgerFailed]


def test_a_login_that_mariadb_refuses(mariadb: SqlPlace, failure: Failure) -> None:
    """So does a database that is not there."""
    failures = [failure(mariadb.url.set(username="unknown")), failure(mariadb.url.set(database="unknown"))]

    assert [type(found) for found in failures] == [LedgerFailed, LedgerFailed]


@pytest.mark.parametrize("place", SERVERS, indirect=True)
def test_a_server_that_is_only_read(place: SqlPlace, failure: Failure) -> None:
    """The connection leads to a replica."""
    connect = dict(place.connect)
    if place.url.get_backend_name() == "postgresql":
        connect["options"] += " -c default_transaction_read_only=on"
    else:
        connect["init_command"] = "SET SESSION TRANSACTION READ ONLY"

    assert type(failure(place.url, "INSERT INTO kept VALUES (1)", **connect)) is LedgerFailed


@pytest.mark.parametrize("place", ["sqlite"], indirect=True)
def test_a_file_that_is_only_read(place: SqlPlace, failure: Failure) -> None:
    """What the connection's extras say of it is for a person to change."""
    read_only = URL.create("sqlite", database=f"file:{place.url.database}", query={"mode": "ro", "uri": "true"})

    assert type(failure(read_only, "INSERT INTO kept VALUES (1)")) is LedgerFailed


def test_a_file_that_is_no_database(tmp_path: Path, failure: Failure) -> None:
    """It becomes none by itself."""
    path = tmp_path / "letter.txt"
    path.write_text("Dear all,\n" * 1_000)

    assert type(failure(URL.create("sqlite", database=str(path)))) is LedgerFailed


def test_a_file_that_can_not_be_opened(tmp_path: Path, failure: Failure) -> None:
    """Where its folder is missing, the path is wrong; where that is there, too many files may be open."""
    missing = failure(URL.create("sqlite", database=str(tmp_path / "missing" / "ledger.db")))
    folder = failure(URL.create("sqlite", database=str(tmp_path)))

    assert type(missing) is LedgerFailed
    assert type(folder) is LedgerUnreachable


@BOTH_PSYCOPGS
def test_an_address_where_nothing_listens(proxy: Proxy, failure: Failure, driver: str) -> None:
    """A server that restarts looks like that."""
    proxy.close()
    url = URL.create(driver, host="127.0.0.1", port=proxy.port, username="postgres", database="postgres")

    assert isinstance(failure(url), LedgerUnreachable)


def test_an_address_where_no_mysql_listens(proxy: Proxy, failure: Failure) -> None:
    """A server that restarts looks like that."""
    proxy.close()
    url = URL.create("mysql+pymysql", host="127.0.0.1", port=proxy.port, username="root", database="crm")

    assert isinstance(failure(url), LedgerUnreachable)


@BOTH_PSYCOPGS
def test_servers_of_which_one_may_come_back(postgresql: SqlPlace, proxy: Proxy, failure: Failure, driver: str) -> None:
    """Where one address refuses the login, and another does not answer, that one may let it in."""
    proxy.close()
    hosts = {
        "host": f"127.0.0.1,{postgresql.url.query['host']}",
        "port": f"{proxy.port},{postgresql.url.query['port']}",
    }
    url = URL.create(driver, query=hosts, username="unknown", database="postgres")

    assert isinstance(failure(url), LedgerUnreachable)


@BOTH_PSYCOPGS
def test_a_server_with_too_many_connections(postgresql: SqlPlace, failure: Failure, driver: str) -> None:
    """Some of them end."""
    name = f"u{uuid4().hex[:12]}"
    with session(postgresql) as connection:
        connection.exec_driver_sql(f"CREATE ROLE {name} LOGIN CONNECTION LIMIT 0")

    found = failure(postgresql.url.set(drivername=driver, username=name))

    with session(postgresql) as connection:
        connection.exec_driver_sql(f"DROP ROLE {name}")
    assert isinstance(found, LedgerUnreachable)


def test_a_mysql_with_too_many_connections_of_a_user(mariadb: SqlPlace, failure: Failure) -> None:
    """Its SQLSTATE is that of a missing right, its number is not."""
    name = f"u{uuid4().hex[:12]}@localhost"
    with session(mariadb) as connection:
        connection.exec_driver_sql(f"CREATE USER {name} WITH MAX_USER_CONNECTIONS 1")
        connection.exec_driver_sql(f"GRANT ALL ON {mariadb.url.database}.* TO {name}")

    url = mariadb.url.set(username=name.partition("@")[0])
    with session(SqlPlace(url)):
        found = failure(url)

    with session(mariadb) as connection:
        connection.exec_driver_sql(f"DROP USER {name}")
    assert "1226" in str(found)
    assert isinstance(found, LedgerUnreachable)


@pytest.mark.parametrize("place", SERVERS, indirect=True)
def test_a_session_that_the_server_ends(place: SqlPlace) -> None:
    """The next one is another."""
    ended = {"postgresql": "pg_terminate_backend(pg_backend_pid())", "mysql": "CONNECTION_ID()"}
    database = Database(create_engine(place.url, connect_args=place.connect))

    def work(connection: Connection) -> None:
        found = connection.exec_driver_sql(f"SELECT {ended[place.url.get_backend_name()]}").scalar()
        connection.exec_driver_sql(f"KILL CONNECTION {found}")

    with pytest.raises(LedgerUnreachable):
        database.attempt(work)
    database.dispose()


def test_a_lock_that_another_session_holds(place: SqlPlace, failure: Failure, monkeypatch: pytest.MonkeyPatch) -> None:
    """It will let go of it."""
    monkeypatch.setattr(sql_session, "LOCK_WAIT", 1)
    sql_session._postgresql_settings.cache_clear()
    sql_session._mysql_settings.cache_clear()

    with session(place) as other:
        other.exec_driver_sql("INSERT INTO kept VALUES (1)")
        found = failure(place.url, "INSERT INTO kept VALUES (1)", **place.connect)

    sql_session._postgresql_settings.cache_clear()
    sql_session._mysql_settings.cache_clear()
    assert "lock that another session holds" in str(found)
    assert isinstance(found, LedgerUnreachable)


@pytest.mark.parametrize(
    "error",
    [
        OSError(111, "Connection refused"),
        sqlite3.OperationalError("disk I/O error"),
        psycopg.OperationalError("the connection is lost"),
        pymysql.err.OperationalError(2013, "Lost connection to MySQL server during query"),
        pymysql.err.InterfaceError(0, ""),
        Exception(),
    ],
    ids=repr,
)
def test_what_is_not_known_may_pass(error: Exception) -> None:
    """A wait that goes on too long does less harm than one that ends for good."""
    assert not is_permanent(error)
