"""The tables of the SQL ledger's model, and what may be done to them as a whole."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Self

from airflow_provider_responsys.ledger.interface import Earlier, Ledger
from airflow_provider_responsys.ledger.state_store import StateStore
from tests.simulation.stores import EPOCH, Accessor

if TYPE_CHECKING:
    from tests.simulation.airflow import Task
    from tests.simulation.attempt import Attempt
    from tests.simulation.world import World

REMEMBERED = 4
"""States of the tables that they may be put back to."""

BatchId = tuple[str, int]
"""The name of the try, and the batch's number in it: like an id drawn at random, never used again."""


@dataclass(frozen=True, slots=True)
class Row:
    """A batch."""

    id: BatchId
    task: str
    begun: int
    """Which of the tries that began it belongs to, across tasks."""
    try_number: int
    fingerprints: tuple[bytes, ...]
    claimed_at: float
    request_id: str | None = None
    forgotten: bool = False

    @property
    def number(self) -> int:
        """Its number in its try."""
        return self.id[1]


@dataclass(frozen=True, slots=True)
class Begun:
    """A try that began."""

    id: int
    start: int
    try_number: int
    max_tries: int


@dataclass(frozen=True, slots=True)
class Known:
    """A task in the tables, as a try sees it that is about to begin: its newest try, and how often it claimed."""

    start: int
    try_number: int
    max_tries: int
    counter: int

    def is_still(self, found: "Known | None") -> bool:
        """Tell whether *found*, at a later look, is of the same try. It may have claimed meanwhile."""
        return found is not None and found.counter >= self.counter and replace(found, counter=self.counter) == self


@dataclass(slots=True)
class Tables:
    """The tables: which batch has claimed a recipient, the batches, the tries, and how often each task claimed."""

    claims: dict[bytes, BatchId] = field(default_factory=dict)
    batches: dict[BatchId, Row] = field(default_factory=dict)
    tries: dict[str, tuple[Begun, ...]] = field(default_factory=dict)
    counters: dict[str, int] = field(default_factory=dict)
    """How many transactions of each task claimed. A restart does not start it anew."""

    def copy(self) -> Self:
        """Return a copy: rows are never changed, but replaced."""
        return replace(
            self,
            claims=dict(self.claims),
            batches=dict(self.batches),
            tries=dict(self.tries),
            counters=dict(self.counters),
        )


class SqlStore:
    """A database that every task writes to, under one send key."""

    def __init__(self, world: "World", ledger: Callable[..., Ledger]) -> None:
        self.world = world
        self.tables = Tables()
        self.before: list[Tables] = []
        """The tables as they were before each of the last transactions, the oldest first."""
        self._ledger = ledger
        self._made = 0

    def new_id(self) -> int:
        """Return the id of a try that begins: none has it again, not even after the tables were put back."""
        self._made += 1
        return self._made

    def open(self, attempt: "Attempt") -> Ledger:
        """Return the model of the SQL ledger on these tables, with its marks in Airflow's store."""
        return self._ledger(self.world, self, attempt, StateStore(Accessor(self.world.states, attempt)))

    def read(self, task: "Task") -> list[Earlier]:
        """Return what the tables have of *task*."""
        return [to_earlier(row) for row in self.tables.batches.values() if row.task == task.name and not row.forgotten]

    def remember(self) -> None:
        """Keep the tables as they are, before a transaction: they may be put back, to one of the last or the first."""
        if self.world.may_put_back:
            self.before.append(self.tables.copy())
            if len(self.before) > REMEMBERED:
                del self.before[1]

    def undo(self) -> None:
        """Take the transaction back that has just been done."""
        if self.world.may_put_back:
            self.tables = self.before.pop()

    def put_back(self, place: int) -> Tables:
        """Go back to *place* of `before`; return the tables as they were."""
        lost = self.tables
        self.tables = self.before[place]
        del self.before[place:]
        return lost


def to_earlier(row: Row) -> Earlier:
    """Return *row* as a ledger tells it."""
    label = f"try {row.try_number}, batch {row.number}"
    return Earlier(list(row.fingerprints), row.request_id, EPOCH, label, place=row.id)
