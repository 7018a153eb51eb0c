"""A task state ledger that writes its segments over, without a version: what a late or repeated write breaks.

It keeps every promise of a ledger where each write is done once, and at once. So it
is planted: a simulation that calls it right does not see writes that come late.

::

    <prefix>/meta                    JSON: `Meta`
    <prefix>/<generation>/<segment>  up to 25 batches: try,batch,claimed at,request id,fingerprints;...

*segments* is how many there must be at least: what is read back with fewer has lost some.
"""

import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Self, cast
from urllib.parse import quote, unquote

from airflow_provider_responsys.errors import LedgerFailed, SettingsChanged, StateLost
from airflow_provider_responsys.ledger.fingerprint import KEY_BYTES
from airflow_provider_responsys.ledger.interface import (
    FINGERPRINT_BYTES,
    Accepted,
    Claim,
    Earlier,
    Settlement,
    Wanted,
)
from airflow_provider_responsys.ledger.state_store import StateStore, Store
from airflow_provider_responsys.ledger.tries import OnClear, changes

VERSION = 1

MAX_BATCHES = 25
"""A segment is rewritten whole for each settlement in it: more batches would make each write dearer."""

MAX_VALUE = 65_000  # Airflow: [state_store] max_value_storage_bytes is 65,535, counted with JSON's quotes

REQUEST_ID_ROOM = 150  # kept free per batch until its answer is there; Responsys' ids have about 11 digits


@dataclass(frozen=True, slots=True)
class Batch:
    """One batch as it is kept; its fingerprints stay packed. No request id: in doubt."""

    try_number: int
    number: int
    claimed_at: int
    request_id: str
    packed: str = field(repr=False)

    def write(self) -> str:
        """Return the text of this batch."""
        request_id = quote(self.request_id, safe="")
        return f"{self.try_number},{self.number},{self.claimed_at},{request_id},{self.packed}"

    def room(self) -> int:
        """Return how many characters this batch may come to need, whether its answer is there or not."""
        return len(replace(self, request_id="").write()) + REQUEST_ID_ROOM + 1

    @property
    def fingerprints(self) -> list[bytes]:
        """Return whom it is for."""
        fingerprints = unpack(self.packed)
        return [
            fingerprints[start : start + FINGERPRINT_BYTES] for start in range(0, len(fingerprints), FINGERPRINT_BYTES)
        ]

    def without(self, others: Container[bytes]) -> Self:
        """Return this batch without *others*."""
        return replace(self, packed=pack(b"".join(one for one in self.fingerprints if one not in others)))

    def read(self, segment: int) -> Earlier:
        """Return this batch as a later try sees it, which finds it again in *segment*."""
        return Earlier(
            fingerprints=self.fingerprints,
            request_id=self.request_id or None,
            since=datetime.fromtimestamp(self.claimed_at, UTC),
            label=f"try {self.try_number}, batch {self.number}",
            place=(segment, self.try_number, self.number),
        )


@dataclass(frozen=True, slots=True)
class Meta:
    """What is kept beside the batches."""

    version: int
    generation: str
    key: str
    identity: Mapping[str, str]
    tries: Sequence[int]
    max_tries: int
    segments: int


Segment = Mapping[int, Batch]
"""Batches of one try by their number, those of others by numbers below 0."""


def write_meta(meta: Meta) -> str:
    """Return *meta* as text."""
    return json.dumps(asdict(meta), separators=(",", ":"))


def read_meta(text: str) -> Meta:
    """Read what `write_meta` wrote."""
    try:
        meta = Meta(**json.loads(text))
    except (TypeError, ValueError) as error:
        raise LedgerFailed("What Airflow's task state store holds of this send can't be read") from error
    if meta.version != VERSION:
        raise LedgerFailed(f"The record of this send has version {meta.version}; this provider reads {VERSION}")
    return meta


def write_segment(segment: Segment) -> str:
    """Return the batches of *segment* as text."""
    return ";".join(batch.write() for batch in segment.values())


def read_segment(text: str) -> Iterator[Batch]:
    """Yield the batches that `write_segment` wrote."""
    try:
        for written in filter(None, text.split(";")):
            try_number, number, claimed_at, request_id, packed = written.split(",")
            yield Batch(int(try_number), int(number), int(claimed_at), unquote(request_id), packed)
    except ValueError as error:
        raise LedgerFailed("What Airflow's task state store holds of an earlier try can't be read") from error


def has_room(segment: Segment, batch: Batch) -> bool:
    """Tell whether *batch* fits into *segment*, its answer included."""
    return len(segment) < MAX_BATCHES and sum(kept.room() for kept in segment.values()) + batch.room() <= MAX_VALUE


def pack(data: bytes) -> str:
    """Return *data* as text."""
    return urlsafe_b64encode(data).decode("ascii")


