"""Hold conversations with Responsys on requests, from any number of threads."""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from http.cookiejar import DefaultCookiePolicy
from typing import Any, Self, TypeVar, cast

import requests
from requests.adapters import HTTPAdapter
from requests.auth import AuthBase
from urllib3.exceptions import ConnectTimeoutError, HTTPError, NewConnectionError

from airflow_provider_responsys.errors import NoAnswer, NotSent, ResponsysError
from airflow_provider_responsys.protocol.account import Account
from airflow_provider_responsys.protocol.auth import Keyring, authorize, is_refusal, login_request, renewed
from airflow_provider_responsys.protocol.wire import (
    CORRELATION,
    TRACKING,
    Authorize,
    Conversation,
    LogIn,
    Pause,
    Reply,
    Request,
    Response,
    Send,
    Step,
    Token,
)
from airflow_provider_responsys.transport.connections import HERE, POOLS, watched
from airflow_provider_responsys.transport.deadline import Watchdog
from airflow_provider_responsys.transport.limits import (
    CONNECT_TIMEOUT,
    HEADERS,
    IDLE,
    LOCK_MARGIN,
    PIECE,
    login_waits,
    tell,
    unreadable,
)
from airflow_provider_responsys.transport.refused import Memory
from airflow_provider_responsys.transport.unpack import Body

T = TypeVar("T")

log = logging.getLogger(__name__)


class Responsys:
    """A line to *account*: one connection a thread, one login for all of them.

    *memory* is what the machine knows of refused logins; *reread* reads the account's connection again, which is
    done before each login with the password.
    """

    def __init__(
        self,
        account: Account,
        *,
        user_agent: str,
        sleep: Callable[[float], object] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
        login_waits: Callable[[], Iterator[float]] = login_waits,
        memory: Memory | None = None,
        reread: Callable[[], Account] | None = None,
    ) -> None:
        self._account = account
        self._memory = memory
        self._reread = reread
        self._user_agent = user_agent
        self._sleep = sleep
        self._clock = clock
        self._login_waits = login_waits
        self._keyring = Keyring(account)
        self._login = threading.Lock()
        self._here = threading.local()
        self._wires: list[_Wire] = []
        self._watchdog = Watchdog()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self, conversation: Conversation[T]) -> T:
        """Run *conversation* to its end and return its result."""
        reply: Reply = None
        failure: ResponsysError | None = None
        while True:
            try:
                step = conversation.throw(failure) if failure else conversation.send(reply)
            except StopIteration as end:
                return cast("T", end.value)
            reply = failure = None
            try:
                reply = self._do(step)
            except ResponsysError as error:
                failure = error

    def close(self) -> None:
        """Close every thread's connection. Harmless to repeat."""
        for wire in self._wires:
            wire.close()

    def _do(self, step: Step) -> Reply:
        match step:
            case Send(request):
                return self._exchange(request)
            case Pause(seconds) as pause:
                tell(log, pause)
                self._sleep(seconds)
                return None
            case Authorize(refused):
                return self._authorize(refused)
            case LogIn(account):
                return self._log_in(account)

    def _authorize(self, refused: Token | None) -> Token:
        since = self._clock()
        with self._login:
            waits = self._login_waits()
            return self.run(authorize(self._keyring, refused, now=self._clock, waits=waits, since=since))

    def _log_in(self, account: Account) -> Response:
        """Log in as *account* once, unless this machine knows that it is refused."""
        account = self._renewed(account)
        if self._memory is None:
            return self._exchange(login_request(account))
        turn = self._memory.open(account)
        try:
            for wait in self._memory.lock(turn, account.timeout + LOCK_MARGIN):
                time.sleep(wait)
            if not self._memory.always_asks:
                turn.check()
            response = self._exchange(login_request(account))
            if (refused := is_refusal(response)) is not None:
                turn.learn(refused=refused)
            return response
        finally:
            turn.end()

    def _renewed(self, account: Account) -> Account:
        """Return *account* with the password that its connection has now."""
        if self._reread is None:
            return account
        try:
            now = self._reread()
        except Exception as error:
            raise unreadable(account, error) from error
        return renewed(account, now)

    def _exchange(self, request: Request) -> Response:
        wire: _Wire | None = getattr(self._here, "wire", None)
        if wire is None:
            wire = self._here.wire = _Wire(self._account.timeout, self._user_agent, self._clock, self._watchdog)
            self._wires.append(wire)
        return wire.exchange(request)


