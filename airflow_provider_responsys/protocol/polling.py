"""The outcomes of requests: the shapes of a poll's answer, and what they mean."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from types import MappingProxyType
from typing import Any

from airflow_provider_responsys.errors import InvalidAnswer
from airflow_provider_responsys.protocol.account import Account, poll_path, polls_path
from airflow_provider_responsys.protocol.call import call
from airflow_provider_responsys.protocol.codes import (
    CODES,
    Envelope,
    Verdict,
    decoded,
    envelope_error,
    read_error,
)
from airflow_provider_responsys.protocol.naming import ROW_CODES, UNNAMED, is_code, named, with_room
from airflow_provider_responsys.protocol.wire import JSON, SMALL_ANSWER, Conversation, Request, Response, tracked

PROCESSING = "PROCESSING_REQUEST"  # AFTM polling errors page
PURGED = "RESPONSE_PURGED"  # AFTM polling errors page

ABOUT_THE_REQUEST = frozenset(
    {
        PROCESSING,
        PURGED,
        "ASYNC_REQUEST_EXPIRED",  # Async polling errors page
        "INVALID_REQUEST_ID",  # Async polling errors page
        "CAMPAIGN_IS_INVALID",  # AFTM polling errors page
    }
)
"""Codes that are of the polled request, even where no frame is around them."""

ABOUT_THE_ACCOUNT = frozenset({Verdict.LIMIT, Verdict.LOGIN, Verdict.LOGIN_FAILED, Verdict.FAILED_OVER})
"""Verdicts that are of the account, even where a frame is around them."""

UNFINISHED = frozenset({"IN_PROGRESS", "REQUEST_ACCEPTED"})  # AFTM polling errors page; push page
SUCCESS = "SUCCESS"  # AFTM polling page
STATUSES = UNFINISHED | {SUCCESS, "UNKNOWN", "ERROR", "FAILURE", "PROCESSING"}
"""What may be shown as a status though it is a single word: the documented ones, and two that clients look for."""

ANSWER_PER_ID = 128 * 1024
"""Bytes of an answer for each id that was asked about: 200 recipients with several results each"""

KEPT = timedelta(hours=24)
"""How long Responsys keeps results (AFTM polling page), from the request on; another page says, from its processing."""

ROWS_DIFFER = "ROW_COUNT_DIFFERS"
"""Of a request with more or fewer results than recipients: they can't be matched."""

SUCCEEDED: dict[str, Any] = {"success": True}

NAMED_ROWS = ROW_CODES | CODES.keys()
"""Codes of rows that are told apart however many others there are."""

ROW_CODE = re.compile(r"\s*([A-Za-z][A-Za-z0-9_]{0,79})\s*(?::|$)")
"""Recipient errors page: ``CODE: sentence``, or the bare code."""


@dataclass(frozen=True, slots=True)
class Finished:
    """A request with results: *rows* in all, and the positions of those that *failed*, by code.

    The rows have the order of the request's recipients. Succeeded means handed
    to Responsys' personalization queue, not delivered.
    """

    rows: int
    failed: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    reference_data: Any = field(default=None, repr=False)

    @property
    def failures(self) -> int:
        """Return how many recipients failed."""
        return sum(map(len, self.failed.values()))


@dataclass(frozen=True, slots=True)
class Processing:
    """A request that is not finished yet."""


@dataclass(frozen=True, slots=True)
class Gone:
    """A request whose results Responsys no longer has."""

    code: str = PURGED


@dataclass(frozen=True, slots=True)
class Failed:
    """A request that ended without results. *detail* is Responsys' own sentence."""

    code: str
    detail: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Unclear:
    """A request of which Responsys says nothing that we know; it may still finish."""

    status: str = ""


Outcome = Finished | Processing | Gone | Failed | Unclear

UNANSWERED = Unclear("not answered")
"""Of a request that a poll of several was not answered for."""


def poll(
    account: Account, request_ids: Sequence[str], *, waits: Iterable[float] = (), tracking_id: str = ""
) -> Conversation[dict[str, Outcome]]:
    """Return the outcome of each of *request_ids*, at most as many as the family takes at once.

    *tracking_id* is sent as ``X-Request-Id``.
    """
    what = f"{account.host}: the poll of {request_ids[0] if len(request_ids) == 1 else f'{len(request_ids)} requests'}"
    response = yield from call(
        account,
        poll_request(account, request_ids, tracking_id),
        waits=waits,
        read=partial(read_error, what=what),
        answers=ABOUT_THE_REQUEST,
    )
    return read_outcomes(response, request_ids, what=what)


