"""What the drivers of databases differ in: streaming, the form of rows, and the socket."""

import logging
import os
import socket
from contextlib import suppress
from functools import cache
from importlib import import_module
from typing import Any, Final, TypeAlias

Connection: TypeAlias = Any
"""What a hook's ``get_conn`` returns: a DB-API connection, of any driver."""

DRIVERS: Final = ("sqlite3", "psycopg", "psycopg2", "MySQLdb", "pymysql", "mysql")
"""Those that are known here, by the package that their connections come from."""

CURSOR_NAME = "responsys"

URL_ONLY = "sqlalchemy_query"
"""The extra that Airflow's hooks put into SQLAlchemy's address, and not into the connections that they make."""

MISPLACED = f"its extra {URL_ONLY} does not reach the driver: put what it holds into the extras themselves"

REFUSED_CLASSES: Final = ("28", "3D", "42")
REFUSED_STATES: Final = ("25006",)
"""SQLSTATEs of a login that is refused, a database that does not exist, a statement that is wrong or not allowed, and
a database that may only be read."""

REFUSED_NUMBERS: Final = frozenset({1044, 1045, 1049, 1054, 1142, 1143, 1146, 1290, 1836})
"""The same, by the numbers of MySQL and MariaDB."""

REFUSED_WORDS: Final = ("no such table", "no such column", "readonly database", "not a database")
"""The same, in SQLite's words: it has few codes."""

log = logging.getLogger(__name__)


def is_misplaced(hook: Any) -> bool:
    """Return whether extras of *hook*'s connection would be ignored: they may demand TLS, or choose a schema."""
    return bool((getattr(hook, "connection_extra", None) or {}).get(URL_ONLY))


def driver_of(connection: Connection) -> str:
    """Return the package that *connection* comes from; a subclass of a known driver's is of that driver."""
    packages = [kind.__module__.partition(".")[0] for kind in type(connection).__mro__]
    return next((package for package in packages if package in DRIVERS), packages[0])


def is_refusal(error: BaseException) -> bool:
    """Return whether a driver's *error* says no, as it would later, too; otherwise it may pass."""
    state = str(getattr(error, "sqlstate", None) or getattr(error, "pgcode", None) or "")
    if state and (state[:2] in REFUSED_CLASSES or state in REFUSED_STATES):
        return True
    first = next(iter(error.args), None)
    if isinstance(first, int):
        return first in REFUSED_NUMBERS
    return isinstance(first, str) and any(words in first for words in REFUSED_WORDS)


def streaming_cursor(connection: Connection) -> Any:
    """Return a cursor that fetches its rows as they are asked for; log once where the driver may have none."""
    driver = driver_of(connection)
    match driver:
        case "psycopg" | "psycopg2":
            if connection.autocommit:  # a cursor on the server lives in a transaction
                connection.autocommit = False
            # Only a cursor with a name stays on the server; one without brings all rows over at once.
            return connection.cursor(name=CURSOR_NAME)
        case "MySQLdb" | "pymysql":
            return connection.cursor(import_module(f"{driver}.cursors").SSCursor)
        case "sqlite3" | "mysql":  # they stream by themselves
            return connection.cursor()
        case _:
            _warn_of(driver)
            return connection.cursor()


def use_plain_rows(connection: Connection) -> None:
    """Let the cursors of *connection* return tuples, whatever its Airflow connection's extras ask for."""
    match driver := driver_of(connection):
        case "psycopg":
            connection.row_factory = import_module("psycopg.rows").tuple_row
        case "psycopg2":
            connection.cursor_factory = import_module("psycopg2.extensions").cursor
        case "MySQLdb" | "pymysql":
            connection.cursorclass = import_module(f"{driver}.cursors").Cursor
        case "sqlite3":
            connection.row_factory = None
        case _:
            pass


def socket_of(connection: Connection) -> socket.socket | None:
    """Return a second handle on the socket of *connection*, to be closed; None where the driver shows none."""
    named = getattr(connection, "_sock", None) or getattr(getattr(connection, "_socket", None), "sock", None)
    with suppress(Exception):  # a file has no descriptor, a closed connection has none any more
        return socket.socket(fileno=os.dup((named or connection).fileno()))
    return None


def cut(connection: Connection) -> None:
    """End the socket of *connection*: what reads from it, in this or another thread, fails at once."""
    if found := socket_of(connection):
        with found, suppress(OSError):
            found.shutdown(socket.SHUT_RDWR)


def abandon(connection: Connection) -> None:
    """End *connection* in the middle of a result, which some drivers would first read to its end."""
    cut(connection)
    result = getattr(connection, "_result", None)
    if driver_of(connection) == "pymysql" and result:  # reads on even when it is collected
        result.unbuffered_active = False


@cache
def _warn_of(driver: str) -> None:
    log.warning(
        "Whether %s streams the rows of a query is not known here: if it does not, all of them are in memory at once",
        driver,
    )
