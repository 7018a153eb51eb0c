"""The rows of a query, streamed from whatever database an Airflow connection leads to."""

import re
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from inspect import GEN_CLOSED, getgeneratorstate
from typing import Any, Final, Protocol, TypeAlias, cast

from airflow_provider_responsys.databases import (
    MISPLACED,
    Connection,
    abandon,
    driver_of,
    is_misplaced,
    streaming_cursor,
    use_plain_rows,
)
from airflow_provider_responsys.errors import SourceFailed
from airflow_provider_responsys.recipients.rows import Chunk

CHUNK_ROWS: Final = 2000

DRAINING = ("MySQLdb", "pymysql", "mysql")
"""Drivers that read a result to its end before they let go of it."""

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
    """An Airflow database hook."""

    def get_conn(self) -> Connection:
        """Return a DB-API connection."""


@contextmanager
def query(
    hook: Hook, sql: str, parameters: Parameters = None, *, chunk_rows: int = CHUNK_ROWS
) -> Iterator[Iterator[Chunk]]:
    """Run *sql* and give its rows in chunks, streamed; raise `SourceFailed` for what goes wrong.

    The connection is the hook's own, with all that its extras ask for. Nothing is
    committed, and the connection is closed on leaving. *sql* marks its *parameters*
    as the database's driver wants it. The first chunk always comes, without rows
    if there are none.
    """
    if NO_QUERIES.fullmatch(word := _first_word(sql)):
        raise SourceFailed(
            f"A source is a query that returns rows, and this statement starts with {word or 'no word'}."
        )
    with ExitStack() as stack:
        connection = _connect(hook, stack)
        # A list would be taken for several sets of parameters.
        given = tuple(parameters) if isinstance(parameters, list) else parameters
        try:
            rows, columns = _execute(connection, sql, given or None, chunk_rows, stack)
        except Exception as error:  # noqa: BLE001 -- every driver has errors of its own
            raise SourceFailed(f"The query failed: {_reason(error, sql)}.") from None
        chunks = _chunks(rows, columns, sql, chunk_rows)
        stack.callback(_leave, connection, chunks)
        yield chunks


_Columns: TypeAlias = Callable[[], Sequence[str]]
"""Gives the names of the columns, once the first rows have come; none where a statement returns no rows."""


def _connect(hook: Hook, stack: ExitStack) -> Connection:
    """Return a new connection of *hook*, which *stack* ends."""
    try:
        if is_misplaced(hook):
            raise ValueError(MISPLACED)  # noqa: TRY301 -- told as all that keeps a connection from opening
        connection = hook.get_conn()
        stack.callback(_quietly, connection.close)
        use_plain_rows(connection)
    except Exception as error:  # noqa: BLE001 -- every driver has errors of its own
        # Without its cause, here and below: a driver's own words may hold logins and cells.
        raise SourceFailed(f"{_name(hook)} leads to no database: {_reason(error, _name(hook))}.") from None
    return connection


def _execute(
    connection: Connection, sql: str, parameters: Parameters, chunk_rows: int, stack: ExitStack
) -> tuple[Any, _Columns]:
    """Run *sql*; return the cursor, and what names its columns."""
    cursor = streaming_cursor(connection)
    stack.callback(_quietly, cursor.close)
    cursor.arraysize = chunk_rows
    # Without parameters, a % in the statement is a %.
    cursor.execute(*((sql,) if parameters is None else (sql, parameters)))
    return cursor, lambda: [column[0] for column in cursor.description or ()]


def _chunks(rows: Any, columns: _Columns, sql: str, chunk_rows: int) -> Generator[Chunk, None, None]:
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
        if some and isinstance(some[0], Mapping):  # from a driver that `use_plain_rows` does not know
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

    said = next((part for part in error.args if isinstance(part, str)), error)  # MySQL's begin with a number
    line = next(iter(str(said).strip().splitlines()), "")
    told = PRIVATE.sub(NOT_SHOWN, QUOTED.sub(masked, line))[:LONGEST_REASON].rstrip(". ")
    return f"{type(error).__name__}: {told}" if told else type(error).__name__


def _first_word(sql: str) -> str:
    found = FIRST_WORD.match(sql)
    return found[1].upper() if found else ""


def _leave(connection: Connection, chunks: Generator[Chunk, None, None]) -> None:
    """Spare the drivers that would otherwise read on to the end of what *chunks* has left."""
    if driver_of(connection) in DRAINING and getgeneratorstate(chunks) != GEN_CLOSED:
        abandon(connection)


def _quietly(close: Callable[[], object]) -> None:
    # What has been read is read, and a connection that can't be closed is gone already.
    with suppress(Exception):
        close()
