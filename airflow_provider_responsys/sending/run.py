"""Does what the engine says: claims and settles on this thread, posts on others."""

import itertools
import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Container, Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from queue import Empty, SimpleQueue
from typing import Protocol, Self, TypeAlias

from airflow_provider_responsys.errors import (
    InDoubt,
    LedgerFailed,
    NotAccepted,
    NotAllSent,
    ResponsysError,
    SourceFailed,
    code_of,
)
from airflow_provider_responsys.ledger.interface import Claim, Holder, Ledger, Wanted
from airflow_provider_responsys.protocol.push import Acceptance
from airflow_provider_responsys.recipients.outcomes import Outcome
from airflow_provider_responsys.recipients.spool import Batch
from airflow_provider_responsys.sending.engine import Commit, Delivery, Done, Engine, Fate, Post, Probe, Recall, Wait
from airflow_provider_responsys.sending.gate import Gate
from airflow_provider_responsys.sending.progress import Observer, Progress, Speed, Unobserved
from airflow_provider_responsys.sending.queue import Due, Queue
from airflow_provider_responsys.threads import Call, Pool

PROGRESS_EVERY = 30.0  # seconds
LOOK_UP = 0.1
"""Seconds between looks at the clock while the ledger works."""

NOT_REPEATED = "an earlier try learned no answer, and this one stopped before it was sent again"

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Answered:
    """Batch *number* was accepted as *request_id*."""

    number: int
    request_id: str
    correlation_id: str = ""


@dataclass(frozen=True, slots=True)
class Failed:
    """Batch *number* was not accepted, or that is not known."""

    number: int
    error: ResponsysError


@dataclass(frozen=True, slots=True)
class Probed:
    """The harmless read succeeded, or failed with *error*."""

    error: ResponsysError | None


@dataclass(frozen=True, slots=True)
class Halt:
    """The sender is told to stop, for *reason*, within *grace* seconds."""

    reason: ResponsysError
    grace: float


@dataclass(frozen=True, slots=True)
class Written:
    """The ledger has returned from a call."""


Event: TypeAlias = Answered | Failed | Probed | Halt | Written
Inbox: TypeAlias = "SimpleQueue[Event]"
"""Where answers arrive. Its `put` may be called from a signal handler."""


@dataclass(frozen=True, slots=True)
class Doubt:
    """A batch of *size* recipients that may have been accepted; *label* is how a person finds it."""

    label: str
    size: int
    reason: str
    fingerprints: Sequence[bytes] = field(default=(), repr=False)
    batch_id: int = 0
    """What its request carried as ``X-Request-Id``."""

    @property
    def outcome(self) -> Outcome:
        """Return what is told of each of its recipients."""
        name = f"{self.label} ({self.batch_id})" if self.batch_id else self.label
        return Outcome("in_doubt", reason=f"{name}: {self.reason}")


HELD = {
    Holder.ACCEPTED: Outcome("accepted", reason="an earlier try of this task got it accepted"),
    Holder.IN_DOUBT: Outcome("in_doubt", reason="an earlier try of this task claimed it, and learned no answer"),
    Holder.OTHER: Outcome("duplicate", reason="claimed by another task with the same send key"),
}
"""The outcome of recipients that could not be claimed, by who holds them."""


@dataclass(slots=True)
class Report:
    """What happened to the batches: counts of recipients, and the ids of the requests."""

    total: int
    request_ids: list[str] = field(default_factory=list)
    request_sizes: list[int] = field(default_factory=list)
    """How many recipients each of those requests has."""
    accepted: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    not_sent: int = 0
    held: Counter[Holder] = field(default_factory=Counter)
    """Recipients that could not be claimed, by who holds them."""
    doubts: list[Doubt] = field(default_factory=list)
    to_repeat: int = 0
    """Recipients in doubt that are to be sent to again, which another try does (at least once only)."""
    stopped: ResponsysError | None = None
    unwritten: int = 0
    """Answers that the ledger could not record: the next try will call them in doubt."""

    @classmethod
    def of_nothing_sent(cls, left: int, repeats: Sequence[Due]) -> Self:
        """Return the report of a try that came to send nothing, with *left* recipients and *repeats* before it."""
        doubts = [_left_over(due) for due in repeats if due.doubt]
        in_doubt = sum(doubt.size for doubt in doubts)
        return cls(left + in_doubt, not_sent=left, doubts=doubts, to_repeat=in_doubt)

    @property
    def in_doubt(self) -> int:
        """Return how many recipients this run left in doubt."""
        return sum(doubt.size for doubt in self.doubts)

    @property
    def left(self) -> int:
        """Return how many recipients have no outcome yet."""
        return self.total - self.accepted - self.in_doubt - self.rejected.total() - self.held.total()


