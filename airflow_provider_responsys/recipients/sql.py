"""The rows of a query, streamed from whatever database an Airflow connection leads to."""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, Final, Protocol, TypeAlias, cast

from airflow_provider_responsys.errors import SourceFailed
from airflow_provider_responsys.recipients.rows import Chunk

CHUNK_ROWS: Final = 2000

Parameters: TypeAlias = Sequence[object] | Mapping[str, object] | None

LONGEST_REASON: Final = 200
NOT_SHOWN: Final = "***"
# What a driver's message may hold besides its reason: addresses, logins, e-mail addresses, phone numbers, and cells.
PRIVATE = re.compile(
    r"\S*://\S*|\b\w*(?:pass|pwd|user|uid|token|secret|key)\w*\s*=\s*\S+|\S+@\S+|\d{7,}", re.IGNORECASE
)
QUOTED = re.compile(r"(?<!\w)(?P<quote>[\"'`])(?P<text>.*?)(?P=quote)(?!\w)")
# A statement's first word, behind blanks, brackets and comments.
FIRST_WORD = re.compile(r"(?:\s|\(|--[^\n]*(?:\n|$)|/\*.*?\*/)*(\w*)", re.DOTALL)
# Refused before they reach the database: some would take effect even if nothing is committed.
NO_QUERIES = re.compile("|INSERT|UPDATE|DELETE|MERGE|REPLACE|CREATE|ALTER|DROP|TRUNCATE|GRANT|REVOKE")


class Hook(Protocol):
    """An Airflow database hook. One that has ``get_sqlalchemy_engine`` as well is asked for that first."""

    def get_conn(self) -> Any:
        """Return a DB-API connection."""


@contextmanager
def query(
    hook: Hook, sql: str, parameters: Parameters = None, *, chunk_rows: int = CHUNK_ROWS
) -> Iterator[Iterator[Chunk]]:
    """Run *sql* and give its rows in chunks, streamed; raise `SourceFailed` for what goes wrong.

    Nothing is committed, and the connection is closed on leaving. *sql* marks
    its *parameters* as the database's driver wants it. The first chunk always
    comes, without rows if there are none.
    """
    if NO_QUERIES.fullmatch(word := _first_word(sql)):
        raise SourceFailed(
            f"A source is a query that returns rows, and this statement starts with {word or 'no word'}."
        )
    with ExitStack() as stack:
        execute = _connect(hook, stack)
        # A list would be taken for several sets of parameters.
        given = tuple(parameters) if isinstance(parameters, list) else parameters
        try:
            rows, columns = execute(sql, given or None, chunk_rows)
        except Exception as error:  # noqa: BLE001 -- every driver has errors of its own
            raise SourceFailed(f"The query failed: {_reason(error, sql)}.") from None
        yield _chunks(rows, columns, sql, chunk_rows)


class _Rows(Protocol):
    """What a SQLAlchemy result and a DB-API cursor share."""

    def fetchmany(self, size: int, /) -> Sequence[Sequence[object]]:
        """Return the next rows, none at the end."""


class _NoRows:
    """Stands for the rows of a statement that returns none."""

    def fetchmany(self, _: int, /) -> Sequence[Sequence[object]]:
        return ()


_Columns: TypeAlias = Callable[[], Sequence[str]]
"""Gives the names of the columns, once the first rows have come; none where a statement returns no rows."""
_Execute: TypeAlias = Callable[[str, Parameters, int], tuple[_Rows, _Columns]]
"""Runs a statement."""


def _connect(hook: Hook, stack: ExitStack) -> _Execute:
    """Return what runs a statement on a new connection, which *stack* closes."""
    # There may be no SQLAlchemy, no dialect, a login that only the hook knows. What really is wrong, the driver says.
    with suppress(Exception):
        return _through_sqlalchemy(hook, stack)
    try:
        return _through_driver(hook, stack)
    except Exception as error:  # noqa: BLE001 -- every driver has errors of its own
        # Without its cause, here and below: a driver's own words may hold logins and cells.
        raise SourceFailed(f"{_name(hook)} leads to no database: {_reason(error, _name(hook))}.") from None