def poll_request(account: Account, request_ids: Sequence[str], tracking_id: str = "") -> Request:
    """Build the request that asks for *request_ids*."""
    most = account.family.ids_per_poll
    if not 0 < len(request_ids) <= most:
        raise ValueError(f"{len(request_ids)} ids in one poll: {account.family.name} takes 1 to {most}")
    headers = (("Content-Type", JSON), *tracked(tracking_id))
    bound = SMALL_ANSWER + len(request_ids) * ANSWER_PER_ID
    if len(request_ids) == 1:
        return Request("GET", poll_path(account.family, request_ids[0]), headers=headers, max_answer=bound)
    body = json.dumps({"requestIds": list(request_ids)}, separators=(",", ":")).encode("ascii")
    return Request("POST", polls_path(account.family), body=body, headers=headers, max_answer=bound)


def read_outcomes(response: Response, request_ids: Sequence[str], *, what: str = "the poll") -> dict[str, Outcome]:
    """Return what *response* says of each of *request_ids*, whether asked for alone or together."""
    answer = decoded(response, _kept)
    if isinstance(answer, dict):
        frames = [answer]
    elif isinstance(answer, list) and all(isinstance(frame, dict) for frame in answer):
        frames = answer
    else:
        raise InvalidAnswer(f"{what} was answered with something else than results", status=response.status)
    alone = len(request_ids) == 1 and len(frames) == 1
    outcomes: dict[str, Outcome] = dict.fromkeys(request_ids, UNANSWERED)
    for frame in frames:
        # A frame may lack its id, or have an empty one; asked for alone, it is clear whose it is.
        named = frame.get("requestId") or (request_ids[0] if alone else None)
        outcome = _outcome(frame, response, what)
        if isinstance(named, str) and named in outcomes:
            outcomes[named] = outcome
        elif alone:
            raise InvalidAnswer(f"{what} was answered for another request", status=response.status)
    if len(request_ids) == 1 and not alone and outcomes[request_ids[0]] is UNANSWERED:
        raise InvalidAnswer(f"{what} was answered for other requests", status=response.status)
    return outcomes


def _kept(value: dict[str, Any]) -> dict[str, Any]:
    """Return *value*, or what is counted of a row without failure: one for all, as an answer may have 40,000."""
    return SUCCEEDED if value.get("success") is True and "recipientId" in value else value


def _outcome(frame: Mapping[str, Any], response: Response, what: str) -> Outcome:
    """Return what *frame* says: its error code first, then its rows, then its status."""
    content = frame.get("response", frame.get("responseMessage"))
    status = frame.get("status") if isinstance(frame.get("status"), str) else ""
    envelope = Envelope.of(content) or Envelope.of(frame)
    if envelope:
        return _coded(envelope, response, what)
    if status in UNFINISHED:  # whatever rows there are by then
        return Processing()
    if isinstance(content, list) and (content or status == SUCCESS):
        return _finished(content, frame.get("referenceData"))
    return Unclear(_plain(status))


def _coded(envelope: Envelope, response: Response, what: str) -> Outcome:
    if envelope.code == PROCESSING:
        return Processing()
    if envelope.code == PURGED:
        return Gone(envelope.code)
    row = CODES.get(envelope.code)
    if row and row.verdict in ABOUT_THE_ACCOUNT:
        raise envelope_error(envelope, response, what=what)
    if row and row.verdict is Verdict.LATER:
        return Unclear(envelope.code)
    return Failed(envelope.code, envelope.detail)


def _finished(rows: Sequence[Any], reference_data: Any) -> Finished:
    failed: dict[str, list[int]] = {}
    for position, row in enumerate(rows):
        if not (isinstance(row, dict) and row.get("success") is True):
            failed.setdefault(with_room(_row_code(row), failed, NAMED_ROWS), []).append(position)
    positions = {code: tuple(found) for code, found in failed.items()}
    return Finished(len(rows), MappingProxyType(positions), reference_data)


def _row_code(row: Any) -> str:
    message = row.get("errorMessage") if isinstance(row, dict) else None
    found = ROW_CODE.match(message) if isinstance(message, str) else None
    return named(found[1]) if found else UNNAMED


def _plain(status: Any) -> str:
    return status if status in STATUSES or is_code(status) else ""
