"""Airflow, Responsys, the network and the clock around the tries of a send: one schedule from start to end."""

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from airflow_provider_responsys.errors import (
    FailedOver,
    InDoubt,
    InvalidAnswer,
    LimitExceeded,
    LoginExpired,
    NoAnswer,
    NotSent,
    Refused,
    ResponsysError,
    SendRefused,
    TryLater,
)
from airflow_provider_responsys.ledger.interface import Ledger
from airflow_provider_responsys.ledger.marked import MarkedLedger
from airflow_provider_responsys.ledger.tries import may_have_claimed
from airflow_provider_responsys.sending.run import Run
from tests.simulation.attempt import Attempt, Flight, Killed, Outcome, Turnwise
from tests.simulation.campaign import REFUSALS, Setup, Strike
from tests.simulation.choices import Choices
from tests.simulation.sql_model import SqlModel
from tests.simulation.sql_tables import SqlStore
from tests.simulation.states import state_of
from tests.simulation.stores import EPOCH, Record, Store, TaskStates, fingerprints
from tests.simulation.truth import Broken, Truth

TIMEOUT = 60.0  # as the connection has it
MOST_STEPS = 5_000
"""Far more than any schedule needs: one that goes on does not end."""

SPINS = False
"""Whether the engine may ask again at once while a batch that is due again waits for another's answer: it may not."""

MOMENT = 1e-6
"""No clock stands still: a wait that ends has taken a little longer."""

PROBES = "not sent", "lost", "failed over"


class Known(BaseException):
    """Another schedule has come to this state, and goes on from it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What is put to the test."""

    engine: type[Turnwise] = Turnwise
    run: type[Run] = Run
    record: Callable[..., Ledger] = Record
    sql: type[SqlModel] = SqlModel
    marked: Callable[..., Ledger] = MarkedLedger
    may_have_claimed: Callable[..., bool] = may_have_claimed
    transport: Callable[[ResponsysError], ResponsysError] = lambda error: error
    """What the wire makes of a failure."""


REAL = Parts()


@dataclass(slots=True, eq=False)
class Task:
    """A task instance: its tries, as Airflow counts them."""

    name: str
    source: Sequence[int]
    max_tries: int
    attempts: list[Attempt] = field(default_factory=list)
    marks: set[str] = field(default_factory=set)
    """What tries left in XCom since the last start."""
    lost: bool = False
    """Whether its record in Airflow's store was cleaned."""
    generation: int = 0
    """How often a person restarted it."""

    @property
    def current(self) -> Attempt | None:
        """The try whose writes count."""
        return self.attempts[-1] if self.attempts else None

    @property
    def outcome(self) -> Outcome | None:
        """How the newest try ended."""
        return self.attempts[-1].outcome if self.attempts else None

    @property
    def tries(self) -> int:
        """How often Airflow tried it: a second start of a try is none."""
        return self.attempts[-1].number if self.attempts else 0

    @property
    def due(self) -> bool:
        """Whether Airflow starts another try."""
        if not self.attempts:
            return True
        return self.outcome in (Outcome.RETRY, Outcome.KILLED) and self.tries <= self.max_tries


