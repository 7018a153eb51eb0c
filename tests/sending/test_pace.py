"""The pace: evenly spaced, never above the limit, slower after a refusal."""

import pytest

from airflow_provider_responsys.sending.pace import WINDOW, Pace


def departures(pace: Pace, until: float, late_by: float = 0.0) -> list[float]:
    """Send as fast as *pace* allows, *late_by* seconds after each time it names."""
    times = []
    now = pace.due
    while now < until:
        now = max(now, pace.earliest()) + late_by
        pace.take(now)
        times.append(now)
    return times


@pytest.mark.parametrize("limit", [1, 10, 200, 1_000])
@pytest.mark.parametrize("late_by", [0.0, 0.02])
def test_no_minute_holds_more_requests_than_the_limit(limit: int, late_by: float) -> None:
    """Fixed or sliding, any window of 60 seconds holds at most the limit."""
    times = departures(Pace.at(limit, now=100.0), until=400.0, late_by=late_by)

    busiest = max(sum(start <= time < start + WINDOW for time in times) for start in times)
    assert busiest <= limit


@pytest.mark.parametrize("limit", [200, 400, 1_000])
def test_a_prompt_sender_uses_98_percent_of_the_limit(limit: int) -> None:
    """Headroom for clocks that differ costs at most two requests in a hundred."""
    times = departures(Pace.at(limit, now=0.0), until=300.0)

    assert len(times) >= 0.98 * limit * 5


def test_a_late_sender_catches_up_only_a_little() -> None:
    """A pause of ten seconds is not made good by a burst."""
    pace = Pace.at(1_000, now=0.0)
    pace.take(0.0)

    slots = pace.slots(10.0)
    for _ in range(slots):
        pace.take(10.0)

    assert slots == 1 + 5  # five are half a percent of the limit
    assert pace.earliest() > 10.0


def test_slots_before_the_time_are_none() -> None:
    """Nothing leaves early."""
    pace = Pace.at(60, now=0.0)
    pace.take(0.0)

    assert pace.slots(pace.earliest() - 0.01) == 0
    assert pace.slots(pace.earliest()) == 1


def test_a_refusal_lowers_the_pace_once_a_moment() -> None:
    """Requests refused together speak of one limit."""
    pace = Pace.at(1_000, now=0.0)

    for _ in range(20):
        pace.refused(50.0, wait=60.0)

    assert pace.rate == 800


def test_the_pace_recovers_slowly_and_not_beyond_the_limit() -> None:
    """Two hundredths of the limit for every minute without a refusal."""
    pace = Pace.at(1_000, now=0.0)
    pace.refused(10.0, wait=60.0)

    pace.accepted(129.0)
    before = pace.rate
    pace.accepted(130.0)
    after = pace.rate
    for minute in range(100):
        pace.accepted(300.0 + minute * WINDOW)

    assert (before, after, pace.rate) == (800, 820, 1_000)