def _through_sqlalchemy(hook: Any, stack: ExitStack) -> _Execute:
    engine = hook.get_sqlalchemy_engine()
    stack.callback(_quietly, engine.dispose)
    connection = engine.connect()
    stack.callback(_quietly, connection.close)

    def execute(sql: str, parameters: Parameters, chunk_rows: int) -> tuple[_Rows, _Columns]:
        # Without parameters, a % in the statement is a %.
        streaming = connection.execution_options(stream_results=True, max_row_buffer=chunk_rows, no_parameters=True)
        result = streaming.exec_driver_sql(sql, parameters)
        stack.callback(_quietly, result.close)
        return (result, lambda: list(result.keys())) if result.returns_rows else (_NoRows(), list)

    return execute


def _through_driver(hook: Hook, stack: ExitStack) -> _Execute:
    connection = hook.get_conn()
    stack.callback(_quietly, connection.close)

    def execute(sql: str, parameters: Parameters, chunk_rows: int) -> tuple[_Rows, _Columns]:
        # Only a cursor with a name stays on a PostgreSQL server; one without brings all rows over at once.
        on_server = {"name": "responsys"} if type(connection).__module__.startswith("psycopg") else {}
        cursor = connection.cursor(**on_server)
        stack.callback(_quietly, cursor.close)
        cursor.arraysize = chunk_rows
        cursor.execute(*((sql,) if parameters is None else (sql, parameters)))
        return cursor, lambda: [column[0] for column in cursor.description or ()]

    return execute


def _chunks(rows: _Rows, columns: _Columns, sql: str, chunk_rows: int) -> Iterator[Chunk]:
    names: tuple[str, ...] = ()
    read = 0
    while True:
        try:
            some = rows.fetchmany(chunk_rows)
        except Exception as error:  # noqa: BLE001 -- every driver has errors of its own
            raise SourceFailed(f"The query broke off after {read:,} rows: {_reason(error, sql)}.") from None
        names = names or _checked(columns())
        if read and not some:
            return
        if some and isinstance(some[0], Mapping):  # a connection may ask for such cursors in its extras
            some = [tuple(row.values()) for row in cast("Sequence[Mapping[str, object]]", some)]
        yield Chunk(names, some, is_table=True)
        if not some:
            return
        read += len(some)


def _checked(names: Sequence[str]) -> tuple[str, ...]:
    if not names:
        raise SourceFailed("The statement returns no rows, so it can't be a source.")
    repeated = [name for name, times in Counter(names).items() if times > 1]
    if repeated:
        raise SourceFailed(f"Several columns of the query are named {repeated[0]}: give each its own name with AS.")
    return tuple(names)


def _name(hook: Any) -> str:
    """Return how a message speaks of the connection."""
    name = getattr(hook, str(getattr(hook, "conn_name_attr", "")), None)
    return f"The connection {name!r}" if isinstance(name, str) else "The connection"


def _reason(error: Exception, known: str) -> str:
    """Return the first line of what the driver says, without what its author did not write into *known*."""

    def masked(quoted: re.Match[str]) -> str:
        return quoted[0] if quoted["text"] in known else f"{quoted['quote']}{NOT_SHOWN}{quoted['quote']}"

    cause = getattr(error, "orig", None) or error  # SQLAlchemy's own message ends in the statement's parameters
    line = next(iter(str(cause).strip().splitlines()), "")
    told = PRIVATE.sub(NOT_SHOWN, QUOTED.sub(masked, line))[:LONGEST_REASON].rstrip(". ")
    return f"{type(cause).__name__}: {told}" if told else type(cause).__name__


def _first_word(sql: str) -> str:
    found = FIRST_WORD.match(sql)
    return found[1].upper() if found else ""


def _quietly(close: Callable[[], object]) -> None:
    # What has been read is read, and a connection that can't be closed is gone already.
    with suppress(Exception):
        close()
