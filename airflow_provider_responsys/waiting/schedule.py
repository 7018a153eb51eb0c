"""When to poll which requests: one after the other while all is well, and not at all in trouble."""

import heapq
import math
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, count, repeat

from airflow_provider_responsys.errors import (
    FailedOver,
    InvalidAnswer,
    LoginExpired,
    NoAnswer,
    NotSent,
    TryLater,
)
from airflow_provider_responsys.protocol.codes import NO_ANSWER_WAIT
from airflow_provider_responsys.protocol.pace import Pace

TROUBLE_WAITS = (5.0, 30.0, NO_ANSWER_WAIT)
"""Seconds without polls after the first, second, and each further trouble in a row."""

PASSING = (FailedOver, InvalidAnswer, LoginExpired, NoAnswer, NotSent, TryLater)
"""What a later poll may not run into: a failover ends, an outage too."""

HEADROOM = 0.98
TOGETHER = 0.016
"""Shares of the limit of polls: what is used of it, and what leaves together, about once a second. A triggerer that is
woken for each poll spends twice the processor time on it."""


def paced(limit: float, now: float) -> Pace:
    """Return a pace of *limit* polls a minute, that leave together where there are many."""
    return Pace.at(limit, now, headroom=HEADROOM, together=TOGETHER)


class Schedule:
    """Which requests to poll next: oldest due first."""

    def __init__(self, ids: Iterable[str], due: float) -> None:
        self._order = count()
        self._waiting = [(due, next(self._order), request_id) for request_id in ids]

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def due(self) -> float:
        """Return when the next request is due."""
        return self._waiting[0][0]

    def take(self, now: float, most: int, early: float = 0.0, *, alone: Container[str] = ()) -> list[str]:
        """Return up to *most* requests, and forget them: one that is due *now*, and what is due *early* seconds later.

        Otherwise polls of many requests at once would never grow together again: each would go on
        by itself, with ever fewer of those that it began with. A request that is in *alone* goes by itself.
        """
        taken: list[str] = []
        if not self._waiting or self.due > now:
            return taken
        while self._waiting and self.due <= now + early and len(taken) < most:
            if taken and (self._waiting[0][2] in alone or taken[0] in alone):
                break
            taken.append(heapq.heappop(self._waiting)[2])
        return taken

    def bring_forward(self, now: float, until: float) -> None:
        """Let what is due by *until* be due *now*."""
        self._waiting = [(now if due <= until else due, order, name) for due, order, name in self._waiting]
        heapq.heapify(self._waiting)

    def put_back(self, ids: Iterable[str], due: float) -> None:
        """Let *ids* be polled again when they are *due*."""
        for request_id in ids:
            heapq.heappush(self._waiting, (due, next(self._order), request_id))


@dataclass(slots=True)
class Patience:
    """How many *troubles* there were, and until when nothing is polled because of them."""

    quiet_until: float = -math.inf
    troubles: int = 0
    in_a_row: int = 0

    def answered(self) -> None:
        """Take note that Responsys answers again."""
        self.in_a_row = 0

    def trouble(self, now: float, wait: float) -> None:
        """Poll nothing for at least *wait* seconds, and for longer after each further trouble in a row."""
        if now >= self.quiet_until:  # further answers to earlier polls say nothing new
            wait = max(wait, TROUBLE_WAITS[min(self.in_a_row, len(TROUBLE_WAITS) - 1)])
            self.in_a_row += 1
        self.quiet_until = max(self.quiet_until, now + wait)
        self.troubles += 1


def troubles() -> Iterator[float]:
    """Yield how long to wait after each trouble in a row."""
    return chain(TROUBLE_WAITS, repeat(TROUBLE_WAITS[-1]))
