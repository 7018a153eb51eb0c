"""Reads back what earlier starts of a task instance wrote into Airflow's task state store."""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime

from airflow_provider_responsys.errors import LedgerFailed
from airflow_provider_responsys.ledger.interface import Earlier
from airflow_provider_responsys.ledger.state_store import StateStore
from airflow_provider_responsys.ledger.task_record import Batch, Entries, People, Start, State, Story, Where

GAP = 3
"""Commits in a row that may be missing before a start's last one: after a failure, a sender writes once more."""

KEYS_IN_MEMORY = 4
"""Batches are claimed in the order of their keys, but for those that are claimed again."""


class Reader:
    """The union of what earlier starts wrote below *prefix*. *lost* makes the error for a part that is missing."""

    def __init__(self, store: StateStore, prefix: str, *, lost: Callable[[], LedgerFailed]) -> None:
        self._store = store
        self._prefix = prefix
        self._lost = lost
        self._stories: dict[Where, Story] = {}
        self._people: OrderedDict[tuple[Where, int], People] = OrderedDict()

    def starts(self, try_number: int) -> dict[Where, Start]:
        """Return what is recorded of the starts up to those of *try_number*, oldest first."""
        if self._store.get(f"{self._prefix}/meta") is not None:
            raise LedgerFailed("The record of this send has version 1, of before the first release: it can't be read")
        found: dict[Where, Start] = {}
        for number in range(1, try_number + 1):
            where = Where(number, 0)
            while (text := self._store.get(where.key(self._prefix, "try"))) is not None:
                found[where] = Start.read(text)
                where = Where(number, where.start + 1)
        return found

    def read(self, starts: Sequence[Where]) -> None:
        """Read what each of *starts* claimed and settled."""
        self._stories = {where: self._story(where) for where in starts}

    @property
    def has_claims(self) -> bool:
        """Whether a batch stands that was not released."""
        return bool(self.with_claims)

    @property
    def with_claims(self) -> tuple[Where, ...]:
        """Return the starts that left batches that were not released, oldest first."""
        return tuple(
            where
            for where, story in self._stories.items()
            if any(batch.state is not State.RELEASED for batch in story.batches.values())
        )

    def made_with(self) -> People | None:
        """Return what the fingerprints of the claims were made with, None if there are no claims."""
        for where in self.with_claims:
            batch = next(one for one in self._stories[where].batches.values() if one.state is not State.RELEASED)
            return self._keyed(where, batch.key)
        return None

    def earlier(self) -> Iterator[Earlier]:
        """Yield every batch that was not released, oldest first."""
        moved = self._moved()
        for where, story in self._stories.items():
            for number in sorted(story.batches):
                batch = story.batches[number]
                if batch.state is not State.RELEASED and (left := self._left(where, batch, moved)):
                    yield left

    def announced(self) -> Iterator[list[bytes]]:
        """Yield the fingerprints that the first start with claims announced."""
        for where in self.with_claims[:1]:
            for key in range(self._stories[where].announced):
                people = self._keyed(where, key)
                for place in range(len(people.packed)):
                    yield people.batch(place)

    def _left(
        self, where: Where, batch: Batch, moved: dict[tuple[Where, int], list[tuple[Where, Batch]]]
    ) -> Earlier | None:
        """Return *batch* without the recipients that were moved out of it; None if there are no others."""
        fingerprints = self._keyed(where, batch.key).batch(batch.place)
        if movers := moved.get((where, batch.number)):
            gone = {one for at, other in movers for one in self._keyed(at, other.key).batch(other.place)}
            fingerprints = [one for one in fingerprints if one not in gone]
        if not fingerprints:
            return None
        return Earlier(
            fingerprints=fingerprints,
            request_id=batch.request_id if batch.state is State.ACCEPTED else None,
            since=datetime.fromtimestamp(batch.claimed_at, UTC),
            label=f"try {where.try_number}, batch {batch.number}",
            place=(where, batch.number),
            batch_id=batch.batch_id,
            try_number=where.try_number,
        )

    def _moved(self) -> dict[tuple[Where, int], list[tuple[Where, Batch]]]:
        """Return the batches that took recipients over, by the doubt that they were taken from."""
        moved: dict[tuple[Where, int], list[tuple[Where, Batch]]] = {}
        for where, story in self._stories.items():
            for batch in story.batches.values():
                # What was released never was sent: its recipients are in the doubt still.
                if batch.moved_from is not None and batch.state is not State.RELEASED:
                    moved.setdefault(batch.moved_from, []).append((where, batch))
        return moved

    def _story(self, where: Where) -> Story:
        """Put together what the commits of one start say: their sums first, then each one after these."""
        story = Story()
        number = sums = 0
        while (text := self._store.get(where.key(self._prefix, "sum", sums))) is not None:
            entries = Entries.read(text)
            story.add(entries.texts)
            number, sums = entries.last + 1, sums + 1
        acknowledged = number - 1
        missing = 0
        while missing < GAP:
            text = self._store.get(where.key(self._prefix, "log", number))
            number += 1
            if text is None:
                missing += 1
                continue
            missing = 0
            entries = Entries.read(text)
            if entries.before > acknowledged:
                raise self._lost()
            story.add(entries.texts)
            acknowledged = entries.last
        # A sum is acknowledged before the next one is written: only acknowledged writes that were lost leave a gap. One
        # further key finds one lost sum. Where more are lost in a row, the loop above has read their commits instead;
        # if `GAP` of those in a row are lost as well, what comes after them is not looked for.
        if self._store.get(where.key(self._prefix, "sum", sums + 1)) is not None:
            raise self._lost()
        return story

    def _keyed(self, where: Where, key: int) -> People:
        """Return what one key holds; a few are kept in memory."""
        place = where, key
        if place not in self._people:
            text = self._store.get(where.key(self._prefix, "people", key))
            if text is None:
                raise self._lost()
            self._people[place] = People.read(text)
            if len(self._people) > KEYS_IN_MEMORY:
                self._people.popitem(last=False)
        self._people.move_to_end(place)
        return self._people[place]
