import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from urllib.parse import parse_qs

import pytest

from airflow_provider_responsys.errors import (
    FailedOver,
    InvalidAnswer,
    LoginFailed,
    NoAnswer,
    NotAccepted,
    NotSent,
    ResponsysError,
    TryLater,
)
from airflow_provider_responsys.protocol.account import LOGIN_PATH, Account
from airflow_provider_responsys.protocol.auth import (
    LIFETIME,
    REFRESH_AFTER,
    Keyring,
    authorize,
    is_refusal,
    login_request,
    read_token,
    refresh_request,
    renewed,
)
from airflow_provider_responsys.protocol.call import authorized
from airflow_provider_responsys.protocol.wire import FORM, LogIn, Response, Token
from tests.support.scripted import Drive


def login(value: str = "E1", **members: Any) -> Response:
    """Return the answer to a login."""
    answer = {"authToken": value, "issuedAt": 1545918187627, "endPoint": "https://api5-009.responsys.net"} | members
    return Response(200, json.dumps(answer).encode())


def refusal(code: str, status: int = 400) -> Response:
    """Return an error as Responsys words it."""
    return Response(status, json.dumps({"errorCode": code, "detail": "", "errorDetails": []}).encode())


WRONG_PASSWORD = refusal("INVALID_USER_NAME_PASSWORD")
TOO_MANY = refusal("API_LIMIT_EXCEEDED", 401)


def test_a_login_is_a_form_on_the_accounts_own_host(account: Account) -> None:
    """AFTM: the account's host, the path api; the password in the body and nowhere else."""
    request = login_request(account)

    assert (request.method, request.url) == ("POST", f"{account.host}/rest/api/v1.3/auth/token")
    assert request.headers == (("Content-Type", FORM),)
    assert parse_qs(request.body.decode("ascii")) == {
        "user_name": ["api_user"],
        "password": ["p&ss wörd"],
        "auth_type": ["password"],
    }
    assert request.authorization == ""
    assert request.fresh
    assert "wörd" not in repr(request)


def test_a_refresh_hands_in_the_token_where_it_came_from(account: Account) -> None:
    """Authentication overview: auth_type=token, the token as the header."""
    request = refresh_request(account, Token(value="E1", endpoint="https://api5-009.responsys.net"))

    assert request.url == f"{account.host}{LOGIN_PATH}"
    assert (request.body, request.authorization) == (b"auth_type=token", "E1")


def test_recorded_logins_are_read(recorded: list[dict[str, Any]]) -> None:
    """Real answers, to a password and to a token, as they came."""
    answers = [sample for sample in recorded if sample["path"] == LOGIN_PATH and sample["status"] == 200]

    tokens = [read_token(Response(200, json.dumps(answer["response"]).encode()), 7.0) for answer in answers]

    assert len(tokens) == 2
    assert {(len(token.value), token.endpoint, token.obtained) for token in tokens} == {
        (54, "https://api5-009.responsys.net", 7.0)
    }
    assert tokens[0].value not in repr(tokens)


@pytest.mark.parametrize(
    "body",
    [
        b"<html>",
        b"[]",
        b"{}",
        b'{"authToken": ""}',
        b'{"authToken": 1}',
        b'{"authToken": "E1\\r\\nX-Evil: 1"}',
        b'{"authToken": "E\\u00e9"}',
    ],
)
def test_what_can_be_no_token_is_none(body: bytes) -> None:
    """A token becomes a header."""
    with pytest.raises(InvalidAnswer):
        read_token(Response(200, body), 0.0)


def test_a_login_need_not_name_an_endpoint() -> None:
    """It is asked for only where it is followed."""
    assert read_token(login(endPoint=None), 0.0).endpoint == ""


def test_a_login_lasts(drive: "Drive") -> None:
    """One login, then the token, until it is an hour old."""
    line = drive(login("E1"), signed_in=False)

    tokens = [line.run(authorized(None))]
    line.script.now += REFRESH_AFTER - 1
    tokens.append(line.run(authorized(None)))

    assert [token.value for token in tokens] == ["E1", "E1"]
    assert len(line.script.asked) == 1
    assert tokens[0].obtained == 1000.0


def test_a_token_is_refreshed_at_half_its_life(drive: "Drive") -> None:
    """Before two hours are over a token can be exchanged for a new one."""
    line = drive(login("E1"))
    line.script.now += REFRESH_AFTER

    token = line.run(authorized(None))

    assert (token.value, token.obtained) == ("E1", 1000.0 + REFRESH_AFTER)
    assert line.script.asked[0].body == b"auth_type=token"
    assert line.script.asked[0].authorization == "E0"


