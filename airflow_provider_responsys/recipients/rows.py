"""Rows in the memory of a task: a list of mappings, a task's output, a generator."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from airflow_provider_responsys.errors import InvalidRecipients

CHUNK_ROWS = 1000

EXPECTED = "recipients must be a list of mappings (column name to value), or the output of a task that returns one"


class Chunk(NamedTuple):
    """Some rows with the same *columns*.

    The columns of a table (*is_table*) are the same in all of its chunks; those
    of rows that bring their own names are not.
    """

    columns: tuple[str, ...]
    rows: Sequence[Sequence[object]]
    is_table: bool = False

    def __repr__(self) -> str:
        """Return a text that names no recipient."""
        return f"<{len(self.rows)} rows>"


def from_sequence(value: object) -> Iterator[Chunk]:
    """Return the rows of *value* in chunks, or raise `InvalidRecipients` at the first that is none."""
    match value:
        case None:
            raise InvalidRecipients(f"There are no recipients, not even an empty list: {EXPECTED}.")
        case str() | bytes():
            raise InvalidRecipients(
                f"The recipients are a text: {EXPECTED}. A Jinja template renders to a text; "
                "pass the task's .output instead of the template."
            )
        case Mapping():
            raise InvalidRecipients(f"The recipients are one mapping: {EXPECTED}.")
        case Iterable():
            return _chunks(_rows(value))
        case _:
            raise InvalidRecipients(f"The recipients are of type {type(value).__name__}: {EXPECTED}.")


def _chunks(rows: Iterable[Mapping[str, object]]) -> Iterator[Chunk]:
    columns: tuple[str, ...] = ()
    pending: list[Sequence[object]] = []
    for row in rows:
        names = tuple(row)
        if pending and (names != columns or len(pending) == CHUNK_ROWS):
            yield Chunk(columns, pending)
            pending = []
        columns = names
        pending.append(tuple(row.values()))
    if pending:
        yield Chunk(columns, pending)


def _rows(values: Iterable[object], read: int = 0) -> Iterator[Mapping[str, object]]:
    """Yield the rows among *values*, those in lists within too: a mapped task's output is a list of lists."""
    for value in values:
        if isinstance(value, Mapping):
            read += 1
            yield value
        elif isinstance(value, Sequence) and not isinstance(value, (str, bytes, bytearray)):
            for row in _rows(value, read):
                read += 1
                yield row
        else:
            raise InvalidRecipients(f"Row {read + 1} is of type {type(value).__name__}: {EXPECTED}.")
