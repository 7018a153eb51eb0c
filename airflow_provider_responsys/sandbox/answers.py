"""What the sandbox answers: the error envelope, the frames of the poll, and Responsys' error codes."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, timezone
from http import HTTPStatus
from typing import NamedTuple

JSON_TYPE = "application/json;charset=UTF-8"  # recorded
HTML_TYPE = "text/html"
TEXT_TYPE = "text/plain"

# The account's time zone, as in Oracle's samples: a display name, not an IANA one.
TIME_ZONE = "India Standard Time"
ACCOUNT_ZONE = timezone(timedelta(hours=5, minutes=30))


class Code(NamedTuple):
    """One error code: the HTTP *status* it comes with, its words, and whether it says that nothing was queued."""

    status: int
    title: str
    detail: str
    nothing_queued: bool = True


# docs/responsys-api.md, Errors. Titles and details that no source has are guessed.
CODES: Mapping[str, Code] = {
    "INVALID_USER_NAME_PASSWORD": Code(400, "Invalid username or password", ""),
    "INVALID_TOKEN": Code(401, "Not a valid token", "Not a valid authentication token"),
    "TOKEN_EXPIRED": Code(401, "Authentication token expired", "Token expired"),
    "PASSWORD_LOCKOUT": Code(401, "Password locked out", "The user is locked out"),
    "PASSWORD_EXPIRED": Code(401, "Password expired", "The password has expired"),
    "API_DISABLED_FOR_USER": Code(401, "API disabled for user", "API disabled for user"),
    "ASYNC_API_DISABLED_FOR_USER": Code(401, "ASYNC API disabled for user", "ASYNC API disabled for user"),
    "INSUFFICIENT_ACCESS": Code(401, "Insufficient access", "The user has no access to this function"),
    "LOGIN_BLOCKED_TEMPORARILY": Code(401, "Login blocked temporarily", "Login blocked temporarily"),
    "LOGIN_BLOCKED_INVALID_IPRANGE": Code(401, "Login blocked", "Login blocked: address not allowed"),
    "ACCOUNT_SUSPENDED": Code(401, "Account suspended", "Account suspended"),
    "CLIENT_CERTIFICATE_NOT_FOUND": Code(401, "Client certificate not found", "Client certificate not found"),
    "API_NOT_ALLOWED_IN_SECONDARY": Code(
        401, "API not allowed in secondary", "The account is failed over: this API is not allowed"
    ),
    "API_LIMIT_EXCEEDED": Code(401, "API limit exceeded", "The limit of this API is exceeded. Try again in a minute"),
    "INTERNAL_CAPACITY_LIMIT_EXCEEDED": Code(
        400, "Internal capacity limit exceeded", "The internal capacity of the account is used up"
    ),
    "API_BLOCKED": Code(400, "API blocked", "This API is not available to the user"),
    "INVALID_REQUEST_CONTENT": Code(400, "Invalid request content", "Request body is empty or invalid"),
    "INVALID_PARAMETER": Code(400, "Invalid request parameters", "Invalid parameter 'recipientData'"),
    "RECIPIENT_LIMIT_EXCEEDED": Code(400, "Recipient limit exceeded", "More than 200 recipients in one request"),
    "NO_RECIPIENT_FOUND": Code(404, "Recipient not found", "Recipient Not Found"),
    "MULTIPLE_RECIPIENTS_FOUND": Code(400, "Multiple recipients found", "Multiple recipients found"),
    "PROFILE_LIST_NOT_FOUND": Code(404, "Profile list not found", "Profile list not found"),
    "PROFILE_LIST_NOT_FOUND_IN_FOLDER": Code(404, "Profile list not found", "Profile list not found in folder"),
    "RECIPIENT_STATUS_UNDELIVERABLE": Code(
        200, "Recipient undeliverable", "Recipient deliverability status is undeliverable"
    ),
    "CAMPAIGN_NOT_FOUND": Code(404, "Campaign not found", "The campaign does not exist"),
    "CAMPAIGN_IS_INVALID": Code(400, "Campaign is invalid", "Campaign name is invalid"),
    "CAMPAIGN_NAME_NOT_VALID": Code(400, "Campaign name not valid", "Campaign name is not valid"),
    "DUPLICATE_API_REQUEST": Code(400, "Duplicate API request", "Duplicate API request"),
    "RESOURCE_NOT_FOUND": Code(404, "Resource not found", "Resource not found"),
    "METHOD_NOT_SUPPORTED": Code(405, "Method not supported", "Request method not supported"),
    "UNABLE_TO_SUBMIT_ASYNC_REQUEST": Code(500, "Unable to submit Async request", "Error in submitting async request"),
    "SERVICE_UNAVAILABLE": Code(503, "Service unavailable", "Service unavailable"),
    "UNRECOVERABLE_EXCEPTION": Code(500, "Unrecoverable exception", "An error occurred", nothing_queued=False),
    "UNEXPECTED_EXCEPTION": Code(500, "Unexpected exception", "An unexpected error occurred", nothing_queued=False),
}


@dataclass(frozen=True, slots=True)
class Answer:
    """One HTTP answer. *code* is the ``errorCode`` it carries, for the counts.

    Without *length* it ends where the connection closes.
    """

    status: int
    body: bytes
    content_type: str = JSON_TYPE
    headers: tuple[tuple[str, str], ...] = ()
    code: str = ""
    length: bool = True


class Refusal(Exception):
    """The request is answered with *code* and has no effect."""

    def __init__(self, code: str, detail: str | None = None, *, status: int | None = None) -> None:
        super().__init__(code)
        self.answer = error(code, detail, status=status)


def of(value: object, status: int = 200) -> Answer:
    """Return *value* as a JSON answer."""
    return Answer(status, json.dumps(value, separators=(",", ":")).encode("ascii"))


def page(status: int, text: str) -> Answer:
    """Return the HTML page of a gateway."""
    return Answer(status, f"<html><body><h1>{text}</h1></body></html>".encode("ascii"), HTML_TYPE)


def bare(status: int) -> Answer:
    """Return a gateway's answer in plain text."""
    return Answer(status, HTTPStatus(status).phrase.encode("ascii"), TEXT_TYPE)


