"""What Responsys' error codes mean for the caller, as a table, and how to read an answer that holds one.

Only a parsed envelope with a listed code is certain, and a bare HTTP 429, which is
the limit; whatever else comes after a submission left is in doubt.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Self

from airflow_provider_responsys.errors import (
    FailedOver,
    InDoubt,
    InvalidAnswer,
    LimitExceeded,
    LoginExpired,
    LoginFailed,
    Refused,
    ResponsysError,
    SendRefused,
    TryLater,
)
from airflow_provider_responsys.protocol.naming import UNNAMED, named
from airflow_provider_responsys.protocol.wire import TRACKING, Response

OUTAGE_WAIT = 60.0  # Outage page: retry on a schedule. The number is ours.
QUEUE_WAIT = 30.0  # Async guide, UNABLE_TO_SUBMIT_ASYNC_REQUEST: try again later. The number is ours.
MINUTE = 60.0  # Throttling page: limits are per minute
CAPACITY_WINDOW = 600.0  # Internal capacity limits page: the budget is reset every ten minutes
UNRECOVERABLE_WAIT = 30.0  # AFTM error page, UNRECOVERABLE_EXCEPTION: wait about 30 seconds
UNRECOVERABLE_RETRIES = 1  # AFTM error page: resubmit once
NO_ANSWER_WAIT = 120.0  # AFTM error page: two minutes apart, or the login may be disabled
NO_ANSWER_RETRIES = 3  # AFTM error page: at most three; the first request is not one of them
NO_ANSWER_REPEATS = 2  # the same of a push, read as three in all: each may reach a person once more

TOKEN_NOT_VALID = "not a valid authentication token"  # noqa: S105 -- what Responsys says of one (Throttling page)
CAMPAIGN_NAME = "<campaign name>"  # AFTM error page: how a promotional campaign is refused during failover

WORD = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,79}")
"""What may stand where a code stands; whether it may be shown is another question."""

LIST = re.compile(rb"\s*\[")

TOO_MANY_REQUESTS = 429
"""Of a gateway's own, the limit as well: clients in production have taken it so, whatever its body."""

CORRELATION = re.compile(r"(?=.{1,80}$)[A-Za-z0-9._:-]+(?: [A-Za-z0-9._:-]+)*")
"""What may be shown as an answer's id. Every recorded one has a space in it: ``Id-ccd6245caf83d0861a5c8007 0``."""

TRACKING_ID = re.compile(r"[A-Za-z0-9._:-]{1,80}")

DENSE = 64 * 1024
DENSITY = 8
"""An answer of more than so many bytes has at most one JSON value in so many of them. A result has one in fifteen."""


class Verdict(StrEnum):
    """What a code says of the request that it answers."""

    LATER = "certainly not accepted; it may be sent again after a wait"
    LIMIT = "the same, and the caller goes too fast"
    LOGIN = "certainly not accepted; log in and send it again"
    BATCH = "certainly not accepted, and this request never will be"
    SEND = "certainly not accepted, and nothing for this campaign will be"
    LOGIN_FAILED = "Responsys does not let this user in"
    FAILED_OVER = "the account runs on its secondary server, which lacks this call"
    DOUBT = "it may have been accepted"


@dataclass(frozen=True, slots=True)
class Code:
    """One row of the table. *source* is the page of Oracle's that it stands on."""

    verdict: Verdict
    advice: str
    source: str
    wait: float = 0.0


@dataclass(frozen=True, slots=True)
class Envelope:
    """Responsys' error object. *detail* may repeat what was sent, so it is never shown."""

    code: str
    detail: str = field(default="", repr=False)

    @classmethod
    def of(cls, value: object) -> Self | None:
        """Return the envelope that the decoded JSON *value* is, or None."""
        if not isinstance(value, dict):
            return None
        code, detail = value.get("errorCode"), value.get("detail")
        if not isinstance(code, str) or not WORD.fullmatch(code.strip()):
            return None
        return cls(named(code.strip()), detail.strip() if isinstance(detail, str) else "")


_USER = "ask the account's administrator"
_CERTIFICATE = "the certificates of this API user do not fit: ask the account's administrator"

