"""How rows stand in a file: JSON lines or CSV, compressed or not, by the suffix of its name."""

import csv
import gzip
import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from json.encoder import encode_basestring
from typing import IO, Any, Final, Self

from airflow_provider_responsys.errors import InvalidSettings

GZIP: Final = ".gz"
KINDS: Final = (".jsonl", ".json", ".csv")
ROWS_A_WRITE: Final = 2000
LEVEL: Final = 4
"""Of the compression: beyond it, a file takes twice the time for a tenth of its size."""


@dataclass(frozen=True, slots=True)
class Format:
    """The form that the *suffix* of a name stands for."""

    suffix: str

    @classmethod
    def of(cls, parameter: str, path: str) -> Self:
        """Return the format of *path*, which *parameter* names, or raise `InvalidSettings` for an unknown suffix."""
        for kind in KINDS:
            for suffix in (kind, kind + GZIP):
                if path.lower().endswith(suffix):
                    return cls(path[-len(suffix) :])
        raise InvalidSettings(
            f"{parameter} is {path!r}: its suffix says how the file is written, .jsonl or .csv, or either with .gz"
        )

    @property
    def is_compressed(self) -> bool:
        """Whether the file is compressed."""
        return self.suffix.lower().endswith(GZIP)

    @property
    def is_csv(self) -> bool:
        """Whether it is CSV, with a line of column names; otherwise each line is one JSON object."""
        return ".csv" in self.suffix.lower()

    def written(self, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Iterator[bytes]:
        """Yield the bytes of a file of *rows*, some thousand rows at a time."""
        texts = _csv(columns, rows) if self.is_csv else _json(columns, rows)
        pieces = (text.encode("utf-8", "backslashreplace") for text in texts)
        return _compressed(pieces) if self.is_compressed else pieces

    def read(self, file: IO[bytes]) -> Iterator[dict[str, Any]]:
        """Yield the rows of *file*. Those of CSV are texts, an empty one for nothing."""
        binary: Any = gzip.GzipFile(fileobj=file, mode="rb") if self.is_compressed else file
        with io.TextIOWrapper(binary, encoding="utf-8", newline="") as lines:
            if self.is_csv:
                yield from csv.DictReader(lines)
            else:
                yield from map(json.loads, lines)


def _json(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Iterator[str]:
    # A template takes a third of the time that json.dumps takes for each row.
    members = ",".join(f"{encode_basestring(column)}:%s" for column in columns)
    line = f"{{{members}}}\n"
    source = iter(rows)
    while some := list(islice(source, ROWS_A_WRITE)):
        yield "".join([line % tuple([_json_value(value) for value in row]) for row in some])


def _json_value(value: object) -> str:
    if value is None:
        return "null"
    return encode_basestring(value) if isinstance(value, str) else str(value)


def _csv(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Iterator[str]:
    yield _csv_text([columns])
    source = iter(rows)
    while some := list(islice(source, ROWS_A_WRITE)):
        yield _csv_text(some)


def _csv_text(rows: Iterable[Sequence[object]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _compressed(pieces: Iterable[bytes]) -> Iterator[bytes]:
    buffer = io.BytesIO()

    def taken() -> bytes:
        data = buffer.getvalue()
        buffer.seek(0)
        buffer.truncate()
        return data

    with gzip.GzipFile(fileobj=buffer, mode="wb", compresslevel=LEVEL, mtime=0) as file:
        for piece in pieces:
            file.write(piece)
            yield taken()
    yield taken()


def checked_every_piece(pieces: Iterable[bytes], check: Callable[[], object]) -> Iterator[bytes]:
    """Yield *pieces*, and call *check* before each: it raises where they are no longer wanted."""
    for piece in pieces:
        check()
        yield piece
