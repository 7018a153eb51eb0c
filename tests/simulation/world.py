"""Airflow, Responsys, the network and the clock around the tries of a send: one schedule from start to end."""

import math
from collections.abc import Callable, Hashable, Sequence
from datetime import datetime, timedelta

from tests.simulation.airflow import Airflow, Task
from tests.simulation.attempt import Attempt, Flight, Killed, Outcome
from tests.simulation.campaign import Setup, Strike
from tests.simulation.choices import Choices
from tests.simulation.parts import REAL, Parts
from tests.simulation.sql_tables import SqlStore
from tests.simulation.states import state_of
from tests.simulation.stores import EPOCH, Store, TaskStates, fingerprints
from tests.simulation.truth import Broken, Truth
from tests.simulation.wire import TIMEOUT, Wire

MOST_STEPS = 5_000
"""Far more than any schedule needs: one that goes on does not end."""

SPINS = False
"""Whether the engine may ask again at once while a batch that is due again waits for another's answer: it may not."""

MOMENT = 1e-6
"""No clock stands still: a wait that ends has taken a little longer."""

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


class Known(BaseException):
    """Another schedule has come to this state, and goes on from it."""


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
        self.wire = Wire(self)
        self.airflow = Airflow(self)
        self.tasks = [
            Task(f"task{number}", source, setup.retries) for number, source in enumerate(setup.sources, start=1)
        ]
        self.live: list[Attempt] = []
        self.steps = 0
        self.moved = True
        """Whether anything that others can see has happened since a strike was last possible."""
        self.choices = choices
        self._tells = tells
        self.asleep: list[Attempt] = []
        """Tries in the middle of a step, while others go on."""
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
        choice = self.choices.pick(options, self.setup.calm if calm is None else calm)
        self.faults_left -= bool(choice)
        return choice

    @property
    def may_put_back(self) -> bool:
        """Whether the database may be put back: not where the marks that would tell were cleaned as well."""
        strikes = self.setup.strikes
        return Strike.PUT_BACK in strikes and self.setup.sql and not any(task.lost for task in self.tasks)

    def between(self, attempt: Attempt) -> None:
        """Let happen what may at any moment, before *attempt* does what it is about to do."""
        while self.states.late and self.choices.pick(2, LATER):
            self._land()
        if self.may_put_back and self.sql and self.sql.before and self.fault(2, self.setup.steady):
            self.put_back(attempt)

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
            self.airflow.replace(attempt)
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
            self.asleep.append(attempt)
            self.suspended.append(what)
            limit = math.inf if self.setup.slow_writes else self.now
            while self.choices.pick(2, 0.6) and self._turn(limit):
                pass
            self.asleep.remove(attempt)
            self.suspended.pop()

    def _land(self) -> None:
        """Let a late write be done."""
        late = self.states.land(self.choices.pick(len(self.states.late)))
        self.moved = True
        self.tell(f"{late.task}: a late write of {late.key} is done")
        for task in self.tasks:
            if task.name == late.task:
                for attempt in task.attempts:
                    attempt.overtaken = attempt.overtaken or attempt.outcome is None
                self.truth.check_record(task)

    def put_back(self, attempt: Attempt) -> None:
        """Put the database back to how it was before one of the last transactions, or before the first."""
        assert self.sql is not None
        place = len(self.sql.before) - 1 - self.choices.pick(len(self.sql.before))
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
        self.asleep.append(attempt)
        self.suspended.append(wakes)
        while self.now < wakes and self._turn(wakes):
            pass
        self.suspended.pop()
        self.now = max(self.now, wakes)
        self.asleep.remove(attempt)

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
            if not any(each.task is task for each in self.asleep):
                self.airflow.start_due(task)
        if self.faults_left and self.moved:
            self.airflow.strike()
            self.moved = False
        if self.states.late and self.choices.pick(2, LATER):
            self._land()
            return True
        awake = [attempt for attempt in self.live if attempt not in self.asleep]
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
        choice = self.choices.pick(choices)
        if choice < len(ready):
            ready[choice].step()
        elif choice < len(ready) + len(flights):
            attempt, flight = flights[choice - len(ready)]
            self.now = max(self.now, flight.left_at + self.setup.latency)
            self.wire.answer(attempt, flight)
        else:
            self._tick(awake, waits, last)
        if self.choices.prunes and self.choices.known(state_of(self)):
            raise Known
        return True

    def _nothing(self, awake: Sequence[Attempt], limit: float) -> bool:
        if awake and limit == math.inf and not self.asleep:
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
                        self.wire.expire(attempt, flight)
                        return
        for attempt in awake:
            if attempt.until is not None and attempt.until <= self.now:
                attempt.until = None
