"""What the drivers of databases differ in: streaming, the form of rows, the socket, and which errors may pass."""

import logging
import os
import re
import socket
from contextlib import suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, Final, TypeAlias

Connection: TypeAlias = Any
"""What a hook's ``get_conn`` returns: a DB-API connection, of any driver."""

DRIVERS: Final = ("sqlite3", "psycopg", "psycopg2", "MySQLdb", "pymysql", "mysql")
"""Those that are known here, by the package that their connections come from."""

CURSOR_NAME = "responsys"

URL_ONLY = "sqlalchemy_query"
"""The extra that Airflow's hooks put into SQLAlchemy's address, and not into the connections that they make."""

MISPLACED = f"its extra {URL_ONLY} does not reach the driver: put what it holds into the extras themselves"

PERMANENT_CLASSES: Final = frozenset({"DataError", "NotSupportedError", "ProgrammingError"})
"""The DB-API's classes for what the same statement runs into again."""

PERMANENT_STATES: Final = ("25006", "28", "3D", "3F", "42")
"""How those SQLSTATEs of PostgreSQL begin that a person must end: a database that is only read, a login that is
refused, no such database, schema, table or column, no right to it."""

PERMANENT_NUMBERS: Final = frozenset({1044, 1045, 1049, 1054, 1142, 1143, 1146, 1227, 1290, 1698, 1792, 1836})
"""MySQL's and MariaDB's numbers for the same. Their SQLSTATE 42000 also says that there are too many connections."""

PERMANENT_IN_FILES: Final = ("SQLITE_AUTH", "SQLITE_CORRUPT", "SQLITE_NOTADB", "SQLITE_PERM", "SQLITE_READONLY")
"""How the names of SQLite's for the same begin, or for a file that is no database."""

NO_SUCH: Final = re.compile(r"no such (table|column)|has no column named")
"""What SQLite says under its general SQLITE_ERROR."""

NOT_LET_IN: Final = re.compile(
    r"FATAL: .*(authentication failed|does not exist|no pg_hba\.conf entry|not permitted to log in|permission denied)"
)
"""What PostgreSQL says when it refuses a login. Its client library tells no SQLSTATE then."""

log = logging.getLogger(__name__)


def is_misplaced(hook: Any) -> bool:
    """Return whether extras of *hook*'s connection would be ignored: they may demand TLS, or choose a schema."""
    return bool((getattr(hook, "connection_extra", None) or {}).get(URL_ONLY))


def driver_of(connection: Connection) -> str:
    """Return the package that *connection* comes from; a subclass of a known driver's is of that driver."""
    packages = [kind.__module__.partition(".")[0] for kind in type(connection).__mro__]
    return next((package for package in packages if package in DRIVERS), packages[0])


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


def is_permanent(error: BaseException, file: str | None = None) -> bool:
    """Return whether a person must end what a database's *error* names; what is not known may pass.

    *error* is the driver's own. *file* is the path of a SQLite database.
    """
    if PERMANENT_CLASSES.intersection(kind.__name__ for kind in type(error).__mro__):
        return True
    first = error.args[0] if error.args else None
    if isinstance(first, int):  # MySQL's drivers
        return first in PERMANENT_NUMBERS
    if name := getattr(error, "sqlite_errorname", None):
        return _is_permanent_in_file(str(name), str(error), file)
    state = getattr(error, "sqlstate", None) or getattr(error, "pgcode", None)
    return state.startswith(PERMANENT_STATES) if state else _is_not_let_in(str(error))


def file_of(uri: str) -> str:
    """Return the path in SQLAlchemy's *uri* of a SQLite database."""
    return uri.removeprefix("sqlite:///").partition("?")[0]


def _is_permanent_in_file(name: str, message: str, file: str | None) -> bool:
    if name.startswith("SQLITE_CANTOPEN"):  # also while there are too many open files
        return file is not None and not Path(file.removeprefix("file:")).parent.is_dir()
    return name.startswith(PERMANENT_IN_FILES) or (name == "SQLITE_ERROR" and bool(NO_SUCH.search(message)))


def _is_not_let_in(message: str) -> bool:
    """Return whether each server that a failed connection tried has refused the login."""
    tried = message.split("connection to server")[1:] or [message]
    return all(NOT_LET_IN.search(answer) for answer in tried)


@cache
def _warn_of(driver: str) -> None:
    log.warning(
        "Whether %s streams the rows of a query is not known here: if it does not, all of them are in memory at once",
        driver,
    )