Note: TypeAlias = Callable[[Sequence[int], Outcome], object]
"""Is told the outcome of the rows at these positions, on the thread that claims and settles. May not raise."""


def _note_nothing(positions: Sequence[int], outcome: Outcome) -> None:
    """Keep nothing: no file was asked for."""


class Stalled(LedgerFailed):
    """A call of the ledger was left behind: it has not returned, and the sender is out of time."""


class Workers(Protocol):
    """Where requests are posted from."""

    def submit(self, work: Callable[..., None], /, *args: object) -> object:
        """Do *work* on some thread."""


class Run:
    """One send, from the first claim to the last settlement.

    *repeats* are sent before the *source*, whose recipients alone *total* counts.
    *post* sends one batch's bodies under its id and returns the acceptance, on any thread;
    *probe* is the harmless read. Both raise `ResponsysError`. Where posts pass a *gate*,
    those that have not left yet are not waited for in the end. Where the *ledger* is
    called on *aside*, one thread of its own, a stop is noticed meanwhile.
    *observer* is told what happens, and *note* the outcome of rows of the source, by their positions.
    """

    def __init__(
        self,
        engine: Engine,
        source: Generator[Batch],
        total: int,
        *,
        repeats: Sequence[Due] = (),
        ledger: Ledger,
        post: Callable[[int, tuple[str, ...]], Acceptance],
        probe: Callable[[], None],
        inbox: Inbox,
        gate: Gate | None = None,
        aside: Pool | None = None,
        observer: Observer | None = None,
        note: Note | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.engine = engine
        self.report = Report(total + sum(len(due.batch) for due in repeats))
        self._queue = Queue(source, repeats)
        self._ledger = ledger
        self._post = post
        self._probe = probe
        self._inbox = inbox
        self._gate = gate
        self._aside = aside
        self._observer = observer or Unobserved()
        self._note = note or _note_nothing
        self._clock = clock
        self._numbers = itertools.count(1)
        self._claimed: dict[int, Batch] = {}
        self._ids: dict[int, int] = {}
        """The id of each batch that is not settled, by its number."""
        self._counting = threading.Lock()
        """Held, for no more than a few assignments, while a batch goes from one count to another."""
        self._inherited: set[int] = set()
        """Those that an earlier try left in doubt, and this one has not sent yet."""
        self._recalled: set[int] = set()
        """Those that did not leave before the stop, and can't any more."""
        self._late: deque[Event] = deque()
        """What was told while the ledger was at work."""
        self._began = clock()
        self._speed = Speed(self._began)

    def to_end(self) -> Report:
        """Send everything, or stop for the reason in the report; return it."""
        self.engine.more = bool(self._queue)
        pool = Pool(self.engine.limits.max_in_flight, "responsys-post")
        try:
            self._loop(pool)
        except Exception as error:
            log.exception("An unexpected error: nothing more is sent, and what was sent is recorded")
            self._end_after(error, pool)
        finally:
            pool.close()
            self._queue.close()
        return self._finish()

    def so_far(self) -> Report:
        """Return what is known now, on any thread, where this run may never come to its end.

        What is in flight is in doubt, and what nothing is known of was not sent.
        """
        with self._counting:
            known = self.report
            report = replace(
                known,
                request_ids=list(known.request_ids),
                request_sizes=list(known.request_sizes),
                rejected=Counter(known.rejected),
                held=Counter(known.held),
                doubts=list(known.doubts),
            )
            claimed = list(self._claimed.items())
            report.doubts += [_left_over(due) for due in self._queue.doubts]
        for number, batch in claimed:
            if self.engine.may_be_out(number) or number in self._inherited:
                reason = "stopped before its answer came"
                batch_id = self._ids.get(number, 0)
                report.doubts.append(Doubt(f"batch {number}", len(batch), reason, batch.fingerprints, batch_id))
        report.not_sent = report.left
        report.stopped = self.engine.stopped
        report.unwritten = self.engine.unrecorded
        return report

    def _end_after(self, error: Exception, pool: Workers) -> None:
        """Wind down after an unexpected *error*: what comes back is settled, as far as that works."""
        reason = NotAllSent(f"an unexpected error ({type(error).__name__})")
        reason.__cause__ = error
        self.engine.stop(reason, self._clock())
        try:
            self._loop(pool)
        except Exception:
            log.exception("A second unexpected error: what is in flight stays in doubt")

    def _loop(self, pool: Workers) -> None:
        self._observer.progress(self._progress())
        progress_at = self._began + PROGRESS_EVERY
        while True:
            if self._clock() >= progress_at:
                self._tell_progress(self._progress())
                progress_at = self._clock() + PROGRESS_EVERY
            self._receive_all()
            now = self._clock()
            match self.engine.decide(now):
                case Done():
                    return
                case Commit() as commit:
                    self._commit(commit)
                case Post(numbers):
                    self._inherited.difference_update(numbers)
                    for number in numbers:
                        pool.submit(self._post_one, number, self._ids[number], self._claimed[number].bodies)
                case Probe():
                    pool.submit(self._probe_once)
                case Recall():
                    self._recall()
                case Wait(until):
                    self._receive(min(until, progress_at) - now)

    def _commit(self, commit: Commit) -> None:
        dues = {next(self._numbers): due for due in self._take(commit.claim)}
        wanted = [Wanted(number, due.batch.fingerprints, due.doubt) for number, due in dues.items()]
        self._ids.update((want.number, want.batch_id) for want in wanted)
        upcoming = self._queue.upcoming() if wanted and self._ledger.looks_ahead else ()
        try:
            claims = self._write(partial(self._ledger.commit, commit.settle, wanted, upcoming))
        except Exception as error:  # noqa: BLE001 -- whatever it is, nothing was claimed for certain; it is logged below
            moved = error.moved if isinstance(error, LedgerFailed) else {}
            for number, due in dues.items():
                self._queue.put_back(replace(due, doubt=moved.get(number, due.doubt)))
            self._not_written(commit, error)
            return
        for claim in claims:
            batch = dues[claim.number].batch
            self.report.held.update(claim.lost.values())
            for place, holder in claim.lost.items():
                self._note((batch.positions[place],), HELD[holder])
            won = _without(batch, claim.lost) if claim.lost else batch
            if won:
                self._claimed[claim.number] = won
        won_all = [number for number in dues if number in self._claimed]
        again = [number for number in won_all if dues[number].doubt]
        self._inherited.update(again)
        sizes = [len(self._claimed[number]) for number in won_all]
        self.engine.claimed(won_all, more=bool(self._queue), again=again, sizes=sizes)

    def _write(self, write: Callable[[], list[Claim]]) -> list[Claim]:
        """Let the ledger *write*, and notice a stop and a deadline meanwhile."""
        if self._aside is None:
            return write()
        call = Call(write, then=lambda: self._inbox.put(Written()))
        self._aside.submit(call)
        while not call.ended:
            if not self.engine.is_patient(self._clock()):
                raise Stalled("the ledger did not answer in time, and nothing more is written to it")
            with suppress(Empty):
                event = self._inbox.get(timeout=LOOK_UP)
                # A stop can't wait; all else is taken in when it is known what was claimed.
                if isinstance(event, Halt):
                    self._take_in(event)
                else:
                    self._late.append(event)
        return call.result()

    def _not_written(self, commit: Commit, error: Exception) -> None:
        if isinstance(error, LedgerFailed):
            failure = error
            log.error("The ledger failed, nothing more is sent: %s", error)
        else:
            failure = LedgerFailed(f"the ledger failed unexpectedly ({type(error).__name__})")
            failure.__cause__ = error
            log.error("The ledger failed unexpectedly, nothing more is sent", exc_info=error)
        stalled = isinstance(error, Stalled)
        if stalled and commit.claim:
            log.warning("The claims that the ledger did not confirm were not sent; a later try may find them in doubt")
        self.engine.unwritten(commit.settle, failure, self._clock(), for_good=stalled)

    def _recall(self) -> None:
        """Let no request leave any more, and release those that have not left."""
        if self._gate is None:
            return
        out = self._gate.shut()
        kept = [number for number in self._claimed if self.engine.is_in_flight(number) and self._ids[number] not in out]
        self._recalled.update(kept)
        for number in self.engine.recalled(kept):
            with self._counting:
                self._queue.put_back(Due(self._claimed.pop(number)))
                self._forget(number)

    def _take(self, most: int) -> list[Due]:
        try:
            return self._queue.take(most)
        except SourceFailed as error:
            self.engine.stop(error, self._clock())
            return []

    def _receive(self, seconds: float) -> None:
        """Wait at most *seconds* for an event."""
        with suppress(Empty):
            self._take_in(self._inbox.get(timeout=max(0.0, seconds)))

    def _receive_all(self) -> None:
        """Take in every event that is there: what is to be stopped is not claimed first."""
        while self._late:
            self._take_in(self._late.popleft())
        while not self._inbox.empty():
            self._take_in(self._inbox.get_nowait())

    def _take_in(self, event: Event) -> None:
        now = self._clock()
        match event:
            case Answered(number, request_id, correlation_id):
                with self._counting:
                    batch = self._claimed.pop(number)
                    self.report.accepted += len(batch)
                    self.report.request_ids.append(request_id)
                    self.report.request_sizes.append(len(batch))
                self._forget(number)
                self._note(batch.positions, Outcome("accepted", request_id))
                self.engine.accepted(number, request_id, now, correlation_id)
                self._observer.accepted(len(batch))
            case Failed(number, error):
                if number not in self._recalled:
                    self._failed(number, error, now)
            case Probed(error):
                if error:
                    log.warning("The harmless read failed, and nothing is sent until one succeeds: %s", error)
                self.engine.probed(error, now)
            case Halt(reason, grace):
                self.engine.stop(reason, now, grace=grace)
            case Written():
                pass

    def _failed(self, number: int, error: ResponsysError, now: float) -> None:
        fate = self.engine.failed(number, error, now)
        batch_id = self._ids[number]
        name = f"Batch {number} ({batch_id})"
        if fate is Fate.REPEAT:
            log.warning("%s is in doubt and will be sent again (at_least_once): %s", name, error)
            if isinstance(error, NotAccepted):
                self._observer.put_off(error)
            return
        size = self._settle_failed(number, error, fate)
        match fate:
            case Fate.RECLAIM:
                log.warning("%s was not accepted and will be sent again: %s", name, error)
                self._observer.put_off(error)
            case Fate.REJECTED:
                log.error("%s was refused (%d recipients): %s", name, size, error)
                self._observer.rejected(size, code_of(error))
            case Fate.IN_DOUBT:
                log.error("%s is in doubt (%d recipients): %s", name, size, error)
                self._observer.in_doubt(size)
                self._name_answer(number, batch_id, error)

    def _settle_failed(self, number: int, error: ResponsysError, fate: Fate) -> int:
        """Count batch *number*, which failed with *error*, by its *fate*; return how many recipients it has."""
        outcome: Outcome | None = None
        with self._counting:
            batch, batch_id = self._claimed.pop(number), self._forget(number)
            match fate:
                case Fate.RECLAIM:
                    self._queue.put_back(Due(batch))
                case Fate.REJECTED:
                    self.report.rejected[code_of(error)] += len(batch)
                    outcome = Outcome("rejected", code=code_of(error), reason=str(error))
                case _:
                    refused = isinstance(error, NotAccepted)
                    reason = f"it was sent before, and refused this time: {error}" if refused else str(error)
                    doubt = Doubt(f"batch {number}", len(batch), reason, batch.fingerprints, batch_id)
                    self.report.doubts.append(doubt)
                    outcome = doubt.outcome
        if outcome:
            self._note(batch.positions, outcome)
        return len(batch)

    def _forget(self, number: int) -> int:
        """Drop what only an open batch needs, of which a large send would keep much; return the batch's id."""
        batch_id = self._ids.pop(number)
        if self._gate:
            self._gate.forget(batch_id)
        return batch_id

    def _name_answer(self, number: int, batch_id: int, error: ResponsysError) -> None:
        """Let the ledger keep by which id Oracle's support finds the answer *error*, if it had one."""
        if not error.correlation_id:
            return

        def write() -> list[Claim]:
            self._ledger.name_answer(number, error.correlation_id)
            return []

        try:
            self._write(write)
        except Exception as failure:  # noqa: BLE001 -- it is evidence for people; the claim stands, and says the doubt
            log.warning("The correlation id of batch %d was not written to the ledger: %s", batch_id, failure)

    def _finish(self) -> Report:
        report = self.report
        for number, batch in self._claimed.items():
            if number in self._inherited:
                self._left_over(f"batch {number}", batch, self._ids[number])
            elif self.engine.may_be_out(number):
                self._doubt(number, batch, "stopped before its answer came")
                if self.engine.limits.delivery is Delivery.AT_LEAST_ONCE:
                    report.to_repeat += len(batch)
            else:
                report.not_sent += len(batch)
        for due in self._queue.take_doubts():
            self._left_over(due.doubt.label if due.doubt else "", due.batch, due.doubt.batch_id if due.doubt else 0)
        report.not_sent += report.total - self._queue.taken
        report.stopped = self.engine.stopped
        report.unwritten = self.engine.unrecorded
        log.info("%s", self._progress(at_end=True))
        return report

    def _doubt(self, number: int, batch: Batch, reason: str) -> None:
        doubt = Doubt(f"batch {number}", len(batch), reason, batch.fingerprints, self._ids[number])
        self.report.doubts.append(doubt)
        self._note(batch.positions, doubt.outcome)
        self._observer.in_doubt(len(batch))

    def _left_over(self, label: str, batch: Batch, batch_id: int) -> None:
        self.report.doubts.append(Doubt(label, len(batch), NOT_REPEATED, batch.fingerprints, batch_id))
        self.report.to_repeat += len(batch)

    def _tell_progress(self, progress: Progress) -> None:
        log.info("%s", progress)
        self._observer.progress(progress)

    def _progress(self, *, at_end: bool = False) -> Progress:
        """Return how far this is: at the rate of the last minute, and at the end of the whole send."""
        report, now = self.report, datetime.now(UTC)
        requests = len(report.request_ids)
        speed = Speed(self._began) if at_end else self._speed
        requests_a_second, accepted_a_second = speed.lately(self._clock(), requests, report.accepted)
        left = 0 if at_end else report.left
        going_on = left and accepted_a_second
        return Progress(
            total=report.total,
            accepted=report.accepted,
            rejected=report.rejected.total(),
            in_doubt=report.in_doubt,
            not_sent=report.not_sent,
            left=left,
            requests=requests,
            per_minute=requests_a_second * 60,
            limit=self.engine.pace.limit,
            now=now,
            ends_at=now + timedelta(seconds=left / accepted_a_second) if going_on else None,
        )

    # On the pool's threads

    def _post_one(self, number: int, batch_id: int, bodies: tuple[str, ...]) -> None:
        try:
            acceptance = self._post(batch_id, bodies)
            self._inbox.put(Answered(number, acceptance.request_id, acceptance.correlation_id))
        except ResponsysError as error:
            self._inbox.put(Failed(number, error))
        except BaseException as error:
            log.exception("Batch %d: an error of our own", number)
            self._inbox.put(Failed(number, InDoubt(f"an error of our own: {type(error).__name__}")))

    def _probe_once(self) -> None:
        try:
            self._probe()
        except ResponsysError as error:
            self._inbox.put(Probed(error))
        except BaseException as error:
            log.exception("The harmless read: an error of our own")
            self._inbox.put(Probed(ResponsysError(f"an error of our own: {type(error).__name__}")))
        else:
            self._inbox.put(Probed(None))


def _left_over(due: Due) -> Doubt:
    """Return the doubt that was to be sent to again."""
    label, batch_id = (due.doubt.label, due.doubt.batch_id) if due.doubt else ("", 0)
    return Doubt(label, len(due.batch), NOT_REPEATED, due.batch.fingerprints, batch_id)


def _without(batch: Batch, lost: Container[int]) -> Batch:
    """Return *batch* without the recipients at the places *lost*."""
    kept = [place for place in range(len(batch)) if place not in lost]
    return Batch(
        tuple(batch.positions[place] for place in kept),
        tuple(batch.fingerprints[place] for place in kept),
        tuple(batch.bodies[place] for place in kept),
    )
