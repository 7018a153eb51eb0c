"""Logging in, staying logged in, and not locking the account while doing so."""

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, cast
from urllib.parse import urlencode

from airflow_provider_responsys.errors import (
    FailedOver,
    InvalidAnswer,
    InvalidSettings,
    LimitExceeded,
    LoginFailed,
    NoAnswer,
    NotAccepted,
    NotSent,
    Refused,
    ResponsysError,
    TryLater,
)
from airflow_provider_responsys.protocol.account import LOGIN_PATH, Account, base_url
from airflow_provider_responsys.protocol.call import sent
from airflow_provider_responsys.protocol.codes import (
    NO_ANSWER_RETRIES,
    NO_ANSWER_WAIT,
    decoded,
    envelope_of,
    is_success,
    read_error,
)
from airflow_provider_responsys.protocol.wire import FORM, Conversation, LogIn, Pause, Request, Response, Token

LIFETIME = 7200.0  # Authentication overview: two hours (another page says three)
REFRESH_AFTER = 3600.0
"""Refreshing works only before the token expires; half its life leaves room for waits."""

WRONG_PASSWORD = "INVALID_USER_NAME_PASSWORD"  # noqa: S105 -- recorded: what a wrong one is answered with

USABLE = re.compile(r"[\x21-\x7e]{1,4096}")
"""What can be sent as a header, and is no way to send a second one."""


@dataclass(slots=True)
class Keyring:
    """What is known of *account*'s login. One conversation at a time may change it."""

    account: Account
    token: Token | None = None
    failure: LoginFailed | None = None
    """Final: five wrong passwords lock the account (Account lock-out page)."""
    outage: tuple[float, NotAccepted] | None = field(default=None)
    """The last login that came to nothing, and when it was given up."""


def authorize(
    keyring: Keyring,
    refused: Token | None,
    *,
    now: Callable[[], float],
    waits: Iterator[float],
    since: float = math.inf,
) -> Conversation[Token]:
    """Return a token other than *refused*, and keep it in *keyring*.

    Raises only what says that nothing was sent: `LoginFailed`, `FailedOver`,
    `TryLater`, `NotSent`. A login that was given up after *since*, when this caller
    began to wait for its turn, is not tried again for it.
    """
    if keyring.failure:
        raise keyring.failure.with_traceback(None)
    token = keyring.token
    if token and (refused is None or token.value != refused.value):
        age = now() - token.obtained
        if age < REFRESH_AFTER:
            return token
        if age < LIFETIME and (refreshed := (yield from _refreshed(keyring, token, now))):
            keyring.token = refreshed
            return refreshed
    if keyring.outage and keyring.outage[0] > since:
        raise keyring.outage[1].with_traceback(None)
    try:
        keyring.token = yield from _logged_in(keyring, now, waits)
    except LoginFailed as error:
        keyring.failure = error
        raise
    except NotAccepted as error:
        keyring.outage = (now(), error)
        raise
    return keyring.token


def login_request(account: Account) -> Request:
    """Build the request that logs in; the password is in the body, never in the address."""
    form = urlencode({"user_name": account.login, "password": account.password, "auth_type": "password"})
    return _token_request(account, form)


def refresh_request(account: Account, token: Token) -> Request:
    """Build the request that exchanges *token* for a new one, on the host that issued it."""
    return _token_request(account, urlencode({"auth_type": "token"})).signed(token, account.host)


def read_token(response: Response, obtained: float) -> Token:
    """Return the token in *response* to a login that was asked for at *obtained*."""
    answer = decoded(response)
    if not is_success(response) or envelope_of(response):
        raise read_error(response, what="the login")
    value = answer.get("authToken") if isinstance(answer, dict) else None
    if not isinstance(value, str) or not USABLE.fullmatch(value):
        raise InvalidAnswer("the login was answered without a token", status=response.status)
    endpoint = answer.get("endPoint")
    return Token(value=value, endpoint=endpoint.strip() if isinstance(endpoint, str) else "", obtained=obtained)


def is_refusal(response: Response) -> bool | None:
    """Return whether *response* to a login says that the password is wrong, or right; None if it says neither."""
    if envelope := envelope_of(response):
        return True if envelope.code == WRONG_PASSWORD else None
    try:
        read_token(response, 0.0)
    except ResponsysError:
        return None
    return False


def renewed(account: Account, now: Account) -> Account:
    """Return *account* with the password that its connection has *now*; raise `LoginFailed` if it is of another."""
    if now.name != account.name:
        raise LoginFailed(
            f"the connection leads to {now.name} now, and this task began with {account.name}: clear the task "
            "if the other account is meant, or change the connection back"
        )
    return replace(account, password=now.password)


def _token_request(account: Account, form: str) -> Request:
    return Request(
        "POST",
        LOGIN_PATH,
        body=form.encode("ascii"),
        headers=(("Content-Type", FORM),),
        host=account.host,
        fresh=True,
    )


def _logged_in(keyring: Keyring, now: Callable[[], float], waits: Iterator[float]) -> Conversation[Token]:
    """Return the token of a full login; pause for each of *waits* while there is a point in it."""
    retries = NO_ANSWER_RETRIES
    while True:
        try:
            return (yield from _asked(keyring.account, _entered(keyring.account), now))
        except FailedOver:
            raise
        except Refused as error:
            raise LoginFailed(f"{keyring.account.host}: {error}", **_facts(error)) from error
        except (NotAccepted, NoAnswer, InvalidAnswer) as error:
            retries -= not _asks_for_patience(error)
            wait = next(waits, None) if retries >= 0 else None
            if wait is None:
                raise _nothing_sent(keyring.account, error) from error
            yield Pause(_least_wait(error) + wait, f"no login at {keyring.account.host} yet: {error}")


def _refreshed(keyring: Keyring, token: Token, now: Callable[[], float]) -> Conversation[Token | None]:
    """Return a new token for *token*, or None: a full login will say what is wrong."""
    try:
        return (yield from _asked(keyring.account, sent(refresh_request(keyring.account, token)), now))
    except ResponsysError:
        return None


def _entered(account: Account) -> Conversation[Response]:
    return cast("Response", (yield LogIn(account)))


def _asked(account: Account, answer: Conversation[Response], now: Callable[[], float]) -> Conversation[Token]:
    obtained = now()
    token = read_token((yield from answer), obtained)
    try:
        base_url(account, token)
    except InvalidSettings as error:
        raise LoginFailed(str(error)) from None
    return token


def _least_wait(error: ResponsysError) -> float:
    match error:
        case TryLater(wait=wait) if _asks_for_patience(error):
            return wait
        case NotSent():
            return 0.0
        case _:
            return NO_ANSWER_WAIT


def _asks_for_patience(error: ResponsysError) -> bool:
    """Return whether Responsys answered, and wants the login later: a limit, or a code that says so."""
    return isinstance(error, LimitExceeded) or (isinstance(error, TryLater) and error.code is not None)


def _facts(error: ResponsysError) -> dict[str, Any]:
    return {"code": error.code, "status": error.status, "correlation_id": error.correlation_id}


def _nothing_sent(account: Account, error: ResponsysError) -> NotAccepted:
    """Return *error*, of a login, as what it is to the request that waited for it."""
    if isinstance(error, TryLater):
        return TryLater(f"{account.host}: {error}", wait=error.wait, **_facts(error))
    return NotSent(f"no login at {account.host}: {error}", **_facts(error))
