"""Does what the engine says: claims and settles on this thread, posts on others."""

import itertools
import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Container, Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from queue import Empty, SimpleQueue
from typing import TypeAlias

from airflow_provider_responsys.errors import InDoubt, LedgerFailed, NotAccepted, ResponsysError, SourceFailed
from airflow_provider_responsys.ledger.interface import Accepted, Earlier, Holder, Ledger, Wanted
from airflow_provider_responsys.protocol.push import Acceptance
from airflow_provider_responsys.recipients.spool import Batch
from airflow_provider_responsys.sending.engine import Commit, Delivery, Done, Engine, Post, Probe, Wait
from airflow_provider_responsys.sending.progress import Observer, Progress, Speed

PROGRESS_EVERY = 30.0  # seconds

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Answered:
    """Batch *number* was accepted as *request_id*."""

    number: int
    request_id: str
    correlation_id: str = ""


@dataclass(frozen=True, slots=True)
class Failed:
    """Batch *number* was not accepted, or nobody knows."""

    number: int
    error: ResponsysError


@dataclass(frozen=True, slots=True)
class Probed:
    """The harmless read succeeded, or failed with *error*."""

    error: ResponsysError | None


@dataclass(frozen=True, slots=True)
class Halt:
    """Somebody wants the sender to stop, for *reason*, within *grace* seconds."""

    reason: ResponsysError
    grace: float


Event: TypeAlias = Answered | Failed | Probed | Halt
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


@dataclass(frozen=True, slots=True)
class Due:
    """A *batch* to claim: of the source, or, to be sent again, out of a *doubt* of an earlier try."""

    batch: Batch
    doubt: Earlier | None = None


@dataclass(slots=True)
class Report:
    """What became of the batches: counts of recipients, and the ids of the requests."""

    total: int
    request_ids: list[str] = field(default_factory=list)
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

    @property
    def in_doubt(self) -> int:
        """Return how many recipients this run left in doubt."""
        return sum(doubt.size for doubt in self.doubts)

    @property
    def left(self) -> int:
        """Return how many recipients have no outcome yet."""
        return self.total - self.accepted - self.in_doubt - self.rejected.total() - self.held.total()


class Queue:
    """Batches to claim: the *repeats* and those that are to be claimed again, then the source's."""

    def __init__(self, source: Generator[Batch], repeats: Iterable[Due]) -> None:
        self._source = source
        self._next = next(source, None)
        self._again = deque(repeats)
        self.taken = 0

    def __bool__(self) -> bool:
        return bool(self._again) or self._next is not None

    def close(self) -> None:
        """Let go of the source."""
        self._source.close()

    def take(self, most: int) -> list[Due]:
        """Return the next batches, at most *most*."""
        taken: list[Due] = []
        while len(taken) < most and self:
            if self._again:
                taken.append(self._again.popleft())
            elif self._next is not None:
                taken.append(Due(self._next))
                self._next = next(self._source, None)
        self.taken += sum(len(due.batch) for due in taken)
        return taken

    def put_back(self, due: Due) -> None:
        """Let *due* be claimed again."""
        self._again.append(due)
        self.taken -= len(due.batch)

    def take_doubts(self) -> list[Due]:
        """Return the repeats that are left: those are not just not sent."""
        doubts = [due for due in self._again if due.doubt]
        self._again = deque(due for due in self._again if not due.doubt)
        self.taken += sum(len(due.batch) for due in doubts)
        return doubts


