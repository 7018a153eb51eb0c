"""The outcome of a send: every recipient read ends in exactly one bucket."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Self, TypeAlias

from airflow_provider_responsys.errors import ResponsysError
from airflow_provider_responsys.ledger.interface import Earlier, Holder
from airflow_provider_responsys.recipients.outcomes import Outcome, Outcomes
from airflow_provider_responsys.recipients.spool import Batch, Spool
from airflow_provider_responsys.sending.queue import Due
from airflow_provider_responsys.sending.run import Doubt, Report

TakeOut: TypeAlias = Callable[[Sequence[bytes]], Iterable[Batch]]
"""Takes whom fingerprints name out of the source, and returns who of them was there."""

RESOLVED = "a person resolved the doubt: it was sent"


@dataclass(slots=True)
class Resumed:
    """What earlier tries of the send did: counts of recipients, *here* in the source or *vanished* from it."""

    request_ids: list[str] = field(default_factory=list)
    request_sizes: list[int] = field(default_factory=list)
    accepted: int = 0
    in_doubt: int = 0
    here: int = 0
    vanished: int = 0
    doubts: list[Doubt] = field(default_factory=list)
    repeats: list[Due] = field(default_factory=list)
    """Recipients *here*, in doubt and to be sent to again: *in_doubt* and *doubts* are without them."""
    first_try: int = 1
    """The first try since a person last cleared the task."""
    lost_lately: int = 0
    """Recipients that tries since then left in doubt, repeats included."""

    @classmethod
    def of(
        cls,
        earlier: Iterable[Earlier],
        spool: Spool,
        take_out: TakeOut | None = None,
        *,
        first_try: int = 1,
        outcomes: Outcomes | None = None,
    ) -> Self:
        """Take the recipients of *earlier* batches out of *spool*; with *take_out*, to send again what is in doubt.

        Each batch is told to *outcomes*.
        """
        resumed = cls(first_try=first_try)
        doubts = []
        for batch in earlier:
            if batch.request_id is None:
                doubts.append(batch)
            else:
                resumed._accept(batch, spool, outcomes)
        # After all acceptances: a claim that was written late, for a request that never left, is no doubt
        # about recipients whom another try has sent to meanwhile.
        for batch in doubts:
            resumed._take_doubt(batch, spool, take_out, outcomes)
        return resumed

    @property
    def found_in_doubt(self) -> int:
        """Return how many recipients earlier tries left in doubt, whatever becomes of them."""
        return self.in_doubt + sum(len(due.batch) for due in self.repeats)

    def _accept(self, batch: Earlier, spool: Spool, outcomes: Outcomes | None) -> None:
        size = len(batch.fingerprints)
        if outcomes:
            found = spool.sort_out(batch.fingerprints)
            outcomes.note_earlier(batch.fingerprints, _outcome(batch), gone=len(found.vanished))
        here = spool.exclude(batch.fingerprints)
        known = len(spool.sort_out(batch.fingerprints).known) if here < size else size
        self.here += here
        self.vanished += size - known
        self.accepted += size - (known - here)  # the others are in another batch, and counted there
        if batch.request_id:  # none where a person settled the batch by hand
            self.request_ids.append(batch.request_id)
            self.request_sizes.append(size)

    def _take_doubt(self, batch: Earlier, spool: Spool, take_out: TakeOut | None, outcomes: Outcomes | None) -> None:
        found = spool.sort_out(batch.fingerprints)
        here, vanished = found.here, found.vanished
        if outcomes:
            outcomes.note_earlier(batch.fingerprints, _outcome(batch), gone=len(vanished))
        # Until a person has cleared the task, all tries are of the same cycle, and need no number.
        if self.first_try <= 1 or batch.try_number >= self.first_try:
            self.lost_lately += len(here) + len(vanished)
        self.here += len(here)
        self.vanished += len(vanished)
        if take_out:
            self.repeats += [Due(again, batch) for again in take_out(here)]
            left = vanished
        else:
            spool.exclude(here)
            counted = {*here, *vanished}
            left = [one for one in batch.fingerprints if one in counted]
        if left:
            self._doubt(batch, left)

    def _doubt(self, batch: Earlier, fingerprints: Sequence[bytes]) -> None:
        self.in_doubt += len(fingerprints)
        self.doubts.append(_left_in_doubt(batch, fingerprints))


@dataclass(frozen=True, slots=True, kw_only=True)
class Buckets:
    """Recipients by their outcome. All but *read* add up to *read*."""

    read: int
    accepted: int = 0
    rejected: int = 0
    in_doubt: int = 0
    not_sent: int = 0
    withheld: int = 0
    duplicate: int = 0
    invalid: int = 0

    @classmethod
    def of(cls, spool: Spool, resumed: Resumed, report: Report) -> Self:
        """Add up what was read, what earlier tries did, and what this one did; check that no recipient is missing."""
        buckets = cls(
            read=spool.read + resumed.vanished,
            accepted=resumed.accepted + report.accepted + report.held[Holder.ACCEPTED],
            rejected=report.rejected.total(),
            in_doubt=resumed.in_doubt + report.in_doubt + report.held[Holder.IN_DOUBT],
            not_sent=report.not_sent,
            duplicate=spool.duplicates + report.held[Holder.OTHER],
            invalid=spool.invalid,
        )
        buckets.check()
        return buckets

    def check(self) -> None:
        """Raise unless the buckets add up: a recipient would have been lost silently."""
        counts = self.as_dict()
        total = sum(counts.values()) - self.read
        if total != self.read:
            raise ResponsysError(
                f"a defect of this package: {self.read} recipients read, {total} accounted for: {counts}"
            )

    def __str__(self) -> str:
        others = {name: count for name, count in self.as_dict().items() if name not in ("read", "accepted") and count}
        told = "".join(f", {count:,} {name.replace('_', ' ')}" for name, count in others.items())
        return f"{self.accepted:,} of {self.read:,} accepted{told}"

    def as_dict(self) -> dict[str, int]:
        """Return the counts by name, as XCom takes them."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Sent:
    """All of a send as one try sees it: the earlier tries' part and its own."""

    buckets: Buckets
    report: Report
    request_ids: list[str]
    request_sizes: list[int]
    doubts: list[Doubt]

    @classmethod
    def nothing(cls) -> Self:
        """Return what is known before a ledger or a source is read."""
        return cls(Buckets(read=0), Report(0), [], [], [])

    @classmethod
    def of(cls, spool: Spool, resumed: Resumed, report: Report) -> Self:
        """Put together what earlier tries and this one did."""
        return cls(
            Buckets.of(spool, resumed, report),
            report,
            resumed.request_ids + report.request_ids,
            resumed.request_sizes + report.request_sizes,
            [*resumed.doubts, *report.doubts],
        )


