"""All recipients of a send on local disk: read, validated and de-duplicated before anything is sent."""

import sqlite3
import sys
import tempfile
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Final, Literal, NoReturn, Self, TypeAlias

from airflow_provider_responsys.errors import InvalidRecipients, SourceFailed
from airflow_provider_responsys.recipients.fields import FieldSettings, MakeRecipient, recipient_maker
from airflow_provider_responsys.recipients.optional import InvalidRow
from airflow_provider_responsys.recipients.outcomes import Outcomes
from airflow_provider_responsys.recipients.rows import Chunk

EXAMPLES: Final = 10
"""Wrong rows that are named; the others are counted."""

ROWS_A_WRITE: Final = 2000
KNOWN_LAYOUTS: Final = 500
"""Sets of columns that are remembered; a source whose rows differ more than that is only slower."""

# The file lives as long as this process: nothing in it need survive a crash. It is locked once, not for
# every statement, and 8 MB of cache are also what sorting its index may use.
SETTINGS: Final = """
    PRAGMA journal_mode = OFF;
    PRAGMA synchronous = OFF;
    PRAGMA locking_mode = EXCLUSIVE;
    PRAGMA cache_size = -8000;
    CREATE TABLE recipient (position INTEGER PRIMARY KEY, fingerprint BLOB NOT NULL, body TEXT NOT NULL);
    CREATE TABLE left_out (position INTEGER PRIMARY KEY);
"""
# An index on a sorted whole is made in a fraction of the time that keeping one up to date takes.
INDEX: Final = "CREATE INDEX by_fingerprint ON recipient (fingerprint)"
INSERT: Final = "INSERT INTO recipient VALUES (?, ?, ?)"
# The index alone answers this: it holds fingerprints in order, and positions within one.
REPEATED: Final = """
    INSERT INTO left_out SELECT position FROM (
        SELECT position, fingerprint = lag(fingerprint) OVER (ORDER BY fingerprint, position) AS is_repeated
        FROM recipient
    ) WHERE is_repeated
"""
# Repetitions are left out already, so what this adds are people, not rows.
EXCLUDE: Final = "INSERT OR IGNORE INTO left_out SELECT position FROM recipient WHERE fingerprint = ?"
HERE: Final = """
    SELECT position, fingerprint, body FROM recipient
    WHERE fingerprint = ? AND NOT EXISTS (SELECT 1 FROM left_out WHERE left_out.position = recipient.position)
"""
IS_HERE: Final = """
    SELECT max(NOT EXISTS (SELECT 1 FROM left_out WHERE left_out.position = recipient.position)) AS is_here
    FROM recipient WHERE fingerprint = ? GROUP BY fingerprint
"""
STRANGERS: Final = """
    SELECT count(DISTINCT fingerprint) FROM recipient
    WHERE NOT EXISTS (SELECT 1 FROM known WHERE known.fingerprint = recipient.fingerprint)
"""
REPETITIONS: Final = """
    SELECT left_out.position, (SELECT min(position) FROM recipient AS one WHERE one.fingerprint = repeated.fingerprint)
    FROM left_out JOIN recipient AS repeated ON repeated.position = left_out.position
"""
BODIES: Final = "SELECT position, body FROM recipient ORDER BY position"
BODY: Final = "SELECT body FROM recipient WHERE fingerprint = ? ORDER BY position LIMIT 1"
REMAINING: Final = """
    SELECT position, fingerprint, body FROM recipient
    WHERE NOT EXISTS (SELECT 1 FROM left_out WHERE left_out.position = recipient.position)
    ORDER BY position
"""

Fingerprint: TypeAlias = Callable[[str], bytes]
"""From an identity to a keyed hash of it."""

_Row: TypeAlias = tuple[int, bytes, str]
"""A position, a fingerprint, a body."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Recipients for one request, in the order of their source."""

    positions: tuple[int, ...]
    fingerprints: tuple[bytes, ...] = field(repr=False)
    bodies: tuple[str, ...] = field(repr=False)

    def __len__(self) -> int:
        return len(self.positions)


@dataclass(frozen=True, slots=True)
class SortedOut:
    """Fingerprints by where they are: *here* and not left out, *known* (all in the source), or *vanished* from it."""

    here: list[bytes] = field(default_factory=list)
    known: list[bytes] = field(default_factory=list)
    vanished: list[bytes] = field(default_factory=list)