CODES: Mapping[str, Code] = MappingProxyType(
    {
        # Certainly not accepted, worth another try
        "API_LIMIT_EXCEEDED": Code(
            Verdict.LIMIT, "the account's limit of requests a minute is used up", "Throttling.html", MINUTE
        ),
        "INTERNAL_CAPACITY_LIMIT_EXCEEDED": Code(
            Verdict.LATER,
            "the account's share of Responsys' capacity is used up for ten minutes",
            "InternalCapacityLimits.html",
            CAPACITY_WINDOW,
        ),
        "UNABLE_TO_SUBMIT_ASYNC_REQUEST": Code(
            Verdict.LATER, "Responsys' queue is full", "REST/Async/errors-async.htm", QUEUE_WAIT
        ),
        "SERVICE_UNAVAILABLE": Code(
            Verdict.LATER, "Responsys is not available now", "handlingError4.html", OUTAGE_WAIT
        ),
        "WS_ARG_DISABLED": Code(
            Verdict.LATER, "if it lasts, open a service request with Oracle", "handlingError3.html", OUTAGE_WAIT
        ),
        "INVALID_TOKEN": Code(Verdict.LOGIN, "the token is not valid", "REST/AFTM/errors-aftm.htm"),
        "TOKEN_EXPIRED": Code(Verdict.LOGIN, "the token has expired", "handlingError4.html"),
        # Certainly not accepted, final for the request
        "INVALID_REQUEST_CONTENT": Code(
            Verdict.BATCH, "Responsys could not read the request", "REST/Async/errors-async.htm"
        ),
        "INVALID_PARAMETER": Code(
            Verdict.BATCH, "Responsys found a wrong value in the request", "REST/AFTM/errors-async.htm"
        ),
        "RECIPIENT_LIMIT_EXCEEDED": Code(
            Verdict.BATCH, "Responsys takes fewer recipients in one request", "REST/Async/errors-async.htm"
        ),
        "NO_RECIPIENT_FOUND": Code(
            Verdict.BATCH, "Responsys knows none of the request's recipients", "handlingError4.html"
        ),
        "MULTIPLE_RECIPIENTS_FOUND": Code(
            Verdict.BATCH, "an identifier in the request fits several recipients", "handlingError4.html"
        ),
        "PROFILE_LIST_NOT_FOUND": Code(Verdict.BATCH, "the profile list was not found", "handlingError4.html"),
        "PROFILE_LIST_NOT_FOUND_IN_FOLDER": Code(
            Verdict.BATCH, "the profile list was not found in its folder", "handlingError4.html"
        ),
        "RECIPIENT_STATUS_UNDELIVERABLE": Code(
            Verdict.BATCH, "the request's recipient is marked as undeliverable", "handlingError4.html"
        ),
        # Certainly not accepted, final for the send
        "CAMPAIGN_NOT_FOUND": Code(
            Verdict.SEND, "there is no such campaign: check its name and folder", "handlingError1.html"
        ),
        "CAMPAIGN_IS_INVALID": Code(
            Verdict.SEND,
            "the campaign can't be sent: check in Responsys that it is a push campaign",
            "errors-polling.htm",
        ),
        "CAMPAIGN_NAME_NOT_VALID": Code(Verdict.SEND, "the campaign's name is not valid", "handlingError3.html"),
        "RESOURCE_NOT_FOUND": Code(
            Verdict.SEND,
            "Responsys does not know this address: check the connection's host and api",
            "handlingError4.html",
        ),
        "METHOD_NOT_SUPPORTED": Code(
            Verdict.SEND, "the account does not offer this call: check the connection's api", "handlingError4.html"
        ),
        "API_DISABLED_FOR_USER": Code(
            Verdict.SEND, f"this user may not use the API: {_USER}", "faqs-https-status-codes.htm"
        ),
        "ASYNC_API_DISABLED_FOR_USER": Code(
            Verdict.SEND, f"this user may not use the asynchronous API: {_USER}", "REST/AFTM/errors-polling.htm"
        ),
        "INSUFFICIENT_ACCESS": Code(
            Verdict.SEND, f"this user lacks a role for this call: {_USER}", "faqs-https-status-codes.htm"
        ),
        "API_BLOCKED": Code(
            Verdict.SEND, "this call is blocked for the account: open a service request with Oracle", "Throttling.html"
        ),
        "API_NOT_ALLOWED_IN_SECONDARY": Code(
            Verdict.FAILED_OVER,
            "the account has failed over to its secondary server, which does not offer this call; wait for failback",
            "REST/AFTM/errors-aftm.htm",
        ),
        # No login is let in
        "INVALID_USER_NAME_PASSWORD": Code(
            Verdict.LOGIN_FAILED, "the connection's login or password is wrong", "handlingError1.html"
        ),
        "PASSWORD_LOCKOUT": Code(
            Verdict.LOGIN_FAILED, f"the user is locked after wrong passwords: {_USER}", "AccountlockoutTime.htm"
        ),
        "PASSWORD_EXPIRED": Code(
            Verdict.LOGIN_FAILED, "the password has expired: set a new one in Responsys", "handlingError1.html"
        ),
        "LOGIN_BLOCKED_TEMPORARILY": Code(Verdict.LOGIN_FAILED, f"logins are blocked: {_USER}", "handlingError3.html"),
        "LOGIN_BLOCKED_INVALID_IPRANGE": Code(
            Verdict.LOGIN_FAILED, f"logins from this network are not allowed: {_USER}", "handlingError3.html"
        ),
        "ACCOUNT_SUSPENDED": Code(Verdict.LOGIN_FAILED, f"the account is suspended: {_USER}", "handlingError3.html"),
        **{
            name: Code(Verdict.LOGIN_FAILED, _CERTIFICATE, "handlingError4.html")
            for name in (
                "CLIENT_CERTIFICATE_EXPIRED",
                "CLIENT_CERTIFICATE_NOT_YET_VALID",
                "CLIENT_CERTIFICATE_NOT_FOUND",
                "SERVER_CERTIFICATE_EXPIRED",
                "SERVER_CERTIFICATE_NOT_YET_VALID",
                "SERVER_CERTIFICATE_NOT_FOUND",
                "PRIVATE_KEY_NOT_FOUND",
            )
        },
        # It may have been accepted
        "UNRECOVERABLE_EXCEPTION": Code(
            Verdict.DOUBT, "something broke inside Responsys", "REST/AFTM/errors-aftm.htm", UNRECOVERABLE_WAIT
        ),
        "UNEXPECTED_EXCEPTION": Code(
            Verdict.DOUBT, "something broke inside Responsys", "Throttling.html", UNRECOVERABLE_WAIT
        ),
        # Nowhere explained: the request that this one repeats may be the accepted one.
        "DUPLICATE_API_REQUEST": Code(
            Verdict.DOUBT, "Responsys takes the request for a repeated one", "handlingError1.html", MINUTE
        ),
    }
)

