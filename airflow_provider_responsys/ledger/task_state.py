"""The ledger in Airflow's task state store (3.3+): nothing to set up, one task instance wide.

A new try gets a new task instance id, and the store refuses writes under the
old one. So a try that was replaced can't claim anything any more, and what it
had claimed is complete when its successor reads it.

Airflow gives up a write after some seconds and repeats it, and its API server may
do the first copy much later; with a state store backend of the workers, values are
also written where no task instance id is checked. So every key is written once and
never with another content, and what is read is the union of the keys: `task_record`
has their names and values.
"""

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from typing import cast

from airflow_provider_responsys.errors import LedgerFailed, SettingsChanged, StateLost
from airflow_provider_responsys.ledger.fingerprint import new_key
from airflow_provider_responsys.ledger.interface import Accepted, Claim, Earlier, Settlement, Source, Wanted
from airflow_provider_responsys.ledger.state_store import StateStore, Store
from airflow_provider_responsys.ledger.task_reader import Reader
from airflow_provider_responsys.ledger.task_record import (
    MAX_BATCHES,
    MAX_COMMITS,
    MAX_SUM,
    MAX_VALUE,
    NEVER,
    Batch,
    Entries,
    People,
    Start,
    Where,
    accept,
    announce,
    pack,
    release,
    unpack,
)
from airflow_provider_responsys.ledger.tries import OnClear, changes, is_of_a_clear

DESTROYED = "so nothing is sent: which recipients were pushed can't be told any more"

log = logging.getLogger(__name__)


