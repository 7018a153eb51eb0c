from typing import Any

import pytest

from airflow_provider_responsys.errors import InvalidSettings
from airflow_provider_responsys.protocol.account import (
    ASYNC,
    HA_ASYNC,
    Account,
    account_from,
    base_url,
    poll_path,
    polls_path,
    push_path,
)
from airflow_provider_responsys.protocol.wire import Token


def fields(**changes: Any) -> dict[str, Any]:
    """Return the fields of a connection that is right."""
    right: dict[str, Any] = {
        "host": "ws1-company.responsys.net",
        "port": None,
        "schema": None,
        "login": "api_user",
        "password": "hunter2",
        "extra": {},
    }
    return right | changes


def test_a_connection_needs_only_host_login_and_password() -> None:
    """Everything else has a default: AFTM, its own host, a minute's timeout."""
    account = account_from(**fields())

    assert account == Account(host="https://ws1-company.responsys.net", login="api_user", password="hunter2")
    assert account.family is HA_ASYNC
    assert not account.follow_endpoint
    assert account.timeout == 60.0


@pytest.mark.parametrize(
    ("host", "port", "schema", "expected"),
    [
        ("login5.responsys.net", None, None, "https://login5.responsys.net"),
        (" https://Login5.Responsys.net/ ", None, None, "https://login5.responsys.net"),
        ("login5.responsys.net", 8443, "https", "https://login5.responsys.net:8443"),
        ("https://login5.responsys.net:8443", 8443, None, "https://login5.responsys.net:8443"),
        ("https://login5.responsys.net:", 8443, None, "https://login5.responsys.net:8443"),
        ("localhost", 8080, None, "http://localhost:8080"),
        ("127.0.0.1:8080", None, None, "http://127.0.0.1:8080"),
        ("https://127.1.2.3", None, "http", "https://127.1.2.3"),
        ("[::1]:8080", None, None, "http://[::1]:8080"),
        ("localhost", None, "https", "https://localhost"),
        ("10.0.0.1", None, None, "https://10.0.0.1"),
    ],
)
def test_a_host_becomes_a_base_address(host: str, port: int | None, schema: str | None, expected: str) -> None:
    """HTTPS, unless the host is this machine."""
    account = account_from(**fields(host=host, port=port, schema=schema))

    assert account.host == expected


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"host": None}, "host is missing"),
        ({"host": "  "}, "host is missing"),
        ({"host": "http://login5.responsys.net"}, "must be reached by https"),
        ({"schema": "http"}, "must be reached by https"),
        ({"host": "ftp://localhost"}, "must be reached by https"),
        ({"host": "login5.responsys.net/rest"}, "more than an address"),
        ({"host": "login5.responsys.net?x=1"}, "more than an address"),
        ({"host": "user:secret@login5.responsys.net"}, "user name"),
        ({"host": "login5 responsys"}, "no address"),
        ({"host": "login5.responsys.net:http"}, "no address"),
        ({"host": "[::1"}, "no address"),
        ({"host": "login5.responsys.net:1", "port": 2}, "give one of them"),
        ({"login": ""}, "login is missing"),
        ({"password": None}, "password is missing"),
        ({"extra": {"auth_type": "certificate"}}, "auth_type 'certificate' is not supported yet"),
        ({"extra": {"api": "haasyncapi"}}, "api is 'haasyncapi'"),
        ({"extra": {"timeout": "soon"}}, "timeout"),
        ({"extra": {"timeout": "0"}}, "timeout: it must be a number of seconds above 0"),
        ({"extra": {"timeout": "inf"}}, "timeout"),
        ({"extra": {"timeout": True}}, "timeout"),
        ({"extra": {"push_requests_per_minute": "0"}}, "push_requests_per_minute: it must be a whole number above 0"),
        ({"extra": {"poll_requests_per_minute": 1.5}}, "poll_requests_per_minute"),
        ({"extra": {"poll_requests_per_minute": False}}, "poll_requests_per_minute"),
        ({"extra": {"poll_requests_per_minute": "inf"}}, "poll_requests_per_minute"),
        ({"extra": {"dry_run": "maybe"}}, "dry_run: it must be true or false"),
        ({"extra": {"follow_endpoint": []}}, "follow_endpoint"),
    ],
)
def test_a_wrong_field_is_named(changes: dict[str, Any], words: str) -> None:
    """The message says which field, and never holds the password."""
    with pytest.raises(InvalidSettings, match=words) as caught:
        account_from(**fields(**changes))

    assert "hunter2" not in str(caught.value)
    assert "secret" not in str(caught.value)


