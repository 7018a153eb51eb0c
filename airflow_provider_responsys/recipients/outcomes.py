"""The outcome of each row of a source, kept on local disk for a file that tells them."""

import sqlite3
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Generic, NamedTuple, TypeAlias, TypeVar

from airflow_provider_responsys.protocol.recipient import identified

# A file of its own, on a connection of its own: if the disk is full here, the spool is as good as before.
SETTINGS: Final = """
    PRAGMA journal_mode = OFF;
    PRAGMA synchronous = OFF;
    PRAGMA locking_mode = EXCLUSIVE;
    CREATE TABLE batch (
        number INTEGER PRIMARY KEY, bucket TEXT NOT NULL, request_id TEXT, code TEXT, reason TEXT, gone INTEGER NOT NULL
    );
    CREATE TABLE recipient (position INTEGER PRIMARY KEY, batch INTEGER NOT NULL, place INTEGER NOT NULL);
    CREATE TABLE repetition (position INTEGER PRIMARY KEY, first INTEGER NOT NULL);
    CREATE TABLE invalid (position INTEGER PRIMARY KEY, reason TEXT NOT NULL);
"""
BATCH: Final = "INSERT INTO batch (bucket, request_id, code, reason, gone) VALUES (?, ?, ?, ?, ?)"
# What this try did with a recipient in doubt comes after what an earlier one did.
RECIPIENT: Final = "INSERT OR REPLACE INTO recipient VALUES (?, ?, ?)"
REPETITION: Final = "INSERT INTO repetition VALUES (?, ?)"
INVALID: Final = "INSERT INTO invalid VALUES (?, ?)"
NOTED: Final = """
    SELECT position, bucket, request_id, code, reason, place
    FROM recipient JOIN batch ON batch.number = recipient.batch
"""
IN_ORDER: Final = f"{NOTED} ORDER BY position"
ONE: Final = f"{NOTED} WHERE position = ?"
REPETITIONS: Final = "SELECT position, first FROM repetition ORDER BY position"
WRONG: Final = "SELECT position, reason FROM invalid ORDER BY position"
GONE: Final = "SELECT bucket, request_id, code, reason, gone FROM batch WHERE gone > 0 ORDER BY number"

DUPLICATE, INVALID_ROW, NOT_SENT = "duplicate", "invalid", "not_sent"
"""Buckets that are not an outcome of a batch."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The *bucket* of recipients, and, where there is one, their request, a *code* and a *reason*."""

    bucket: str
    request_id: str | None = None
    code: str | None = None
    reason: str | None = None


class Told(NamedTuple):
    """What a file tells of one row of the source: *row* counts from 1, *position* in the request from 0."""

    row: int
    identifier: str | None
    value: str | None
    bucket: str
    request_id: str | None = None
    position: int | None = None
    code: str | None = None
    reason: str | None = None

    def __repr__(self) -> str:
        """Return a text without the recipient."""
        return f"<row {self.row}: {self.bucket}>"


class Gone(NamedTuple):
    """*recipients* of one batch that are no longer in the source."""

    bucket: str
    request_id: str | None
    code: str | None
    reason: str | None
    recipients: int


Find: TypeAlias = Callable[[Sequence[bytes]], list[tuple[int, int]]]
"""From fingerprints to the position in the source, and the place among them, of those that are not left out of it."""

_Noted: TypeAlias = tuple[int, Outcome, int]
"""A position in the source, its outcome, and its place in the request."""

Numbered = TypeVar("Numbered", bound=tuple[int, Any, *tuple[Any, ...]])


