"""What one run is about."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from airflow_provider_responsys.sandbox import Fault
from tests.faults.late import Late
from tests.faults.planted import Plant
from tests.support.verdict import BATCH

STATE, EXTERNAL = "task state store", "task state store, external"
SQLITE, POSTGRES = "SQL on SQLite", "SQL on PostgreSQL"
STORES = (STATE, EXTERNAL, SQLITE, POSTGRES)
IN_AIRFLOW = (STATE, EXTERNAL)
IN_SQL = (SQLITE, POSTGRES)
NAIVE = "naive operator"

HANG = 4.0
"""Seconds without an answer: longer than the connection's timeout."""

TIMEOUT = 2
"""Seconds that the connection waits for an answer."""

PROCESSING = 0.3
"""Seconds until there are results, where a run waits for them."""

WHOLE, MAY_STOP, MAY_CLOSE = "whole", "may stop", "may close"
"""How a run may end: everybody sent to; some not sent, and said so; closed, since its record can't be believed."""

Drawn = dict[str, Any]
"""The fields of a scenario that are drawn."""


@dataclass(frozen=True, slots=True)
class Kill:
    """A kill after *delay* seconds, of the task's process, its *host* (supervisor and all), or by SIGTERM.

    A *stop* is a SIGTERM that must be noticed: what still runs after the grace is killed. Its delay begins when
    the task's ``execute`` does.
    """

    delay: float
    whom: str


@dataclass(frozen=True, slots=True)
class Scenario:
    """One run: *plants* and *kills* by the task (or "trigger") and the number of its attempt."""

    group: str
    store: str
    seed: int
    what: str
    batches: int = 5
    in_flight: int = 1
    latency: float = 0.02
    """Seconds that the sandbox takes to answer."""
    processing: float = 0.0
    """Seconds until there are results to poll."""
    dag: str = "push_only"
    plants: Mapping[tuple[str, int], Sequence[Plant]] = field(default_factory=dict)
    kills: Mapping[tuple[str, int], Kill] = field(default_factory=dict)
    faults: Sequence[Fault] = ()
    sandbox: Mapping[str, Any] = field(default_factory=dict)
    """Its further settings."""
    late: Sequence[Late] = ()
    """Writes to the task state store that are late."""
    between: Mapping[int, Sequence[str]] = field(default_factory=dict)
    """What is done when so many attempts of the push have ended."""
    at_end: Sequence[str] = ()
    """What is done, once, when the run is over."""
    on_clear: str = "resume"
    execution_timeout: float | None = None
    """Seconds that the first attempt may take."""
    budget: bool = False
    """Whether the operator's own budget of doubts is in force; otherwise there is no limit."""
    silent: bool = False
    """Whether the answers are lost in silence."""
    gentle: bool = False
    """Whether a SIGTERM leaves nobody in doubt, as every request that is out is answered within the grace."""
    one_attempt: bool = False
    """Whether the fault must not end the attempt that it happens to."""
    ends: str = WHOLE
    xcom_down_from: int | None = None
    """From which XCom of the first attempt on Airflow's API server takes none."""
    patience: float = 60.0
    strikes: bool = False
    """Whether the first plant, or a late write, is certain to be reached: a run in which it was not says nothing."""
    shards: Mapping[int, Sequence[Sequence[int]]] = field(default_factory=dict)
    """Whom each of the mapped tasks is for, from which attempt on."""
    wrong_first: int = 0
    """Attempts that know a wrong password; they run at once."""
    forgiven: int = 0
    """Recipients who may be pushed twice, as a person has erased them from the ledger."""

    @property
    def name(self) -> str:
        """Return what selects this run on the command line."""
        return f"{self.group}/{self.store}/{self.seed}"

    @property
    def people(self) -> int:
        """Return how many recipients there are; the last batch is not full."""
        if self.shards:
            return len({number for shards in self.shards.values() for shard in shards for number in shard})
        return self.batches * BATCH - BATCH // 2

    @property
    def own_ledger(self) -> bool:
        """Return whether a SQL ledger must be the run's own, as it is broken."""
        planted = {plant.event for plants in self.plants.values() for plant in plants}
        tidied = {what for all_of in (*self.between.values(), self.at_end) for what in all_of}
        return bool(BREAKING & (planted | tidied))


BREAKING = frozenset(
    {
        "outage",
        "lose",
        "snapshot",
        "put back",
        "put back, connections ended",
        "lock",
        "lock for a while",
        "dark",
        "dark for a while",
        "drop idle",
        "prune",
        "forget",
    }
)
"""What other runs must not feel."""
