from typing import Any

import pytest

from airflow_provider_responsys.sandbox.limits import Windows
from tests.support.client import ASYNC, Client, Start, recipient

ASYNC_PUSH = f"{ASYNC}/campaigns/Summer_Push/push"


def statuses(client: Client, count: int, **more: Any) -> list[int]:
    """Push *count* times and return what was answered."""
    return [client.push(recipient(), **more).status for _ in range(count)]


@pytest.mark.parametrize("status", [400, 401, 429])
def test_a_limit_is_met_and_no_more(start: Start, status: Any) -> None:
    """The refused push is not pushed; the status is one of three that the pages name."""
    sandbox, client = start(push_limit=2, limit_status=status)

    assert statuses(client, 3) == [202, 202, status]
    assert sandbox.refusals == {"API_LIMIT_EXCEEDED": 1}
    assert sandbox.report()["pushes"] == 2


def test_a_fixed_window_ends_with_the_minute(start: Start) -> None:
    """A limit may be used up at the end of one minute and again at the start of the next."""
    sandbox, client = start(push_limit=2)
    sandbox.clock.advance(59)

    assert statuses(client, 3) == [202, 202, 401]
    sandbox.clock.advance(1)
    assert statuses(client, 3) == [202, 202, 401]


def test_a_sliding_window_looks_back_a_minute(start: Start) -> None:
    """The same pushes fit only when the first ones are sixty seconds old."""
    sandbox, client = start(push_limit=2, window="sliding")
    sandbox.clock.advance(59)

    assert statuses(client, 3) == [202, 202, 401]
    sandbox.clock.advance(59.5)
    assert statuses(client, 1) == [401]
    sandbox.clock.advance(0.5)
    assert statuses(client, 3) == [202, 202, 401]


def test_families_and_functions_have_limits_of_their_own(start: Start) -> None:
    """What pushes use up, polls and the other family do not lack."""
    _, client = start(push_limit=1, poll_limit=1)

    assert statuses(client, 2) == [202, 401]
    assert statuses(client, 2, path=ASYNC_PUSH) == [202, 401]
    assert [client.poll("x").status for _ in range(2)] == [200, 401]


def test_a_part_may_be_taken_away_untold(start: Start) -> None:
    """Another program uses the account, and ratelimit still tells the whole."""
    sandbox, client = start(push_limit=5)
    sandbox.change(push_taken=3)

    assert statuses(client, 3) == [202, 202, 401]
    rows = client.ask("GET", "/rest/api/ratelimit").json
    assert {row["limit"] for row in rows if row["api"] == "HaAsyncTriggerPush"} == {5}


def test_capacity_comes_back_after_ten_minutes(start: Start) -> None:
    """The internal capacity is one budget for all families."""
    sandbox, client = start(capacity_limit=2)

    assert statuses(client, 1, path=ASYNC_PUSH) + statuses(client, 2) == [202, 202, 400]
    sandbox.clock.advance(599)
    assert client.push(recipient()).code == "INTERNAL_CAPACITY_LIMIT_EXCEEDED"
    sandbox.clock.advance(1)
    assert statuses(client, 1) == [202]


def test_limits_can_be_read(start: Start) -> None:
    """An array of rows with the five documented members; a function without limit tells a large one."""
    _, client = start(push_limit=200, login_limit=10)

    rows = client.ask("GET", "/rest/api/ratelimit").json

    assert all(row.keys() == {"limit", "api", "resource_path", "verb", "description"} for row in rows)
    told = {row["api"]: (row["limit"], row["verb"], row["resource_path"]) for row in rows}
    assert told["Login"] == (10, "POST", "/auth/token")
    assert told["HaAsyncTriggerPush"] == (200, "POST", "/campaigns/{campaignName}/push")
    assert told["HaAsyncPolling"] == (1_000_000, "GET", "/requests/{requestId}")


def test_rows_may_be_set(start: Start) -> None:
    """For names that the guesses have not got."""
    row = {"limit": 7, "api": "X", "resource_path": "/y", "verb": "POST", "description": ""}
    _, client = start(ratelimit_rows=(row,))

    assert client.ask("GET", "/rest/api/ratelimit").json == [row]


@pytest.mark.parametrize(
    ("settings", "path", "status", "code"),
    [
        ({}, "/rest/api/v1.3/ratelimit", 404, "RESOURCE_NOT_FOUND"),
        ({"ratelimit": "off"}, "/rest/api/ratelimit", 404, "RESOURCE_NOT_FOUND"),
        ({"ratelimit": "refused"}, "/rest/api/ratelimit", 401, "INSUFFICIENT_ACCESS"),
        ({"ratelimit_limit": 0}, "/rest/api/ratelimit", 401, "API_LIMIT_EXCEEDED"),
    ],
)
def test_limits_may_not_be_readable(start: Start, settings: dict[str, Any], path: str, status: Any, code: str) -> None:
    """The path has no version; an account may lack the function or the role."""
    _, client = start(**settings)

    reply = client.ask("GET", path)

    assert (reply.status, reply.code) == (status, code)


def test_a_window_without_limit_counts_all_the_same() -> None:
    """A limit set while running knows what went before."""
    windows = Windows()
    for _ in range(3):
        assert windows.admit("push", None, now=61.0, span=60, sliding=False)

    assert not windows.admit("push", 3, now=62.0, span=60, sliding=False)
    assert windows.admit("push", 3, now=120.0, span=60, sliding=False)
