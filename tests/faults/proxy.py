"""A TCP port before a Unix socket, that can go dark: what is sent arrives nowhere, and nothing says so."""

import asyncio
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Self

from tests.faults.home import Child, while_parent_lives

LOOK_AGAIN = 0.02  # seconds
PIECE = 65_536


class Proxy:
    """A process that passes bytes on, unless there is a file that says that it is *dark*."""

    def __init__(self, child: Child, port: int, dark: Path) -> None:
        self.port = port
        self._child = child
        self._dark = dark

    @classmethod
    def start(cls, folder: Path, target: str) -> Self:
        """Listen on a free port of the loopback interface, for the Unix socket *target*."""
        dark = folder / "dark"
        listener = socket.create_server(("127.0.0.1", 0))
        port = int(listener.getsockname()[1])
        parent = os.getpid()

        def serve() -> None:
            asyncio.run(_serve(listener, target, dark, parent))

        child = Child.fork(serve, folder / "proxy.log")
        listener.close()
        return cls(child, port, dark)

    def go_dark(self) -> Callable[[], None]:
        """Pass nothing on; return what ends that."""
        self._dark.touch()
        return self._dark.unlink

    def stop(self) -> None:
        """End it."""
        self._child.stop()


async def _serve(listener: socket.socket, target: str, dark: Path, parent: int) -> None:
    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _until_light(dark)
        with suppress(OSError):
            from_target, to_target = await asyncio.open_unix_connection(target)
            await asyncio.gather(_pass_on(reader, to_target, dark), _pass_on(from_target, writer, dark))

    server = await asyncio.start_server(connect, sock=listener)
    await asyncio.to_thread(while_parent_lives, parent)
    server.close()


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, dark: Path) -> None:
    with suppress(OSError):
        while piece := await reader.read(PIECE):
            await _until_light(dark)
            writer.write(piece)
            await writer.drain()
    await _until_light(dark)
    writer.close()


async def _until_light(dark: Path) -> None:
    while dark.exists():  # noqa: ASYNC110, ASYNC240 -- a file that another process makes
        await asyncio.sleep(LOOK_AGAIN)
