"""The harmless read that tells whether Responsys is there."""

from collections.abc import Callable
from functools import partial
from typing import Any

from airflow_provider_responsys.errors import FailedOver, LoginExpired, ResponsysError
from airflow_provider_responsys.protocol.account import Account
from airflow_provider_responsys.protocol.call import call
from airflow_provider_responsys.protocol.codes import CODES, Verdict, decoded, envelope_of, read_error
from airflow_provider_responsys.protocol.polling import poll_request
from airflow_provider_responsys.protocol.ratelimit import limits_request
from airflow_provider_responsys.protocol.wire import Conversation, Request, Response

UNKNOWN_ID = "MDAwMDAwOjowMDAwMDAwMDAw"
"""Looks like a request's id, and is of no request: ``000000::0000000000``."""

FRAME = frozenset({"requestId", "response", "responseMessage"})
"""Members of a poll's answer; each shape of it has one of them (polling pages)."""

NO_SIGN = frozenset({Verdict.LOGIN, Verdict.LOGIN_FAILED})
"""Verdicts of codes after which another login, or none at all, is what is called for."""


class SignsOfLife:
    """Every code but those about the login, also one that no page lists."""

    def __contains__(self, code: object) -> bool:
        row = CODES.get(str(code))
        return row is None or row.verdict not in NO_SIGN


def probe(account: Account, *, tracking_id: str = "") -> Conversation[None]:
    """Return if Responsys answers a harmless read, whatever it says; raise why not otherwise.

    A parsed answer of Responsys is a sign of life, also an error; a gateway's page is none. A host that
    does not know the limits may answer for them with such a page: then a request that does not exist is
    asked about.
    """
    if (yield from _instead(account, limits_request(), "the rate limits", _are_limits)):
        unknown = poll_request(account, [UNKNOWN_ID], tracking_id)
        if error := (yield from _instead(account, unknown, "an unknown request", _is_poll)):
            raise error


def _instead(
    account: Account, request: Request, name: str, is_ours: Callable[[Any], bool]
) -> Conversation[ResponsysError | None]:
    """Return what *request*, the read of *name*, is answered with instead of an answer of Responsys, or None."""
    read = partial(read_error, what=f"{account.host}: the read of {name}")
    pages: list[ResponsysError] = []

    def noted(response: Response) -> ResponsysError:
        error = read(response)
        if not envelope_of(response):
            pages.append(error)
        return error

    try:
        response = yield from call(account, request, read=noted, answers=SignsOfLife())
    except (FailedOver, LoginExpired):
        return None
    except ResponsysError as error:
        if error in pages:
            return error
        raise
    return None if envelope_of(response) or is_ours(decoded(response)) else read(response)


def _are_limits(answer: Any) -> bool:
    return isinstance(answer, list) and all(isinstance(row, dict) for row in answer)


def _is_poll(answer: Any) -> bool:
    frames = answer if isinstance(answer, list) else [answer]
    return bool(frames) and all(isinstance(frame, dict) and not FRAME.isdisjoint(frame) for frame in frames)
