"""What a schedule begins with, what may happen in it, and which parts are put to the test."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from airflow_provider_responsys.ledger.tries import OnClear
from airflow_provider_responsys.sending.engine import Delivery
from tests.simulation.choices import Choices

REFUSALS = "not sent", "token expired", "limit exceeded", "try later", "batch refused", "send refused"
DOUBTS = "answer lost", "queue failed", "an error of our own"
ANSWERS = REFUSALS + DOUBTS
"""How a request may end, other than well. Whether a lost one took effect is left open: the rules hold for both."""


class Strike(StrEnum):
    """What may happen to a try from outside."""

    KILL = "is killed"
    ZOMBIE = "is taken for dead"
    HALT = "is told to stop"
    CLEAR = "is cleared"
    AGAIN = "is started a second time"
    MARKS = "has its marks cleaned"
    LOST = "has its record cleaned"
    PUT_BACK = "has its database put back"


OUTSIDE = (Strike.KILL, Strike.ZOMBIE, Strike.HALT, Strike.CLEAR)
HOUSEKEEPING = (Strike.CLEAR, Strike.AGAIN, Strike.MARKS, Strike.LOST)
REPLICA = (Strike.KILL, Strike.ZOMBIE, Strike.CLEAR, Strike.PUT_BACK)
EVERYTHING = (*OUTSIDE, Strike.AGAIN, Strike.MARKS, Strike.LOST, Strike.PUT_BACK)


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What a schedule begins with."""

    sources: tuple[tuple[int, ...], ...] = ((1, 2, 3),)
    """The recipients of each task."""
    size: int = 1
    """Recipients in a request."""
    sql: bool = False
    retries: int = 1
    faults: int = 2
    calm: float = 0.9
    """The share of answers and writes that nothing happens to."""
    spared: float | None = None
    """The share of moments at which nothing strikes from outside; without one, *calm* decides that, too."""
    steady: float = 0.97
    """The share of moments at which a database is not put back."""
    answers: Sequence[str] = ANSWERS
    strikes: Sequence[Strike] = OUTSIDE
    source_changes: bool = True
    on_clear: OnClear = "resume"
    on_in_doubt: str = "fail"
    delivery: Delivery = Delivery.AT_MOST_ONCE
    late: int = 0
    """How many writes to Airflow's task state store may be done late, or once more late."""
    outside: bool = False
    """Whether Airflow keeps the values of its task state store elsewhere, where it refuses nobody."""
    brown_out: float = 0.0
    """The share of pushes whose answers are lost, beside the faults."""
    max_in_doubt: float = math.inf
    """Recipients, after which the sender stops."""
    reads_fail: bool = True
    """Whether the store may fail to answer a question."""
    spool_fails: bool = False
    """Whether the spool may fail."""
    slow_writes: bool = False
    """Whether time may pass between the two transactions of a commit.

    Then a sender may run out of patience with answers that it has not looked at
    yet, and leaves in doubt what is known: more than "few in doubt" allows.
    """
    max_in_flight: int = 4
    per_minute: float = 6_000
    latency: float = 0.0
    retry_for: float = 3_600.0
    execution_timeout: float = math.inf

    @property
    def unstruck(self) -> float:
        """How probable it is that nothing strikes from outside."""
        return 1.0 - (1.0 - self.calm) / 4 if self.spared is None else self.spared

    @classmethod
    def drawn(cls, choices: Choices) -> "Setup":
        """Choose a campaign."""
        pick = choices.pick
        batches = (2, 1, 3, 5, 8, 13)[pick(6)]
        size = 1 + pick(3)
        sql = bool(pick(3, 0.6))
        people = tuple(range(1, batches * size + 1))
        sources: tuple[tuple[int, ...], ...] = (people,)
        if sql and pick(2):
            shift = pick(len(people))
            sources = (people, tuple(each + shift for each in people))
        return cls(
            sources=sources,
            size=size,
            sql=sql,
            retries=(1, 2, 3, 0)[pick(4)],
            faults=(2, 1, 3, 5, 9, 0)[pick(6)],
            calm=(0.9, 0.98, 0.7, 0.3)[pick(4)],
            strikes=(OUTSIDE, EVERYTHING, HOUSEKEEPING, REPLICA)[pick(4)],
            on_clear=("resume", "restart")[pick(2, 0.8)],
            on_in_doubt=("fail", "continue")[pick(2)],
            delivery=(Delivery.AT_MOST_ONCE, Delivery.AT_LEAST_ONCE)[pick(2, 0.8)],
            late=(0, 1, 3)[pick(3)],
            outside=bool(pick(2, 0.7)),
            brown_out=(0.0, 0.5, 0.1)[pick(3, 0.8)],
            max_in_doubt=(math.inf, 2, 5)[pick(3, 0.7)],
            spool_fails=bool(pick(2, 0.7)),
            max_in_flight=(4, 1, 2, 8)[pick(4)],
            per_minute=(6_000, 600, 60)[pick(3)],
            latency=(0.0, 0.3, 20.0)[pick(3)],
            retry_for=(3_600.0, 90.0, 10.0)[pick(3, 0.7)],
            execution_timeout=(math.inf, 120.0, 5.0)[pick(3, 0.7)],
        )
