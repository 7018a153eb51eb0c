"""The account that the sandbox plays: what each request does, without any I/O.

Every answer follows from the settings, the time and what came before; the time
is an argument. One request at a time, so that limits and counts are exact.
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import NamedTuple
from urllib.parse import unquote

from airflow_provider_responsys.sandbox import answers, bodies
from airflow_provider_responsys.sandbox.access import Access, read_form
from airflow_provider_responsys.sandbox.answers import Answer, Refusal
from airflow_provider_responsys.sandbox.faults import Endpoint, Kind
from airflow_provider_responsys.sandbox.limits import Windows
from airflow_provider_responsys.sandbox.queue import API_NAMES, MESSAGE_EXPIRATION, Queue
from airflow_provider_responsys.sandbox.settings import ANY_CAMPAIGN, MINUTE, Settings
from airflow_provider_responsys.sandbox.tally import CompactTally, ExactTally, Tally

JSON_TYPE = "application/json"
TEN_MINUTES = 600.0  # Internal capacity limits: the budget's window
MAX_POLLED_BY_PATH = 10  # asyncApi, polling page
MAX_POLLED_BY_BODY = 200  # asyncApi, multiple polling page
NO_LIMIT = 1_000_000  # what ratelimit tells for a function without a limit

TOKEN_PATH = "/rest/api/v1.3/auth/token"  # noqa: S105 -- a path
ROUTES = (
    (re.compile(r"/rest/(haAsyncApi|asyncApi)/v1\.3/campaigns/([^/]+)/push"), Endpoint.PUSH, "POST"),
    (re.compile(r"/rest/(haAsyncApi|asyncApi)/v1\.3/requests/([^/]+)"), Endpoint.POLL, "GET"),
    (re.compile(r"/rest/(asyncApi)/v1\.3/requests"), Endpoint.POLL, "POST"),
    (re.compile(r"/rest/api/ratelimit"), Endpoint.RATELIMIT, "GET"),
    (re.compile(r"/rest/api/v1\.3/lists"), Endpoint.OTHER, "GET"),
)
CAMPAIGN_NAME = re.compile(r"[A-Za-z0-9 !\-=@_\[\]{}]{1,150}")  # Campaign wizard page


@dataclass(frozen=True, slots=True)
class Call:
    """One request: *path* still percent-encoded, *headers* by lower-case name."""

    method: str
    path: str
    query: str = field(default="", repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    body: bytes = field(default=b"", repr=False)

    @property
    def content_type(self) -> str:
        """Return the content type without its parameters."""
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()

    @property
    def token(self) -> str:
        """Return the raw token."""
        return self.headers.get("authorization", "")

    @property
    def address(self) -> str:
        """Return the address that the client used."""
        return f"http://{self.headers.get('host', '')}"


class Route(NamedTuple):
    """Where a request goes: its *endpoint*, and what its path says."""

    endpoint: Endpoint
    method: str
    family: str = ""
    name: str = ""


def route(call: Call) -> Route | None:
    """Return where *call* goes by its path, which is case-sensitive; None if there is nothing."""
    if call.path == TOKEN_PATH:
        refreshes = b"auth_type=token" in call.body.split(b"&")
        return Route(Endpoint.REFRESH if refreshes else Endpoint.LOGIN, "POST")
    for pattern, endpoint, method in ROUTES:
        if found := pattern.fullmatch(call.path):
            return Route(endpoint, method, *map(unquote, found.groups()))
    return None


class Account:
    """One Responsys account, from its first login to its last poll."""

    def __init__(self, settings: Settings, now: Callable[[], float]) -> None:
        self.settings = settings
        self.now = now
        self.access = Access()
        self.queue = Queue(settings.seed)
        self.tally: Tally = ExactTally() if settings.exact else CompactTally()
        self.counts: Counter[str] = Counter()
        self.refusals: Counter[str] = Counter()
        self.accepted_by_minute: Counter[int] = Counter()
        self._windows = Windows()

    def answer(self, call: Call, fault: Kind | None = None) -> Answer:
        """Do what *call* asks for and return the answer; *fault* spoils the result that it leads to."""
        try:
            return self._answer(call, route(call), fault)
        except Refusal as refusal:
            self.refusals[refusal.answer.code] += 1
            return refusal.answer

    def _answer(self, call: Call, to: Route | None, fault: Kind | None) -> Answer:
        if to is None:
            raise Refusal("RESOURCE_NOT_FOUND")
        if call.method != to.method:
            raise Refusal("METHOD_NOT_SUPPORTED")
        if to.endpoint in (Endpoint.LOGIN, Endpoint.REFRESH):
            return self._let_in(call)
        self.access.check(call.token, self.settings, self.now())
        if self.settings.failed_over and to.family != "haAsyncApi":
            raise Refusal("API_NOT_ALLOWED_IN_SECONDARY")
        match to.endpoint:
            case Endpoint.PUSH:
                return self._push(call, to, fault)
            case Endpoint.POLL:
                return self._poll(call, to, fault)
            case Endpoint.RATELIMIT:
                return self._ratelimit()
            case _:
                return answers.of([])

    def _let_in(self, call: Call) -> Answer:
        self._admit("login", self.settings.login_limit, self.settings.login_taken)
        form = read_form(call.content_type, call.query, call.body)
        match form.get("auth_type"):
            case "password":
                answer = self.access.log_in(form, call.address, self.settings, self.now())
                self.counts["logins"] += 1
            case "token":
                answer = self.access.refresh(call.token, call.address, self.settings, self.now())
                self.counts["refreshes"] += 1
            case "server" | "client":
                raise Refusal("CLIENT_CERTIFICATE_NOT_FOUND")
            case _:
                raise Refusal("INVALID_PARAMETER", "Invalid parameter 'auth_type'")
        return answer

    def _ratelimit(self) -> Answer:
        self._admit("ratelimit", self.settings.ratelimit_limit)
        match self.settings.ratelimit:
            case "off":
                raise Refusal("RESOURCE_NOT_FOUND")
            case "page":
                return answers.page(HTTPStatus.NOT_FOUND, "Not Found")
            case "refused":
                raise Refusal("INSUFFICIENT_ACCESS")
            case _:
                return answers.of(limit_rows(self.settings))

    def _push(self, call: Call, to: Route, fault: Kind | None) -> Answer:
        settings = self.settings
        self._admit(f"push {to.family}", settings.push_limit, settings.push_taken)
        if not self._windows.admit(
            "capacity", settings.capacity_limit, now=self.now(), span=TEN_MINUTES, sliding=False
        ):
            raise Refusal("INTERNAL_CAPACITY_LIMIT_EXCEEDED")
        if call.content_type != JSON_TYPE:
            raise Refusal("INVALID_REQUEST_CONTENT")
        body = bodies.read_push(call.body)
        valid_campaign = self._check_campaign(to.name)
        accepted = self.queue.accept(
            to.family,
            body,
            valid_campaign=valid_campaign,
            expiration=_expiration(call, to.family),
            fault=fault,
            settings=settings,
            now=self.now(),
        )
        if accepted.pushes:
            self.tally.add(body.recipients)
        self.counts["accepted"] += 1
        self.accepted_by_minute[int(accepted.submitted // MINUTE)] += 1
        return answers.of(_acceptance(call, to.family, accepted.request_id), settings.accept_status)

    def _check_campaign(self, name: str) -> bool:
        settings = self.settings
        if not CAMPAIGN_NAME.fullmatch(name):
            raise Refusal("CAMPAIGN_NAME_NOT_VALID")
        if name in settings.promotional_campaigns:
            if settings.failed_over:
                raise Refusal("INVALID_PARAMETER", f"{name} must be a transactional campaign")
            return True
        if name in settings.campaigns or ANY_CAMPAIGN in settings.campaigns:
            return True
        if settings.unknown_campaign == "at_submit":
            raise Refusal("CAMPAIGN_NOT_FOUND")
        return False

    def _poll(self, call: Call, to: Route, fault: Kind | None) -> Answer:
        self._admit(f"poll {to.family} {to.method}", self.settings.poll_limit, self.settings.poll_taken)
        ids = _ids_by_body(call) if to.method == "POST" else _ids_by_path(to)
        self.counts["polled ids"] += len(ids)
        frames = [self.queue.poll(to.family, each, fault=fault, settings=self.settings, now=self.now()) for each in ids]
        several = to.method == "POST" or len(ids) > 1
        return answers.of(frames if several else frames[0], self.settings.poll_status)

    def _admit(self, name: str, limit: int | None, taken: int = 0) -> None:
        allowed = None if limit is None else max(limit - taken, 0)
        sliding = self.settings.window == "sliding"
        if not self._windows.admit(name, allowed, now=self.now(), span=MINUTE, sliding=sliding):
            raise Refusal("API_LIMIT_EXCEEDED", status=self.settings.limit_status)


def limit_rows(settings: Settings) -> list[dict[str, object]]:
    """Return the rows of ``/rest/api/ratelimit``: shape documented, the names of the async functions guessed."""
    if settings.ratelimit_rows is not None:
        return [dict(row) for row in settings.ratelimit_rows]
    push, poll, campaign = settings.push_limit, settings.poll_limit, "/campaigns/{campaignName}"
    return [
        _row(settings.login_limit, "Login", "/auth/token", "POST"),
        _row(100, "RetrieveProfileLists", "/lists", "GET"),
        _row(1000, "MergeListRecipients", "/lists/{listName}/members", "POST"),
        _row(1000, "HaMergeListRecipients", "/lists/{listName}/members", "POST"),
        _row(200, "TriggerEmail", f"{campaign}/email", "POST"),
        _row(200, "TriggerPush", f"{campaign}/push", "POST"),
        _row(push, API_NAMES["asyncApi"], f"{campaign}/push", "POST"),
        _row(push, API_NAMES["haAsyncApi"], f"{campaign}/push", "POST"),
        _row(poll, "AsyncPolling", "/requests/{requestId}", "GET"),
        _row(poll, "AsyncMultiplePolling", "/requests", "POST"),
        _row(poll, "HaAsyncPolling", "/requests/{requestId}", "GET"),
    ]


def _row(limit: int | None, api: str, resource_path: str, verb: str) -> dict[str, object]:
    return {
        "limit": NO_LIMIT if limit is None else limit,
        "api": api,
        "resource_path": resource_path,
        "verb": verb,
        "description": f"{api} requests per minute",
    }


def _acceptance(call: Call, family: str, request_id: str) -> dict[str, object]:
    return {
        "requestId": request_id,
        "apiName": API_NAMES[family],
        "status": "REQUEST_ACCEPTED",
        "links": [
            {"rel": "self", "href": call.path, "method": "POST"},
            {"rel": "asyncResponse", "href": f"/rest/{family}/v1.3/requests/{request_id}", "method": "GET"},
        ],
    }


def _expiration(call: Call, family: str) -> float:
    if family != "asyncApi":
        return float("inf")
    text = call.headers.get("message-expiration", str(MESSAGE_EXPIRATION))
    if not text.isdecimal() or not text.isascii() or int(text) == 0:
        raise Refusal("INVALID_PARAMETER", "Invalid header 'Message-Expiration'")
    return float(text)


def _ids_by_path(to: Route) -> list[str]:
    if to.family != "asyncApi":
        return [to.name]  # several ids, joined, are one id that nobody knows
    ids = to.name.split(",")
    if len(ids) > MAX_POLLED_BY_PATH:
        raise Refusal("INVALID_PARAMETER", f"At most {MAX_POLLED_BY_PATH} request ids")
    return ids


def _ids_by_body(call: Call) -> list[str]:
    if call.content_type != JSON_TYPE:
        raise Refusal("INVALID_REQUEST_CONTENT")
    match bodies.read_json(call.body):
        case {"requestIds": [_, *_] as ids, **others} if not others and all(isinstance(each, str) for each in ids):
            if len(ids) > MAX_POLLED_BY_BODY:
                raise Refusal("INVALID_PARAMETER", f"At most {MAX_POLLED_BY_BODY} request ids")
            return [str(each) for each in ids]
        case _:
            raise Refusal("INVALID_PARAMETER", "Invalid parameter 'requestIds'")
