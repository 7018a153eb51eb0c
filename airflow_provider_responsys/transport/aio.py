"""Hold conversations with Responsys on aiohttp, in one event loop."""

import asyncio
import logging
import os
import socket
import ssl
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Generic, Self, TypeVar, cast
from urllib.request import getproxies, proxy_bypass

import aiohttp
import certifi
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

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
from airflow_provider_responsys.threads import LoopThreads
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

NOTHING_LEFT = (
    aiohttp.ClientConnectorError,
    aiohttp.ClientConnectorCertificateError,
    aiohttp.ConnectionTimeoutError,
    aiohttp.ClientHttpProxyError,
    aiohttp.InvalidURL,
)
"""What is raised before a connection stands, trust and tunnel included."""

LARGE = 32 * 1024
"""Bytes of an answer that takes long enough to read for others in the loop to notice; 200 results are 15,000."""

STEP = 4 * 1024
"""Bytes that are unpacked between two turns of the others: at most a thousand times as many come out of it."""

READERS = LoopThreads("responsys-answers", 1)
"""Reads large answers. Several threads would share the interpreter, and the loop would wait for each of them."""

FILES = LoopThreads("responsys-files", 4)
"""Reads certificates and refused logins, whose disk may be slow."""

NAMES = LoopThreads("responsys-names", 4)
"""Looks up names, whose servers may be away."""

T = TypeVar("T")

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class End(Generic[T]):
    """The result of a conversation."""

    result: T


class Responsys:
    """A line to *account*: any number of conversations at once, one login for all of them.

    *memory* is what the machine knows of refused logins; *reread* reads the account's connection again, which is
    done before each login with the password.
    """

    def __init__(
        self,
        account: Account,
        *,
        user_agent: str,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
        login_waits: Callable[[], Iterator[float]] = login_waits,
        memory: Memory | None = None,
        reread: Callable[[], Awaitable[Account]] | None = None,
    ) -> None:
        self._account = account
        self._memory = memory
        self._reread = reread
        self._user_agent = user_agent
        self._sleep = sleep
        self._clock = clock
        self._login_waits = login_waits
        self._keyring = Keyring(account)
        self._login = asyncio.Lock()
        self._opening = asyncio.Lock()
        self._session: aiohttp.ClientSession | None = None
        self._proxies: dict[str, str | None] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def run(self, conversation: Conversation[T]) -> T:
        """Run *conversation* to its end and return its result."""
        reply: Reply = None
        failure: ResponsysError | None = None
        while True:
            if isinstance(reply, Response) and len(reply.body) > LARGE:
                step = await self._read(conversation, reply)
            else:
                step = _next(conversation, reply, failure)
            if isinstance(step, End):
                return step.result
            reply = failure = None
            try:
                reply = await self._do(step)
            except ResponsysError as error:
                failure = error

    async def close(self) -> None:
        """Close every connection. Harmless to repeat."""
        session, self._session = self._session, None
        if session:
            await session.close()

    async def _read(self, conversation: Conversation[T], reply: Response) -> Step | End[T]:
        """Return what *conversation* wants after *reply*, which it reads in a thread."""
        return await READERS.call(partial(_next, conversation, reply, None))

    async def _do(self, step: Step) -> Reply:
        match step:
            case Send(request):
                return await self._exchange(request)
            case Pause(seconds) as pause:
                tell(log, pause)
                await self._sleep(seconds)
                return None
            case Authorize(refused):
                return await self._authorize(refused)
            case LogIn(account):
                return await self._log_in(account)

    async def _authorize(self, refused: Token | None) -> Token:
        since = self._clock()
        async with self._login:
            waits = self._login_waits()
            return await self.run(authorize(self._keyring, refused, now=self._clock, waits=waits, since=since))

    async def _log_in(self, account: Account) -> Response:
        """Log in as *account* once, unless this machine knows that it is refused."""
        account = await self._renewed(account)
        if self._memory is None:
            return await self._exchange(login_request(account))
        turn = self._memory.open(account)
        try:
            for wait in self._memory.lock(turn, account.timeout + LOCK_MARGIN):
                await asyncio.sleep(wait)
            if not self._memory.always_asks:
                await FILES.call(turn.check)  # its hashes are slow on purpose
            response = await self._exchange(login_request(account))
            if (refused := is_refusal(response)) is not None:
                await FILES.call(partial(turn.learn, refused=refused))
            return response
        finally:
            turn.end()

    async def _renewed(self, account: Account) -> Account:
        """Return *account* with the password that its connection has now."""
        if self._reread is None:
            return account
        try:
            now = await self._reread()
        except Exception as error:
            raise unreadable(account, error) from error
        return renewed(account, now)

    async def _exchange(self, request: Request) -> Response:
        """Send *request* once and return the whole answer, whatever it is."""
        session = self._session or await self._opened()
        if request.host not in self._proxies:
            self._proxies[request.host] = _proxy(URL(request.host))
        headers = dict(request.headers)
        if request.authorization:
            headers["Authorization"] = request.authorization
        # Already percent-encoded: keep yarl from encoding it again.
        url = URL(request.url, encoded=True)
        try:
            async with session.request(
                request.method,
                url,
                data=request.body or None,
                headers=headers,
                proxy=self._proxies[request.host],
                allow_redirects=False,
            ) as answer:
                return await _read(answer, request)
        except NOTHING_LEFT as error:
            raise NotSent(f"{request.host}: no connection ({_plain(error)})") from error
        except (aiohttp.ClientError, OSError) as error:
            reason = _plain(error)
            raise NoAnswer(f"{request.host}: the request left, and no whole answer came ({reason})") from error

    async def _opened(self) -> aiohttp.ClientSession:
        async with self._opening:
            if self._session is None:
                # Reading the certificates takes long enough for others in the loop to notice.
                trust = await FILES.call(_trust)
                self._session = _session(trust, self._account.timeout, self._user_agent)
            return self._session


