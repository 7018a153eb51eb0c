"""The sandbox's HTTP/1.1 edge: reads requests, lets the account answer, and does what a fault says.

On asyncio streams rather than `http.server`: a request that waits for its
latency is a timer and not a thread, so a thousand may wait on two cores, and
the account sees one request at a time. It also has to send what a well-behaved
server never would.
"""

import asyncio
import secrets
import socket
import struct
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from email.utils import formatdate
from http import HTTPStatus
from threading import Lock

from airflow_provider_responsys.sandbox import answers
from airflow_provider_responsys.sandbox.answers import CODES, Answer
from airflow_provider_responsys.sandbox.bodies import MAX_BODY
from airflow_provider_responsys.sandbox.faults import RESULT_KINDS, Endpoint, Fault, FaultPlan, Kind, When
from airflow_provider_responsys.sandbox.state import Account, Call, route

MAX_HEAD = 64 * 1024
SECRET_HEADERS = frozenset({"authorization", "cookie", "proxy-authorization"})
UNSAFE_IN_PATH = frozenset('[]{}"<>\\^`|')  # a Tomcat refuses them unless they are percent-encoded
CONTROL_PREFIX = "/sandbox/"
HANG_SECONDS = 3600.0
SLOW_SECONDS = 2.0
SLOW_PIECES = 10
DRIP_SECONDS = 1.0
OK_BELOW = 300

NOTHING = answers.of(None)  # stands for an answer that is never sent
BARE: Mapping[str, int] = {Kind.BARE_413: 413, Kind.BARE_429: 429, Kind.BARE_503: 503}
PAGES: Mapping[str, tuple[int, str]] = {
    Kind.BAD_GATEWAY: (502, "Bad Gateway"),
    Kind.HTML_503: (503, "Service Temporarily Unavailable"),  # System outages page: no envelope
    Kind.GATEWAY_TIMEOUT: (504, "Gateway Timeout"),
}

SILENT = frozenset({Kind.LOST, Kind.RESET, Kind.HANG})
ENDING = frozenset({Kind.CLOSE, Kind.WRONG_LENGTH})