def left_by_earlier_tries(earlier: Callable[[], Iterable[Earlier]]) -> Sent:
    """Return what *earlier* tries sent, where this one has no source to compare it with."""
    with Spool() as empty:
        return Sent.of(empty, Resumed.of(earlier(), empty), Report(0))


def _left_in_doubt(batch: Earlier, fingerprints: Sequence[bytes]) -> Doubt:
    reason = f"no answer was recorded since {batch.since:%F %T%z}"
    return Doubt(batch.label, len(fingerprints), reason, fingerprints, batch.batch_id)


def _outcome(batch: Earlier) -> Outcome:
    """Return the outcome of the recipients of an earlier *batch*, unless they are sent to again."""
    if batch.request_id is None:
        return _left_in_doubt(batch, ()).outcome
    return Outcome("accepted", batch.request_id or None, reason=None if batch.request_id else RESOLVED)


def doubt_lines(doubts: Iterable[Doubt], spool: Spool) -> Iterator[str]:
    """Yield one JSON text for each recipient in doubt: the batch, the reason, and who it is, without optional data.

    Recipients no longer in the source exist only as hashes, so only their number is reported.
    """
    for doubt in doubts:
        known = 0
        batch = {"batch": doubt.label, "batch_id": str(doubt.batch_id or ""), "reason": doubt.reason}
        for body in spool.bodies_of(doubt.fingerprints):
            known += 1
            who = {name: value for name, value in json.loads(body).items() if value and name != "optionalData"}
            yield json.dumps({**batch, "recipient": who})
        if known < doubt.size:
            yield json.dumps({**batch, "not_in_source": doubt.size - known})