class TaskStateLedger:
    """The record of one task instance in *store*.

    *max_tries* is the task instance's, *retries* the task's: a person's clear,
    and nothing else, changes the first. *may_have_claimed* says whether an earlier
    try may have claimed recipients (`tries.may_have_claimed` tells); unless told,
    a later try assumes so. *retention* is how Airflow spells "for ever". *by_position*
    says that the task is mapped: `compare` then looks at what the first try read.
    """

    durable = True
    resumes = False
    looks_ahead = True

    def __init__(
        self,
        store: Store,
        *,
        try_number: int,
        max_tries: int,
        retries: int,
        on_clear: OnClear = "resume",
        may_have_claimed: bool | None = None,
        retention: timedelta | None = None,
        by_position: bool = False,
        prefix: str = "responsys",
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._store = StateStore(store, retention=retention)
        self._reader = Reader(self._store, prefix, lost=self._lost)
        self._try_number = try_number
        self._max_tries = max_tries
        self._retries = retries
        self._on_clear = on_clear
        self._may_have_claimed = try_number > 1 if may_have_claimed is None else may_have_claimed
        self._by_position = by_position
        self._prefix = prefix
        self._now = now
        self._where = Where(try_number, 0)
        self._start: Start | None = None
        self._written = Written()

    def begin(self, identity: Mapping[str, str]) -> bytes:
        """Record that this try began, after deciding what becomes of what earlier ones left."""
        starts = self._reader.starts(self._try_number)
        self._where = Where(self._try_number, sum(where.try_number == self._try_number for where in starts))
        start = self._go_on(starts, identity) if starts else self._begin_first(identity)
        self._set("try", None, start.write())
        self._start = start
        self.resumes = self._reader.has_claims
        if start.since == self._where and starts:
            self._tidy_up(starts)
        return unpack(start.key)

    def compare(self, source: Source) -> None:
        """Where the record has a position and no name, let no recipient in whom its first try did not read.

        Mapped tasks are known by their position in a list. When the list is made anew,
        a recipient that another position pushed may come to this one.
        """
        if not self._by_position:
            return
        if not self.resumes:
            self._announce(source.fingerprints())
        elif strangers := source.strangers(self._reader.announced()):
            raise SettingsChanged(
                f"{strangers} recipients of this mapped task's source were not in the source of its first try. Another "
                "map index may have pushed them, and Airflow's task state store knows mapped tasks by their position "
                "only, so nothing is sent. Set ledger_conn_id, where one send_key serves all map indexes; or keep "
                'the mapped list as it was; or, if all recipients may be pushed again, set on_clear="restart" and '
                "clear the task."
            )

    def earlier(self) -> Iterator[Earlier]:
        """Yield the earlier starts' batches, the fingerprints of a few keys in memory at a time.

        After a `begin` that raised, those that it had read.
        """
        return self._reader.earlier()

    def commit(
        self, settled: Sequence[Settlement], wanted: Sequence[Wanted], upcoming: Sequence[Sequence[bytes]] = ()
    ) -> list[Claim]:
        """Write one key that says all of it, after the fingerprints where they are new; every claim is won.

        The recipients of `earlier` are the caller's to leave out: a million
        fingerprints have no place in memory.
        """
        self._began()
        if not (settled or wanted):
            return []
        self._sum_up()
        names = self._stand([want.fingerprints for want in wanted], upcoming)
        claims = [self._claim(want, self._written.places[name]) for want, name in zip(wanted, names, strict=True)]
        texts = [*self._written.texts_before(), *map(_settlement, settled), *(batch.claim() for batch in claims)]
        number = self._written.take_number()
        try:
            self._set("log", number, Entries(number, number, self._written.newest, texts).write())
        except BaseException:
            # If the write is done nevertheless, the next one says that these were never sent.
            self._written.unsent.extend(want.number for want in wanted)
            raise
        self._written.note(number, texts)
        self._written.forget(settled)
        self._written.claimed.update((want.number, name) for want, name in zip(wanted, names, strict=True))
        return [Claim(want.number) for want in wanted]

    def name_answer(self, number: int, correlation_id: str) -> None:
        """Do nothing: the log and the report show it, and this record is for the next try alone."""

    def close(self) -> None:
        """Do nothing: Airflow owns the store."""

    # What begin decides

    def _begin_first(self, identity: Mapping[str, str]) -> Start:
        """Return what to write where nothing is recorded, if there may be nothing."""
        if self._may_have_claimed:
            self._check_fence()
            if self._max_tries == self._retries:
                raise StateLost(
                    f"This is try {self._try_number}, and the record of the earlier ones is gone from Airflow's task "
                    f"state store (cleaned up, deleted, or expired), {DESTROYED}. If all recipients may be pushed "
                    'again, set on_clear="restart" and clear the task; a ledger_conn_id survives clean-ups.'
                )
            if self._on_clear == "resume" or not self._is_of_a_clear:
                raise StateLost(
                    "The task was cleared, and its record is gone from Airflow's task state store (Airflow 3.4 drops "
                    f"it on a clear unless told to keep it, as does clear_on_success), {DESTROYED}. If all recipients "
                    'may be pushed again, set on_clear="restart" and clear the task; a ledger_conn_id survives clears.'
                )
            log.warning(
                'The task was cleared and on_clear is "restart": the claims of its earlier tries are forgotten, and '
                "all recipients are pushed, again where they were pushed before."
            )
            return Start(pack(self._new_key()), dict(identity), self._max_tries, since=self._where)
        return Start(pack(self._new_key()), dict(identity), self._max_tries, since=NEVER)

    def _go_on(self, starts: Mapping[Where, Start], identity: Mapping[str, str]) -> Start:
        """Return what to write to continue, or to start again, the send of *starts*."""
        newest = starts[max(starts)]
        if newest.max_tries != self._max_tries:
            if self._on_clear == "restart":
                return self._restart(starts, identity)
            log.info("The task was cleared; it goes on where it stopped, and pushes no recipient again.")
        since = max(start.since for start in starts.values())
        self._check_seen(starts, since)
        self._reader.read([where for where in sorted(starts) if where >= since])
        made_with = self._reader.made_with() or newest
        if made_with is not newest and made_with.identity != identity:
            raise SettingsChanged(changes(made_with.identity, identity))
        return Start(made_with.key, dict(identity), self._max_tries, since, self._reader.with_claims)

    def _check_seen(self, starts: Mapping[Where, Start], since: Where) -> None:
        """Raise where a later start has seen claims of one that is gone: housekeeping by age takes the oldest first."""
        for start in starts.values():
            if any(where >= since and where not in starts for where in start.seen):
                raise self._lost()

    @property
    def _is_of_a_clear(self) -> bool:
        return is_of_a_clear(try_number=self._try_number, max_tries=self._max_tries, retries=self._retries)

    def _restart(self, starts: Mapping[Where, Start], identity: Mapping[str, str]) -> Start:
        """Return what forgets, in one write, what earlier starts claimed."""
        log.warning(
            'The task was cleared and on_clear is "restart": the claims of its tries %s are forgotten, and all '
            "recipients are pushed, again where they were pushed before.",
            ", ".join(map(str, sorted({where.try_number for where in starts}))),
        )
        return Start(pack(self._new_key()), dict(identity), self._max_tries, since=self._where)

    def _tidy_up(self, starts: Iterable[Where]) -> None:
        """Remove the fingerprints that a restart forgot. What is left of them, or comes late, is never read."""
        for where in starts:
            if where < self._where:
                number = 0
                while self._store.get(key := where.key(self._prefix, "people", number)) is not None:
                    self._store.delete(key)
                    number += 1

    def _new_key(self) -> bytes:
        return new_key()

    # What commit writes

    def _announce(self, batches: Iterable[Sequence[bytes]]) -> None:
        """Write the fingerprints of *batches*, which are all that this try read, before any of them is claimed."""
        self._began()
        waiting: deque[str] = deque()
        for fingerprints in batches:
            waiting.append(pack(b"".join(fingerprints)))
            if len(waiting) == MAX_BATCHES:
                self._write_people(waiting)
        while waiting:
            self._write_people(waiting)
        self._written.announced = self._written.keys

    def _sum_up(self) -> None:
        """Write again in one key what the last commits said, when they are many."""
        if not self._written.is_long:
            return
        summary = self._written.summary()
        self._set("sum", self._written.sums, summary.write())
        self._written.summed_up(summary)

    def _stand(self, wanted: Sequence[Sequence[bytes]], upcoming: Sequence[Sequence[bytes]]) -> list[bytes]:
        """Return by what name each batch's fingerprints are found, after writing the new ones, *upcoming* ones too."""
        packed = [pack(b"".join(fingerprints)) for fingerprints in wanted]
        new = deque(one for one in dict.fromkeys(packed) if _name(one) not in self._written.places)
        if new:
            wanted_yet = len(new)
            ahead = dict.fromkeys(pack(b"".join(fingerprints)) for fingerprints in upcoming)
            new.extend(one for one in ahead if one not in new and _name(one) not in self._written.places)
            while wanted_yet > 0:
                wanted_yet -= self._write_people(new)
        return [_name(one) for one in packed]

    def _write_people(self, waiting: deque[str]) -> int:
        """Write the first of *waiting* in one key; return how many."""
        start = self._began()
        head = len(People(start.key, start.identity, ()).write())
        taken: list[str] = []
        size = head
        while waiting and len(taken) < MAX_BATCHES and (not taken or size + len(waiting[0]) + 1 <= MAX_VALUE):
            size += len(waiting[0]) + 1
            taken.append(waiting.popleft())
        key = self._written.take_key()
        self._set("people", key, People(start.key, start.identity, taken).write())
        self._written.places.update((_name(one), (key, place)) for place, one in enumerate(taken))
        return len(taken)

    def _claim(self, want: Wanted, place: tuple[int, int]) -> Batch:
        doubt = cast("tuple[Where, int] | None", want.doubt and want.doubt.place)
        claimed_at = int(self._now().timestamp())
        return Batch(want.number, want.batch_id, claimed_at, *place, moved_from=doubt)

    # Reading and writing

    def _began(self) -> Start:
        if self._store.refused:
            raise self._store.refused
        if self._start is None:
            raise LedgerFailed("`begin` comes first")
        return self._start

    def _set(self, kind: str, number: int | None, value: str) -> None:
        self._store.set(self._where.key(self._prefix, kind, number), value)

    def _check_fence(self) -> None:
        """Raise `Fenced` if this try was replaced: to it, the record looks as if it were not there."""
        self._store.delete(f"{self._prefix}/fence")  # only a write tells, and this key is never written

    def _lost(self) -> StateLost:
        """Return the error for a record of which a part is missing."""
        self._check_fence()
        return StateLost(
            f"A part of the record of earlier tries is gone from Airflow's task state store, {DESTROYED}. If all "
            'recipients may be pushed again, set on_clear="restart" and clear the task; a ledger_conn_id survives '
            "clean-ups."
        )


class Written:
    """What this start has written so far, and which numbers of its keys are taken."""

    def __init__(self) -> None:
        self.keys = 0
        """Keys with fingerprints, those included whose write failed: none is written again with another content."""
        self.sums = 0
        self.newest = -1
        """The newest commit that was acknowledged."""
        self.places: dict[bytes, tuple[int, int]] = {}
        """Where the fingerprints of batches that may still be claimed stand, by a digest of them."""
        self.claimed: dict[int, bytes] = {}
        """That digest of the batches that are claimed and not settled, by their number."""
        self.unsent: list[int] = []
        """Batches of commits that failed: they were not sent."""
        self.announced = 0
        """Keys that hold all recipients of this start; told with its first commit."""
        self._commits = 0
        self._first = 0
        self._texts: list[str] = []

    def take_key(self) -> int:
        """Return the number of the next key with fingerprints."""
        self.keys += 1
        return self.keys - 1

    def take_number(self) -> int:
        """Return the number of the next commit."""
        self._commits += 1
        return self._commits - 1

    def texts_before(self) -> list[str]:
        """Return what the next commit says beside its own."""
        first = [announce(self.announced)] if self.newest < 0 and self.announced else []
        return [*first, *map(release, self.unsent)]

    def note(self, number: int, texts: Sequence[str]) -> None:
        """Take note that commit *number* was acknowledged."""
        self.newest = number
        self.unsent.clear()
        self._texts.extend(texts)

    def forget(self, settled: Iterable[Settlement]) -> None:
        """Drop what only a further claim needs: an accepted batch is never claimed again, a released one may be."""
        for settlement in settled:
            name = self.claimed.pop(settlement.number, None)
            if name is not None and isinstance(settlement, Accepted):
                self.places.pop(name, None)

    @property
    def is_long(self) -> bool:
        """Whether there is much to read back one by one."""
        return self._commits - self._first >= MAX_COMMITS or sum(map(len, self._texts)) > MAX_SUM

    def summary(self) -> Entries:
        """Return what the commits since the last sum said."""
        return Entries(self._first, self._commits - 1, self.newest, list(self._texts))

    def summed_up(self, summary: Entries) -> None:
        """Take note that *summary* was acknowledged."""
        self.sums += 1
        self._first = summary.last + 1
        self._texts.clear()


def _settlement(settlement: Settlement) -> str:
    if isinstance(settlement, Accepted):
        return accept(settlement.number, settlement.request_id)
    return release(settlement.number)


def _name(packed: str) -> bytes:
    """Return what fingerprints are found by."""
    return blake2b(packed.encode("ascii"), digest_size=12).digest()
