import json
from typing import Any

import pytest

from airflow_provider_responsys.errors import FailedOver, InvalidAnswer, SendRefused
from airflow_provider_responsys.protocol.account import ASYNC, HA_ASYNC, Account, Family
from airflow_provider_responsys.protocol.ratelimit import RateLimit, poll_limit, push_limit, rate_limits, read_limits
from airflow_provider_responsys.protocol.wire import Response
from tests.support.scripted import Drive

PUSH = "/campaigns/{campaignName}/push"
POLL = "/requests/{requestId}"


def limit(number: int, api: str = "", path: str = PUSH, verb: str = "POST") -> RateLimit:
    """Return one row."""
    return RateLimit(api, path, verb, number)


def test_the_limits_are_read(drive: "Drive", account: Account, documented: dict[str, Any]) -> None:
    """Throttling page: five members a row, at an address without a version."""
    line = drive(Response(200, json.dumps([documented["rate limit row"]["body"]]).encode()))

    limits = line.run(rate_limits(account))

    assert limits == [
        RateLimit("HaAsyncTriggerPush", "/campaigns/{campaignName}/push", "POST", 200, "HA Async Trigger Push")
    ]
    assert line.script.paths == ["/rest/api/ratelimit"]
    assert push_limit(limits, HA_ASYNC) == 200


@pytest.mark.parametrize(
    ("code", "expected"), [("API_NOT_ALLOWED_IN_SECONDARY", FailedOver), ("INSUFFICIENT_ACCESS", SendRefused)]
)
def test_limits_may_be_refused(drive: "Drive", account: Account, code: str, expected: type[Exception]) -> None:
    """During a failover, or without the role: the caller has another number to go by."""
    line = drive(Response(401, json.dumps({"errorCode": code}).encode()))

    with pytest.raises(expected):
        line.run(rate_limits(account))


@pytest.mark.parametrize("body", [b"{}", b"<html>", b"17"])
def test_limits_come_as_a_list(body: bytes) -> None:
    """Anything else is no answer."""
    with pytest.raises(InvalidAnswer):
        read_limits(Response(200, body))


def test_an_odd_row_is_left_out() -> None:
    """The others still count."""
    rows = [
        17,
        {},
        {"limit": None},
        {"limit": "soon"},
        {"limit": 0},
        {"limit": -1},
        {"limit": 1e999},
        {"limit": [1]},
        {"limit": "90", "api": None, "resource_path": 7, "verb": " post "},
    ]

    assert read_limits(Response(200, json.dumps(rows).encode())) == [RateLimit("", "", "POST", 90)]


@pytest.mark.parametrize(
    ("rows", "family", "expected"),
    [
        ([], HA_ASYNC, None),
        ([limit(200)], HA_ASYNC, 200),
        ([limit(200), limit(100)], HA_ASYNC, 100),
        ([limit(100), limit(400, "HaAsyncTriggerPush")], HA_ASYNC, 400),
        ([limit(100, "AsyncTriggerPush"), limit(400, "HA_ASYNC_TRIGGER_PUSH")], HA_ASYNC, 400),
        ([limit(100, "AsyncTriggerPush"), limit(400, "HA Async Trigger Push")], ASYNC, 100),
        ([limit(100), limit(300, path="/rest/haAsyncApi/v1.3" + PUSH)], HA_ASYNC, 300),
        ([limit(100), limit(300, path="/rest/asyncApi/v1.3" + PUSH + "/")], ASYNC, 300),
        ([limit(500, "HaAsyncTriggerPush"), limit(400, "HaAsyncTriggerPush")], HA_ASYNC, 400),
        ([limit(100, "AsyncTriggerPush")], HA_ASYNC, 100),
        ([limit(100, path="/campaigns/{campaignName}/webpush")], HA_ASYNC, None),
        ([limit(100, path="/campaigns/{campaignName}/email")], HA_ASYNC, None),
        ([limit(100, verb="GET")], HA_ASYNC, None),
    ],
)
def test_the_limit_of_a_push(rows: list[RateLimit], family: Family, expected: int | None) -> None:
    """The verb and the tail of the path; rows that name the family first; of those the smallest."""
    assert push_limit(rows, family) == expected


@pytest.mark.parametrize(
    ("rows", "family", "expected"),
    [
        ([limit(200)], HA_ASYNC, None),
        ([limit(1000, path=POLL, verb="GET")], HA_ASYNC, 1000),
        ([limit(900, path="/Requests/{id}/", verb="GET")], HA_ASYNC, 900),
        ([limit(900, path="/requests/list", verb="GET")], HA_ASYNC, None),
        ([limit(900, path="{requestId}", verb="GET")], HA_ASYNC, None),
        ([limit(900, path="/requests", verb="DELETE")], HA_ASYNC, None),
        ([limit(1000, path=POLL, verb="GET"), limit(60, path="/requests")], ASYNC, 60),
        (
            [limit(9, path=POLL, verb="GET"), limit(800, "HaAsyncPoll", POLL, "GET"), limit(7, "Async", POLL, "GET")],
            HA_ASYNC,
            800,
        ),
    ],
)
def test_the_limit_of_a_poll(rows: list[RateLimit], family: Family, expected: int | None) -> None:
    """Asking for one request, or for several; again the family's own rows first."""
    assert poll_limit(rows, family) == expected
