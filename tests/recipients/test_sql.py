import json
import logging
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pymysql
import pytest
from airflow.models.connection import Connection
from airflow.providers.postgres.hooks import postgres as postgres_hooks
from airflow.providers.postgres.hooks.postgres import PostgresHook
from airflow.providers.sqlite.hooks.sqlite import SqliteHook

from airflow_provider_responsys import databases
from airflow_provider_responsys.errors import SourceFailed
from airflow_provider_responsys.recipients.sql import query
from tests.support.servers import PlainServer

ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i AS riid FROM n"
ENDLESS_ON_MARIADB = "SELECT seq AS riid FROM seq_1_to_1000000000000"
PEOPLE = [(1, "Zoë", "50% off"), (2, "李", None), (3, "Ann", "")]

Parameters = dict[str, Any]


@pytest.fixture(scope="session")
def database(postgres: Parameters) -> Iterator[Parameters]:
    """Give a PostgreSQL database of our own."""
    parameters = {**postgres, "schema": "recipients"}
    hook = PostgresHook(connection=Connection(conn_id="pg", conn_type="postgres", **postgres))
    hook.run("CREATE DATABASE recipients", autocommit=True)
    source = PostgresHook(connection=Connection(conn_id="pg", conn_type="postgres", **parameters))
    with closing(source.get_conn()) as connection, connection.cursor() as cursor:
        cursor.execute("CREATE TABLE people (riid bigint, first_name text, offer text)")
        cursor.executemany("INSERT INTO people VALUES (%s, %s, %s)", PEOPLE)
        connection.commit()
    yield parameters
    hook.run("DROP DATABASE recipients WITH (FORCE)", autocommit=True)


@pytest.fixture
def sqlite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SqliteHook:
    """Give Airflow's own hook of a SQLite file."""
    path = tmp_path / "people.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE people (riid INTEGER, first_name TEXT, offer TEXT)")
        connection.executemany("INSERT INTO people VALUES (?, ?, ?)", PEOPLE)
        connection.commit()
    monkeypatch.setenv("AIRFLOW_CONN_PEOPLE", Connection(conn_type="sqlite", host=str(path)).as_json())
    return sqlite_hook("people")


def sqlite_hook(name: str) -> SqliteHook:
    """Return Airflow's own hook of a SQLite connection."""
    return SqliteHook(sqlite_conn_id=name)  # type: ignore[no-untyped-call]  # Airflow's constructor has no types


def postgres_hook(parameters: Parameters, **extra: Any) -> PostgresHook:
    """Return Airflow's own hook of a PostgreSQL."""
    return PostgresHook(
        connection=Connection(conn_id="pg", conn_type="postgres", extra=json.dumps(extra), **parameters)
    )


@pytest.fixture(scope="session")
def people_in_mariadb(mysql: Path) -> Iterator[dict[str, Any]]:
    """Give a MariaDB database of our own, as the arguments of its drivers."""
    login = {"unix_socket": str(mysql), "user": "root", "database": "recipients", "charset": "utf8mb4"}
    with closing(pymysql.connect(**{**login, "database": None})) as connection, connection.cursor() as cursor:
        cursor.execute("CREATE DATABASE recipients CHARACTER SET utf8mb4")
        cursor.execute("CREATE TABLE recipients.people (riid bigint, first_name text, offer text)")
        cursor.executemany("INSERT INTO recipients.people VALUES (%s, %s, %s)", PEOPLE)
        connection.commit()
    yield login
    with closing(pymysql.connect(**login)) as connection, connection.cursor() as cursor:
        cursor.execute("DROP DATABASE recipients")


def mysql_hook(mysql: Path, **extra: Any) -> Any:
    """Return Airflow's own hook of the MariaDB, where it is installed."""
    hooks = pytest.importorskip("airflow.providers.mysql.hooks.mysql", reason="no MySQL provider here")
    extras = json.dumps({"unix_socket": str(mysql), "charset": "utf8mb4", **extra})
    return hooks.MySqlHook(
        connection=Connection(
            conn_id="my", conn_type="mysql", host="localhost", login="root", schema="recipients", extra=extras
        )
    )


