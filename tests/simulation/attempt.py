"""One try of a task: the real engine in the real `Run`, one action at a time."""

import math
from collections.abc import Callable, Generator, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, cast

from airflow_provider_responsys.errors import (
    Fenced,
    LedgerFailed,
    NotAllSent,
    ResponsysError,
    SourceFailed,
)
from airflow_provider_responsys.ledger.interface import Ledger
from airflow_provider_responsys.protocol.pace import Pace
from airflow_provider_responsys.protocol.push import Acceptance
from airflow_provider_responsys.recipients.spool import Batch, SortedOut, Spool
from airflow_provider_responsys.sending.budget import Budget
from airflow_provider_responsys.sending.engine import Action, Delivery, Engine, Limits, Wait
from airflow_provider_responsys.sending.outcome import Resumed, Sent
from airflow_provider_responsys.sending.run import Event, Halt, Report, Run
from airflow_provider_responsys.sending.verdict import FINAL, judge
from tests.simulation.noted import Noted, NotedLedger
from tests.simulation.stores import IDENTITY

if TYPE_CHECKING:
    from tests.simulation.airflow import Task
    from tests.simulation.world import World

KILL_GRACE = 3.0  # as the operator has it
GRACE = 70.0  # the same: the read timeout and its margin


class Killed(BaseException):
    """The process is gone."""


class Outcome(StrEnum):
    """How a try ended, as Airflow sees it."""

    SUCCESS = "success"
    RETRY = "failed, and may be retried"
    FINAL = "failed for good"
    KILLED = "killed"


class Turnover(Exception):
    """The engine has had its turn, or waits."""


class Turnwise(Engine):
    """The engine, asked once a turn. A wait ends the turn, too: asking again is harmless."""

    asked = False
    waits: float | None = None

    def decide(self, now: float) -> Action:
        """Return the real decision, the first time in a turn."""
        if self.asked:
            raise Turnover
        action = super().decide(now)
        self.waits = action.until if isinstance(action, Wait) else None
        if self.waits is not None:
            raise Turnover
        self.asked = True
        return action


class Rows:
    """Stands in for the spool: what one try reads, in its order."""

    def __init__(
        self, recipients: Sequence[int], fingerprints: Sequence[bytes], fails: Callable[[], bool] = lambda: False
    ) -> None:
        seen: dict[bytes, int] = {}
        for recipient, fingerprint in zip(recipients, fingerprints, strict=True):
            seen.setdefault(fingerprint, recipient)
        self.read = len(recipients)
        self.invalid = 0
        self.duplicates = len(recipients) - len(seen)
        self.left = seen
        self._all = frozenset(seen)
        self._fails = fails

    def __len__(self) -> int:
        return self.read - self.duplicates

    def exclude(self, fingerprints: Sequence[bytes]) -> int:
        """Leave *fingerprints* out; return how many were here."""
        return sum(self.left.pop(fingerprint, None) is not None for fingerprint in fingerprints)

    def sort_out(self, fingerprints: Sequence[bytes]) -> SortedOut:
        """Return which of *fingerprints* are left, which were read, and which were not."""
        return SortedOut(
            [one for one in fingerprints if one in self.left],
            [one for one in fingerprints if one in self._all],
            [one for one in fingerprints if one not in self._all],
        )

    def take_out(self, fingerprints: Sequence[bytes]) -> list[Batch]:
        """Leave *fingerprints* out; return who was here."""
        rows = [(each, self.left.pop(each)) for each in fingerprints if each in self.left]
        return [_batch(rows)] if rows else []

    def batches(self, size: int) -> Generator[Batch]:
        """Yield who is left, *size* at a time."""
        rows = list(self.left.items())
        for start in range(0, len(rows), size):
            if self._fails():
                raise SourceFailed("the spool can't be read")
            yield _batch(rows[start : start + size])

    def fingerprints(self) -> list[Sequence[bytes]]:
        """Return all that are left, as a ledger takes them."""
        return [tuple(self.left)]

    def strangers(self, known: Iterable[Sequence[bytes]]) -> int:
        """Return how many are not among those *known*."""
        return len(set(self.left).difference(*known))


def _batch(rows: Sequence[tuple[bytes, int]]) -> Batch:
    return Batch(
        tuple(recipient for _, recipient in rows),
        tuple(fingerprint for fingerprint, _ in rows),
        tuple(str(recipient) for _, recipient in rows),
    )


@dataclass(slots=True, eq=False)
class Flight:
    """What a thread of the pool is waiting for: an answer to a post, or (without a number) to a probe."""

    work: Callable[..., None]
    args: tuple[object, ...]
    left_at: float

    @property
    def number(self) -> int | None:
        """The number of the batch."""
        return cast("int", self.args[0]) if self.args else None

    @property
    def batch_id(self) -> int:
        """What the request carries."""
        return cast("int", self.args[1])

    @property
    def recipients(self) -> list[int]:
        """Who is posted to."""
        return [int(body) for body in cast("tuple[str, ...]", self.args[2])]


