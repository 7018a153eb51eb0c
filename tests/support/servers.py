"""Servers that refuse, stall, or stand before a real database."""

import socket
import struct
import threading
from contextlib import suppress
from typing import Any, BinaryIO

SSL_REQUEST, GSS_REQUEST = 80877103, 80877104  # what PostgreSQL's clients may begin with


class PlainServer:
    """Speaks just enough of PostgreSQL to refuse TLS and to be told a password."""

    def __init__(self) -> None:
        self.passwords: list[str] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.login: dict[str, Any] = {
            "host": "127.0.0.1",
            "port": self._listener.getsockname()[1],
            "login": "bob",
            "password": "s3cret",
            "schema": "crm",
        }
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        """Listen no more."""
        self._listener.close()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                with client, client.makefile("rb") as stream, suppress(OSError, struct.error):
                    self._talk(client, stream)

    def _talk(self, client: socket.socket, stream: BinaryIO) -> None:
        while True:
            size, code = struct.unpack(">II", stream.read(8))
            stream.read(size - 8)
            if code not in (SSL_REQUEST, GSS_REQUEST):
                break
            client.sendall(b"N")
        client.sendall(b"R" + struct.pack(">II", 8, 3))  # the password, please, as it is
        _, size = struct.unpack(">cI", stream.read(5))
        self.passwords.append(stream.read(size - 4).rstrip(b"\0").decode())


class Proxy:
    """Passes bytes between a port and the socket file of a real database, until it is told to be silent."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._silenced: set[int] = set()
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def silence(self) -> None:
        """Pass nothing more on the connections that there are; their clients are still acknowledged what they send."""
        self._silenced |= set(range(len(self._pairs)))

    def close(self) -> None:
        """Close all of it."""
        for one in (self._listener, *(end for pair in self._pairs for end in pair)):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.socket(socket.AF_UNIX)
                server.connect(self._path)
                number = len(self._pairs)
                self._pairs.append((client, server))
                for ends in ((client, server), (server, client)):
                    threading.Thread(target=self._pass, args=(number, *ends), daemon=True).start()

    def _pass(self, number: int, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while some := source.recv(65536):
                if number not in self._silenced:
                    target.sendall(some)
            if number not in self._silenced:
                target.shutdown(socket.SHUT_WR)