class Wrapped:
    """Looks like the connection of a driver that is not known here."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)


HOOKS = [
    "sqlite",
    "sqlite wrapped",
    "postgres",
    "postgres with dictionaries",
    "psycopg2",
    "psycopg2 with dictionaries",
    "pymysql",
    "mysqlclient",
    "mysqlclient with dictionaries",
]


@pytest.fixture(params=HOOKS)
def hook(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Give each way to a database in turn, over the same table."""
    kind, _, variant = str(request.param).partition(" ")
    extra = {"cursor": "dictcursor"} if variant == "with dictionaries" else {}
    match kind:
        case "sqlite":
            source = request.getfixturevalue("sqlite")
            return SimpleNamespace(get_conn=lambda: Wrapped(source.get_conn())) if variant else source
        case "pymysql":
            login = request.getfixturevalue("people_in_mariadb")
            return SimpleNamespace(get_conn=lambda: pymysql.connect(**login))
        case "mysqlclient":
            request.getfixturevalue("people_in_mariadb")
            return mysql_hook(request.getfixturevalue("mysql"), **extra)
        case _:
            monkeypatch.setattr(postgres_hooks, "USE_PSYCOPG3", kind == "postgres")
            return postgres_hook(request.getfixturevalue("database"), **extra)


@pytest.fixture
def kind(request: pytest.FixtureRequest) -> str:
    """Give the first word of the *hook* of this test."""
    return str(request.node.callspec.params["hook"]).partition(" ")[0]


@pytest.fixture
def endless(kind: str) -> str:
    """Give a query that does not end."""
    return ENDLESS_ON_MARIADB if "mysql" in kind else ENDLESS


@pytest.fixture
def read(hook: Any) -> Callable[..., list[Any]]:
    """Give what reads a query to its end, in chunks of two rows."""

    def read(sql: str, parameters: Any = None) -> list[Any]:
        with query(hook, sql, parameters, chunk_rows=2) as chunks:
            return [(chunk.columns, [tuple(row) for row in chunk.rows], chunk.is_table) for chunk in chunks]

    return read


def test_rows_come_in_chunks(read: Callable[..., list[Any]]) -> None:
    """In their order, as the driver gives them, each with the columns."""
    columns = ("riid", "first_name", "offer")

    assert read("SELECT * FROM people ORDER BY riid") == [
        (columns, PEOPLE[:2], True),
        (columns, PEOPLE[2:], True),
    ]


def test_a_percent_sign_is_one(read: Callable[..., list[Any]]) -> None:
    """Without parameters nothing in a statement marks one."""
    assert read("SELECT riid FROM people WHERE offer LIKE '50%'") == [(("riid",), [(1,)], True)]


@pytest.mark.parametrize("given", [tuple, list])
def test_parameters(kind: str, read: Callable[..., list[Any]], given: type) -> None:
    """They are marked as the driver wants it, and a list is one set of them."""
    mark = "?" if kind == "sqlite" else "%s"

    assert read(f"SELECT riid FROM people WHERE first_name = {mark} AND riid < {mark}", given(["Ann", 9])) == [  # noqa: S608 -- the mark is ours
        (("riid",), [(3,)], True)
    ]


def test_named_parameters(kind: str, read: Callable[..., list[Any]]) -> None:
    """A mapping works where the driver takes one."""
    mark = ":name" if kind == "sqlite" else "%(name)s"

    assert read(f"SELECT riid FROM people WHERE first_name = {mark}", {"name": "Ann"}) == [(("riid",), [(3,)], True)]  # noqa: S608 -- the mark is ours


def test_no_rows(read: Callable[..., list[Any]]) -> None:
    """Its columns come all the same, so that a wrong query is seen on an empty table."""
    assert read("SELECT riid FROM people WHERE riid > 9") == [(("riid",), [], True)]


def test_rows_are_streamed(hook: Any, endless: str) -> None:
    """An endless query gives its first rows, and can be left: neither the server nor the driver collects them all."""
    with query(hook, endless) as chunks:
        first = next(chunks)

    assert len(first.rows) == 2000


def test_a_missing_table(read: Callable[..., list[Any]]) -> None:
    """The reason is told in one sentence; the table is named where the driver quotes it as it was written."""
    with pytest.raises(
        SourceFailed,
        match=r"^The query failed: \w+: [^.]*(peopel[^.]*|Table '\*\*\*' doesn't exist)\.$|^The query broke off",
    ) as error:
        read("SELECT * FROM peopel")

    assert error.value.__suppress_context__


@pytest.mark.parametrize(
    "sql", ["UPDATE people SET riid = 0", "-- all\n /* of */ (delete FROM people", "DROP TABLE people"]
)
def test_a_statement_without_rows(hook: Any, read: Callable[..., list[Any]], sql: str) -> None:
    """It is refused, and changes nothing."""
    with pytest.raises(SourceFailed, match=r"and this statement starts with (UPDATE|DELETE|DROP)\.$"):
        read(sql)

    assert read("SELECT count(*) AS n FROM people WHERE riid > 0")[0][1] == [(3,)]