class Spool:
    """The recipients of one send, in a file that only this process sees.

    Filled once, then read in batches. Rows without an error that are not a
    repetition of an earlier row count as its length. `SourceFailed` says that
    the disk is full, or broken. Asked to, it keeps *outcomes* of its rows beside them.
    """

    def __init__(self, directory: str | Path | None = None, *, keeps_outcomes: bool = False) -> None:
        self.read = 0
        self.invalid = 0
        self.duplicates = 0
        self.invalid_examples: list[str] = []
        self._directory = Path(directory or tempfile.gettempdir())
        self._opened: sqlite3.Connection | None = None
        self._keeps_outcomes = keeps_outcomes
        self.outcomes: Outcomes | None = None

    def __enter__(self) -> Self:
        """Make the file."""
        with _on_disk(self._directory), tempfile.TemporaryDirectory(prefix="responsys-", dir=self._directory) as folder:
            self._opened = sqlite3.connect(Path(folder) / "spool")
            self._opened.executescript(SETTINGS)
            if self._keeps_outcomes:
                self.outcomes = Outcomes(Path(folder) / "outcomes", self._here)
        # Its name is gone already: the file goes with this process, however that ends.
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Drop the file."""
        self.close()

    def __len__(self) -> int:
        return self.read - self.invalid - self.duplicates

    def close(self) -> None:
        """Drop the file. Harmless to repeat."""
        if self._opened is not None:
            self._opened.close()
            self._opened = None
        if self.outcomes is not None:
            self.outcomes.close()
            self.outcomes = None

    def fill(
        self,
        chunks: Iterable[Chunk],
        settings: FieldSettings,
        fingerprint: Fingerprint,
        *,
        on_invalid: Literal["fail", "skip"] = "fail",
        max_body_bytes: int | None = None,
    ) -> None:
        """Read *chunks* to their end and keep every recipient's first occurrence.

        Raise `InvalidRecipients` where the columns of a table can't be right, and,
        unless *on_invalid* is ``skip``, after the last row if any was wrong. A
        recipient whose JSON is longer than *max_body_bytes* is wrong, too.
        """
        rows = self._recipients(chunks, _makers(settings), fingerprint, max_body_bytes)
        while some := list(islice(rows, ROWS_A_WRITE)):
            if not self.invalid or on_invalid == "skip":
                self._write(some)
        if self.invalid and on_invalid == "fail":
            raise InvalidRecipients(self._complaint())
        self._leave_out_repeated()

    def exclude(self, fingerprints: Sequence[bytes]) -> int:
        """Leave out whom *fingerprints* name; return how many were here and not left out before."""
        with _on_disk(self._directory):
            return self._database.executemany(EXCLUDE, ((one,) for one in fingerprints)).rowcount

    def sort_out(self, fingerprints: Sequence[bytes]) -> SortedOut:
        """Return which of *fingerprints* are here, which are in the source, and which are not."""
        found = SortedOut()
        with _on_disk(self._directory):
            for fingerprint in fingerprints:
                is_here = self._database.execute(IS_HERE, (fingerprint,)).fetchone()
                (found.known if is_here else found.vanished).append(fingerprint)
                if is_here and is_here[0]:
                    found.here.append(fingerprint)
        return found

    def bodies_of(self, fingerprints: Iterable[bytes]) -> Iterator[str]:
        """Yield the body of each recipient whom *fingerprints* name, left out or not."""
        for fingerprint in fingerprints:
            with _on_disk(self._directory):
                found = self._database.execute(BODY, (fingerprint,)).fetchone()
            if found:
                yield found[0]

    def bodies(self) -> Iterator[tuple[int, str]]:
        """Yield the position and the body of each row without an error, left out or not, in source order."""
        with _on_disk(self._directory):
            yield from self._database.execute(BODIES)

    def batches(self, *, max_recipients: int, max_bytes: int) -> Generator[Batch]:
        """Yield who is not left out, in source order, each batch as full as it may be.

        The bodies of a batch and the commas between them are at most *max_bytes*.
        """
        return _batches(self._remaining(), max_recipients, max_bytes)

    def take_out(self, fingerprints: Sequence[bytes], *, max_recipients: int, max_bytes: int) -> list[Batch]:
        """Leave out whom *fingerprints* name; return who of them was here and not left out before, in their order.

        It is one batch, unless it would be larger than those of `batches`.
        """
        with _on_disk(self._directory):
            rows = [row for one in fingerprints for row in self._database.execute(HERE, (one,))]
        self.exclude(fingerprints)
        return list(_batches(rows, max_recipients, max_bytes))

    def strangers(self, known: Iterable[Sequence[bytes]]) -> int:
        """Return how many recipients, left out or not, are not among those *known*."""
        with _on_disk(self._directory):
            self._database.execute("CREATE TEMP TABLE known (fingerprint BLOB PRIMARY KEY) WITHOUT ROWID")
            for fingerprints in known:
                self._database.executemany("INSERT OR IGNORE INTO known VALUES (?)", ((one,) for one in fingerprints))
            (found,) = self._database.execute(STRANGERS).fetchone()
            self._database.execute("DROP TABLE known")
        return int(found)

    @property
    def _database(self) -> sqlite3.Connection:
        if self._opened is None:
            raise RuntimeError("a Spool is used in a with statement")
        return self._opened

    def _recipients(
        self,
        chunks: Iterable[Chunk],
        maker_for: Callable[[Chunk], MakeRecipient],
        fingerprint: Fingerprint,
        max_body_bytes: int | None,
    ) -> Iterator[_Row]:
        """Yield the rows that are right, and count those that are not."""
        longest = sys.maxsize if max_body_bytes is None else max_body_bytes
        for chunk in chunks:
            make = maker_for(chunk)
            for position, row in enumerate(chunk.rows, self.read + 1):
                try:
                    identity, body = make(row)
                except InvalidRow as error:
                    self._note(position, error)
                    continue
                if len(body) > longest:
                    self._note(position, InvalidRow("", f"makes a recipient of more than {longest:,} bytes"))
                    continue
                yield position, fingerprint(identity), body
            self.read += len(chunk.rows)

    def _note(self, position: int, error: InvalidRow) -> None:
        self.invalid += 1
        if self.outcomes is not None:
            self.outcomes.note_invalid(position, str(error))
        if self.invalid <= EXAMPLES:
            self.invalid_examples.append(error.at(position))

    def _complaint(self) -> str:
        count = f"{self.invalid:,} of {self.read:,} rows can't be sent to, so nothing was sent"
        named = "" if self.invalid <= EXAMPLES else f" (the first {EXAMPLES} are named)"
        return "\n".join((f"{count}{named}:", *self.invalid_examples))

    def _write(self, rows: Sequence[_Row]) -> None:
        with _on_disk(self._directory):
            self._database.executemany(INSERT, rows)

    def _leave_out_repeated(self) -> None:
        with _on_disk(self._directory):
            self._database.execute(INDEX)
            self.duplicates = self._database.execute(REPEATED).rowcount
            self._database.commit()
            if self.outcomes is not None:
                self.outcomes.note_repetitions(self._database.execute(REPETITIONS))

    def _here(self, fingerprints: Sequence[bytes]) -> list[tuple[int, int]]:
        """Return the position of those whom *fingerprints* name and who are not left out, with their place there."""
        with _on_disk(self._directory):
            return [
                (row[0], place)
                for place, one in enumerate(fingerprints)
                for row in self._database.execute(HERE, (one,))
            ]

    def _remaining(self) -> Iterator[_Row]:
        with _on_disk(self._directory):
            yield from self._database.execute(REMAINING)


def _makers(settings: FieldSettings) -> Callable[[Chunk], MakeRecipient]:
    """Return what finds the maker of a chunk's recipients, each set of columns looked at once."""
    known: dict[tuple[str, ...], MakeRecipient] = {}

    def maker_for(chunk: Chunk) -> MakeRecipient:
        if (make := known.get(chunk.columns)) is None:
            if len(known) == KNOWN_LAYOUTS:
                known.clear()
            make = known[chunk.columns] = _maker(chunk, settings)
        return make

    return maker_for