@pytest.mark.parametrize(
    "answer",
    [
        refusal("INVALID_TOKEN", 401),
        refusal("API_LIMIT_EXCEEDED", 401),
        Response(503),
        Response(200),
        NotSent("no"),
        NoAnswer("no"),
    ],
)
def test_a_refresh_that_fails_becomes_a_login(drive: "Drive", answer: Response | ResponsysError) -> None:
    """A full login says what is wrong, if anything is."""
    line = drive(answer, login("E1"))
    line.script.now += REFRESH_AFTER

    token = line.run(authorized(None))

    assert token.value == "E1"
    assert [b"password=" in request.body for request in line.script.asked] == [False, True]


def test_an_old_token_is_not_refreshed(drive: "Drive") -> None:
    """Refreshing works only before the two hours are over."""
    line = drive(login("E1"))
    line.script.now += LIFETIME

    line.run(authorized(None))

    assert [b"password=" in request.body for request in line.script.asked] == [True]


def test_a_refused_token_is_replaced_by_a_login(drive: "Drive") -> None:
    """It can't be refreshed either."""
    line = drive(login("E1"))

    token = line.run(authorized(Token(value="E0")))

    assert token.value == "E1"
    assert b"password=" in line.script.asked[0].body


def test_a_token_that_another_got_in_the_meantime_is_taken(drive: "Drive") -> None:
    """Many threads see the same token refused; one login serves them all."""
    line = drive()

    token = line.run(authorized(Token(value="an earlier one")))

    assert token.value == "E0"
    assert line.script.asked == []


@pytest.mark.parametrize("code", ["INVALID_USER_NAME_PASSWORD", "PASSWORD_LOCKOUT", "INSUFFICIENT_ACCESS", "ODD_CODE"])
def test_a_failed_login_is_not_tried_again(drive: "Drive", code: str) -> None:
    """Five wrong passwords lock the account for everybody who uses it."""
    line = drive(refusal(code), signed_in=False, login_waits=(1.0, 1.0))

    for _ in range(3):
        with pytest.raises(LoginFailed, match=code):
            line.run(authorized(None))

    assert len(line.script.asked) == 1
    assert line.script.pauses == []


def test_a_failed_login_says_where_and_hides_the_password(drive: "Drive", account: Account) -> None:
    """People read it in a log."""
    line = drive(WRONG_PASSWORD, signed_in=False)

    with pytest.raises(LoginFailed) as caught:
        line.run(authorized(None))

    assert str(caught.value).startswith(f"{account.host}: the login was answered with INVALID_USER_NAME_PASSWORD")
    assert account.password not in str(caught.value)
    assert (caught.value.code, caught.value.status) == ("INVALID_USER_NAME_PASSWORD", 400)


def test_a_failover_at_login_is_no_failed_login(drive: "Drive") -> None:
    """The user is right; the account is on its secondary, and will come back."""
    line = drive(refusal("API_NOT_ALLOWED_IN_SECONDARY", 401), login("E1"), signed_in=False, login_waits=(1.0,))

    with pytest.raises(FailedOver):
        line.run(authorized(None))
    token = line.run(authorized(None))

    assert token.value == "E1"
    assert line.script.pauses == []


def test_the_login_limit_is_waited_out(drive: "Drive") -> None:
    """Ten logins a minute: whoever is refused waits the minute and something at random."""
    line = drive(TOO_MANY, TOO_MANY, TOO_MANY, TOO_MANY, TOO_MANY, login("E1"), signed_in=False, login_waits=range(9))

    token = line.run(authorized(None))

    assert token.value == "E1"
    assert line.script.pauses == [60.0, 61.0, 62.0, 63.0, 64.0]


def test_a_bare_429_is_the_login_limit(drive: "Drive") -> None:
    """A gateway's: it is waited out like the limit of the account, and as often."""
    bare = Response(429, b"<html>")
    line = drive(bare, bare, bare, bare, bare, login("E1"), signed_in=False, login_waits=range(9))

    assert line.run(authorized(None)).value == "E1"
    assert line.script.pauses == [60.0, 61.0, 62.0, 63.0, 64.0]


def test_a_wrong_password_after_the_limit_is_final(drive: "Drive") -> None:
    """However often the limit refused before: a wrong password is told once, and never again."""
    line = drive(TOO_MANY, TOO_MANY, WRONG_PASSWORD, signed_in=False, login_waits=range(9))

    for _ in range(2):
        with pytest.raises(LoginFailed, match="INVALID_USER_NAME_PASSWORD"):
            line.run(authorized(None))

    assert len(line.script.asked) == 3


def test_the_login_limit_is_not_waited_out_for_ever(drive: "Drive", account: Account) -> None:
    """What is left may pass, and says how."""
    line = drive(TOO_MANY, TOO_MANY, signed_in=False, login_waits=(5.0,))

    with pytest.raises(TryLater, match=account.host) as caught:
        line.run(authorized(None))

    assert (caught.value.wait, caught.value.code, caught.value.status) == (60.0, "API_LIMIT_EXCEEDED", 401)