def test_columns_of_one_name(hook: Any) -> None:
    """Which of them was meant is not guessed."""
    with (
        pytest.raises(SourceFailed, match="Several columns of the query are named riid"),
        query(hook, "SELECT riid, riid FROM people") as chunks,
    ):
        next(chunks)


def test_a_statement_that_turns_out_to_have_no_rows(hook: Any, kind: str) -> None:
    """There is more than a list of words can know."""
    sql = {"sqlite": "PRAGMA user_version = 7", "postgres": "SET work_mem = '4MB'"}.get(kind, "SET @a = 1")

    with pytest.raises(SourceFailed), query(hook, sql) as chunks:
        next(chunks)


def test_no_statement(read: Callable[..., list[Any]]) -> None:
    """An empty template renders to nothing."""
    with pytest.raises(SourceFailed, match="no word"):
        read(" -- nothing")


def test_what_a_driver_says_of_cells_is_not_told(database: Parameters) -> None:
    """A conversion that fails names the cell, and a cell may be a person."""
    sql = "SELECT CAST(first_name AS integer) AS riid FROM people WHERE riid = 3"

    with (
        pytest.raises(
            SourceFailed, match=r'InvalidTextRepresentation: invalid input syntax for type integer: "\*\*\*"'
        ) as error,
        query(postgres_hook(database), sql) as chunks,
    ):
        list(chunks)

    assert "Ann" not in str(error.value)


@pytest.mark.parametrize("hook", ["postgres", "psycopg2"], indirect=True)
def test_a_connection_that_dies(hook: Any, database: Parameters) -> None:
    """How far it came is told."""
    with query(hook, ENDLESS, chunk_rows=10) as chunks:
        next(chunks)
        postgres_hook(database | {"schema": "postgres"}).run(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'recipients'"
        )

        with pytest.raises(SourceFailed, match=r"^The query broke off after [\d,]+ rows: \w+: "):
            for _ in chunks:
                pass


@pytest.mark.parametrize("host", ["/nowhere", "127.0.0.1"])
def test_a_database_that_is_not_there(host: str) -> None:
    """The connection is named; where it leads and as whom is not."""
    hook = postgres_hook({"host": host, "port": 1, "login": "bob", "password": "s3cret", "schema": "crm"})

    with (
        pytest.raises(SourceFailed, match=r"^The connection 'postgres_default' leads to no database: Op") as error,
        query(hook, "SELECT 1"),
    ):
        pass

    assert not [word for word in ("bob", "s3cret", "crm", host) if word in str(error.value)]
    assert error.value.__suppress_context__


def test_an_unknown_connection() -> None:
    """Airflow's own words say which."""
    with (
        pytest.raises(SourceFailed, match="The connection 'nowhere' leads to no database: "),
        query(sqlite_hook("nowhere"), "SELECT 1"),
    ):
        pass


@pytest.mark.parametrize("hook", ["postgres", "psycopg2"], indirect=True)
def test_the_connection_is_closed_on_leaving(hook: Any, database: Parameters) -> None:
    """No cursor is held open for the length of a send, even if the rest was not read."""
    with query(hook, ENDLESS) as chunks:
        next(chunks)

    watcher = postgres_hook(database | {"schema": "postgres"})
    count = "SELECT count(*) FROM pg_stat_activity WHERE datname = 'recipients'"
    for _ in range(100):  # the server's process ends a moment after the connection
        if watcher.get_first(count) == (0,):
            break
        time.sleep(0.05)
    else:
        pytest.fail("the connection is still open")


@pytest.mark.parametrize(
    ("told", "shown"),
    [
        ("could not reach mysql://bob:pw@db.internal/crm", "Exception: could not reach ***"),
        ("bad dsn user=bob password = pw host=db", "Exception: bad dsn *** *** host=db"),
        ("no such person: ann@example.com (15551234567)", "Exception: no such person: *** (***)"),
        ("Can't find 'Ann' in \"people\"", "Exception: Can't find '***' in \"people\""),
        ("one line.\nDETAIL: Ann", "Exception: one line"),
        ("x" * 500, "Exception: " + "x" * 200),
        ("", "Exception"),
    ],
)
def test_what_a_driver_says(told: str, shown: str) -> None:
    """Its reason is kept; logins, addresses and what the author did not write are not."""

    def refuse() -> None:
        raise Exception(told)  # noqa: TRY002 -- any driver, any error

    hook = SimpleNamespace(get_conn=refuse, conn_name_attr="conn_id", conn_id="people")

    with pytest.raises(SourceFailed) as error, query(hook, "SELECT 1"):
        pass

    assert str(error.value) == f"The connection 'people' leads to no database: {shown}."