class Outcomes:
    """The outcome of each row of a source that *find* looks recipients up in. Used from one thread.

    A failure to keep one is kept instead, in *failure*, and raised by nothing but
    what reads: it changes nothing about what is sent.
    """

    def __init__(self, path: Path, find: Find) -> None:
        self.failure: Exception | None = None
        self._find = find
        self._database = sqlite3.connect(path)
        self._database.executescript(SETTINGS)

    def close(self) -> None:
        """Drop them."""
        self._database.close()

    # While the source is read, and sent to

    def note_invalid(self, position: int, reason: str) -> None:
        """Keep why the row at *position* can't be sent to."""
        self._write(INVALID, [(position, reason)])

    def note_repetitions(self, rows: Iterable[tuple[int, int]]) -> None:
        """Keep which rows repeat the recipient of an earlier row: pairs of positions."""
        self._write(REPETITION, rows)

    def note(self, positions: Sequence[int], outcome: Outcome) -> None:
        """Keep the *outcome* of the rows at *positions*, which have the order of their request."""
        self._keep([(position, place) for place, position in enumerate(positions)], outcome, 0)

    def note_earlier(self, fingerprints: Sequence[bytes], outcome: Outcome, *, gone: int) -> None:
        """Keep the *outcome* of an earlier try's batch, before its recipients are left out of the source.

        So many of them are *gone* from the source; those that are left out already have another outcome.
        """
        self._keep(self._find(fingerprints), outcome, gone)

    def note_gone(self, count: int, outcome: Outcome) -> None:
        """Keep that *count* recipients with *outcome* are not in the source."""
        self._keep([], outcome, count)

    def _keep(self, here: Sequence[tuple[int, int]], outcome: Outcome, gone: int) -> None:
        if self.failure:
            return
        values = (outcome.bucket, outcome.request_id, outcome.code, outcome.reason, gone)
        try:
            number = self._database.execute(BATCH, values).lastrowid
        except (sqlite3.Error, OSError) as error:
            self.failure = error
            return
        self._write(RECIPIENT, [(position, number, place) for position, place in here])

    def _write(self, statement: str, rows: Iterable[Sequence[object]]) -> None:
        if self.failure:
            return
        try:
            self._database.executemany(statement, rows)
        except (sqlite3.Error, OSError) as error:
            self.failure = error

    # At the end

    def rows(self, bodies: Iterable[tuple[int, str]], unsent: Outcome) -> Iterator[Told]:
        """Yield what is told of each row, in the order of the source.

        *bodies* are the recipients of the source by position; those without an outcome are *unsent*.
        """
        if self.failure:
            raise self.failure
        noted, firsts = _Ordered(self._noted()), _Ordered(self._database.execute(REPETITIONS))
        wrong = _Ordered(self._database.execute(WRONG))
        for position, body in bodies:
            for row, reason in wrong.before(position):
                yield Told(row, None, None, INVALID_ROW, reason=reason)
            name, value = identified(body)
            if repeats := firsts.at(position):
                outcome, place = self._duplicate(repeats[1], unsent), 0
            else:
                _, outcome, place = noted.at(position) or (position, unsent, 0)
            in_request = place if outcome.request_id else None
            yield Told(
                position, name, value, outcome.bucket, outcome.request_id, in_request, outcome.code, outcome.reason
            )
        for row, reason in wrong.before(sys.maxsize):
            yield Told(row, None, None, INVALID_ROW, reason=reason)

    def gone(self) -> Iterator[Gone]:
        """Yield, batch by batch, those recipients of earlier tries that are no longer in the source."""
        if self.failure:
            raise self.failure
        yield from map(Gone._make, self._database.execute(GONE))

    def _noted(self) -> Iterator[_Noted]:
        outcome = Outcome("")
        for position, *values, place in self._database.execute(IN_ORDER):
            found = tuple(values)
            if found != (outcome.bucket, outcome.request_id, outcome.code, outcome.reason):
                outcome = Outcome(*found)  # one for all of a batch
            yield position, outcome, place

    def _duplicate(self, first: int, unsent: Outcome) -> Outcome:
        found = self._database.execute(ONE, (first,)).fetchone()
        bucket = found[1] if found else unsent.bucket
        return Outcome(DUPLICATE, reason=f"the same recipient as row {first}, which is {bucket}")


class _Ordered(Generic[Numbered]):
    """Looks up in *rows*, which are ordered by their first member, what is asked for in the same order."""

    def __init__(self, rows: Iterator[Numbered]) -> None:
        self._rows = rows
        self._next = next(rows, None)

    def before(self, position: int) -> Iterator[Numbered]:
        """Yield the rows before *position* that are left."""
        while self._next is not None and self._next[0] < position:
            found, self._next = self._next, next(self._rows, None)
            yield found

    def at(self, position: int) -> Numbered | None:
        """Return the row with *position*, None if there is none."""
        while self._next is not None and self._next[0] < position:
            self._next = next(self._rows, None)
        return self._next if self._next is not None and self._next[0] == position else None
