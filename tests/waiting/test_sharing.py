"""Waits of one account in one process: together they keep to its limit, and each gets its part."""

import pytest

from airflow_provider_responsys.waiting.sharing import Limits
from tests.support.waits import Account


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