def envelope(code: str, detail: str | None = None) -> dict[str, object]:
    """Return the bare error envelope of *code*."""
    words = CODES[code]
    return {
        "type": "",
        "title": words.title,
        "errorCode": code,
        "detail": words.detail if detail is None else detail,
        "errorDetails": [],
    }


def error(code: str, detail: str | None = None, *, status: int | None = None) -> Answer:
    """Return the answer that refuses with *code*."""
    body = json.dumps(envelope(code, detail)).encode("ascii")
    return Answer(status or CODES[code].status, body, code=code)


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """What every answer to a poll says about its request."""

    request_id: str
    api_name: str = ""
    submitted: float = 0.0
    processed: float = 0.0
    reference_data: object = field(default=None, repr=False)

    def finished(self, rows: list[dict[str, object]], status: str = "SUCCESS") -> dict[str, object]:
        """Return the frame of a finished request; *status* is another one only by a fault."""
        frame: dict[str, object] = {
            "response": rows,
            "requestId": self.request_id,
            "apiName": self.api_name,
            "timeZone": TIME_ZONE,
            # The sample has the one in the account's time and the other in UTC: nobody may subtract them.
            "requestTime": _time(self.submitted, ACCOUNT_ZONE),
            "requestProcessedTime": _time(self.processed, UTC),
            "status": status,
        }
        return frame if self.reference_data is None else frame | {"referenceData": self.reference_data}

    def unfinished(self, code: str, title: str, detail: str, status: str) -> dict[str, object]:
        """Return the frame of a request without results."""
        return {
            "response": _inner(code, title, detail),
            "requestId": self.request_id,
            "apiName": self.api_name,
            "timeZone": None,
            "requestTime": _spaced(self.submitted),
            "requestProcessedTime": "",
            "status": status,
        }

    def processing(self) -> dict[str, object]:
        """Return the frame of a request that is still being worked on."""
        return self.unfinished("PROCESSING_REQUEST", "Still processing request", "Processing Request", "IN_PROGRESS")

    def purged(self) -> dict[str, object]:
        """Return the frame of a request whose results are gone."""
        return self.unfinished("RESPONSE_PURGED", "Response purged", "Response Message Purged", "UNKNOWN")

    def invalid_campaign(self) -> dict[str, object]:
        """Return the frame of a request for a campaign that turned out not to exist."""
        detail = (
            "An error has occurred and the system is unable to process your request at this time. "
            "Please contact Responsys Support"
        )
        return self.unfinished("CAMPAIGN_IS_INVALID", "Campaign is invalid", detail, "ERROR")

    def invalid_id(self) -> dict[str, object]:
        """Return the frame for an id that was never given out."""
        return self.unfinished("INVALID_REQUEST_ID", "Invalid Request Id", "Request Id is not valid ", "UNKNOWN")

    def parked(self) -> dict[str, object]:
        """Return a frame with a status that no page lists."""
        return self.processing() | {"response": None, "status": "PARKED"}

    def expired(self) -> dict[str, object]:
        """Return the frame of a request that waited longer than its Message-Expiration."""
        return {
            "responseMessage": _inner(
                "ASYNC_REQUEST_EXPIRED", "Async API request expired", "Async request expired while processing."
            ),
            "requestId": self.request_id,
            "apiName": self.api_name,
            "requestTime": _spaced(self.submitted),
            "requestProcessedTime": _spaced(self.processed),
            "status": "ERROR",
        }


def _inner(code: str, title: str, detail: str) -> dict[str, object]:
    # Inside a frame, errorDetails is the text "[]" (all samples).
    return {"type": "", "title": title, "errorCode": code, "detail": detail, "errorDetails": "[]"}


def _time(moment: float, zone: timezone) -> str:
    return datetime.fromtimestamp(moment, zone).replace(tzinfo=None).isoformat(timespec="milliseconds")


def _spaced(moment: float) -> str:
    return datetime.fromtimestamp(moment, ACCOUNT_ZONE).strftime("%Y-%m-%d %H:%M:%S.0") if moment else ""
