"""A plan of faults: what goes wrong, before or after the effect, and for which requests.

In JSON a fault is an object of the fields of `Fault`::

    {"on": "push", "kind": "lost", "when": "after", "nth": 3}
    {"on": "push", "kind": "API_LIMIT_EXCEEDED", "probability": 0.1}
    {"on": "poll", "kind": "html_503", "every": 5, "times": 2}
    {"on": "push", "kind": "endless", "recipient": "STUCK"}
"""

import json
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import TypeVar

from airflow_provider_responsys.errors import InvalidSettings
from airflow_provider_responsys.sandbox.answers import CODES

E = TypeVar("E", bound=StrEnum)


class Endpoint(StrEnum):
    """What a request asks for, as a fault tells them apart."""

    LOGIN = "login"
    REFRESH = "refresh"
    RATELIMIT = "ratelimit"
    PUSH = "push"
    POLL = "poll"
    OTHER = "other"


class When(StrEnum):
    """Whether the request still has its effect."""

    BEFORE = "before"
    AFTER = "after"


class Kind(StrEnum):
    """What goes wrong, besides an answer with an error code."""

    # On the connection.
    LOST = "lost"
    """The connection is closed without an answer."""
    RESET = "reset"
    """The connection is reset without an answer."""
    HANG = "hang"
    """No answer for `seconds`; then the connection is closed."""
    CLOSE = "close"
    """The right answer; then the connection is closed, unannounced."""
    SLOW = "slow"
    """The right answer, its body spread over `seconds`."""
    DRIP = "drip"
    """The right answer, head and body, a byte each `seconds`."""
    NO_LENGTH = "no_length"
    """The right answer without a length, as recorded: it ends where the connection closes."""
    CUT = "cut"
    """The same, and the connection closes in the middle of it."""

    # A wrong answer.
    UNLISTED = "unlisted"
    """HTTP 500 with an envelope whose code no page lists."""
    BAD_GATEWAY = "bad_gateway"
    """HTTP 502 with an HTML page."""
    HTML_503 = "html_503"
    """HTTP 503 with an HTML page."""
    GATEWAY_TIMEOUT = "gateway_timeout"
    """HTTP 504 with an HTML page."""
    BARE_413 = "bare_413"
    """HTTP 413 in plain text, before the request reached Responsys."""
    BARE_429 = "bare_429"
    """HTTP 429 in plain text, before the request reached Responsys."""
    BARE_503 = "bare_503"
    """HTTP 503 in plain text."""
    REDIRECT = "redirect"
    """HTTP 307 to the same address."""
    EMPTY = "empty"
    """The right status without a body."""
    TRUNCATED = "truncated"
    """The right answer, its JSON cut in half."""
    WRONG_LENGTH = "wrong_length"
    """The right answer, with a Content-Length that promises more."""

    # In the result: of a push, for all its polls; of a poll, for this one.
    ENDLESS = "endless"
    """Processing never ends."""
    PURGED = "purged"
    """The result is gone."""
    EXPIRED = "expired"
    """The request waited too long in the queue; of a push: no recipient is pushed."""
    UNKNOWN_STATUS = "unknown_status"
    """A status that no page lists, without rows."""
    ROW_MISSING = "row_missing"
    """One row too few."""
    ROW_TOO_MANY = "row_too_many"
    """One row too many."""


