import pytest

from airflow_provider_responsys.sandbox import Fault
from tests.support.client import FORM, NOON, PUSH, TOKEN, Start, recipient


def test_login_answers_as_recorded(start: Start) -> None:
    """The reply has the recorded members, type and token form, and nothing about expiry."""
    sandbox, client = start(log_in=False)

    reply = client.log_in()

    assert reply.status == 200
    assert reply.headers["Content-Type"] == "application/json;charset=UTF-8"
    assert reply.json == {"authToken": client.token, "issuedAt": int(NOON * 1000), "endPoint": sandbox.url}
    assert len(client.token) == 54
    assert client.token.startswith("E")
    assert reply.headers["X-CorrelationID"].startswith("Id-")


def test_end_point_may_be_set(start: Start) -> None:
    """An endPoint of one's choice tells clients that follow it from those that do not."""
    _, client = start(log_in=False, end_point="https://api5-009.responsys.net")

    assert client.log_in().json["endPoint"] == "https://api5-009.responsys.net"


def test_a_wrong_password_answers_as_recorded(start: Start) -> None:
    """HTTP 400, with the recorded envelope to the letter."""
    _, client = start(log_in=False)

    reply = client.log_in("wrong")

    assert reply.status == 400
    assert reply.json == {
        "type": "",
        "title": "Invalid username or password",
        "errorCode": "INVALID_USER_NAME_PASSWORD",
        "detail": "",
        "errorDetails": [],
    }


def test_an_unknown_user_is_refused(start: Start) -> None:
    """It is refused like a wrong password, and locks nobody out."""
    _, client = start(log_in=False)

    codes = [client.log_in(user_name="nobody").code for _ in range(6)]

    assert set(codes) == {"INVALID_USER_NAME_PASSWORD"}
    assert client.log_in().status == 200


def test_five_wrong_passwords_lock_out_for_an_hour(start: Start) -> None:
    """The right password does not help until the hour is over."""
    sandbox, client = start(log_in=False)

    for _ in range(5):
        assert client.log_in("wrong").code == "INVALID_USER_NAME_PASSWORD"

    assert (client.log_in().status, client.log_in().code) == (401, "PASSWORD_LOCKOUT")
    sandbox.clock.advance(3599)
    assert client.log_in().code == "PASSWORD_LOCKOUT"
    sandbox.clock.advance(1)
    assert client.log_in().status == 200
    assert sandbox.refusals == {"INVALID_USER_NAME_PASSWORD": 5, "PASSWORD_LOCKOUT": 3}


def test_a_right_password_ends_the_count_of_wrong_ones(start: Start) -> None:
    """Only wrong passwords in a row lock out."""
    _, client = start(log_in=False)

    for password in ("wrong",) * 4 + ("sandbox-password",) + ("wrong",) * 4:
        client.log_in(password)

    assert client.log_in().status == 200


def test_credentials_in_the_address_are_refused(start: Start) -> None:
    """Even if the body is right: an address ends up in logs."""
    sandbox, client = start(log_in=False)

    reply = client.ask("POST", f"{TOKEN}?user_name=api_user&password=sandbox-password&auth_type=password", "")

    assert (reply.status, reply.code) == (400, "INVALID_PARAMETER")
    assert "sandbox-password" not in str(sandbox.requests_seen)


@pytest.mark.parametrize(
    ("body", "content_type", "code"),
    [
        (
            "user_name=api_user&password=sandbox-password&auth_type=password",
            "application/json",
            "INVALID_REQUEST_CONTENT",
        ),
        ("user_name=api_user&password=sandbox-password", FORM, "INVALID_PARAMETER"),
        ("user_name=api_user&auth_type=password", FORM, "INVALID_PARAMETER"),
        ("user_name=a&user_name=b&password=c&auth_type=password", FORM, "INVALID_PARAMETER"),
        ("", FORM, "INVALID_PARAMETER"),
        ("password=\xff", FORM, "INVALID_REQUEST_CONTENT"),
        ("user_name=api_user&auth_type=server&client_challenge=eA==", FORM, "CLIENT_CERTIFICATE_NOT_FOUND"),
    ],
)
def test_other_logins_are_refused(start: Start, body: str, content_type: str, code: str) -> None:
    """The form is read strictly."""
    _, client = start(log_in=False)

    assert client.ask("POST", TOKEN, body.encode("latin-1"), Content_Type=content_type).code == code


def test_a_refresh_gives_a_new_token_and_leaves_the_old_one(start: Start) -> None:
    """Tokens are stateless: several workers may share a user."""
    sandbox, client = start()

    reply = client.refresh()

    assert reply.status == 200
    assert reply.json["authToken"] != client.token
    assert client.push(recipient()).status == 202
    assert (sandbox.counts["logins"], sandbox.counts["refreshes"]) == (1, 1)


@pytest.mark.parametrize("act", ["push", "refresh"])
def test_a_token_expires_after_two_hours(start: Start, act: str) -> None:
    """The two hours of the newer page, not the three of the older one."""
    sandbox, client = start()
    sandbox.clock.advance(7199)
    assert client.refresh().status == 200

    sandbox.clock.advance(1)
    reply = client.refresh() if act == "refresh" else client.push(recipient())

    assert (reply.status, reply.code) == (401, "TOKEN_EXPIRED")


def test_an_unknown_token_answers_as_recorded(start: Start) -> None:
    """HTTP 401, with the recorded words."""
    sandbox, client = start()
    sandbox.forget_tokens()

    reply = client.push(recipient())

    assert (reply.status, reply.code) == (401, "INVALID_TOKEN")
    assert reply.json["detail"] == "Not a valid authentication token"
    assert reply.json["title"] == "Not a valid token"


def test_a_bearer_prefix_is_no_token(start: Start) -> None:
    """The raw token is wanted."""
    _, client = start()

    assert client.push(recipient(), Authorization=f"Bearer {client.token}").code == "INVALID_TOKEN"


def test_a_bad_token_may_come_as_500(start: Start) -> None:
    """The other documented form of the same cause."""
    sandbox, client = start(bad_token_as_500=True)
    sandbox.expire_tokens()

    reply = client.push(recipient())

    assert (reply.status, reply.code) == (500, "UNEXPECTED_EXCEPTION")
    assert reply.json["detail"] == "Not a valid authentication token"


def test_logins_have_a_limit_a_minute(start: Start) -> None:
    """Refreshes count as logins."""
    sandbox, client = start(login_limit=2)
    assert client.refresh().status == 200

    reply = client.log_in()

    assert reply.code == "API_LIMIT_EXCEEDED"
    sandbox.clock.advance(60)
    assert client.log_in().status == 200


def test_a_login_and_a_refresh_are_two_endpoints_for_faults(start: Start) -> None:
    """A plan can spoil the one and leave the other."""
    _, client = start(faults=[Fault("refresh", "TOKEN_EXPIRED")])

    assert client.refresh().code == "TOKEN_EXPIRED"
    assert client.log_in().status == 200
    assert client.ask("GET", PUSH).status == 405
