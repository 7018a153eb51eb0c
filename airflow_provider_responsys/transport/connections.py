"""urllib3's connections, which also say whether they ever stood, and end with their exchange."""

import socket
import threading
from typing import TYPE_CHECKING, Any

import urllib3
from urllib3.exceptions import NewConnectionError

from airflow_provider_responsys.transport.deadline import Deadline

if TYPE_CHECKING:
    from urllib3.connection import HTTPConnection as Connection
else:
    Connection = object  # a mix-in: whose it is is said when a pool is made


class Unconnected(NewConnectionError):
    """The connection never stood, trust and tunnel included, so no byte of a request left on it."""


class Here(threading.local):
    """The *deadline* of the exchange that this thread is in."""

    deadline: Deadline | None = None


HERE = Here()


class Watched(Connection):
    """A connection whose sockets the exchange's deadline shuts down."""

    def connect(self) -> None:
        """Connect, or raise `Unconnected`, also where the deadline has come meanwhile."""
        try:
            super().connect()
            self._watch(self.sock)
        except Exception as error:
            raise Unconnected(self, type(error).__name__) from error
        self._check()

    def request(self, *args: Any, **kwargs: Any) -> None:
        """Send a request, on a connection that may stand already."""
        self._watch(self.sock)
        super().request(*args, **kwargs)

    def _new_conn(self) -> socket.socket:
        # Before trust and tunnel, which a proxy may drip as well.
        sock = super()._new_conn()
        self._watch(sock)
        return sock

    def _tunnel(self) -> None:
        super()._tunnel()
        self._check()  # a proxy's answer that was cut short may pass for a whole one

    def _check(self) -> None:
        """Raise `Unconnected` if the deadline has come."""
        if HERE.deadline and HERE.deadline.over:
            self.close()
            raise Unconnected(self, "it took too long")

    def _watch(self, sock: Any) -> None:
        if HERE.deadline and sock is not None:
            HERE.deadline.watch(sock)


def watched(pool: type[urllib3.HTTPConnectionPool]) -> type[urllib3.HTTPConnectionPool]:
    """Return a *pool* like that one, of watched connections."""
    connection = type("WatchedConnection", (Watched, pool.ConnectionCls), {})
    return type("WatchedPool", (pool,), {"ConnectionCls": connection})


POOLS = {"http": watched(urllib3.HTTPConnectionPool), "https": watched(urllib3.HTTPSConnectionPool)}
