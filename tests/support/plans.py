"""A server that says what it is told to, byte by byte."""

import socket
import ssl
import struct
import threading
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

DRIP = 0.05
"""Seconds between two bytes."""

TLS_HELLO = b"\x16\x03"


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


@dataclass(frozen=True)
class Certificate:
    """A certificate of 127.0.0.1 that no client trusts unless told to."""

    path: Path

    def context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.path)
        return context
