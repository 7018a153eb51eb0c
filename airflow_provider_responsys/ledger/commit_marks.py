"""How far a task instance's claims had come, told outside of the database that holds them.

A database can be put back: a replica that lagged is promoted, a backup is restored. It then
lacks the newest claims and looks whole. Two kinds of keys in Airflow's task state store tell.
Each is written once, or again with the same content, so a late or repeated write changes nothing:

- ``responsys/committed/<count>``: a transaction that claims raised the task instance's count to
  this. Written after its commit, before a request leaves. The next one waits until it is written.
- ``responsys/begun/<start>``: a try began, at which count and ``max_tries``. The state store may
  have been cleaned since the try before it: then nothing else is left from that time.
"""

import re
from dataclasses import dataclass, replace

from airflow_provider_responsys.errors import LedgerFailed
from airflow_provider_responsys.ledger.state_store import StateStore


@dataclass(frozen=True, slots=True)
class Point:
    """How far a task instance is: its newest *start*, that try's *max_tries*, and the *count* of its claims."""

    start: int
    count: int
    max_tries: int | None


class CommitMarks:
    """The marks of one task instance in *store*."""

    def __init__(self, store: StateStore, *, prefix: str = "responsys") -> None:
        self._store = store
        self._prefix = prefix

    def newest(self, known: Point) -> Point:
        """Return how far the marks say that the task instance is, at least as far as *known*."""
        newest = known
        while (begun := self._begun(newest.start + 1)) is not None:
            newest = replace(begun, count=max(begun.count, newest.count))
        return replace(newest, count=self._last_committed(newest.count))

    def complete(self, known: Point) -> None:
        """Write the marks up to *known* that are missing: a commit whose mark failed was never posted."""
        if known.count and self._store.get(self._committed_key(known.count)) is None:
            self.committed(known.count)
        first = known.start
        while first and self._begun(first) is None:
            first -= 1
        for start in range(first + 1, known.start + 1):
            self.begun(replace(known, start=start))

    def begun(self, point: Point) -> None:
        """Tell that the try of *point* began."""
        self._store.set(self._begun_key(point.start), f"{point.count}/{point.max_tries}")

    def committed(self, count: int) -> None:
        """Tell that the claims that raised the count to *count* are on disk."""
        self._store.set(self._committed_key(count), str(count))

    def _begun(self, start: int) -> Point | None:
        key = self._begun_key(start)
        text = self._store.get(key)
        if text is None:
            return None
        found = re.fullmatch(r"(\d+)/(\d+)", text)
        if not found:
            raise LedgerFailed(f"Airflow's task state store holds a value under {key} that this provider did not write")
        return Point(start, count=int(found[1]), max_tries=int(found[2]))

    def _last_committed(self, count: int) -> int:
        """Return the last of the counts after *count* that are marked without a gap, in few steps."""
        step = 1
        while self._is_committed(count + step):
            count, step = count + step, step * 2
        while step > 1:
            step //= 2
            if self._is_committed(count + step):
                count += step
        return count

    def _is_committed(self, count: int) -> bool:
        return self._store.get(self._committed_key(count)) is not None

    def _begun_key(self, start: int) -> str:
        return f"{self._prefix}/begun/{start}"

    def _committed_key(self, count: int) -> str:
        return f"{self._prefix}/committed/{count}"