RESULT_KINDS = frozenset(
    {Kind.ENDLESS, Kind.PURGED, Kind.EXPIRED, Kind.UNKNOWN_STATUS, Kind.ROW_MISSING, Kind.ROW_TOO_MANY},
)
# A redirect says that nothing was done here, as does a gateway that keeps a request out.
ONLY_BEFORE = frozenset(
    {Kind.REDIRECT, Kind.BARE_413, Kind.BARE_429, *(code for code, words in CODES.items() if words.nothing_queued)}
)
# These need the right answer, so the effect as well.
ONLY_AFTER = frozenset(
    {
        Kind.CLOSE,
        Kind.SLOW,
        Kind.DRIP,
        Kind.NO_LENGTH,
        Kind.CUT,
        Kind.EMPTY,
        Kind.TRUNCATED,
        Kind.WRONG_LENGTH,
        *RESULT_KINDS,
    }
)


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault: *kind* (a `Kind` or an error code) happens to requests *on* an endpoint.

    It happens to each request that fits all that is given of: *nth* (counted
    from 1 since the plan was set, one or several), *every* so many,
    *probability*, and *recipient* (a text in the body of a push), at most
    *times* times. *when* is "before" the effect unless the kind only makes
    sense "after"; a request that is refused anyway is answered with its
    refusal whatever comes after. *seconds* is how long a hang or a slow answer
    lasts, and how long after one byte of a drip the next one comes; *status* replaces the HTTP status of an error code.
    """

    on: str
    kind: str
    when: str = ""
    nth: int | Sequence[int] = ()
    every: int = 0
    probability: float = 1.0
    recipient: str = ""
    times: int | None = None
    seconds: float | None = None
    status: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "on", _one_of(Endpoint, self.on, "on"))
        if self.kind not in CODES:
            object.__setattr__(self, "kind", _one_of(Kind, self.kind, "kind (or an error code in capitals)"))
        default = When.AFTER if self.kind in ONLY_AFTER else When.BEFORE
        object.__setattr__(self, "when", _one_of(When, self.when or default, "when"))
        object.__setattr__(self, "nth", (self.nth,) if isinstance(self.nth, int) else tuple(self.nth))
        self._check()

    def _check(self) -> None:
        if self.when is When.AFTER and self.kind in ONLY_BEFORE:
            raise InvalidSettings(f"{self.kind} says that nothing was queued: it can't come after the effect")
        if self.when is When.BEFORE and self.kind in ONLY_AFTER:
            raise InvalidSettings(f"{self.kind} needs the right answer: it can't come before the effect")
        if self.kind in RESULT_KINDS and self.on not in (Endpoint.PUSH, Endpoint.POLL):
            raise InvalidSettings(f"{self.kind} is a fault of a push or a poll, not of {self.on}")
        if self.recipient and self.on is not Endpoint.PUSH:
            raise InvalidSettings(f"only a push has recipients, {self.on} has none")
        if not 0 <= self.probability <= 1:
            raise InvalidSettings("probability is a number from 0 to 1")
        if self.every < 0:
            raise InvalidSettings("every is a whole number, 1 or more")
        if not all(isinstance(each, int) and each > 0 for each in self._places()):
            raise InvalidSettings("nth counts from 1")

    def fits(self, count: int, body: bytes, chance: float) -> bool:
        """Return whether this happens to the *count*-th request of its endpoint."""
        places = self._places()
        return (
            (not places or count in places)
            and (not self.every or count % self.every == 0)
            and chance < self.probability
            and (not self.recipient or self.recipient.encode() in body)
        )

    def _places(self) -> Sequence[int]:
        return (self.nth,) if isinstance(self.nth, int) else self.nth


class FaultPlan:
    """Faults, the first that fits first, and how often each has happened."""

    def __init__(self, faults: Iterable[Fault] = (), *, seed: int = 0) -> None:
        self.faults = tuple(faults)
        self.seed = seed
        self.happened: Counter[str] = Counter()
        self._random = random.Random(seed)  # noqa: S311 -- chance that can be repeated, no secrets
        self._seen: Counter[str] = Counter()
        self._times: Counter[int] = Counter()  # by identity: two equal faults are two

    @classmethod
    def from_json(cls, plan: object) -> "FaultPlan":
        """Return the plan in a list of faults, or in ``{"faults": [...], "seed": 1}``."""
        if isinstance(plan, str):
            try:
                plan = json.loads(plan)
            except ValueError as error:
                raise InvalidSettings(f"the fault plan is not JSON: {error}") from None
        if isinstance(plan, list):
            plan = {"faults": plan}
        if (
            not isinstance(plan, Mapping)
            or not isinstance(plan.get("faults"), list)
            or not plan.keys() <= {"faults", "seed"}
        ):
            raise InvalidSettings('a fault plan is a list of faults, or {"faults": [...], "seed": 1}')
        return cls([_fault(each) for each in plan["faults"]], seed=plan.get("seed", 0))

    def pick(self, endpoint: Endpoint, body: bytes) -> Fault | None:
        """Count a request of *endpoint* and return what is to happen to it."""
        self._seen[endpoint] += 1
        for fault in self.faults:
            if fault.on != endpoint or (fault.times is not None and self._times[id(fault)] >= fault.times):
                continue
            chance = self._random.random() if fault.probability < 1 else 0.0
            if fault.fits(self._seen[endpoint], body, chance):
                return fault
        return None

    def record(self, fault: Fault) -> None:
        """Count that *fault* happened."""
        self._times[id(fault)] += 1
        self.happened[fault.kind] += 1


def _fault(value: object) -> Fault:
    known = {each.name for each in fields(Fault)}
    if not isinstance(value, Mapping) or not {"on", "kind"} <= value.keys() <= known:
        raise InvalidSettings(f"a fault is an object with on and kind, and no other members than {sorted(known)}")
    return Fault(**value)


def _one_of(choices: type[E], value: str, name: str) -> E:
    try:
        return choices(value)
    except ValueError:
        raise InvalidSettings(f"{name} is one of {', '.join(choices)}, not {value!r}") from None
