"""Batches to claim, in their order, with a look at those that come next."""

from collections import deque
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, islice

from airflow_provider_responsys.errors import SourceFailed
from airflow_provider_responsys.ledger.interface import Earlier
from airflow_provider_responsys.recipients.spool import Batch

LOOK_AHEAD = 24
"""Batches beyond those taken that a ledger is told of."""

LOOK_AHEAD_BYTES = 8_000_000
"""Bodies of the source that may be in memory for that: recipients with much data are few megabytes a batch."""


@dataclass(frozen=True, slots=True)
class Due:
    """A *batch* to claim: of the source, or, to be sent again, out of a *doubt* of an earlier try."""

    batch: Batch
    doubt: Earlier | None = None


class Queue:
    """Batches to claim: the *repeats* and those that are to be claimed again, then the source's."""

    def __init__(self, source: Generator[Batch], repeats: Iterable[Due]) -> None:
        self._source = source
        self._again = deque(repeats)
        self._ahead: deque[Due] = deque()
        """Read from the source, and not taken yet."""
        self._bytes = 0
        self._failure: SourceFailed | None = None
        """Why the source could not be read any further: raised when its next batch is needed."""
        self._ended = False
        self.taken = 0
        self._read(1)

    def __bool__(self) -> bool:
        return bool(self._again or self._ahead or self._failure)

    def close(self) -> None:
        """Let go of the source."""
        self._source.close()

    def take(self, most: int) -> list[Due]:
        """Return the next batches, at most *most*: fewer where the source fails, which the next call raises."""
        taken: list[Due] = []
        while len(taken) < most and (self._again or self._read(1)):
            taken.append(self._again.popleft() if self._again else self._take_ahead())
        self._read(1)
        if self._failure and most and not taken:
            failure, self._failure = self._failure, None
            raise failure
        self.taken += sum(len(due.batch) for due in taken)
        return taken

    def upcoming(self) -> list[Sequence[bytes]]:
        """Return the fingerprints of the batches that will be taken next."""
        self._read(LOOK_AHEAD - len(self._again))
        return [due.batch.fingerprints for due in islice(chain(self._again, self._ahead), LOOK_AHEAD)]

    def put_back(self, due: Due) -> None:
        """Let *due* be claimed again."""
        self._again.append(due)
        self.taken -= len(due.batch)

    @property
    def doubts(self) -> list[Due]:
        """The repeats that are left: those are not just not sent."""
        return [due for due in list(self._again) if due.doubt]

    def take_doubts(self) -> list[Due]:
        """Take the repeats that are left."""
        doubts = self.doubts
        self._again = deque(due for due in self._again if not due.doubt)
        self.taken += sum(len(due.batch) for due in doubts)
        return doubts

    def _take_ahead(self) -> Due:
        due = self._ahead.popleft()
        self._bytes -= _size(due.batch)
        return due

    def _read(self, most: int) -> bool:
        """Read until *most* batches are ahead, or as many as memory has room for; return whether one is."""
        while len(self._ahead) < most and not (self._ended or (self._ahead and self._bytes >= LOOK_AHEAD_BYTES)):
            try:
                batch = next(self._source, None)
            except SourceFailed as error:
                self._failure, batch = error, None
            if batch is None:
                self._ended = True
            else:
                self._ahead.append(Due(batch))
                self._bytes += _size(batch)
        return bool(self._ahead)


def _size(batch: Batch) -> int:
    return sum(map(len, batch.bodies))
