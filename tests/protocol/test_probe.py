import json
from typing import Any

import pytest

from airflow_provider_responsys.errors import (
    InvalidAnswer,
    LimitExceeded,
    LoginFailed,
    NoAnswer,
    NotSent,
    ResponsysError,
    TryLater,
)
from airflow_provider_responsys.protocol.account import Account
from airflow_provider_responsys.protocol.probe import UNKNOWN_ID, probe
from airflow_provider_responsys.protocol.wire import Response
from tests.support.scripted import Drive

LIMITS = "/rest/api/ratelimit"
POLL = f"/rest/haAsyncApi/v1.3/requests/{UNKNOWN_ID}"

PAGES = [
    Response(404, b"<html>Not Found</html>"),
    Response(200, b"<html>Welcome</html>"),
    Response(200, b""),
    Response(200, b"OK"),
    Response(200, b"{}"),
    Response(200, b'["a"]'),
    Response(302, b""),
    Response(503, b"<html>Service Temporarily Unavailable</html>"),
    Response(429, b"slow down"),
]
"""What a gateway may answer in the place of Responsys."""


def answer(body: Any, status: int = 200) -> Response:
    """Return *body* as Responsys sends it."""
    return Response(status, json.dumps(body).encode())


def error(code: str) -> dict[str, Any]:
    """Return the bare envelope of *code*."""
    return {"type": "", "title": "…", "errorCode": code, "detail": "", "errorDetails": []}


ENVELOPES = [
    answer(error("API_LIMIT_EXCEEDED"), 429),
    answer(error("API_NOT_ALLOWED_IN_SECONDARY"), 401),
    answer(error("INSUFFICIENT_ACCESS"), 401),
    answer(error("RESOURCE_NOT_FOUND"), 404),
    answer(error("SERVICE_UNAVAILABLE"), 503),
    answer(error("UNRECOVERABLE_EXCEPTION"), 500),
    answer(error("SOMETHING_NEW"), 400),
]


@pytest.mark.parametrize("response", [Response(200, b"[]"), answer([{"limit": 10, "api": "Login"}]), *ENVELOPES])
def test_a_parsed_answer_is_a_sign_of_life(drive: "Drive", account: Account, response: Response) -> None:
    """An error as well: what gives it is there."""
    line = drive(response)

    line.run(probe(account))

    assert line.script.paths == [LIMITS]


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize(
    "response",
    [
        *ENVELOPES,
        answer(error("INVALID_REQUEST_ID")),
        answer({"response": error("INVALID_REQUEST_ID"), "requestId": UNKNOWN_ID, "status": "UNKNOWN"}),
        answer([{"response": [], "requestId": UNKNOWN_ID, "status": "SUCCESS"}]),
    ],
)
def test_a_host_without_limits_is_asked_about_a_request(
    drive: "Drive", account: Account, page: Response, response: Response
) -> None:
    """AFTM hosts may not know that path: a page in its place says nothing of Responsys, a poll's answer does."""
    line = drive(page, response)

    line.run(probe(account, tracking_id="4711"))

    assert line.script.paths == [LIMITS, POLL]
    assert ("X-Request-Id", "4711") in line.script.asked[1].headers


@pytest.mark.parametrize("page", PAGES)
def test_a_gateways_page_is_no_sign_of_life(drive: "Drive", account: Account, page: Response) -> None:
    """A page in the place of both reads: Responsys may be gone behind it."""
    line = drive(page, page)

    with pytest.raises((InvalidAnswer, TryLater)) as caught:
        line.run(probe(account))

    assert account.host in str(caught.value)
    assert type(caught.value) is {429: LimitExceeded, 503: TryLater}.get(page.status, InvalidAnswer)


@pytest.mark.parametrize("silence", [NotSent("no connection"), NoAnswer("reset")])
def test_silence_is_no_sign_of_life(drive: "Drive", account: Account, silence: "ResponsysError") -> None:
    """Nor a reason to ask once more at once (AFTM error page: two minutes apart)."""
    line = drive(silence)

    with pytest.raises(type(silence)):
        line.run(probe(account))

    assert line.script.paths == [LIMITS]


def test_silence_after_a_page_is_none_either(drive: "Drive", account: Account) -> None:
    """The second read decides."""
    line = drive(PAGES[0], NoAnswer("reset"))

    with pytest.raises(NoAnswer):
        line.run(probe(account))


def test_a_user_who_is_not_let_in_is_told(drive: "Drive", account: Account) -> None:
    """Whether the login says so, or the read: nothing can be sent."""
    refused = answer(error("INVALID_USER_NAME_PASSWORD"), 400)

    for line in (drive(refused), drive(refused, signed_in=False)):
        with pytest.raises(LoginFailed):
            line.run(probe(account))


def test_a_login_that_has_to_wait_is_told_as_it_is(drive: "Drive", account: Account) -> None:
    """Its outage is not taken for a page in the place of the limits: a second read would log in once more."""
    line = drive(Response(503, b"<html>"), signed_in=False)

    with pytest.raises(TryLater):
        line.run(probe(account))

    assert len(line.script.asked) == 1


def test_a_token_that_has_expired_is_replaced(drive: "Drive", account: Account) -> None:
    """As with any call; refused twice, it is still Responsys who refuses it."""
    expired, login = answer(error("TOKEN_EXPIRED"), 401), answer({"authToken": "E1"})
    line = drive(expired, login, expired)

    line.run(probe(account))

    assert len(line.script.asked) == 3