MAY_PASS = {Verdict.LATER: TryLater, Verdict.LIMIT: LimitExceeded}
FINAL: Mapping[Verdict, type[ResponsysError]] = {
    Verdict.LOGIN: LoginExpired,
    Verdict.BATCH: Refused,
    Verdict.SEND: SendRefused,
    Verdict.LOGIN_FAILED: LoginFailed,
    Verdict.FAILED_OVER: FailedOver,
}


def submission_error(response: Response, *, what: str = "the submission", campaign: str = "") -> ResponsysError:
    """Return what *response*, which is no acceptance, says of the request that submitted *campaign*."""
    envelope = envelope_of(response)
    where, facts = _where(what, response, envelope), _facts(response, envelope)
    if _queued(response):
        return InDoubt(f"{where}, which does not say whether it was accepted", **facts)
    if limited := _bare_limit(envelope, where, facts):
        return limited
    if envelope is None or envelope.code not in CODES:
        return InDoubt(f"{where}, which does not say whether it was accepted", **facts)
    if envelope.code == "INVALID_PARAMETER" and _names_campaign(envelope.detail, campaign):
        return SendRefused(
            f"{where}: the campaign is refused; during a failover only transactional campaigns run", **facts
        )
    return _listed(envelope, where, facts) or InDoubt(
        f"{where}: {CODES[envelope.code].advice}, and the request may have been accepted", **facts
    )


def read_error(response: Response, *, what: str = "the read") -> ResponsysError:
    """Return what *response*, which is no answer, says of a harmless read."""
    return envelope_error(envelope_of(response), response, what=what)


def envelope_error(envelope: Envelope | None, response: Response, *, what: str) -> ResponsysError:
    """Return what *envelope*, found in *response*, says of a harmless read."""
    status = response.status
    where, facts = _where(what, response, envelope), _facts(response, envelope)
    row = CODES.get(envelope.code) if envelope else None
    if limited := _bare_limit(envelope, where, facts):
        return limited
    if envelope and row and (error := _listed(envelope, where, facts)):
        return error
    if status >= 500 or row:  # noqa: PLR2004 -- HTTP's own number: the server's fault
        advice = row.advice if row else "Responsys has trouble"
        return TryLater(f"{where}: {advice}", wait=row.wait if row else OUTAGE_WAIT, **facts)
    if envelope:
        return Refused(f"{where}, a code that is not known to us", **facts)
    if status // 100 == 3:  # noqa: PLR2004 -- HTTP's own number: a redirect
        return InvalidAnswer(f"{where}: redirects are never followed; check the connection's host", **facts)
    return InvalidAnswer(f"{where}, which is no answer of Responsys; check the connection's host", **facts)