Control = Callable[[Call], Answer]


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One request as the log remembers it: without the token, and never the body of a login."""

    time: float
    endpoint: Endpoint
    method: str
    path: str
    headers: Mapping[str, str] = field(repr=False)
    size: int
    body: bytes = field(default=b"", repr=False)

    def told(self) -> dict[str, object]:
        """Return it as JSON can hold it."""
        return asdict(self) | {"body": self.body.decode("ascii", "replace")}


class Edge:
    """Serves one account to any number of connections."""

    def __init__(self, account: Account, plan: FaultPlan, control: Control) -> None:
        self.account = account
        self.plan = plan
        self.control = control
        self.lock = Lock()
        self.log: deque[Seen] = deque(maxlen=account.settings.log_length)
        self.in_flight = 0
        self.most_in_flight = 0
        self.too_large = 0
        self._connections: set[asyncio.Task[None]] = set()

    def connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve a new connection."""
        connection = asyncio.create_task(self._serve(reader, writer))
        self._connections.add(connection)
        connection.add_done_callback(self._connections.discard)

    async def disconnect(self) -> None:
        """End every connection."""
        connections = list(self._connections)
        for connection in connections:
            connection.cancel()
        await asyncio.gather(*connections, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of one connection until either side ends it."""
        try:
            while (call := await self._read(reader, writer)) and await self._answer(call, reader, writer):
                pass
        except (ConnectionError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # the client has gone, or went quiet
        finally:
            writer.close()

    async def _read(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Call | None:
        async with asyncio.timeout(self.account.settings.idle_timeout):
            head = await reader.readuntil(b"\r\n\r\n")
        call = _read_head(head)
        length = call.headers.get("content-length", "0") if call else ""
        if call is None or not length.isdecimal() or "transfer-encoding" in call.headers:
            await _write(writer, answers.page(HTTPStatus.BAD_REQUEST, "Bad Request"))
            return None
        if int(length) > MAX_BODY:
            self.too_large += 1
            _reset(writer)
            return None
        if call.headers.get("expect", "").lower() == "100-continue":
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        return replace(call, body=await reader.readexactly(int(length))) if int(length) else call

    async def _answer(self, call: Call, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer *call* and return whether the connection goes on."""
        if call.path.startswith(CONTROL_PREFIX):
            await _write(writer, self.control(call))
            return True
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            return await self._play(call, reader, writer)
        finally:
            self.in_flight -= 1

    async def _play(self, call: Call, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        loop = asyncio.get_running_loop()
        latency, arrived = self.account.settings.latency, loop.time()
        if latency:
            await asyncio.sleep(latency / 2)
        fault, answer = self._effect(call)
        answer = self._dressed(answer, call)
        if latency:
            await asyncio.sleep(max(arrived + latency - loop.time(), 0))
        if fault is None or fault.kind in RESULT_KINDS:
            await _write(writer, answer)
            return _goes_on(call, answer)
        return await _spoil(fault, answer, call, reader, writer)

    def _effect(self, call: Call) -> tuple[Fault | None, Answer]:
        """Let the account answer, unless a fault comes before; return the fault that is still to be played."""
        to = route(call)
        endpoint = to.endpoint if to else Endpoint.OTHER
        with self.lock:
            self.log.append(self._seen(call, endpoint))
            self.account.counts[endpoint] += 1
            fault = self.plan.pick(endpoint, call.body)
            if fault and fault.when is When.BEFORE:
                self.plan.record(fault)
                return fault, _instead(fault, call) or NOTHING
            spoiled = Kind(fault.kind) if fault and fault.kind in RESULT_KINDS else None
            answer = self.account.answer(call, spoiled)
            if fault is None or answer.status >= OK_BELOW:
                return None, answer  # a refusal has no effect for a fault to come after
            self.plan.record(fault)
        return fault, _instead(fault, call) or answer

    def _dressed(self, answer: Answer, call: Call) -> Answer:
        """Return *answer* framed as the settings want it, and named as its request was, if Responsys gives it."""
        settings = self.account.settings
        name = call.headers.get("x-request-id")
        echoes = settings.echo_request_id and name and answer.content_type == answers.JSON_TYPE
        headers = (*answer.headers, ("X-Request-Id", name)) if echoes and name else answer.headers
        return replace(answer, headers=headers, length=answer.length and settings.framing == "length")

    def _seen(self, call: Call, endpoint: Endpoint) -> Seen:
        secret = endpoint in (Endpoint.LOGIN, Endpoint.REFRESH)
        return Seen(
            time=self.account.now(),
            endpoint=endpoint,
            method=call.method,
            path=call.path,
            headers={name: value for name, value in call.headers.items() if name not in SECRET_HEADERS},
            size=len(call.body),
            body=call.body if self.account.settings.keep_bodies and not secret else b"",
        )


def _read_head(head: bytes) -> Call | None:
    try:
        first, *lines = head.decode("ascii").removesuffix("\r\n\r\n").split("\r\n")
        method, target, version = first.split(" ")
    except ValueError:
        return None
    if version != "HTTP/1.1" or not target.startswith("/") or not UNSAFE_IN_PATH.isdisjoint(target):
        return None
    headers = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon:
            return None
        headers[name.strip().lower()] = value.strip()
    path, _, query = target.partition("?")
    return Call(method, path, query, headers)


def _instead(fault: Fault, call: Call) -> Answer | None:
    """Return the answer that comes in the place of the right one, if *fault* replaces it."""
    if fault.kind in CODES:
        return answers.error(fault.kind, status=fault.status)
    if fault.kind in PAGES:
        return answers.page(*PAGES[fault.kind])
    if fault.kind in BARE:
        return answers.bare(BARE[fault.kind])
    match fault.kind:
        case Kind.UNLISTED:
            body = answers.envelope("UNEXPECTED_EXCEPTION") | {"errorCode": "SOMETHING_NO_PAGE_LISTS"}
            return answers.of(body, HTTPStatus.INTERNAL_SERVER_ERROR)
        case Kind.REDIRECT:
            location = ("Location", f"{call.address}{call.path}")
            return replace(answers.page(HTTPStatus.TEMPORARY_REDIRECT, "Moved"), headers=(location,))
        case _:
            return None


async def _spoil(
    fault: Fault, answer: Answer, call: Call, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> bool:
    """Send *answer* as *fault* wants it, and return whether the connection goes on."""
    if fault.kind in SILENT:
        await _keep_silent(fault, reader, writer)
        return False
    answer = _changed(fault, answer)
    match fault.kind:
        case Kind.WRONG_LENGTH:
            await _write(writer, answer, promised=len(answer.body) + 1000)
        case Kind.SLOW:
            await _write_slowly(writer, answer, SLOW_SECONDS if fault.seconds is None else fault.seconds)
        case Kind.DRIP:
            await _drip(writer, answer, DRIP_SECONDS if fault.seconds is None else fault.seconds)
        case _:
            await _write(writer, answer)
    return fault.kind not in ENDING and _goes_on(call, answer)


async def _keep_silent(fault: Fault, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """End the connection without an answer, as *fault* wants it."""
    if fault.kind == Kind.RESET:
        _reset(writer)
    if fault.kind == Kind.HANG:
        async with asyncio.timeout(HANG_SECONDS if fault.seconds is None else fault.seconds):
            await reader.read(1)  # ends when the client gives up


def _changed(fault: Fault, answer: Answer) -> Answer:
    """Return *answer* as *fault* spoils it before it is sent."""
    half = answer.body[: len(answer.body) // 2]
    match fault.kind:
        case Kind.TRUNCATED:
            return replace(answer, body=half)
        case Kind.EMPTY:
            return replace(answer, body=b"")
        case Kind.NO_LENGTH:
            return replace(answer, length=False)
        case Kind.CUT:
            return replace(answer, body=half, length=False)
        case _:
            return answer


def _goes_on(call: Call, answer: Answer) -> bool:
    """Return whether the connection goes on after *answer*."""
    return answer.length and call.headers.get("connection", "").lower() != "close"


def _head(answer: Answer, promised: int | None = None) -> bytes:
    length = f"Content-Length: {len(answer.body) if promised is None else promised}"
    # Recorded: its first digits are the seconds, the lowest byte first.
    moment = struct.pack("<I", int(time.time())).hex()
    lines = [
        f"HTTP/1.1 {int(answer.status)} {HTTPStatus(answer.status).phrase}",
        f"Date: {formatdate(usegmt=True)}",
        f"Content-Type: {answer.content_type}",
        length if answer.length or promised is not None else "Connection: close",
        f"X-CorrelationID: Id-{moment}{secrets.token_hex(8)} 0",
        *(f"{name}: {value}" for name, value in answer.headers),
    ]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


async def _write(writer: asyncio.StreamWriter, answer: Answer, promised: int | None = None) -> None:
    writer.write(_head(answer, promised) + answer.body)
    await writer.drain()


async def _write_slowly(writer: asyncio.StreamWriter, answer: Answer, seconds: float) -> None:
    writer.write(_head(answer))
    step = -(-len(answer.body) // SLOW_PIECES)
    for start in range(0, len(answer.body), step):
        await asyncio.sleep(seconds / SLOW_PIECES)
        writer.write(answer.body[start : start + step])
        await writer.drain()


async def _drip(writer: asyncio.StreamWriter, answer: Answer, seconds: float) -> None:
    text = _head(answer) + answer.body
    for place in range(len(text)):
        writer.write(text[place : place + 1])
        await writer.drain()
        await asyncio.sleep(seconds)


def _reset(writer: asyncio.StreamWriter) -> None:
    connection: socket.socket = writer.get_extra_info("socket")
    # Lingering for no time turns the close into a reset.
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