class _Wire:
    """One thread's connections."""

    def __init__(self, timeout: float, user_agent: str, clock: Callable[[], float], watchdog: Watchdog) -> None:
        self._timeout = (CONNECT_TIMEOUT, timeout)
        self._clock = clock
        self._watchdog = watchdog
        self._used: dict[str, float] = {}
        self._session = _Session()
        self._session.headers.clear()
        self._session.headers.update({"User-Agent": user_agent, **HEADERS})

    def exchange(self, request: Request) -> Response:
        """Send *request* once and return the whole answer, whatever it is."""
        if request.fresh and self._clock() - self._used.get(request.host, self._clock()) > IDLE:
            self._session.close()  # a session opens new connections when it is used again
        deadline = HERE.deadline = self._watchdog.begin(sum(self._timeout))
        try:
            with self._open(request) as answer:
                response = _read(answer, request)
        except (requests.RequestException, HTTPError) as error:
            if _nothing_left(error):
                raise NotSent(f"{request.host}: no connection ({_plain(error)})") from error
            if deadline.over:
                raise self._late(request) from error
            raise NoAnswer(f"{request.host}: the request left, and no whole answer came ({_plain(error)})") from error
        finally:
            in_time = self._watchdog.end(deadline)
            HERE.deadline = None
            self._used[request.host] = self._clock()
        if not in_time:  # then what seems to be the end of the answer may be the end of our patience
            raise self._late(request)
        return response

    def close(self) -> None:
        self._session.close()

    def _late(self, request: Request) -> NoAnswer:
        return NoAnswer(f"{request.host}: the request left, and no whole answer came in {sum(self._timeout):g} s")

    def _open(self, request: Request) -> requests.Response:
        """Send *request* and return the answer, its body still to be read."""
        try:
            return self._session.request(
                request.method,
                request.url,
                data=request.body or None,
                headers=dict(request.headers),
                auth=_Signature(request.authorization),
                timeout=self._timeout,
                allow_redirects=False,
                stream=True,
            )
        except requests.RequestException:
            raise
        except OSError as error:
            # requests looks for REQUESTS_CA_BUNDLE before it connects; what happens later it wraps.
            raise NotSent(f"{request.host}: {error}") from error


def _read(answer: requests.Response, request: Request) -> Response:
    """Return the whole of *answer* to *request*; one that is cut short is no answer."""
    answer.raw.enforce_content_length = True  # urllib3 1 does not unless told to
    body = Body(request.host, answer.headers.get("Content-Encoding", ""), request.max_answer)
    for piece in answer.raw.stream(PIECE, decode_content=False):
        body.add(piece)
    found = answer.headers
    return Response(answer.status_code, body.whole(), found.get(CORRELATION, ""), found.get(TRACKING, ""))


class _Signature(AuthBase):
    """Sets the token. A session that is given any authentication leaves ~/.netrc alone."""

    def __init__(self, authorization: str) -> None:
        self._authorization = authorization

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self._authorization:
            request.headers["Authorization"] = self._authorization
        return request


class _Session(requests.Session):
    """A session that neither follows redirects, nor keeps cookies, nor tries twice."""

    def __init__(self) -> None:
        super().__init__()
        self.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
        for scheme in ("https://", "http://"):
            self.mount(scheme, _Adapter(pool_connections=4, pool_maxsize=1, max_retries=0))

    def get_redirect_target(self, resp: requests.Response) -> str | None:  # noqa: ARG002 -- requests names it
        """Return None: even when told not to follow, requests would prepare the next request, netrc included."""
        return None


class _Adapter(HTTPAdapter):
    """An adapter whose connections say whether they ever stood, and end with their exchange."""

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = POOLS

    def proxy_manager_for(self, proxy: str, **kwargs: Any) -> Any:
        manager = super().proxy_manager_for(proxy, **kwargs)
        pools = manager.pool_classes_by_scheme
        manager.pool_classes_by_scheme = POOLS if not proxy.lower().startswith("socks") else _all_watched(pools)
        return manager


def _all_watched(pools: Mapping[str, Any]) -> dict[str, Any]:
    return {scheme: watched(pool) for scheme, pool in pools.items()}


def _nothing_left(error: BaseException) -> bool:
    """Tell whether *error* is certainly from before the request left."""
    # Of a connection, or raised while one is looked for: redirects are not followed.
    before = (
        NewConnectionError,
        ConnectTimeoutError,
        requests.exceptions.InvalidURL,
        requests.exceptions.InvalidSchema,
    )
    return any(isinstance(cause, before) for cause in _causes(error))


def _plain(error: BaseException) -> str:
    """Return in a word or two what *error* stands on; the texts around it are long."""
    *_, cause = _causes(error)
    return str(cause.strerror) if isinstance(cause, OSError) and cause.strerror else type(cause).__name__


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield *error* and what it names as its cause, in the ways of requests and urllib3.

    Never its context: that may be an error of another request, whose handling led to this one.
    """
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        named = (
            getattr(cause, "reason", None),
            getattr(cause, "original_error", None),
            *cause.args[:1],
            cause.__cause__,
        )
        cause = next((inner for inner in named if isinstance(inner, BaseException)), None)
