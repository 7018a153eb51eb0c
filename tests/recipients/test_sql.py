import importlib
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.models.connection import Connection
from airflow.providers.postgres.hooks.postgres import PostgresHook
from airflow.providers.sqlite.hooks.sqlite import SqliteHook
from sqlalchemy.exc import NoSuchModuleError

from airflow_provider_responsys.errors import SourceFailed
from airflow_provider_responsys.recipients.sql import query

ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i AS riid FROM n"
PEOPLE = [(1, "Zoë", "50% off"), (2, "李", None), (3, "Ann", "")]

Parameters = dict[str, Any]


def driver_only(hook: Any, error: type[Exception]) -> Any:
    """Return *hook* as one for whose database SQLAlchemy has no dialect."""

    def refuse(*_: object) -> None:
        raise error

    hook.get_sqlalchemy_engine = refuse
    return hook


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


def postgres_hook(parameters: Parameters) -> PostgresHook:
    """Return Airflow's own hook of a PostgreSQL."""
    return PostgresHook(connection=Connection(conn_id="pg", conn_type="postgres", **parameters))


def psycopg2_hook(parameters: Parameters, **options: Any) -> Any:
    """Return a hook of nothing but a DB-API connection of psycopg2."""
    login = {"user": parameters["login"], "dbname": parameters["schema"], "host": parameters["host"]}
    driver = importlib.import_module("psycopg2")  # it comes with Airflow's provider and ships no types
    return SimpleNamespace(get_conn=lambda: driver.connect(**login, **options))


HOOKS = [
    "sqlite",
    "sqlite without a dialect",
    "postgres",
    "postgres without a dialect",
    "psycopg2",
    "psycopg2 with dictionaries",
]


@pytest.fixture(params=HOOKS)
def hook(request: pytest.FixtureRequest) -> Any:
    """Give each way to a database in turn, over the same table."""
    name = str(request.param)
    if name.startswith("sqlite"):
        source = request.getfixturevalue("sqlite")
        return source if name == "sqlite" else driver_only(source, NoSuchModuleError)
    parameters = request.getfixturevalue("database")
    match name:
        case "postgres":
            return postgres_hook(parameters)
        case "postgres without a dialect":
            return driver_only(postgres_hook(parameters), NotImplementedError)
        case "psycopg2":
            return psycopg2_hook(parameters)
        case _:
            extras = importlib.import_module("psycopg2.extras")
            return psycopg2_hook(parameters, cursor_factory=extras.RealDictCursor)


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


@pytest.mark.parametrize("kind", [tuple, list])
def test_parameters(hook: Any, read: Callable[..., list[Any]], kind: type) -> None:
    """They are marked as the driver wants it, and a list is one set of them."""
    mark = "?" if isinstance(hook, SqliteHook) else "%s"

    assert read(f"SELECT riid FROM people WHERE first_name = {mark} AND riid < {mark}", kind(["Ann", 9])) == [  # noqa: S608 -- the mark is ours
        (("riid",), [(3,)], True)
    ]


def test_named_parameters(hook: Any, read: Callable[..., list[Any]]) -> None:
    """A mapping works where the driver takes one."""
    mark = ":name" if isinstance(hook, SqliteHook) else "%(name)s"

    assert read(f"SELECT riid FROM people WHERE first_name = {mark}", {"name": "Ann"}) == [(("riid",), [(3,)], True)]  # noqa: S608 -- the mark is ours


def test_no_rows(read: Callable[..., list[Any]]) -> None:
    """Its columns come all the same, so that a wrong query is seen on an empty table."""
    assert read("SELECT riid FROM people WHERE riid > 9") == [(("riid",), [], True)]


def test_rows_are_streamed(hook: Any) -> None:
    """An endless query gives its first rows: neither the server nor the driver collects them all."""
    with query(hook, ENDLESS) as chunks:
        first = next(chunks)

    assert len(first.rows) == 2000


def test_a_missing_table(read: Callable[..., list[Any]]) -> None:
    """The table is named, in one sentence."""
    with pytest.raises(
        SourceFailed, match=r"^The query failed: \w+: [^.]*peopel[^.]*\.$|^The query broke off"
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


def test_a_statement_that_turns_out_to_have_no_rows(hook: Any) -> None:
    """There is more than a list of words can know."""
    sql = "PRAGMA user_version = 7" if isinstance(hook, SqliteHook) else "SET work_mem = '4MB'"

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


@pytest.mark.parametrize("hook", ["postgres", "postgres without a dialect"], indirect=True)
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


@pytest.mark.parametrize("hook", ["postgres", "postgres without a dialect", "psycopg2"], indirect=True)
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