def _maker(chunk: Chunk, settings: FieldSettings) -> MakeRecipient:
    try:
        return recipient_maker(chunk.columns, settings, is_table=chunk.is_table)
    except InvalidRow as error:
        if chunk.is_table:
            raise InvalidRecipients(f"The columns can't be used: {error}.") from None
        field, reason = error.field, error.reason

    def refuse(_: Sequence[object]) -> NoReturn:
        raise InvalidRow(field, reason)

    return refuse


def _batches(rows: Iterable[_Row], max_recipients: int, max_bytes: int) -> Generator[Batch]:
    batch: list[_Row] = []
    size = 0
    for row in rows:
        length = len(row[2]) + 1
        # The last comma is not written.
        if batch and (len(batch) == max_recipients or size + length - 1 > max_bytes):
            yield _batch(batch)
            batch, size = [], 0
        batch.append(row)
        size += length
    if batch:
        yield _batch(batch)


def _batch(rows: Sequence[_Row]) -> Batch:
    positions, fingerprints, bodies = zip(*rows, strict=True)
    return Batch(positions, fingerprints, bodies)


@contextmanager
def _on_disk(directory: Path) -> Iterator[None]:
    """Turn what goes wrong on disk into `SourceFailed`."""
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise SourceFailed(
            f"The recipients can't be kept in {directory} ({error}): "
            "the folder needs to be writable, with about 500 bytes of room for each recipient."
        ) from error
