"""Airflow: which tries it starts, and what happens to them from outside."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.simulation.attempt import Attempt, Outcome
from tests.simulation.campaign import Strike

if TYPE_CHECKING:
    from tests.simulation.world import World


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


class Airflow:
    """Starts the tries of *world*, and lets happen to them what may."""

    def __init__(self, world: "World") -> None:
        self._world = world

    def start_due(self, task: Task) -> None:
        """Start what Airflow starts by itself: the next try, or once more the one whose process died."""
        last = task.current
        if last and last.outcome is Outcome.KILLED and not last.asked:
            last.asked = True
            if Strike.AGAIN in self._world.setup.strikes and self._world.fault(2):
                self._world.tell(f"{last.name} {Strike.AGAIN}")
                self._start(task, again=last)
                return
        if task.due:
            self._start(task)

    def _start(self, task: Task, again: Attempt | None = None) -> None:
        """Start the next try: the store refuses the writes of its predecessors from now on. Or start *again* anew."""
        world = self._world
        number = again.number if again else task.tries + 1
        source = self._source(task) if task.attempts else task.source
        left = frozenset(task.marks)
        began = world.parts.may_have_claimed(
            try_number=number, max_tries=task.max_tries, retries=world.setup.retries, left=left
        )
        task.marks.clear()
        attempt = Attempt(
            world,
            task,
            number,
            task.max_tries,
            task.generation,
            source,
            left,
            may_have_claimed=began,
            start=again.start + 1 if again else 0,
        )
        for other in world.live:
            if world.setup.sql and other.task is task:
                attempt.alone = False  # unlike Airflow's store, a database takes what a replaced try learns
        task.attempts.append(attempt)
        world.live.append(attempt)
        world.moved = True
        world.tell(f"{attempt.name} starts with {list(source)}")

    def _source(self, task: Task) -> Sequence[int]:
        """Return what a later try reads: perhaps other rows, perhaps in another order."""
        if not self._world.setup.source_changes:
            return task.source
        people = task.source
        return (
            people,
            people[::-1],
            (*people[1:], people[0]),
            people[1:] or people,
            (900 + len(task.attempts), *people),
            (*people, people[0]),
        )[self._world.choices.pick(6, 0.5)]

    def strike(self) -> None:
        """Let something happen to a try from outside."""
        world = self._world
        menu = list(self._possible_strikes())
        if not menu:
            return
        choice = world.fault(1 + len(menu), world.setup.unstruck)
        if not choice:
            return
        strike, task, attempt = menu[choice - 1]
        world.tell(f"{attempt.name} {strike}")
        world.truth.troubles += strike is not Strike.KILL
        match strike:
            case Strike.KILL:
                attempt.die()
            case Strike.HALT:
                attempt.halt()
            case Strike.ZOMBIE:
                self._start(task)
            case Strike.CLEAR:
                task.max_tries = task.tries + world.setup.retries
                task.generation += world.setup.on_clear == "restart"
                self._start(task)
            case Strike.MARKS:
                task.marks.clear()
            case Strike.LOST:
                task.lost = True
                world.states.lose(task)
            case _:
                world.put_back(attempt)

    def _possible_strikes(self) -> Iterator[tuple[Strike, Task, Attempt]]:
        world = self._world
        allowed = world.setup.strikes
        for attempt in world.live:
            if Strike.KILL in allowed and attempt not in world.asleep:
                yield Strike.KILL, attempt.task, attempt
        for task in world.tasks:
            current = task.current
            if current is None:
                continue
            suspended = any(each.task is task for each in world.asleep)
            runs = current.outcome is None
            if Strike.ZOMBIE in allowed and runs and task.tries <= task.max_tries:
                yield Strike.ZOMBIE, task, current
            if Strike.HALT in allowed and runs and not suspended and not current.halted:
                yield Strike.HALT, task, current
            if Strike.CLEAR in allowed and not suspended:
                yield Strike.CLEAR, task, current
            yield from self._possible_housekeeping(task, current)

    def _possible_housekeeping(self, task: Task, current: Attempt) -> Iterator[tuple[Strike, Task, Attempt]]:
        world = self._world
        allowed = world.setup.strikes
        kept = world.states.kept.get(task.name)
        if Strike.MARKS in allowed and task.marks:
            yield Strike.MARKS, task, current
        if Strike.LOST in allowed and kept and kept.rows and not world.put_backs:
            yield Strike.LOST, task, current
        if world.may_put_back and world.sql and world.sql.before:
            yield Strike.PUT_BACK, task, current

    def replace(self, attempt: Attempt) -> None:
        """Take *attempt* for dead while it writes."""
        task = attempt.task
        if attempt.current and task.tries <= task.max_tries:
            self._world.truth.troubles += 1
            self._start(task)