@pytest.mark.parametrize(
    ("answer", "pause"),
    [
        (NotSent("no such host"), 1.0),
        (NoAnswer("read timed out"), 121.0),
        (Response(503, b"<html>"), 121.0),
        (Response(200, b"<html>"), 121.0),
        (refusal("TOKEN_EXPIRED", 401), 121.0),
    ],
)
def test_a_login_without_an_answer_is_tried_three_times_more(
    drive: "Drive", account: Account, answer: Response | ResponsysError, pause: float
) -> None:
    """AFTM error page: at most three retries, two minutes apart; faster, and the login may be disabled."""
    line = drive(answer, answer, answer, answer, signed_in=False, login_waits=[1.0] * 9)

    with pytest.raises(NotAccepted) as caught:
        line.run(authorized(None))

    assert isinstance(caught.value, NotSent | TryLater)
    assert account.host in str(caught.value)
    assert line.script.pauses == [pause] * 3
    assert len(line.script.asked) == 4


def test_an_outage_ends(drive: "Drive") -> None:
    """A login is harmless, so it is tried again."""
    line = drive(NoAnswer("reset"), login("E1"), signed_in=False, login_waits=(3.0,))

    assert line.run(authorized(None)).value == "E1"
    assert line.script.pauses == [123.0]


@pytest.mark.parametrize("follow", [True, False])
def test_an_endpoint_elsewhere_fails_the_login(drive: "Drive", follow: bool) -> None:
    """No token goes where the connection does not lead; where nobody follows, nobody minds."""
    account = Account(host="https://login5.responsys.net", login="u", password="p", follow_endpoint=follow)
    line = drive(login("E1", endPoint="https://evil.example"), signed_in=False, at=account)

    if follow:
        with pytest.raises(LoginFailed, match=r"evil\.example"):
            line.run(authorized(None))
    else:
        assert line.run(authorized(None)).value == "E1"


def wait_for_turn(keyring: Keyring, since: float, now: float = 10.0) -> Iterator[Any]:
    """Return the login of somebody who has waited for a turn since then."""
    return authorize(keyring, None, now=lambda: now, waits=iter(()), since=since)


def test_who_waited_for_a_login_that_failed_shares_its_failure(account: Account) -> None:
    """Sixty threads behind one outage must not knock sixty times."""
    keyring = Keyring(account)
    first = wait_for_turn(keyring, since=9.0)
    next(first)
    with pytest.raises(NotSent, match="refused"):
        first.throw(NotSent("refused"))  # type: ignore[attr-defined]  # a conversation is a generator

    with pytest.raises(NotSent, match="refused"):
        next(wait_for_turn(keyring, since=9.5))

    assert isinstance(next(wait_for_turn(keyring, since=10.5, now=11.0)), LogIn)


@pytest.mark.parametrize(
    ("response", "said"),
    [
        (WRONG_PASSWORD, True),
        (login(), False),
        (refusal("PASSWORD_LOCKOUT", 401), None),
        (refusal("ODD_CODE"), None),
        (TOO_MANY, None),
        (Response(200, b"<html>"), None),
        (Response(503), None),
    ],
)
def test_only_a_wrong_password_is_a_refusal(response: Response, said: bool | None) -> None:
    """And only a token says that it is right; anything else may pass."""
    assert is_refusal(response) is said


def test_a_login_is_a_step_of_its_own(account: Account) -> None:
    """The driver reads the password again and knows what was refused: the conversation only says as whom."""
    step = next(authorize(Keyring(account), None, now=lambda: 0.0, waits=iter(())))

    assert step == LogIn(account)
    assert account.password not in repr(step)


def test_a_known_refusal_fails_the_login(account: Account) -> None:
    """As if it had been answered so: it is final, and says where."""
    keyring = Keyring(account)
    asked = authorize(keyring, None, now=lambda: 0.0, waits=iter((1.0,)))
    next(asked)

    with pytest.raises(LoginFailed, match=f"^{account.host}: refused at 14:03"):
        asked.throw(LoginFailed("refused at 14:03", code="INVALID_USER_NAME_PASSWORD"))

    assert keyring.failure is not None
    assert keyring.failure.code == "INVALID_USER_NAME_PASSWORD"


def test_a_connection_gives_its_password_only(account: Account) -> None:
    """Whatever else has changed in it is for another task; one that leads to another account is not followed."""
    changed = replace(account, password="new", timeout=1.0)

    assert renewed(account, changed) == replace(account, password="new")
    for other in (replace(changed, login="another"), replace(changed, host="https://another")):
        with pytest.raises(LoginFailed, match="another"):
            renewed(account, other)
