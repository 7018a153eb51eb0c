"""The numbers of a send in progress, and the line that a person reads."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from airflow_provider_responsys.sending.progress import Progress, Speed

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)

HALF_WAY = Progress(
    total=1_000_000,
    accepted=500_000,
    rejected=0,
    in_doubt=200,
    not_sent=0,
    left=499_800,
    requests=2_500,
    per_minute=198.4,
    limit=200,
    now=NOON,
    ends_at=NOON + timedelta(minutes=12.6),
)


def test_the_line_says_when_it_will_end() -> None:
    """As a clock time: whoever reads it looks at a clock, and not at when the line was written."""
    assert str(HALF_WAY) == (
        "Accepted 500000 of 1000000 recipients in 2500 requests, 198 requests a minute (limit 200), 200 in doubt; "
        "about 13 min to go, until 2026-11-23 12:12 UTC"
    )


@pytest.mark.parametrize(
    ("changes", "rest"),
    [
        ({"ends_at": None}, "(limit 200), 200 in doubt; 499800 to go, nothing was accepted lately"),
        ({"rejected": 400, "left": 0}, "(limit 200), 200 in doubt, 400 rejected"),
        ({"not_sent": 499_800, "left": 0}, "(limit 200), 200 in doubt, 499800 not sent"),
    ],
)
def test_the_line_names_what_there_is(changes: dict[str, object], rest: str) -> None:
    """And nothing that there is not."""
    assert str(replace(HALF_WAY, **changes)).endswith(rest)  # type: ignore[arg-type]  # of several types


def test_the_rate_is_that_of_the_last_minute() -> None:
    """An outage half an hour ago says nothing about when it will end."""
    speed = Speed(began=0.0)
    steady = [speed.lately(30.0 * tick, 90 * tick, 18_000 * tick) for tick in range(1, 5)]
    stopped = [speed.lately(120 + 30.0 * tick, 360, 72_000) for tick in range(1, 61)]

    again = [speed.lately(1920 + 30.0 * tick, 360 + 60 * tick, 72_000 + 12_000 * tick) for tick in range(1, 4)]

    assert steady == [(3.0, 600.0)] * 4
    assert stopped[:3] == [(1.5, 300.0), (0.0, 0.0), (0.0, 0.0)]
    assert again == [(1.0, 200.0), (2.0, 400.0), (2.0, 400.0)]
    assert len(speed.marks) == 3
