"""A server that says what it is told to, byte by byte, and a line to it for each driver."""

import asyncio
import datetime as dt
import ipaddress
import socket
import ssl
import struct
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from airflow_provider_responsys.protocol.account import Account
from airflow_provider_responsys.protocol.wire import Conversation
from airflow_provider_responsys.transport import aio, sync

DRIP = 0.05
"""Seconds between two bytes."""

TLS_HELLO = b"\x16\x03"

T = TypeVar("T")


class Act(Enum):
    """What a server may do instead of answering."""

    CLOSE = "close the connection in good order"
    RESET = "drop it"
    HANG = "say nothing"


@dataclass(frozen=True)
class Drip:
    """An answer that comes a byte at a time, *before* first at once."""

    text: bytes
    before: bytes = b""


@dataclass(frozen=True)
class Sip:
    """No answer, and the request is read a little at a time."""


Answer = bytes | Act | Drip | Sip | None


class Server:
    """Serves each connection with the next of *plans*: one answer a request."""

    def __init__(self, *plans: list[Answer], tls: ssl.SSLContext | None = None) -> None:
        self.plans = deque(plans)
        self.requests: list[bytes] = []
        self.connections = 0
        self.dripped = 0
        self._tls = tls
        self._over = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}"

    def close(self) -> None:
        self._over.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join()

    def _accept(self) -> None:
        while not self._over.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            plan = self.plans.popleft() if self.plans else []
            thread = threading.Thread(target=self._serve, args=(connection, plan))
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket, plan: list[Answer]) -> None:
        with ExitStack() as open_sockets:
            open_sockets.callback(connection.close)
            connection.settimeout(10)
            with suppress(OSError):
                if self._tls:
                    connection = self._tls.wrap_socket(connection, server_side=True)
                    open_sockets.callback(connection.close)
                if all(self._answered(connection, answer) for answer in plan):
                    self._wait_for_the_end(connection)

    def _answered(self, connection: socket.socket, answer: Answer) -> bool:
        """Read a request and answer it; return whether the connection goes on."""
        if answer is None:
            return False  # without waiting for another request
        if isinstance(answer, Sip):
            self._sip(connection)
            return False
        self.requests.append(_request(connection))
        match answer:
            case Drip(text, before):
                self._drip(connection, text, before)
            case Act.RESET:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            case Act.HANG:
                self._over.wait(10)
            case Act.CLOSE:
                pass
            case bytes():
                connection.sendall(answer)
        return isinstance(answer, bytes) and b"\r\nConnection: close" not in answer

    def _drip(self, connection: socket.socket, text: bytes, before: bytes) -> None:
        connection.sendall(before)
        for place in range(len(text)):
            if self._over.wait(DRIP):
                return
            connection.sendall(text[place : place + 1])
            self.dripped += 1

    def _sip(self, connection: socket.socket) -> None:
        while not self._over.wait(DRIP) and connection.recv(1024):
            self.dripped += 1

    def _wait_for_the_end(self, connection: socket.socket) -> None:
        connection.settimeout(0.05)
        while not self._over.is_set():
            try:
                if not connection.recv(1):
                    return
            except TimeoutError:
                continue


def _request(connection: socket.socket) -> bytes:
    """Return one whole request."""
    text = b""
    while b"\r\n\r\n" not in text:
        piece = connection.recv(65536)
        if not piece:
            raise ConnectionError
        text += piece
        if text.startswith(TLS_HELLO):
            return text
    head, _, body = text.partition(b"\r\n\r\n")
    length = next(
        (int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")),
        0,
    )
    while len(body) < length:
        body += connection.recv(65536)
    return head + b"\r\n\r\n" + body


Serve = Callable[..., Server]


@pytest.fixture
def drip() -> type[Drip]:
    """Give an answer that comes a byte at a time."""
    return Drip


@pytest.fixture
def sip() -> type[Sip]:
    """Give a server that reads a request a little at a time."""
    return Sip


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Give what starts a server."""
    servers: list[Server] = []

    def start(*plans: list[Answer], tls: ssl.SSLContext | None = None) -> Server:
        servers.append(Server(*plans, tls=tls))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture(params=["plain", "tls"])
def layer(
    request: pytest.FixtureRequest, certificate: "Certificate", monkeypatch: pytest.MonkeyPatch
) -> ssl.SSLContext | None:
    """Give what a server is to speak: TLS that is trusted, or none."""
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate.path))
    return certificate.context() if request.param == "tls" else None


@pytest.fixture
def act() -> type[Act]:
    """Give what a server may do instead of answering."""
    return Act


class Line:
    """A driver to hold conversations with. *kind* is its name, *driver* the thing itself."""

    def __init__(self, kind: str, driver: Any, runner: asyncio.Runner) -> None:
        self.kind = kind
        self.driver = driver
        self.account: Account = driver._account
        self._runner = runner

    def run(self, conversation: Conversation[T]) -> T:
        result = self.driver.run(conversation)
        found: T = self._runner.run(result) if self.kind == "aio" else result
        return found

    def settle(self) -> None:
        """Let what the other end has done arrive."""
        if self.kind == "aio":
            self._runner.run(asyncio.sleep(0.05))
        else:
            threading.Event().wait(0.05)

    def at_once(self, *conversations: Conversation[T]) -> list[T | BaseException]:
        """Hold all *conversations* at the same time; return what each came to."""
        if self.kind == "aio":
            found: list[T | BaseException] = self._runner.run(self._gathered(conversations))
            return found
        results: list[T | BaseException] = [KeyError()] * len(conversations)

        def hold(place: int) -> None:
            try:
                results[place] = self.driver.run(conversations[place])
            except BaseException as error:  # noqa: BLE001 -- it is looked at by the test
                results[place] = error

        threads = [threading.Thread(target=hold, args=(place,)) for place in range(len(conversations))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return results

    def close(self) -> None:
        result = self.driver.close()
        if self.kind == "aio":
            self._runner.run(result)

    async def _gathered(self, conversations: tuple[Conversation[T], ...]) -> list[T | BaseException]:
        results: list[T | BaseException] = await asyncio.gather(
            *map(self.driver.run, conversations), return_exceptions=True
        )
        return results


OpenLine = Callable[..., Line]


@pytest.fixture(params=["sync", "aio"])
def line(request: pytest.FixtureRequest) -> Iterator[OpenLine]:
    """Give what opens a line with each driver."""
    lines: list[Line] = []
    with asyncio.Runner() as runner:

        def start(host: str = "http://127.0.0.1", timeout: float = 5.0, **options: Any) -> Line:
            account = Account(host=host, login="u", password="p", timeout=timeout)
            driver: Any = {"sync": sync.Responsys, "aio": aio.Responsys}[request.param]
            options = {"user_agent": "tests/1 airflow/3", "login_waits": lambda: iter(())} | options
            lines.append(Line(request.param, driver(account, **options), runner))
            return lines[-1]

        yield start
        for opened in lines:
            opened.close()


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the surroundings of the tests out of them."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "requests_ca_bundle", "curl_ca_bundle"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@dataclass(frozen=True)
class Certificate:
    """A certificate of 127.0.0.1 that nobody trusts unless told to."""

    path: Path

    def context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.path)
        return context


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    """Give a certificate made for these tests."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = dt.datetime.now(dt.UTC)
    day = dt.timedelta(days=1)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - day)
        .not_valid_after(now + day)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "certificate.pem"
    path.write_bytes(
        made.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return Certificate(path)
