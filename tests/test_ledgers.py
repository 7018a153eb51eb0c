import json
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import certifi
import pytest
from airflow.providers.sqlite.hooks.sqlite import SqliteHook
from sqlalchemy import select, text

from airflow_provider_responsys.errors import InvalidSettings, LedgerFailed, LedgerUnreachable
from airflow_provider_responsys.ledger import sql_engine
from airflow_provider_responsys.ledger.sql_engine import hook_engine, within
from airflow_provider_responsys.ledger.sql_schema import Database
from airflow_provider_responsys.ledger.sql_tables import ledger_table
from airflow_provider_responsys.ledgers import ledger_engine
from tests.support.servers import PlainServer, Proxy

NOW = datetime(2026, 11, 24, 8, 30, tzinfo=UTC)

Connect = Callable[..., Database]


@pytest.fixture
def connect(monkeypatch: pytest.MonkeyPatch) -> Iterator[Connect]:
    """Give what opens the ledger of an Airflow connection, whose extras are given as well."""
    opened: list[Database] = []

    def connect(conn_type: str, login: dict[str, Any], **extra: Any) -> Database:
        connection = {"conn_type": conn_type, **login, "extra": extra}
        monkeypatch.setenv("AIRFLOW_CONN_LEDGER", json.dumps(connection))
        opened.append(Database(ledger_engine("ledger")))
        return opened[-1]

    yield connect
    for database in opened:
        database.dispose()


@pytest.fixture
def mariadb(mysql: Path) -> Iterator[dict[str, Any]]:
    """Give an empty database of a real MariaDB, where Airflow's MySQL provider is installed."""
    hooks = pytest.importorskip("airflow.providers.mysql.hooks.mysql", reason="no MySQL provider here")
    import pymysql  # noqa: PLC0415 -- only these tests need it

    assert hooks
    name = f"s{uuid4().hex}"
    with pymysql.connect(unix_socket=str(mysql), user="root") as connection, connection.cursor() as cursor:
        cursor.execute(f"CREATE DATABASE {name}")
        proxy = Proxy(str(mysql))  # one of its clients knows no socket files
        yield {"host": "127.0.0.1", "port": proxy.port, "login": "root", "schema": name}
        proxy.close()
        cursor.execute(f"DROP DATABASE {name}")


def holds(database: Database) -> bool:
    """Make the tables, and tell whether a transaction that fails leaves nothing behind."""
    key = database.prepare(NOW)
    with suppress(ZeroDivisionError), database.transaction() as connection:
        connection.execute(ledger_table.update().values(version=99))
        raise ZeroDivisionError
    with database.transaction() as connection:
        version, kept = connection.execute(select(ledger_table.c.version, ledger_table.c.fingerprint_key)).one()
    return version != 99 and bytes.fromhex(kept) == key


@pytest.mark.usefixtures("either_psycopg")
@pytest.mark.parametrize("extra", [{}, {"cursor": "dictcursor"}, {"cursor": "namedtuplecursor"}])
def test_postgresql(connect: Connect, fresh_postgres: dict[str, Any], extra: dict[str, Any]) -> None:
    """The ledger is kept through either driver, whatever rows the connection asks for."""
    assert holds(connect("postgres", fresh_postgres, **extra))


def test_a_connection_that_commits_by_itself(connect: Connect, fresh_postgres: dict[str, Any]) -> None:
    """The ledger's transactions are transactions all the same."""
    assert holds(connect("postgres", fresh_postgres, autocommit=True))


@pytest.mark.usefixtures("either_psycopg")
def test_extras_lead_to_the_schema(connect: Connect, fresh_postgres: dict[str, Any]) -> None:
    """The tables are where the search path of the connection's extras says."""
    with connect("postgres", fresh_postgres).transaction() as connection:
        connection.execute(text("CREATE SCHEMA pushes"))

    database = connect("postgres", fresh_postgres, options="-c search_path=pushes")
    database.prepare(NOW)

    with database.transaction() as connection:
        schemas = connection.execute(
            text("SELECT schemaname FROM pg_tables WHERE tablename = 'responsys_ledger'")
        ).scalars()
        assert list(schemas) == ["pushes"]


@pytest.mark.usefixtures("either_psycopg")
def test_extras_that_the_server_can_not_meet(connect: Connect, plain_server: PlainServer) -> None:
    """No password goes to a server that refuses the TLS which the connection demands."""
    database = connect("postgres", plain_server.login, sslmode="verify-full", sslrootcert="system")

    with pytest.raises(LedgerFailed, match="SSL"):
        database.prepare(NOW)

    assert plain_server.passwords == []


@pytest.mark.usefixtures("either_psycopg")
def test_extras_say_how_long_to_wait(connect: Connect, silent_address: int) -> None:
    """An address that accepts and says nothing is given up after connect_timeout."""
    login = {"host": "127.0.0.1", "port": silent_address, "login": "bob", "schema": "crm"}
    database = connect("postgres", login, connect_timeout=2)

    with pytest.raises(LedgerFailed, match=r"time(d )?out"):
        database.prepare(NOW)