def envelope_of(response: Response) -> Envelope | None:
    """Return the bare error envelope that *response* consists of, or None."""
    # A look is cheaper than reading thousands of results twice.
    if b'"errorCode"' not in response.body or LIST.match(response.body):
        return None
    return Envelope.of(decoded(response))


def itself(value: dict[str, Any]) -> dict[str, Any]:
    """Return *value*: a call of Python's own lets other threads take their turn while a large answer is read."""
    return value


def decoded(response: Response, kept: Callable[[dict[str, Any]], dict[str, Any]] = itself) -> Any:
    """Return the JSON value in *response*, or None where there is none; of each object in it what *kept* returns."""
    if _is_dense(response.body):
        return None
    try:
        return json.loads(response.body, object_hook=kept)
    except (ValueError, RecursionError):
        return None


def correlation_of(response: Response) -> str:
    """Return the id that Oracle's support knows *response* by, or nothing where it is none that may be shown."""
    return response.correlation_id if CORRELATION.fullmatch(response.correlation_id) else ""


def ids_of(response: Response) -> str:
    """Return by which ids Oracle's support finds *response*, to be put behind a sentence."""
    tracking_id = response.tracking_id if TRACKING_ID.fullmatch(response.tracking_id) else ""
    ids = {TRACKING: tracking_id, "correlation": correlation_of(response)}
    said = ", ".join(f"{name} {value}" for name, value in ids.items() if value)
    return f" [{said}]" if said else ""


def is_success(response: Response) -> bool:
    """Tell whether the HTTP status says that all is well."""
    return 200 <= response.status < 300  # noqa: PLR2004 -- HTTP's own numbers


def _is_dense(body: bytes) -> bool:
    """Return whether *body* would become far more objects than its length lets expect."""
    if len(body) <= DENSE:
        return False
    return sum(map(body.count, (b",", b"{", b"["))) * DENSITY > len(body)


def _queued(response: Response) -> bool:
    """Return whether *response* names a request of ours, whatever else it says."""
    value = decoded(response) if b'"requestId"' in response.body else None
    return isinstance(value, dict) and bool(value.get("requestId"))


def _bare_limit(envelope: Envelope | None, where: str, facts: Mapping[str, Any]) -> LimitExceeded | None:
    """Return what an HTTP 429 means that holds no code of Responsys."""
    if facts["status"] != TOO_MANY_REQUESTS or (envelope and envelope.code != UNNAMED):
        return None
    return LimitExceeded(f"{where}: too many requests a minute", wait=MINUTE, **facts)


def _listed(envelope: Envelope, where: str, facts: Mapping[str, Any]) -> ResponsysError | None:
    """Return the error that a listed *envelope* certainly means, or None if it is in doubt."""
    row = CODES[envelope.code]
    text = f"{where}: {row.advice}"
    if row.verdict in MAY_PASS:
        return MAY_PASS[row.verdict](text, wait=row.wait, **facts)
    if row.verdict in FINAL:
        return FINAL[row.verdict](text, **facts)
    # The same cause as INVALID_TOKEN, in other clothes (Throttling page).
    if facts["status"] == 500 and TOKEN_NOT_VALID in envelope.detail.lower():  # noqa: PLR2004 -- that very status
        return LoginExpired(f"{where}: the token is not valid", **facts)
    return None


def _names_campaign(detail: str, campaign: str) -> bool:
    return detail.lower().startswith(CAMPAIGN_NAME) or bool(campaign and detail.startswith(f"{campaign} "))


def _facts(response: Response, envelope: Envelope | None) -> dict[str, Any]:
    """Return what an error about *response* carries beside its text."""
    code = envelope.code if envelope else None
    return {"code": code, "status": response.status, "correlation_id": correlation_of(response)}


def _where(what: str, response: Response, envelope: Envelope | None) -> str:
    """Return who was answered what, for people; nothing of what was sent is in it, but our own id."""
    said = f"{envelope.code} (HTTP {response.status})" if envelope else f"HTTP {response.status}"
    return f"{what} was answered with {said}{ids_of(response)}"
