"""Who was really pushed, and how often."""

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import NamedTuple, Protocol, TypeAlias

from airflow_provider_responsys.errors import InvalidSettings

Key: TypeAlias = tuple[str | int, ...]
"""("PROFILE", identifier, normalised value), or ("PUSH", deviceId, apiKey)."""

SHARDS = 256
HASH = (1 << 64) - 1


class Totals(NamedTuple):
    """*pushes* in all, *recipients* told apart, and those of them pushed *more_than_once*."""

    pushes: int
    recipients: int
    more_than_once: int


class Tally(Protocol):
    """Counts pushes by recipient."""

    def add(self, keys: Iterable[Key]) -> None:
        """Count one push for each of *keys*."""

    def times(self, key: Key) -> int:
        """Return how often *key* was pushed."""

    def totals(self) -> Totals:
        """Return the sums."""

    def by_key(self) -> Counter[Key]:
        """Return a copy of all counts."""


class ExactTally:
    """Remembers every recipient by name: some 300 bytes each."""

    def __init__(self) -> None:
        self._times: Counter[Key] = Counter()

    def add(self, keys: Iterable[Key]) -> None:
        """Count one push for each of *keys*."""
        self._times.update(keys)

    def times(self, key: Key) -> int:
        """Return how often *key* was pushed."""
        return self._times[key]

    def totals(self) -> Totals:
        """Return the sums."""
        times = self._times.values()
        return Totals(sum(times), len(times), sum(1 for each in times if each > 1))

    def by_key(self) -> Counter[Key]:
        """Return a copy of all counts."""
        return self._times.copy()


class CompactTally:
    """Remembers a hash of eight bytes a push, for benchmarks with millions.

    Two of 5,000,000 recipients share a hash with a probability below one in a million.
    """

    def __init__(self) -> None:
        self._shards = [array("Q") for _ in range(SHARDS)]

    def add(self, keys: Iterable[Key]) -> None:
        """Count one push for each of *keys*."""
        shards = self._shards
        for key in keys:
            hashed = hash(key) & HASH
            shards[hashed % SHARDS].append(hashed)

    def times(self, key: Key) -> int:
        """Return how often *key* was pushed."""
        hashed = hash(key) & HASH
        return self._shards[hashed % SHARDS].count(hashed)

    def totals(self) -> Totals:
        """Return the sums; a second or two for millions."""
        recipients = more_than_once = 0
        for times in self._runs():
            recipients += 1
            more_than_once += times > 1
        return Totals(sum(map(len, self._shards)), recipients, more_than_once)

    def by_key(self) -> Counter[Key]:
        """Refuse: names were not kept."""
        raise InvalidSettings("who was pushed is known by name only with exact=True; totals and times always work")

    def _runs(self) -> Iterator[int]:
        for shard in self._shards:
            for _, same in groupby(sorted(shard)):
                yield sum(1 for _ in same)