@pytest.mark.usefixtures("either_psycopg")
def test_an_address_that_says_nothing(connect: Connect, silent_address: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a connect_timeout there is a limit of ours, whatever the driver's."""
    monkeypatch.setattr(sql_engine, "CONNECT", 0.5)
    database = connect("postgres", {"host": "127.0.0.1", "port": silent_address, "login": "bob", "schema": "crm"})

    with pytest.raises(LedgerUnreachable, match="took no connection for 0 s"):
        database.prepare(NOW)


def test_a_connection_that_comes_too_late_is_closed() -> None:
    """It would be held open for as long as the worker lives."""
    may_answer, closed = threading.Event(), threading.Event()

    def connect() -> Any:
        assert may_answer.wait(60.0)
        return SimpleNamespace(close=closed.set)

    with pytest.raises(LedgerFailed):
        within(0.1, connect)
    may_answer.set()

    assert closed.wait(60.0)


@pytest.mark.parametrize(
    "extra",
    [
        {},
        {"cursor": "sscursor"},
        {"cursor": "ssdictcursor"},
        {"ssl": {"ca": certifi.where()}},
        {"client": "mysql-connector-python"},
    ],
    ids=str,
)
def test_mariadb(connect: Connect, mariadb: dict[str, Any], extra: dict[str, Any]) -> None:
    """The ledger is kept through the drivers that Airflow's hook connects with."""
    assert holds(connect("mysql", mariadb, **extra))


def test_a_client_that_airflow_can_not_connect_with(connect: Connect, mariadb: dict[str, Any]) -> None:
    """Airflow's MySQL hook has an address for it, and no connection."""
    database = connect("mysql", mariadb, client="pymysql")

    with pytest.raises(InvalidSettings, match=r"connection 'ledger' leads to no database: ValueError: .*client"):
        database.prepare(NOW)


def test_sqlite_in_any_thread(connect: Connect, tmp_path: Path) -> None:
    """A connection of sqlite3 stays in its thread, so each transaction has its own."""
    database = connect("sqlite", {"host": str(tmp_path / "ledger.db")})
    held = [holds(database)]

    other = threading.Thread(target=lambda: held.append(holds(database)))
    other.start()
    other.join()

    assert held == [True, True]


def test_sqlite_that_may_only_be_read(connect: Connect, tmp_path: Path) -> None:
    """What the extras say of a file holds, too."""
    path = tmp_path / "ledger.db"
    connect("sqlite", {"host": str(path)}).prepare(NOW)
    database = connect("sqlite", {"host": str(path)}, mode="ro")

    with pytest.raises(LedgerFailed, match="readonly"), database.transaction() as connection:
        connection.execute(ledger_table.delete())


def test_sqlite_in_a_folder_that_is_not_there(connect: Connect, tmp_path: Path) -> None:
    """The path is wrong, and stays so."""
    database = connect("sqlite", {"host": str(tmp_path / "missing" / "ledger.db")}, timeout=5)

    with pytest.raises(LedgerFailed, match="unable to open") as raised:
        database.prepare(NOW)

    assert not isinstance(raised.value, LedgerUnreachable)


def test_the_connection_is_looked_up_once(connect: Connect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Later connections are opened in threads where Airflow may answer no look-up."""
    database = connect("sqlite", {"host": str(tmp_path / "ledger.db")})
    monkeypatch.delenv("AIRFLOW_CONN_LEDGER")

    assert holds(database)


def test_a_connection_that_is_no_database(connect: Connect) -> None:
    """The error says which connections can be the ledger."""
    with pytest.raises(InvalidSettings, match=r"'ledger' can't be the ledger: .* Use a SQLite, PostgreSQL or MySQL"):
        connect("http", {"host": "127.0.0.1"})


def test_extras_that_name_another_driver(connect: Connect, fresh_postgres: dict[str, Any]) -> None:
    """SQLAlchemy would speak to one driver as to another."""
    database = connect("postgres", fresh_postgres, sqlalchemy_scheme="postgresql+psycopg2")

    with pytest.raises(
        InvalidSettings, match=r"connects with psycopg, and names postgresql.psycopg2 .*sqlalchemy_scheme"
    ):
        database.prepare(NOW)


def test_an_extra_that_would_not_reach_the_driver(connect: Connect, fresh_postgres: dict[str, Any]) -> None:
    """It is refused: what it demands may be TLS."""
    with pytest.raises(InvalidSettings, match="'ledger' can't be the ledger: its extra sqlalchemy_query"):
        connect("postgres", fresh_postgres, sqlalchemy_query={"sslmode": "verify-full"})


def test_a_connection_in_a_wrapper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What wraps a connection may not be what SQLAlchemy takes it for."""
    monkeypatch.setenv("AIRFLOW_CONN_FILE", json.dumps({"conn_type": "sqlite", "host": str(tmp_path / "ledger.db")}))
    hook: Any = SqliteHook(sqlite_conn_id="file")  # type: ignore[no-untyped-call]  # Airflow's constructor has no types
    hook.get_conn = lambda: SimpleNamespace(close=lambda: None)
    database = Database(hook_engine(hook, "file", None))

    with pytest.raises(InvalidSettings, match="'file' can't be the ledger: its hook connects with types"):
        database.prepare(NOW)