class World:
    """One schedule. Each decision comes from *choices*; `Broken` says which rule it broke."""

    def __init__(self, setup: Setup, choices: Choices, parts: Parts = REAL, *, tells: bool = False) -> None:
        self.setup = setup
        self.parts = parts
        self.now = 0.0
        self.story: list[str] = []
        self.faults_left = setup.faults
        self.truth = Truth(self)
        self.states = TaskStates(self, parts.record)
        self.sql = SqlStore(self, parts.sql) if setup.sql else None
        self.store: Store = self.sql or self.states
        self.put_backs = 0
        """How often the database was put back."""
        self.tasks = [
            Task(f"task{number}", source, setup.retries) for number, source in enumerate(setup.sources, start=1)
        ]
        self.live: list[Attempt] = []
        self.steps = 0
        self.moved = True
        """Whether anything that others can see has happened since a strike was last possible."""
        self._choices = choices
        self._tells = tells
        self._suspended: list[Attempt] = []
        self.suspended: list[Hashable] = []
        """What the suspended tries are about to do."""
        self._known: dict[tuple[bytes, int], bytes] = {}
        self._recipients: dict[bytes, int] = {}

    def to_end(self) -> None:
        """Go on until every task has ended."""
        try:
            while self._turn():
                pass
        except Known:
            return
        self._do_late_writes()
        self.truth.check_end()

    # What the tries and the stores ask for

    @property
    def faults_used(self) -> int:
        """How much went wrong."""
        return self.setup.faults - self.faults_left

    @property
    def spins(self) -> bool:
        """Whether an engine may wait for no time at all."""
        return SPINS

    def clock(self) -> float:
        """Return the time."""
        return self.now

    def moment(self) -> datetime:
        """Return the date and time."""
        return EPOCH + timedelta(seconds=self.now)

    def fingerprints(self, recipients: Sequence[int], key: bytes) -> list[bytes]:
        """Return what a ledger with *key* knows *recipients* as."""
        found = fingerprints(recipients, key, self._known)
        self._recipients.update(zip(found, recipients, strict=True))
        return found

    def recipient(self, fingerprint: bytes) -> int:
        """Return whom *fingerprint* stands for."""
        return self._recipients[fingerprint]

    def fault(self, options: int, calm: float | None = None) -> int:
        """Decide whether something goes wrong: 0, or which of the others."""
        if not self.faults_left:
            return 0
        choice = self._choices.pick(options, self.setup.calm if calm is None else calm)
        self.faults_left -= bool(choice)
        return choice

    @property
    def may_put_back(self) -> bool:
        """Whether the database may be put back: not where the marks that would tell were cleaned as well."""
        strikes = self.setup.strikes
        return Strike.PUT_BACK in strikes and self.setup.sql and not any(task.lost for task in self.tasks)

    def between(self, attempt: Attempt) -> None:
        """Let happen what may at any moment, before *attempt* does what it is about to do."""
        while self.states.late and self._choices.pick(2, LATER):
            self._land()
        if self.may_put_back and self.sql and self.sql.before and self.fault(2, self.setup.steady):
            self._put_back(attempt)

    def write(
        self,
        attempt: Attempt,
        do: Callable[[], None],
        answer: Exception,
        silence: Exception,
        late: Callable[[], None] | None = None,
    ) -> None:
        """Let *attempt* do a durable write, or let it fail in one of the ways that there are; *late* does it later."""
        self.moved = True
        happens = self.fault(len(WRITES) if late and self.states.may_delay else REPLACED + 1)
        if happens > REPLACED and late:
            self._write_late(attempt, happens, do, silence, late)
            return
        if happens:
            self.tell(f"{attempt.name}, while it writes: {WRITES[happens]}")
            self.truth.troubles += happens in (3, 4, 5)
        if happens in (1, 3, 4):
            raise (Killed, Killed, Killed, answer, silence)[happens]
        if happens == REPLACED:
            self._replace(attempt)
        do()
        if happens == 2:
            raise Killed
        if happens == 5:
            raise silence

    def _write_late(
        self, attempt: Attempt, happens: int, do: Callable[[], None], silence: Exception, late: Callable[[], None]
    ) -> None:
        self.tell(f"{attempt.name}, while it writes: {WRITES[happens]}")
        self.truth.troubles += 1
        if happens == REPEATED:
            do()
        late()
        if happens == REPEATED:
            return
        raise Killed if happens == KILLED_LATE else silence

    def gap(self, attempt: Attempt, what: Hashable) -> None:
        """Let others go on before *attempt* does *what*."""
        if len(self.live) > 1:
            self._suspended.append(attempt)
            self.suspended.append(what)
            limit = math.inf if self.setup.slow_writes else self.now
            while self._choices.pick(2, 0.6) and self._turn(limit):
                pass
            self._suspended.remove(attempt)
            self.suspended.pop()

    def _land(self) -> None:
        """Let a late write be done."""
        late = self.states.land(self._choices.pick(len(self.states.late)))
        self.moved = True
        self.tell(f"{late.task}: a late write of {late.key} is done")
        for task in self.tasks:
            if task.name == late.task:
                for attempt in task.attempts:
                    attempt.overtaken = attempt.overtaken or attempt.outcome is None
                self.truth.check_record(task)

    def _put_back(self, attempt: Attempt) -> None:
        """Put the database back to how it was before one of the last transactions, or before the first."""
        assert self.sql is not None
        place = len(self.sql.before) - 1 - self._choices.pick(len(self.sql.before))
        lost = self.sql.put_back(place)
        self.put_backs += 1
        self.truth.troubles += 1
        self.moved = True
        self.tell(f"{attempt.name}: the database is put back")
        for fingerprint, batch in lost.claims.items():
            if self.sql.tables.claims.get(fingerprint) != batch:
                self.truth.unclaimed.add((self.recipient(fingerprint), lost.batches[batch].task))
        for task in self.tasks:
            for each in task.attempts:
                each.alone = False

    def sleep(self, attempt: Attempt, seconds: float) -> None:
        """Let the time pass for *attempt*."""
        wakes = self.now + seconds
        self._suspended.append(attempt)
        self.suspended.append(wakes)
        while self.now < wakes and self._turn(wakes):
            pass
        self.suspended.pop()
        self.now = max(self.now, wakes)
        self._suspended.remove(attempt)

    def ended(self, attempt: Attempt, flights: Sequence[Flight]) -> None:
        """See *attempt* off; nobody will ever know about its *flights*."""
        self.moved = True
        self.tell(f"{attempt.name}: {attempt.outcome}")
        self.live.remove(attempt)
        if attempt.outcome is Outcome.KILLED or flights:
            self.truth.troubles += 1
        self.truth.check_newest(attempt)
        self.truth.check_ledger(attempt)
        self.truth.check_report(attempt)

    def _do_late_writes(self) -> None:
        """Let every late write be done that is left: hours after the last try."""
        while self.states.late:
            self._land()

    def tell(self, what: str) -> None:
        """Add to the story."""
        if self._tells:
            self.story.append(f"{self.now:8.2f} {what}")

    # What happens next

    def _turn(self, limit: float = math.inf) -> bool:
        """Let one thing happen, not after *limit*; return whether there was any."""
        self.steps += 1
        if self.steps > MOST_STEPS:
            raise Broken("the task ends", f"not after {MOST_STEPS} steps")
        for task in self.tasks:
            if not any(each.task is task for each in self._suspended):
                self._start_due(task)
        if self.faults_left and self.moved:
            self._strike()
            self.moved = False
        if self.states.late and self._choices.pick(2, LATER):
            self._land()
            return True
        awake = [attempt for attempt in self.live if attempt not in self._suspended]
        ready = [
            attempt
            for attempt in awake
            # Who looks back into a database may have to wait there.
            if attempt.until is None and not (limit == self.now and attempt.phase == "looks back")
        ]
        waits = min((attempt.until for attempt in awake if attempt.until is not None), default=math.inf)
        flights = [
            (attempt, flight)
            for attempt in awake
            if attempt.until is not None
            for flight in attempt.flights
            if flight.left_at + self.setup.latency <= waits and flight.left_at + self.setup.latency <= limit
        ]
        last = min((flight.left_at + TIMEOUT for attempt in awake for flight in attempt.flights), default=math.inf)
        timed = min(waits, last)
        tick = timed <= limit and timed < math.inf and (waits < last or self.faults_left > 0) and not ready
        choices = len(ready) + len(flights) + tick
        if not choices:
            return self._nothing(awake, limit)
        choice = self._choices.pick(choices)
        if choice < len(ready):
            ready[choice].step()
        elif choice < len(ready) + len(flights):
            attempt, flight = flights[choice - len(ready)]
            self.now = max(self.now, flight.left_at + self.setup.latency)
            self._answer(attempt, flight)
        else:
            self._tick(awake, waits, last)
        if self._choices.prunes and self._choices.known(state_of(self)):
            raise Known
        return True

    def _nothing(self, awake: Sequence[Attempt], limit: float) -> bool:
        if awake and limit == math.inf and not self._suspended:
            raise Broken("the task ends", "nothing can happen any more")
        return False

    def _tick(self, awake: Sequence[Attempt], waits: float, last: float) -> None:
        """Let the time pass: until somebody's wait ends, or an answer can't come any more."""
        self.moved = True
        self.now = max(self.now, min(waits, last)) + MOMENT
        if last <= waits:
            for attempt in awake:
                for flight in attempt.flights:
                    if flight.left_at + TIMEOUT <= self.now:
                        self._expire(attempt, flight)
                        return
        for attempt in awake:
            if attempt.until is not None and attempt.until <= self.now:
                attempt.until = None

    def _expire(self, attempt: Attempt, flight: Flight) -> None:
        self.faults_left -= 1
        if flight.number is None:
            self._take_in(attempt, flight, InvalidAnswer("timed out"))
            return
        self.tell(f"{attempt.name}, batch {flight.number}: timed out")
        self.truth.lost(attempt, flight)
        self._take_in(attempt, flight, NoAnswer("timed out"))

    def _answer(self, attempt: Attempt, flight: Flight) -> None:
        """Let *flight* be answered, and with it perhaps others of the same try."""
        self.moved = True
        self._decide(attempt, flight)
        while attempt.flights and self._choices.pick(2, 0.8):
            self._decide(attempt, attempt.flights[0])
        attempt.receive()

    def _decide(self, attempt: Attempt, flight: Flight) -> None:
        if flight.number is None:
            happens = self.fault(1 + len(PROBES))
            name = ("", *PROBES)[happens]
            if name:
                self.tell(f"{attempt.name}, harmless read: {name}")
            attempt.answered(flight, PROBE_ERRORS[name]() if name else "")
            return
        brown_out = self.setup.brown_out
        if brown_out and self._choices.pick(2, 1.0 - brown_out):
            self.tell(f"{attempt.name}, batch {flight.number}: lost in a brown-out")
            self.truth.lost(attempt, flight)
            attempt.answered(flight, self.parts.transport(NoAnswer("reset")))
            return
        happens = self.fault(1 + len(self.setup.answers))
        if not happens:
            self.tell(f"{attempt.name}, batch {flight.number}: accepted")
            self.truth.accepted(attempt, flight)
            attempt.answered(flight, attempt.request_id(flight))
            return
        name = self.setup.answers[happens - 1]
        self.tell(f"{attempt.name}, batch {flight.number}: {name}")
        if name in REFUSALS:
            self.truth.refused(attempt, flight)
        else:
            self.truth.lost(attempt, flight)
        error = ERRORS[name]()
        attempt.answered(flight, self.parts.transport(error) if isinstance(error, ResponsysError) else error)

    def _take_in(self, attempt: Attempt, flight: Flight, error: ResponsysError) -> None:
        attempt.answered(flight, self.parts.transport(error))
        if attempt.until is not None:
            attempt.receive()

    # Airflow

    def _start_due(self, task: Task) -> None:
        """Start what Airflow starts by itself: the next try, or once more the one whose process died."""
        last = task.current
        if last and last.outcome is Outcome.KILLED and not last.asked:
            last.asked = True
            if Strike.AGAIN in self.setup.strikes and self.fault(2):
                self.tell(f"{last.name} {Strike.AGAIN}")
                self._start(task, again=last)
                return
        if task.due:
            self._start(task)

    def _start(self, task: Task, again: Attempt | None = None) -> None:
        """Start the next try: the store refuses the writes of its predecessors from now on. Or start *again* anew."""
        number = again.number if again else task.tries + 1
        source = self._source(task) if task.attempts else task.source
        left = frozenset(task.marks)
        began = self.parts.may_have_claimed(
            try_number=number, max_tries=task.max_tries, retries=self.setup.retries, left=left
        )
        task.marks.clear()
        attempt = Attempt(
            self,
            task,
            number,
            task.max_tries,
            task.generation,
            source,
            left,
            may_have_claimed=began,
            start=again.start + 1 if again else 0,
        )
        for other in self.live:
            if self.setup.sql and other.task is task:
                attempt.alone = False  # unlike Airflow's store, a database takes what a replaced try learns
        task.attempts.append(attempt)
        self.live.append(attempt)
        self.moved = True
        self.tell(f"{attempt.name} starts with {list(source)}")

    def _source(self, task: Task) -> Sequence[int]:
        """Return what a later try reads: perhaps other rows, perhaps in another order."""
        if not self.setup.source_changes:
            return task.source
        people = task.source
        return (
            people,
            people[::-1],
            (*people[1:], people[0]),
            people[1:] or people,
            (900 + len(task.attempts), *people),
            (*people, people[0]),
        )[self._choices.pick(6, 0.5)]

    def _strike(self) -> None:
        """Let something happen to a try from outside."""
        menu = list(self._possible_strikes())
        if not menu:
            return
        choice = self.fault(1 + len(menu), self.setup.unstruck)
        if not choice:
            return
        strike, task, attempt = menu[choice - 1]
        self.tell(f"{attempt.name} {strike}")
        self.truth.troubles += strike is not Strike.KILL
        match strike:
            case Strike.KILL:
                attempt.die()
            case Strike.HALT:
                attempt.halt()
            case Strike.ZOMBIE:
                self._start(task)
            case Strike.CLEAR:
                task.max_tries = task.tries + self.setup.retries
                task.generation += self.setup.on_clear == "restart"
                self._start(task)
            case Strike.MARKS:
                task.marks.clear()
            case Strike.LOST:
                task.lost = True
                self.states.lose(task)
            case _:
                self._put_back(attempt)

    def _possible_strikes(self) -> Iterator[tuple[Strike, Task, Attempt]]:
        allowed = self.setup.strikes
        for attempt in self.live:
            if Strike.KILL in allowed and attempt not in self._suspended:
                yield Strike.KILL, attempt.task, attempt
        for task in self.tasks:
            current = task.current
            if current is None:
                continue
            suspended = any(each.task is task for each in self._suspended)
            runs = current.outcome is None
            if Strike.ZOMBIE in allowed and runs and task.tries <= task.max_tries:
                yield Strike.ZOMBIE, task, current
            if Strike.HALT in allowed and runs and not suspended and not current.halted:
                yield Strike.HALT, task, current
            if Strike.CLEAR in allowed and not suspended:
                yield Strike.CLEAR, task, current
            yield from self._possible_housekeeping(task, current)

    def _possible_housekeeping(self, task: Task, current: Attempt) -> Iterator[tuple[Strike, Task, Attempt]]:
        allowed = self.setup.strikes
        kept = self.states.kept.get(task.name)
        if Strike.MARKS in allowed and task.marks:
            yield Strike.MARKS, task, current
        if Strike.LOST in allowed and kept and kept.rows and not self.put_backs:
            yield Strike.LOST, task, current
        if self.may_put_back and self.sql and self.sql.before:
            yield Strike.PUT_BACK, task, current

    def _replace(self, attempt: Attempt) -> None:
        """Take *attempt* for dead while it writes."""
        task = attempt.task
        if attempt.current and task.tries <= task.max_tries:
            self.truth.troubles += 1
            self._start(task)


