"""Submitting a push: what is sent, and how the acceptance is read."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from airflow_provider_responsys.errors import InDoubt, InvalidSettings
from airflow_provider_responsys.protocol.account import Account, Family, push_path
from airflow_provider_responsys.protocol.call import call
from airflow_provider_responsys.protocol.codes import correlation_of, decoded, envelope_of, ids_of, submission_error
from airflow_provider_responsys.protocol.wire import JSON, Conversation, Request, Response, tracked

MAX_RECIPIENTS = 200  # Push page, and Async guide, RECIPIENT_LIMIT_EXCEEDED
MAX_BODY = 10 * 1000 * 1000  # Error page: 10 MB, above which the connection is dropped; the smaller reading of MB
MAX_CAMPAIGN_NAME = 150  # Campaign wizard page

CAMPAIGN_NAME = re.compile(r"[A-Za-z0-9 !\-=@_\[\]{}]+")  # Campaign wizard page
REQUEST_ID = re.compile(r"[\x21-\x7e]{1,512}")
"""What can be asked for later. The samples are base64; nothing promises it."""

HEAD = '{"recipientData":['


@dataclass(frozen=True, slots=True)
class Push:
    """What all requests of a send share.

    *message_expiration* is how many seconds a push may wait in Responsys' queue.
    """

    campaign: str
    reference_data: str | Mapping[str, object] | None = field(default=None, repr=False)
    message_expiration: int | None = None


@dataclass(frozen=True, slots=True)
class Acceptance:
    """Responsys queued a request as *request_id*; *correlation_id* names the answer, for Oracle's support."""

    request_id: str
    correlation_id: str = ""


def check_campaign(name: str) -> None:
    """Raise `InvalidSettings` if no campaign can have this *name*."""
    if not name.strip():
        raise InvalidSettings("campaign_name is empty")
    if len(name) > MAX_CAMPAIGN_NAME:
        raise InvalidSettings(f"campaign_name has {len(name)} characters: Responsys allows {MAX_CAMPAIGN_NAME}")
    if not CAMPAIGN_NAME.fullmatch(name):
        raise InvalidSettings(
            f"campaign_name {name!r}: Responsys allows the letters A to Z, digits, spaces and ! - = @ _ [ ] {{ }}"
        )


def push_request(family: Family, push: Push, bodies: Sequence[str], tracking_id: str = "") -> Request:
    """Build the request that pushes to the recipients whose JSON objects are *bodies*."""
    check_campaign(push.campaign)
    if not 0 < len(bodies) <= MAX_RECIPIENTS:
        raise InvalidSettings(f"{len(bodies)} recipients in one request: Responsys takes 1 to {MAX_RECIPIENTS}")
    try:
        # Push page: characters beyond ASCII are escaped, or the request is refused.
        body = f"{HEAD}{','.join(bodies)}{_tail(push)}".encode("ascii")
    except UnicodeEncodeError:
        raise InvalidSettings("a recipient's data is not escaped as ASCII") from None
    if len(body) > MAX_BODY:
        raise InvalidSettings(f"a request of {len(body)} bytes: Responsys takes {MAX_BODY}")
    headers = (("Content-Type", JSON), *_expiration(family, push), *tracked(tracking_id))
    return Request("POST", push_path(family, push.campaign), body=body, headers=headers, fresh=True)


def overhead(push: Push) -> int:
    """Return the bytes that a request takes beside its recipients and the commas between them."""
    return len(HEAD) + len(_tail(push))


def submit(account: Account, push: Push, bodies: Sequence[str], *, tracking_id: str = "") -> Conversation[Acceptance]:
    """Push to the recipients of *bodies* and return the acceptance.

    *tracking_id* is sent as ``X-Request-Id``.

    Raises a `NotAccepted` where no recipient was pushed, an `InDoubt` where they may have been.
    """
    read = partial(
        submission_error, what=f"{account.host}: the push of campaign {push.campaign!r}", campaign=push.campaign
    )
    response = yield from call(account, push_request(account.family, push, bodies, tracking_id), read=read)
    return read_acceptance(response)


def read_acceptance(response: Response) -> Acceptance:
    """Return the acceptance in *response*; without a request id, raise what that means."""
    if envelope_of(response):
        raise submission_error(response, what="the push")
    answer = decoded(response)
    request_id = answer.get("requestId") if isinstance(answer, dict) else None
    if not isinstance(request_id, str) or not REQUEST_ID.fullmatch(request_id):
        raise InDoubt(
            f"the push was answered with HTTP {response.status} and no request id{ids_of(response)}",
            status=response.status,
            correlation_id=correlation_of(response),
        )
    return Acceptance(request_id, correlation_of(response))


def _tail(push: Push) -> str:
    if push.reference_data is None:
        return "]}"
    try:
        return f'],"referenceData":{json.dumps(push.reference_data, allow_nan=False, separators=(",", ":"))}}}'
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidSettings(f"reference_data can't be written as JSON: {type(error).__name__}") from None


def _expiration(family: Family, push: Push) -> tuple[tuple[str, str], ...]:
    if push.message_expiration is None:
        return ()
    if not family.message_expiration:
        raise InvalidSettings(
            f"message_expiration: Responsys knows no expiration for {family.name}; leave it out, or use asyncApi"
        )
    if push.message_expiration < 1:
        raise InvalidSettings(f"message_expiration is {push.message_expiration}: it must be a second or more")
    return (("Message-Expiration", str(push.message_expiration)),)
