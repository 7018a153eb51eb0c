"""The account's own limits, as Responsys lists them."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

from airflow_provider_responsys.errors import FailedOver, InvalidAnswer, LoginExpired, NoAnswer, NotSent, TryLater
from airflow_provider_responsys.protocol.account import ASYNC, HA_ASYNC, RATE_LIMIT_PATH, Account, Family
from airflow_provider_responsys.protocol.call import call
from airflow_provider_responsys.protocol.codes import decoded, read_error
from airflow_provider_responsys.protocol.wire import Conversation, Request, Response

PUSH = ("push",)
POLLS = ("requests",)

MAX_LIMITS = 1024 * 1024
"""Bytes of the list: thousands of functions, of which Responsys has about a hundred."""

TOLD_LATER = (FailedOver, LoginExpired, NoAnswer, NotSent, TryLater)
"""After these, the limits may be told later; after anything else they will not be."""


@dataclass(frozen=True, slots=True)
class RateLimit:
    """How many requests a minute Responsys takes of one kind."""

    api: str
    resource_path: str
    verb: str
    limit: int
    description: str = ""


def rate_limits(account: Account, *, waits: Iterable[float] = ()) -> Conversation[list[RateLimit]]:
    """Return the limits that Responsys lists for *account*; not all of them need be of use to it."""
    what = f"{account.host}: the read of the rate limits"
    response = yield from call(account, limits_request(), waits=waits, read=partial(read_error, what=what))
    return read_limits(response, what=what)


def limits_request() -> Request:
    """Build the request that reads the limits."""
    return Request("GET", RATE_LIMIT_PATH, max_answer=MAX_LIMITS)


def read_limits(response: Response, *, what: str = "the read of the rate limits") -> list[RateLimit]:
    """Return the limits in *response*; what can't be read of one leaves it out."""
    rows = decoded(response)
    if not isinstance(rows, list):
        raise InvalidAnswer(f"{what} was answered with something else than a list", status=response.status)
    return [limit for limit in map(_limit, rows) if limit]


def push_limit(limits: Iterable[RateLimit], family: Family) -> int | None:
    """Return how many pushes a minute *limits* allow, if they say so."""
    return _smallest([limit for limit in limits if limit.verb == "POST" and _tail(limit, 1) == PUSH], family)


def poll_limit(limits: Iterable[RateLimit], family: Family) -> int | None:
    """Return how many polls a minute *limits* allow, if they say so."""
    return _smallest([limit for limit in limits if _is_poll(limit)], family)


def _is_poll(limit: RateLimit) -> bool:
    match limit.verb:
        case "GET":
            last = _tail(limit, 2)
            return last[0] == "requests" and last[-1].startswith("{")
        case "POST":
            return _tail(limit, 1) == POLLS
        case _:
            return False


def _smallest(limits: list[RateLimit], family: Family) -> int | None:
    """Return the smallest of *limits*, of those that name *family* if any does."""
    named = [limit for limit in limits if _family(limit) is family]
    return min((limit.limit for limit in named or limits), default=None)


def _family(limit: RateLimit) -> Family | None:
    """Return the family that *limit* names; the names are nowhere documented, so parts of them must do."""
    words = f"{limit.api} {limit.resource_path}".lower().replace("_", "").replace(" ", "").replace("-", "")
    if "haasync" in words:
        return HA_ASYNC
    return ASYNC if "async" in words else None


def _tail(limit: RateLimit, segments: int) -> tuple[str, ...]:
    return tuple(limit.resource_path.lower().rstrip("/").split("/")[-segments:])


def _limit(row: Any) -> RateLimit | None:
    if not isinstance(row, dict):
        return None
    try:
        limit = int(row.get("limit"))  # type: ignore[arg-type]  # what is no number raises, and is left out
    except (TypeError, ValueError, OverflowError):
        return None
    api, path, verb, description = (
        value if isinstance(value := row.get(name), str) else ""
        for name in ("api", "resource_path", "verb", "description")
    )
    return RateLimit(api, path, verb.strip().upper(), limit, description) if limit > 0 else None