LATER = 0.8
"""The share of moments at which a late write is not done yet."""

REPLACED = 6
KILLED_LATE, SILENT_LATE, REPEATED = 7, 8, 9
WRITES = (
    "",
    "killed before",
    "killed after",
    "the store fails",
    "no answer, not written",
    "no answer, but written",
    "taken for dead",
    "killed, written later",
    "no answer, written later",
    "repeated, the first copy later",
)

ERRORS: dict[str, Callable[[], BaseException]] = {
    "not sent": lambda: NotSent("no route"),
    "token expired": lambda: LoginExpired("token"),
    "limit exceeded": lambda: LimitExceeded("limit", wait=60.0),
    "try later": lambda: TryLater("busy", wait=30.0),
    "batch refused": lambda: Refused("bad"),
    "send refused": lambda: SendRefused("no such campaign"),
    "answer lost": lambda: NoAnswer("reset"),
    "queue failed": lambda: InDoubt("queue", code="UNRECOVERABLE_EXCEPTION"),
    "an error of our own": lambda: RuntimeError("a defect"),
}

PROBE_ERRORS: dict[str, Callable[[], ResponsysError]] = {
    "not sent": lambda: NotSent("no route"),
    "lost": lambda: NoAnswer("reset"),
    "failed over": lambda: FailedOver("secondary"),
}