def unpack(text: str) -> bytes:
    """Return what `pack` packed."""
    return urlsafe_b64decode(text)


class SegmentLedger:
    """The record of one task instance in *store*.

    *max_tries* is the task instance's, *retries* the task's: a person's clear,
    and nothing else, changes the first. *may_have_claimed* says whether an earlier
    try may have reached ``execute`` (`tries.may_have_claimed` tells); unless told,
    a later try assumes so. *retention* is how Airflow spells "for ever".
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
        prefix: str = "responsys",
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._store = StateStore(store, retention=retention)
        self._try_number = try_number
        self._max_tries = max_tries
        self._retries = retries
        self._on_clear = on_clear
        self._may_have_claimed = try_number > 1 if may_have_claimed is None else may_have_claimed
        self._prefix = prefix
        self._now = now
        self._meta: Meta | None = None
        self._made = 0
        self._first = 0
        self._next = 0
        self._segments: dict[int, Segment] = {}
        """This try's segments that may be written again, by their number."""
        self._places: dict[int, int] = {}
        """The segment of each batch in them."""

    def begin(self, identity: Mapping[str, str]) -> bytes:
        """Record that this try began, after deciding what becomes of what earlier ones left."""
        found = self._store.get(self._meta_key())
        meta = self._start(identity) if found is None else self._go_on(read_meta(found), identity)
        self._first = self._next = meta.segments
        self.resumes = meta.segments > 0
        self._write_meta(replace(meta, tries=[*meta.tries, self._try_number]))
        return unpack(meta.key)

    def compare(self, source: object) -> None:
        """Do nothing: this is no part of what it is for."""

    def earlier(self) -> Iterator[Earlier]:
        """Yield the earlier tries' batches, one segment in memory at a time."""
        meta = self._began()
        for index in range(self._first):
            for batch in self._read_segment(meta, index):
                yield batch.read(index)

    def commit(
        self,
        settled: Sequence[Settlement],
        wanted: Sequence[Wanted],
        upcoming: Sequence[Sequence[bytes]] = (),
    ) -> list[Claim]:
        """Write each segment that changes, once; every claim is won.

        The recipients of `earlier` are the caller's to leave out: a million
        fingerprints have no place in memory.
        """
        meta = self._began()
        changed = self._settle(settled)
        self._take_over([want for want in wanted if want.doubt], changed)
        last = self._claim([want for want in wanted if not want.doubt], changed)
        if last > self._next > meta.segments:
            self._write_meta(replace(meta, segments=self._next))
        try:
            # Settlements before claims: cut off between two writes, no more is in doubt than was in flight.
            for index in sorted(changed):
                self._store.set(self._segment_key(meta, index), write_segment(changed[index]))
                self._install(index, changed[index])
        except BaseException:
            self._forget(wanted)
            raise
        self._drop_finished()
        return [Claim(want.number) for want in wanted]

    def name_answer(self, number: int, correlation_id: str) -> None:
        """Do nothing: no person looks doubts up here."""

    def close(self) -> None:
        """Do nothing: Airflow owns the store."""

    # What begin decides

    def _start(self, identity: Mapping[str, str]) -> Meta:
        """Return the meta data of a send that has none, if it may have none."""
        cleared = self._max_tries != self._retries
        if self._may_have_claimed:
            # To a try that was replaced, the record looks as if it were not there: only a write tells.
            self._store.delete(self._meta_key())
            if not cleared or self._on_clear == "resume":
                raise StateLost("The record of the earlier tries is gone")
        return self._new(identity)

    def _go_on(self, found: Meta, identity: Mapping[str, str]) -> Meta:
        """Return the meta data with which to continue, or start again, the send of *found*."""
        meta = replace(found, segments=self._count(found))
        if meta.max_tries != self._max_tries and self._on_clear == "restart":
            return self._restart(meta, identity)
        if meta.identity != identity and next(self._read(meta, meta.segments), None):
            raise SettingsChanged(changes(meta.identity, identity))
        return replace(meta, identity=dict(identity), max_tries=self._max_tries)

    def _restart(self, meta: Meta, identity: Mapping[str, str]) -> Meta:
        """Forget, in one write, what earlier tries claimed; then tidy up."""
        fresh = self._new(identity)
        self._write_meta(fresh)
        for index in range(meta.segments):
            self._store.delete(self._segment_key(meta, index))
        return fresh

    def _new(self, identity: Mapping[str, str]) -> Meta:
        """Draw nothing by chance: two schedules that come to the same state are one."""
        self._made += 1
        name = f"{self._try_number:02d}{self._made:02d}"
        return Meta(
            version=VERSION,
            generation=name,
            key=pack(name.encode() * (KEY_BYTES // 4)),
            identity=dict(identity),
            tries=[],
            max_tries=self._max_tries,
            segments=0,
        )

    # What commit decides

    def _settle(self, settled: Sequence[Settlement]) -> dict[int, dict[int, Batch]]:
        """Return the segments that *settled* changes, changed."""
        changed: dict[int, dict[int, Batch]] = {}
        for settlement in settled:
            index = self._places[settlement.number]
            segment = changed.setdefault(index, dict(self._segments[index]))
            if isinstance(settlement, Accepted):
                segment[settlement.number] = replace(segment[settlement.number], request_id=settlement.request_id)
            else:  # Released: it may be gone already, where a write that failed is tried again.
                segment.pop(settlement.number, None)
        return changed

    def _take_over(self, wanted: Sequence[Wanted], changed: dict[int, dict[int, Batch]]) -> None:
        """Put *wanted* into *changed* where they stand as doubts: one write takes them out of the one, into the other.

        A segment may then hold a few batches more: what a batch takes besides its fingerprints, it has room for.
        """
        for want in wanted:
            index, *whose = cast("tuple[int, int, int]", want.doubt and want.doubt.place)
            segment = changed.get(index) or self._segments.get(index) or self._segment_of_others(index)
            taken = frozenset(want.fingerprints)
            new: dict[int, Batch] = {}
            for number, batch in segment.items():
                left = batch
                if [batch.try_number, batch.number] == whose:
                    new[want.number] = self._batch(want)
                    left = batch.without(taken)
                if left.packed:
                    new[number] = left
            changed[index] = new

    def _segment_of_others(self, index: int) -> Segment:
        """Return what earlier tries left in segment *index*."""
        return {-number: batch for number, batch in enumerate(self._read_segment(self._began(), index), 1)}

    def _batch(self, want: Wanted) -> Batch:
        claimed_at = int(self._now().timestamp())
        return Batch(self._try_number, want.number, claimed_at, "", pack(b"".join(want.fingerprints)))

    def _claim(self, wanted: Sequence[Wanted], changed: dict[int, dict[int, Batch]]) -> int:
        """Put *wanted* into *changed*; return the number of the segment after the last."""
        following = self._next
        for want in wanted:
            batch = self._batch(want)
            last = following - 1
            segment = changed.get(last, self._segments.get(last)) if last >= self._first else None
            if segment is None or not has_room(segment, batch):
                following += 1
                segment = {}
            changed.setdefault(following - 1, dict(segment))[want.number] = batch
        return following

    def _install(self, index: int, segment: Segment) -> None:
        """Take over what was written."""
        self._segments[index] = segment
        self._places.update(dict.fromkeys(segment, index))
        self._next = max(self._next, index + 1)

    def _forget(self, wanted: Sequence[Wanted]) -> None:
        """Take claims back that will not be sent, so that the next write of their segment drops them."""
        for want in wanted:
            index = self._places.pop(want.number, None)
            # What is taken over stays what it was: in doubt.
            if index is not None and not want.doubt:
                self._segments[index] = {n: b for n, b in self._segments[index].items() if n != want.number}

    def _drop_finished(self) -> None:
        """Keep no segment in memory that nothing will change any more."""
        self._segments = {
            index: segment
            for index, segment in self._segments.items()
            if index == self._next - 1 or not all(batch.request_id for batch in segment.values())
        }
        self._places = {number: index for number, index in self._places.items() if index in self._segments}

    # Reading and writing

    def _began(self) -> Meta:
        if self._store.refused:
            raise self._store.refused
        if self._meta is None:
            raise LedgerFailed("`begin` comes first")
        return self._meta

    def _count(self, meta: Meta) -> int:
        """Return how many segments there are: those that *meta* knows, and what was written after it."""
        count = meta.segments
        while self._store.get(self._segment_key(meta, count)) is not None:
            count += 1
        return count

    def _read(self, meta: Meta, count: int) -> Iterator[Batch]:
        """Yield the batches of the first *count* segments; each of them must be there."""
        for index in range(count):
            yield from self._read_segment(meta, index)

    def _read_segment(self, meta: Meta, index: int) -> Iterator[Batch]:
        key = self._segment_key(meta, index)
        text = self._store.get(key)
        if text is None:
            # To a try that was replaced, the record looks as if it were not there: only a write tells.
            self._store.delete(key)
            raise StateLost("A part of the record of earlier tries is gone")
        yield from read_segment(text)

    def _meta_key(self) -> str:
        return f"{self._prefix}/meta"

    def _segment_key(self, meta: Meta, index: int) -> str:
        return f"{self._prefix}/{meta.generation}/{index:05d}"

    def _write_meta(self, meta: Meta) -> None:
        self._store.set(self._meta_key(), write_meta(meta))
        self._meta = meta