class Run:
    """One send, from the first claim to the last settlement.

    *repeats* are sent before the *source*, whose recipients alone *total* counts.
    *post* sends one batch's bodies under its id and returns the acceptance, on any thread;
    *probe* is the harmless read. Both raise `ResponsysError`. *observer* is told
    what happens.
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
        observer: Observer | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.engine = engine
        self.report = Report(total + sum(len(due.batch) for due in repeats))
        self._queue = Queue(source, repeats)
        self._ledger = ledger
        self._post = post
        self._probe = probe
        self._inbox = inbox
        self._observer = observer or Observer()
        self._clock = clock
        self._numbers = itertools.count(1)
        self._claimed: dict[int, Batch] = {}
        self._ids: dict[int, int] = {}
        """The id of each batch, by its number."""
        self._inherited: set[int] = set()
        """Those that an earlier try left in doubt, and this one has not sent yet."""
        self._began = clock()
        self._speed = Speed(self._began)

    def to_end(self) -> Report:
        """Send everything, or stop for the reason in the report; return what became of it."""
        self.engine.more = bool(self._queue)
        pool = ThreadPoolExecutor(self.engine.limits.max_in_flight, thread_name_prefix="responsys-post")
        try:
            self._loop(pool)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            self._queue.close()
        return self._finish()

    def _loop(self, pool: ThreadPoolExecutor) -> None:
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
                case Wait(until):
                    self._receive(min(until, progress_at) - now)

    def _commit(self, commit: Commit) -> None:
        dues = {next(self._numbers): due for due in self._take(commit.claim)}
        wanted = [Wanted(number, due.batch.fingerprints, due.doubt) for number, due in dues.items()]
        self._ids.update((want.number, want.batch_id) for want in wanted)
        try:
            claims = self._ledger.commit(commit.settle, wanted)
        except LedgerFailed as error:
            for due in dues.values():
                self._queue.put_back(due)
            log.error("The ledger failed, nothing more is sent: %s", error)  # noqa: TRY400 -- the message says it all
            self.engine.unwritten(commit.settle, error, self._clock())
            self.report.unwritten = sum(isinstance(answer, Accepted) for answer in commit.settle)
            return
        if self.engine.ledger_down:
            self.report.unwritten = 0
        for claim in claims:
            batch = dues[claim.number].batch
            self.report.held.update(claim.lost.values())
            won = _without(batch, claim.lost) if claim.lost else batch
            if won:
                self._claimed[claim.number] = won
        won_all = [number for number in dues if number in self._claimed]
        again = [number for number in won_all if dues[number].doubt]
        self._inherited.update(again)
        self.engine.claimed(won_all, more=bool(self._queue), again=again)

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
        """Take in every event that is there: what somebody wants stopped is not claimed first."""
        while not self._inbox.empty():
            self._take_in(self._inbox.get_nowait())

    def _take_in(self, event: Event) -> None:
        now = self._clock()
        match event:
            case Answered(number, request_id, correlation_id):
                batch = self._claimed.pop(number)
                self.report.accepted += len(batch)
                self.report.request_ids.append(request_id)
                self._observer.accepted(len(batch))
                self.engine.accepted(number, request_id, now, correlation_id)
            case Failed(number, error):
                self._failed(number, error, now)
            case Probed(error):
                self.engine.probed(error, now)
            case Halt(reason, grace):
                self.engine.stop(reason, now, grace=grace)

    def _failed(self, number: int, error: ResponsysError, now: float) -> None:
        claim_again = self.engine.failed(number, error, now)
        if any(number == due for _, due in self.engine.again):
            log.warning("Batch %d is in doubt and will be sent again (at_least_once): %s", number, error)
            if isinstance(error, NotAccepted):
                self._observer.put_off(error)
            return
        batch = self._claimed.pop(number)
        size = len(batch)
        if claim_again:
            log.warning("Batch %d was not accepted and will be sent again: %s", number, error)
            self._queue.put_back(Due(batch))
            self._observer.put_off(error)
        elif isinstance(error, NotAccepted) and number not in self.engine.tries:
            log.error("Batch %d (%d recipients) was refused: %s", number, size, error)
            code = error.code or type(error).__name__
            self.report.rejected[code] += size
            self._observer.rejected(size, code)
        else:
            log.error("Batch %d (%d recipients) is in doubt: %s", number, size, error)
            refused = isinstance(error, NotAccepted)
            self._doubt(number, batch, f"it was sent before, and refused this time: {error}" if refused else str(error))

    def _finish(self) -> Report:
        report = self.report
        for number, batch in self._claimed.items():
            if number in self._inherited:
                self._left_over(f"batch {number}", batch)
            elif number in self.engine.flight or number in self.engine.tries:
                self._doubt(number, batch, "stopped before its answer came")
                if self.engine.limits.delivery is Delivery.AT_LEAST_ONCE:
                    report.to_repeat += len(batch)
            else:
                report.not_sent += len(batch)
        for due in self._queue.take_doubts():
            self._left_over(due.doubt.label if due.doubt else "", due.batch)
        report.not_sent += report.total - self._queue.taken
        report.stopped = self.engine.stopped
        log.info("%s", self._progress(at_end=True))
        return report

    def _doubt(self, number: int, batch: Batch, reason: str) -> None:
        self.report.doubts.append(Doubt(f"batch {number}", len(batch), reason, batch.fingerprints, self._ids[number]))
        self._observer.in_doubt(len(batch))

    def _left_over(self, label: str, batch: Batch) -> None:
        """Report what an earlier try left in doubt, and this one did not come to send."""
        reason = "an earlier try learned no answer, and this one stopped before it was sent again"
        self.report.doubts.append(Doubt(label, len(batch), reason, batch.fingerprints))
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


def _without(batch: Batch, lost: Container[int]) -> Batch:
    """Return *batch* without the recipients at the places *lost*."""
    kept = [place for place in range(len(batch)) if place not in lost]
    return Batch(
        tuple(batch.positions[place] for place in kept),
        tuple(batch.fingerprints[place] for place in kept),
        tuple(batch.bodies[place] for place in kept),
    )