@pytest.mark.usefixtures("either_psycopg")
def test_extras_choose_whom_a_query_sees(database: Parameters) -> None:
    """A search path leads to another table of the same name: those who opted in, not all."""
    with closing(postgres_hook(database).get_conn()) as connection, connection.cursor() as cursor:
        cursor.execute("CREATE SCHEMA IF NOT EXISTS opted_in")
        cursor.execute("CREATE TABLE IF NOT EXISTS opted_in.people AS SELECT * FROM public.people WHERE riid = 3")
        connection.commit()
    hook = postgres_hook(database, options="-c search_path=opted_in")

    with query(hook, "SELECT riid FROM people") as chunks:
        rows = [tuple(row) for chunk in chunks for row in chunk.rows]

    assert rows == [(3,)]


@pytest.mark.usefixtures("either_psycopg")
def test_extras_that_the_server_can_not_meet(plain_server: PlainServer) -> None:
    """No password goes to a server that refuses the TLS which the connection demands."""
    hook = postgres_hook(plain_server.login, sslmode="verify-full", sslrootcert="system")

    with pytest.raises(SourceFailed, match=r"leads to no database: OperationalError: .*SSL"), query(hook, "SELECT 1"):
        pass

    assert plain_server.passwords == []


def test_an_extra_that_would_not_reach_the_driver(database: Parameters) -> None:
    """It is refused: what it demands may be TLS."""
    hook = postgres_hook(database, sqlalchemy_query={"sslmode": "verify-full"})

    with pytest.raises(SourceFailed, match="its extra sqlalchemy_query does not reach"), query(hook, "SELECT 1"):
        pass


@pytest.mark.usefixtures("either_psycopg")
def test_a_password_in_clear_is_seen(plain_server: PlainServer) -> None:
    """The test itself: where TLS is not demanded, the server gets the password."""
    hook = postgres_hook(plain_server.login)

    with pytest.raises(SourceFailed), query(hook, "SELECT 1"):
        pass

    assert plain_server.passwords == ["s3cret"]


@pytest.mark.usefixtures("either_psycopg")
def test_extras_say_how_long_to_wait(silent_address: int) -> None:
    """An address that accepts and says nothing is given up after connect_timeout."""
    login = {"host": "127.0.0.1", "port": silent_address, "login": "bob", "schema": "crm"}

    with (
        pytest.raises(SourceFailed, match=r"leads to no database: .*time(d )?out"),
        query(postgres_hook(login, connect_timeout=2), "SELECT 1"),
    ):
        pass


def test_a_driver_that_may_not_stream_is_named_once(sqlite: SqliteHook, caplog: pytest.LogCaptureFixture) -> None:
    """Memory is the price, so the log says which driver."""
    databases._warn_of.cache_clear()
    hook = SimpleNamespace(get_conn=lambda: Wrapped(sqlite.get_conn()))

    for _ in range(2):
        with query(hook, "SELECT riid FROM people") as chunks, caplog.at_level(logging.WARNING):
            list(chunks)

    assert len([record for record in caplog.records if "streams the rows" in record.message]) == 1


@pytest.mark.usefixtures("either_psycopg")
def test_a_connection_that_commits_by_itself_streams_as_well(database: Parameters) -> None:
    """A cursor on the server needs a transaction, so one is begun."""
    hook = postgres_hook(database)
    connection = hook.get_conn()
    connection.autocommit = True  # type: ignore[attr-defined]  # both drivers have it

    with query(SimpleNamespace(get_conn=lambda: connection), ENDLESS) as chunks:
        first = next(chunks)

    assert len(first.rows) == 2000


@pytest.mark.usefixtures("either_psycopg")
def test_the_values_of_postgresql(database: Parameters) -> None:
    """They come as the driver makes them."""
    sql = """SELECT 1.50::numeric AS a, 'c0ffee00-0000-4000-8000-000000000000'::uuid AS b, '\\x00ff'::bytea AS c,
        '2026-11-24 08:30+00'::timestamptz AS d, true AS e, '{"a": 1}'::jsonb AS f, ARRAY[1, 2] AS g, 1.5::real AS h"""

    with query(postgres_hook(database), sql) as chunks:
        [chunk] = chunks
    row: Any = chunk.rows[0]
    number, uuid, raw, moment, *others = row

    assert (number, str(uuid), bytes(raw)) == (Decimal("1.50"), "c0ffee00-0000-4000-8000-000000000000", b"\x00\xff")
    assert moment.astimezone(UTC) == datetime(2026, 11, 24, 8, 30, tzinfo=UTC)
    assert others == [True, {"a": 1}, [1, 2], 1.5]
