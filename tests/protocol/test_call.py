import json
from functools import partial

import pytest

from airflow_provider_responsys.errors import (
    FailedOver,
    InDoubt,
    InvalidAnswer,
    InvalidSettings,
    LimitExceeded,
    LoginExpired,
    LoginFailed,
    NoAnswer,
    NotSent,
    Refused,
    ResponsysError,
    TryLater,
)
from airflow_provider_responsys.protocol.account import ASYNC, Account
from airflow_provider_responsys.protocol.call import call
from airflow_provider_responsys.protocol.codes import submission_error
from airflow_provider_responsys.protocol.wire import Authorize, Request, Response, Token
from tests.support.scripted import Drive

READ = Request("GET", "/rest/api/ratelimit")
OK = Response(200, b"[]")
LOGIN = Response(200, b'{"authToken": "E1", "endPoint": "https://api5-009.responsys.net"}')
LOGIN_AGAIN = Response(200, b'{"authToken": "E2"}')


def refusal(code: str, status: int = 400, detail: str = "") -> Response:
    """Return an error as Responsys words it."""
    return Response(status, json.dumps({"errorCode": code, "detail": detail, "errorDetails": []}).encode())


EXPIRED = [
    refusal("INVALID_TOKEN", 401),
    refusal("TOKEN_EXPIRED", 401),
    refusal("UNEXPECTED_EXCEPTION", 500, "Not a valid authentication token"),
]


def test_a_call_logs_in_first_and_is_signed(drive: "Drive", account: Account) -> None:
    """The raw token, no Bearer; AFTM stays on the account's own host."""
    line = drive(LOGIN, OK, signed_in=False)

    response = line.run(call(account, READ))

    assert response == OK
    assert [(request.url, request.authorization) for request in line.script.asked] == [
        (f"{account.host}/rest/api/v1.3/auth/token", ""),
        (f"{account.host}/rest/api/ratelimit", "E1"),
    ]


def test_a_call_follows_the_endpoint_where_it_is_told_to(drive: "Drive") -> None:
    """Login endpoints page: outside AFTM, calls go where the login says."""
    account = Account(host="https://login5.responsys.net", login="u", password="p", family=ASYNC, follow_endpoint=True)
    line = drive(LOGIN, OK, signed_in=False, at=account)

    line.run(call(account, READ))

    assert line.script.asked[1].url == "https://api5-009.responsys.net/rest/api/ratelimit"


@pytest.mark.parametrize("expired", EXPIRED, ids=["invalid", "expired", "500"])
def test_an_expired_login_is_renewed_once(drive: "Drive", account: Account, expired: Response) -> None:
    """AFTM error page: log in with the same credentials and send again."""
    line = drive(expired, LOGIN, OK)

    response = line.run(call(account, READ))

    assert response == OK
    assert [request.authorization for request in line.script.asked] == ["E0", "", "E1"]


def test_a_login_is_not_renewed_twice(drive: "Drive", account: Account) -> None:
    """A new token that is refused too is no matter of time."""
    line = drive(EXPIRED[0], LOGIN, EXPIRED[0])

    with pytest.raises(LoginExpired):
        line.run(call(account, READ))

    assert len(line.script.asked) == 3


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (refusal("API_NOT_ALLOWED_IN_SECONDARY", 401), FailedOver),
        (refusal("INVALID_USER_NAME_PASSWORD", 400), LoginFailed),
        (refusal("INSUFFICIENT_ACCESS", 401), Refused),
        (refusal("UNEXPECTED_EXCEPTION", 500, "Out of memory"), TryLater),
        (refusal("SOMETHING_NEW", 401), Refused),
        (Response(401, b"<html>"), InvalidAnswer),
    ],
)
def test_nothing_else_renews_a_login(
    drive: "Drive", account: Account, answer: Response, expected: type[ResponsysError]
) -> None:
    """The code decides, not HTTP 401: a failover is none of the login's business."""
    line = drive(answer)

    with pytest.raises(expected):
        line.run(call(account, READ))

    assert len(line.script.asked) == 1


def test_what_may_pass_is_waited_out(drive: "Drive", account: Account) -> None:
    """As long as Responsys asks for, and the caller's own wait on top; nothing was sent needs no more."""
    line = drive(refusal("API_LIMIT_EXCEEDED", 429), NotSent("no connection"), Response(503), OK)

    response = line.run(call(account, READ, waits=(1.0, 2.0, 3.0)))

    assert response == OK
    assert line.script.pauses == [61.0, 2.0, 63.0]


def test_patience_ends(drive: "Drive", account: Account) -> None:
    """The caller says how much there is; without any, the error comes at once."""
    line = drive(refusal("API_LIMIT_EXCEEDED", 429), refusal("API_LIMIT_EXCEEDED", 429))

    with pytest.raises(LimitExceeded):
        line.run(call(account, READ, waits=iter((1.0,))))

    assert line.script.pauses == [61.0]


def test_a_login_that_needs_patience_has_its_own(drive: "Drive", account: Account) -> None:
    """Waiting for a token is not waiting for this call."""
    line = drive(NotSent("no connection"), signed_in=False)

    with pytest.raises(NotSent, match="no login"):
        line.run(call(account, READ, waits=(1.0, 1.0)))

    assert line.script.pauses == []


@pytest.mark.parametrize("answer", [NoAnswer("read timed out"), Response(503, b"<html>")])
def test_a_lost_answer_is_never_retried(drive: "Drive", account: Account, answer: Response | ResponsysError) -> None:
    """The push may have gone out: sending it again is not ours to decide."""
    line = drive(answer)
    push = Request("POST", "/rest/haAsyncApi/v1.3/campaigns/c/push", body=b"{}")

    with pytest.raises(InDoubt):
        line.run(call(account, push, waits=(1.0, 1.0), read=partial(submission_error)))

    assert len(line.script.asked) == 1
    assert line.script.pauses == []


@pytest.mark.parametrize("status", [200, 202, 404, 500])
def test_an_error_may_be_an_answer(drive: "Drive", account: Account, status: int) -> None:
    """Whoever asks says which codes answer; the status is not asked."""
    line = drive(refusal("RESPONSE_PURGED", status))

    response = line.run(call(account, READ, answers={"RESPONSE_PURGED"}))

    assert response.status == status


def test_an_error_with_http_200_is_an_error(drive: "Drive", account: Account) -> None:
    """AFTM polling errors page: it comes like that."""
    line = drive(refusal("ASYNC_API_DISABLED_FOR_USER", 200))

    with pytest.raises(Refused, match="ASYNC_API_DISABLED_FOR_USER"):
        line.run(call(account, READ))


@pytest.mark.parametrize("status", [199, 301, 307, 400, 404])
def test_another_status_without_a_word_is_no_answer(drive: "Drive", account: Account, status: int) -> None:
    """Whoever sent it, it was not Responsys."""
    line = drive(Response(status, b"[]"))

    with pytest.raises(InvalidAnswer):
        line.run(call(account, READ))


def test_a_token_for_elsewhere_is_not_used() -> None:
    """Should one ever come by, nothing is sent."""
    account = Account(host="https://login5.responsys.net", login="u", password="p", follow_endpoint=True)
    conversation = call(account, READ)
    assert next(conversation) == Authorize(None)

    with pytest.raises(InvalidSettings):
        conversation.send(Token(value="E", endpoint="https://evil.example"))