def _next(conversation: Conversation[T], reply: Reply, failure: ResponsysError | None) -> Step | End[T]:
    try:
        return conversation.throw(failure) if failure else conversation.send(reply)
    except StopIteration as end:
        return End(cast("T", end.value))


async def _read(answer: aiohttp.ClientResponse, request: Request) -> Response:
    """Return the whole of *answer* to *request*; one that is cut short is no answer."""
    body = Body(request.host, answer.headers.get("Content-Encoding", ""), request.max_answer)
    async for piece in answer.content.iter_chunked(PIECE):
        for start in range(0, len(piece), STEP):
            body.add(piece[start : start + STEP])
            await asyncio.sleep(0)  # what is here already comes without a pause, and unpacking takes its time
    found = answer.headers
    return Response(answer.status, body.whole(), found.get(CORRELATION, ""), found.get(TRACKING, ""))


def _session(trust: ssl.SSLContext, timeout: float, user_agent: str) -> aiohttp.ClientSession:
    """Return a session that neither keeps cookies, nor reads ~/.netrc, nor tries twice."""
    return aiohttp.ClientSession(
        # No connection that has idled is used again, which is more than a fresh request asks for.
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=IDLE, ssl=trust, resolver=_Names()),
        # One deadline for the whole exchange: each byte would start the others anew.
        timeout=aiohttp.ClientTimeout(total=CONNECT_TIMEOUT + timeout, connect=CONNECT_TIMEOUT, sock_read=timeout),
        auto_decompress=False,  # it is unpacked as far as was asked for
        headers={"User-Agent": user_agent, **HEADERS},
        cookie_jar=aiohttp.DummyCookieJar(),
        middlewares=(_once,),
        trust_env=False,  # it would read ~/.netrc, too
    )


async def _once(request: aiohttp.ClientRequest, send: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
    """Send *request* once: aiohttp repeats a GET whose connection breaks, unless the error is none of its own."""
    try:
        return await send(request)
    except NOTHING_LEFT:
        raise
    except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as error:
        host = request.url.origin()
        raise NoAnswer(f"{host}: the request left, and no answer came ({_plain(error)})") from error


class _Names(AbstractResolver):
    """Looks up names in threads of its own: aiohttp's resolver takes those of the event loop."""

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        look_up = partial(socket.getaddrinfo, host, port, family, socket.SOCK_STREAM, 0, socket.AI_ADDRCONFIG)
        numeric = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
        return [
            ResolveResult(hostname=host, host=_numeric(address), port=port, family=kind, proto=proto, flags=numeric)
            for kind, _, proto, _, address in await NAMES.call(look_up)
        ]

    async def close(self) -> None:
        """Do nothing: the threads are the process's."""


def _numeric(address: tuple[object, ...]) -> str:
    """Return *address* as a text, with the interface that a link-local one of IPv6 needs."""
    host, _, *rest = address
    return f"{host}%{rest[1]}" if len(rest) > 1 and rest[1] else str(host)


def _trust() -> ssl.SSLContext:
    """Return what requests trusts, so that who logs in on a worker does so in the triggerer."""
    bundle = Path(os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE") or certifi.where())
    try:
        return _trusting(bundle, bundle.stat().st_mtime_ns)
    except OSError as error:
        raise NotSent(f"the certificates to trust can't be read: {bundle} ({_plain(error)})") from error


@lru_cache(maxsize=4)
def _trusting(bundle: Path, _changed: int) -> ssl.SSLContext:
    """Return what trusts *bundle*, read once for all lines of the process until the file is changed."""
    if bundle.is_dir():
        return ssl.create_default_context(capath=bundle)
    return ssl.create_default_context(cafile=bundle)


def _proxy(url: URL) -> str | None:
    """Return the proxy that the environment wants for *url*."""
    proxies = getproxies()
    proxy = proxies.get(url.scheme) or proxies.get("all")
    if not proxy or proxy_bypass(f"{url.host}:{url.port}"):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"


def _plain(error: BaseException) -> str:
    """Return in a word or two what *error* stands on; the texts around it are long."""
    cause = error.__cause__ or error
    return str(cause.strerror) if isinstance(cause, OSError) and cause.strerror else type(cause).__name__
