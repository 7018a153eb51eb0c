"""Waits of one account in one process, played without a network."""

import heapq
from datetime import UTC, datetime
from itertools import count

from airflow_provider_responsys.errors import LimitExceeded
from airflow_provider_responsys.protocol.polling import Processing
from airflow_provider_responsys.waiting.engine import WaitEngine
from airflow_provider_responsys.waiting.sharing import SharedLimit
from airflow_provider_responsys.waiting.state import WaitState

LATENCY = 0.2
NOW = datetime(2026, 11, 24, 8, 30, tzinfo=UTC)


class Account:
    """Responsys, its clock, and waits of so many open requests each, which are never finished."""

    def __init__(self, limit: int, sizes: list[int], *, allowed: int | None = None, interval: float = 1.0) -> None:
        self.now = 0.0
        self.allowed = allowed or limit
        self.shared = SharedLimit(limit, lambda: self.now)
        self.sent: list[tuple[float, int]] = []
        self.refused: list[float] = []
        self._order = count()
        self._agenda: list[tuple[float, int, int, list[str] | None, float]] = []
        self.engines = [
            WaitEngine(
                WaitState.on([f"{wait}/{number}" for number in range(size)]),
                pace=self.shared.join(),
                poll_interval=interval,
                ids_per_poll=1,
                max_in_flight=40,
                first_at=0.0,
                now=NOW,
            )
            for wait, size in enumerate(sizes)
        ]

    def run(self, until: float) -> None:
        """Let time pass."""
        for wait in range(len(self.engines)):
            self._look(wait, self.now)
        while self._agenda and self._agenda[0][0] <= until:
            self.now, _, wait, ids, sent = heapq.heappop(self._agenda)
            if ids is not None:
                self._answer(self.engines[wait], ids, sent)
            self._look(wait, self.now)

    def _look(self, wait: int, now: float) -> None:
        engine = self.engines[wait]
        for ids in engine.take(now):
            self.sent.append((now, wait))
            heapq.heappush(self._agenda, (now + LATENCY, next(self._order), wait, ids, now))
        if not any(entry[2] == wait and entry[3] is None for entry in self._agenda) and engine.next_at < 1e9:
            heapq.heappush(self._agenda, (max(engine.next_at, now + 0.001), next(self._order), wait, None, 0.0))

    def _answer(self, engine: WaitEngine, ids: list[str], sent: float) -> None:
        lately = sum(1 for at, _ in self.sent if sent - 60.0 < at <= sent) - sum(
            1 for at in self.refused if sent - 60.0 < at <= sent
        )
        if lately > self.allowed:
            self.refused.append(sent)
            engine.failed(ids, LimitExceeded("too many"), sent, self.now)
        else:
            engine.answered(dict.fromkeys(ids, Processing()), sent, self.now)

    def per_wait(self, since: float) -> list[int]:
        """Return how many polls each wait has sent *since*."""
        return [
            sum(1 for at, sender in self.sent if sender == wait and at >= since) for wait in range(len(self.engines))
        ]
