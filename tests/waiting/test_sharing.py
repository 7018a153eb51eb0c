"""Waits of one account in one process: together they keep to its limit, and each gets its part."""

import heapq
from datetime import UTC, datetime
from itertools import count

import pytest

from airflow_provider_responsys.errors import LimitExceeded
from airflow_provider_responsys.protocol.polling import Processing
from airflow_provider_responsys.waiting.engine import WaitEngine
from airflow_provider_responsys.waiting.sharing import Limits, SharedLimit
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


@pytest.mark.parametrize("waits", [1, 2, 4, 9])
@pytest.mark.parametrize("limit", [60, 200, 1_000])
def test_waits_share_the_limit(waits: int, limit: int) -> None:
    """At least 95 % of it is used, nothing is refused, and each wait gets as much as any other."""
    account = Account(limit, [3_000] * waits)

    account.run(300.0)

    parts = account.per_wait(since=60.0)
    assert sum(parts) >= 0.95 * limit * 4
    assert max(parts) - min(parts) <= 0.02 * limit * 4 / waits + 4
    assert not account.refused


def test_what_a_wait_does_not_need_goes_to_the_others() -> None:
    """One that has a single request to poll each minute takes that, and no more."""
    account = Account(200, [3_000, 1], interval=60.0)

    account.run(300.0)

    parts = account.per_wait(since=60.0)
    assert parts[1] in (3, 4)
    assert sum(parts) >= 0.95 * 200 * 4


def test_a_limit_of_which_others_use_a_part_is_found_together() -> None:
    """What one wait is refused slows all of them: after the first minutes hardly anything is refused."""
    account = Account(200, [3_000] * 4, allowed=120)

    account.run(600.0)

    assert sum(1 for at in account.refused if at > 180.0) <= 8
    assert sum(account.per_wait(since=300.0)) >= 0.8 * 120 * 5


def test_a_wait_that_is_gone_holds_up_nobody() -> None:
    """Its part goes to the others."""
    account = Account(200, [3_000, 3_000])
    account.run(60.0)

    account.engines[1].state.open.clear()
    account.run(300.0)

    parts = account.per_wait(since=90.0)
    assert parts[0] >= 0.9 * 200 * 3.5
    assert parts[1] == 0


def test_a_limit_is_of_an_account() -> None:
    """What Responsys says of it holds for each wait that begins later."""
    limits = Limits()

    first = limits.of("host/user", 200, clock=lambda: 0.0)
    other = limits.of("host/other", 200, clock=lambda: 0.0)
    first.join().use(600)
    again = limits.of("host/user", 200, clock=lambda: 0.0)

    assert again is first is not other
    assert (again.pace.limit, again.is_known, other.is_known) == (600, True, False)


@pytest.mark.parametrize("read_first", [True, False])
def test_the_lowest_limit_that_connections_set_holds(read_first: bool) -> None:
    """Two waits of one account through two connections keep to it, whatever is read, and in whatever order."""
    shared = Limits().of("host/user", 200, clock=lambda: 0.0)
    free = shared.join()
    if read_first:
        free.use(1_000)

    higher, lower = shared.join(60), shared.join(30)
    if not read_first:
        free.use(1_000)

    assert [share.pace.limit for share in (free, higher, lower)] == [30, 30, 30]
    assert free.limit == 30


def test_a_limit_that_a_connection_sets_ends_with_its_waits() -> None:
    """The others go on with the account's own; a wait whose connection has changed brings the new value."""
    shared = Limits().of("host/user", 200, clock=lambda: 0.0)
    free, setting = shared.join(), shared.join(30)
    free.use(1_000)

    del setting

    assert free.pace.limit == 1_000
    assert shared.join(90).pace.limit == free.pace.limit == 90