def test_extras_come_as_the_form_leaves_them() -> None:
    """Texts, empty texts and None are what Airflow's form makes of numbers and boxes."""
    extra = {
        "api": " asyncApi ",
        "auth_type": "",
        "timeout": "90",
        "push_requests_per_minute": "200",
        "poll_requests_per_minute": 400.0,
        "dry_run": "True",
        "follow_endpoint": None,
        "something_else": object(),
    }

    account = account_from(**fields(extra=extra))

    assert account.family is ASYNC
    assert account.timeout == 90.0
    assert account.push_requests_per_minute == 200
    assert account.poll_requests_per_minute == 400
    assert account.dry_run
    assert account.follow_endpoint


@pytest.mark.parametrize(("value", "expected"), [(True, True), ("no", False), (0, False), (1, True)])
def test_follow_endpoint_may_be_said(value: object, expected: bool) -> None:
    """What is said wins over the family's default."""
    account = account_from(**fields(extra={"follow_endpoint": value}))

    assert account.follow_endpoint is expected


def following(host: str = "https://login5.responsys.net", *, follow: bool = True) -> Account:
    """Return an account that follows its endpoint."""
    return Account(host=host, login="u", password="p", family=ASYNC, follow_endpoint=follow)


@pytest.mark.parametrize(
    ("endpoint", "expected"),
    [
        ("https://api5-009.responsys.net", "https://api5-009.responsys.net"),
        ("api5-009.responsys.net/", "https://api5-009.responsys.net"),
        ("https://x.rsys8.net", "https://x.rsys8.net"),
        ("https://x.rsys9.net", "https://x.rsys9.net"),
        ("https://x-api.responsys.ocs.oraclecloud.com", "https://x-api.responsys.ocs.oraclecloud.com"),
        ("https://login5.responsys.net:8443", "https://login5.responsys.net:8443"),
        ("", "https://login5.responsys.net"),
    ],
)
def test_an_endpoint_of_responsys_is_followed(endpoint: str, expected: str) -> None:
    """Login endpoints page: use what the login names; it may come without a scheme."""
    assert base_url(following(), Token(value="E", endpoint=endpoint)) == expected


@pytest.mark.parametrize(
    "endpoint",
    [
        "https://evil.example",
        "https://evilresponsys.net",
        "http://api5-009.responsys.net",
        "https://api5-009.responsys.net@evil.example",
        "https://127.0.0.1",
        "https://responsys.net.evil.example",
    ],
)
def test_an_endpoint_elsewhere_is_not_followed(endpoint: str) -> None:
    """A token goes to Responsys, or nowhere."""
    with pytest.raises(InvalidSettings, match="the login"):
        base_url(following(), Token(value="E", endpoint=endpoint))


def test_an_endpoint_on_this_machine_is_followed_from_this_machine() -> None:
    """A sandbox may name itself in another way than the connection does."""
    assert base_url(following("http://localhost:1"), Token(value="E", endpoint="127.0.0.1:1")) == "http://127.0.0.1:1"


def test_without_follow_endpoint_the_account_stays_on_its_host() -> None:
    """AFTM: calls go to the account's own host, whatever the login names."""
    account = following(follow=False)

    assert base_url(account, Token(value="E", endpoint="https://evil.example")) == "https://login5.responsys.net"


def test_names_are_encoded_in_paths() -> None:
    """Campaign names hold spaces and brackets, ids what base64 holds."""
    assert push_path(HA_ASYNC, "[TEST] a=b@c!{d}") == (
        "/rest/haAsyncApi/v1.3/campaigns/%5BTEST%5D%20a%3Db%40c%21%7Bd%7D/push"
    )
    assert poll_path(HA_ASYNC, "a/b+c==") == "/rest/haAsyncApi/v1.3/requests/a%2Fb%2Bc%3D%3D"
    assert polls_path(ASYNC) == "/rest/asyncApi/v1.3/requests"


def test_an_account_hides_its_password() -> None:
    """An account may be logged."""
    assert "hunter2" not in repr(account_from(**fields()))


def test_an_account_is_a_user_at_a_host() -> None:
    """What tells it from others, and no secret."""
    assert (
        Account(host="https://login5.responsys.net", login="u", password="p").name
        == "u at https://login5.responsys.net"
    )