@dataclass(slots=True, eq=False)
class Attempt:
    """One try. `step` takes its next action; `until` is set while it waits."""

    world: "World"
    task: "Task"
    number: int
    max_tries: int
    generation: int
    """How often the task had been restarted."""
    source: Sequence[int]
    left: frozenset[str]
    """The marks that Airflow found when it started."""
    may_have_claimed: bool
    start: int = 0
    """Which start of this try it is: Airflow may start one again whose process died."""
    noted: dict[int, Noted] = field(default_factory=dict)
    """What the ledger acknowledged, and was not told to release."""
    moving: set[bytes] = field(default_factory=set)
    """Recipients whom it wanted out of doubts, whether or not it was told that it has them."""
    unsure: set[int] = field(default_factory=set)
    """Batches that the ledger was asked to claim, without a yes."""
    until: float | None = None
    outcome: Outcome | None = None
    sent: Sent | None = None
    run: Run | None = None
    engine: Turnwise | None = None
    flights: list[Flight] = field(default_factory=list)
    inbox: "SimpleQueue[Event]" = field(default_factory=SimpleQueue)
    instants: int = 0
    """How often in a row it waited for no time at all."""
    halted: bool = False
    asked: bool = False
    """Whether it was decided if Airflow starts it again after its process died."""
    store_failed: bool = False
    refused: bool = False
    """Whether it was told, as it began or looked back, that another try has begun."""
    alone: bool = True
    """Whether no other try could write while this one looked back, and since, and no database was put back."""
    overtaken: bool = False
    """Whether a write of an earlier try was done late while this one was alive."""
    lost: int = 0
    """Answers that were lost."""
    doubted: set[int] = field(default_factory=set)
    """Batches of which a request may have been accepted, and nobody knows."""
    posts: dict[int, int] = field(default_factory=dict)
    """How often each batch was posted, without what was refused."""
    phase: str = "begins"
    ledger: Ledger | None = None
    ledger_state: Hashable = None
    """What the ledger remembers, as a state of the world has it: nothing but a step changes it."""
    reads: Rows | None = None
    resumed: Resumed | None = None
    answer: ResponsysError | BaseException | str = ""

    @property
    def name(self) -> str:
        """How the story calls this try."""
        again = f" start {self.start + 1}" if self.start else ""
        return f"{self.task.name} try {self.number}{again}"

    @property
    def archived(self) -> bool:
        """Whether a person has restarted the task since: what this try pushed may be pushed again."""
        return self.generation < self.task.generation

    @property
    def current(self) -> bool:
        """Whether no other try has taken this one's place."""
        return self.task.current is self

    @property
    def ledger_failed(self) -> bool:
        """Whether something could not be read or recorded."""
        return self.store_failed or (self.engine is not None and self.engine.ledger_down)

    @property
    def fenced(self) -> bool:
        """Whether it was told that another try has begun."""
        return self.refused or (self.engine is not None and isinstance(self.engine.stopped, Fenced))

    @property
    def spins(self) -> bool:
        """Whether a batch is due again while another one is out: the engine then waits for no time at all."""
        engine = self.engine
        return engine is not None and bool(engine.again and self.flights) and engine.again[0][0] <= self.world.now

    def id_of(self, number: int) -> int:
        """Return the id of batch *number*, which no other batch has."""
        return ((self.world.tasks.index(self.task) * 1_000 + self.number) * 100 + self.start) * 100_000 + number

    def request_id(self, flight: Flight) -> str:
        """Return what Responsys calls the request of *flight*."""
        again = f".{self.start}" if self.start else ""
        return f"{self.task.name}-{self.number}{again}-{flight.number}"

    def step(self) -> None:
        """Take the next action."""
        self.until = self.ledger_state = None
        try:
            if self.phase == "begins":
                self._begin()
            elif self.phase == "looks back":
                self._look_back()
            elif self.phase == "sends":
                self._send()
            else:
                self._report()
        except Killed:
            self.die()
        except SourceFailed:
            self.end(Outcome.RETRY)
        except LedgerFailed as error:
            self.store_failed = True
            self.refused = isinstance(error, Fenced)
            self.end(Outcome.FINAL if isinstance(error, FINAL) else Outcome.RETRY)

    def submit(self, work: Callable[..., None], *args: object) -> None:
        """Stand in for the pool of threads."""
        flight = Flight(work, args, self.world.now)
        if args:
            self.world.truth.posted(self, flight)
        self.world.moved = True
        self.flights.append(flight)

    def answered(self, flight: Flight, answer: BaseException | str) -> None:
        """Let the thread of *flight* get its answer, and tell the main thread."""
        self.flights.remove(flight)
        self.answer = answer
        flight.work(*flight.args)

    def receive(self) -> None:
        """Let the main thread, which waits, take in what is there."""
        self.until = None
        self._running._receive(0.0)

    def halt(self) -> None:
        """Send SIGTERM."""
        self.halted = True
        self.inbox.put(Halt(NotAllSent("the task was told to stop"), KILL_GRACE))
        if self.until is not None:
            self.receive()

    def die(self) -> None:
        """Send SIGKILL."""
        self.end(Outcome.KILLED)

    def end(self, outcome: Outcome) -> None:
        """Leave the world; what is in flight arrives, or not."""
        self.outcome = outcome
        self.phase = "ended"
        flights, self.flights = self.flights, []
        self.world.ended(self, flights)

    def post(self, _: int, __: tuple[str, ...]) -> Acceptance:
        """Stand in for the wire."""
        if isinstance(self.answer, str):
            return Acceptance(self.answer)
        raise self.answer

    def probe(self) -> None:
        """Stand in for the harmless read."""
        if not isinstance(self.answer, str):
            raise self.answer

    @property
    def _running(self) -> Run:
        assert self.run is not None
        return self.run

    def _begin(self) -> None:
        world = self.world
        self.ledger = world.parts.marked(
            NotedLedger(world, self, world.store.open(self)),
            push=self._mark,
            try_number=self.number,
            may_have_claimed=self.may_have_claimed,
        )
        key = self.ledger.begin(IDENTITY)
        self.reads = Rows(self.source, world.fingerprints(self.source, key), self._spool_fails)
        self.phase = "looks back"

    def _spool_fails(self) -> bool:
        return self.world.setup.spool_fails and bool(self.world.fault(2, 0.9))

    def _mark(self, mark: str) -> None:
        if self.world.fault(2):
            raise Killed
        if self.current:
            self.task.marks.add(mark)

    def _look_back(self) -> None:
        assert self.reads is not None
        assert self.ledger is not None
        world = self.world
        again = world.setup.delivery is Delivery.AT_LEAST_ONCE
        self.ledger.compare(self.reads)
        self.resumed = Resumed.of(
            self.ledger.earlier(), cast("Spool", self.reads), self.reads.take_out if again else None
        )
        left = len(self.reads) - self.resumed.here
        self.phase = "reports"
        if not (left or self.resumed.repeats):
            return
        setup = world.setup
        limits = Limits(
            max_in_flight=setup.max_in_flight,
            retry_for=setup.retry_for,
            grace=GRACE,
            deadline=world.now + setup.execution_timeout,
            delivery=setup.delivery,
        )
        self.engine = world.parts.engine(
            limits=limits, pace=Pace.at(setup.per_minute, world.now), budget=self._budget()
        )
        self.run = world.parts.run(
            self.engine,
            self.reads.batches(setup.size),
            left,
            repeats=self.resumed.repeats,
            ledger=self.ledger,
            post=self.post,
            probe=self.probe,
            inbox=self.inbox,
            clock=world.clock,
        )
        self.engine.more = bool(self.run._queue)  # as `Run.to_end` does
        self.phase = "sends"

    def _budget(self) -> Budget:
        assert self.reads is not None
        assert self.resumed is not None
        most = self.world.setup.max_in_doubt
        return Budget(most=most, recipients=len(self.reads), found=self.resumed.lost_lately)

    def _send(self) -> None:
        run, engine = self._running, self.engine
        assert engine is not None
        engine.asked = False
        try:
            run._loop(cast("Any", self))
        except Turnover:
            if engine.waits is not None:
                self._wait(engine.waits)
        else:
            self.phase = "reports"

    def _wait(self, until: float) -> None:
        if not self.inbox.empty():
            self._running._receive(0.0)
            return
        now = self.world.now
        self.instants = self.instants + 1 if until <= now else 0
        self.world.truth.waits(self, until)
        self.until = math.inf if self.world.spins and self.spins else max(until, now)

    def _report(self) -> None:
        assert self.reads is not None
        assert self.resumed is not None
        report = self.run._finish() if self.run else Report(0)
        self.sent = self.world.truth.add_up(self, cast("Spool", self.reads), self.resumed, report)
        self.end(outcome_of(self.sent, on_in_doubt=self.world.setup.on_in_doubt))


def outcome_of(sent: Sent, *, on_in_doubt: str) -> Outcome:
    """Return how Airflow takes *sent*."""
    if isinstance(sent.report.stopped, Fenced):
        return Outcome.RETRY
    verdict = judge("Autumn", sent, on_in_doubt=on_in_doubt)
    if verdict is None:
        return Outcome.SUCCESS
    return Outcome.FINAL if verdict.final else Outcome.RETRY
