"""One deadline for a whole exchange, whatever its socket waits for: each byte starts a socket's own timeout anew."""

import socket
import threading
import time
from contextlib import suppress

LINGER = 5.0
"""Seconds that the watching thread stays when there is nothing to watch."""


class Deadline:
    """When one exchange ends, *at* a reading of the monotonic clock; its sockets are shut down then."""

    def __init__(self, at: float) -> None:
        self.at = at
        self.over = False
        self._sockets: list[socket.socket] = []
        self._lock = threading.Lock()

    def watch(self, sock: socket.socket) -> None:
        """Let *sock* end with this exchange."""
        # TLS within the TLS of a proxy is no socket, and names the one that it stands on.
        sock = getattr(sock, "socket", sock)
        with self._lock:
            self._sockets.append(sock)
            if self.over:
                _shut_down(sock)

    def cut(self) -> None:
        """End the exchange."""
        with self._lock:
            self.over = True
            for sock in self._sockets:
                _shut_down(sock)


class Watchdog:
    """Cuts each exchange that is not ended before its deadline. Its thread runs while there are exchanges."""

    def __init__(self) -> None:
        self._running: set[Deadline] = set()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def begin(self, seconds: float) -> Deadline:
        """Return the deadline of an exchange that may take *seconds*."""
        deadline = Deadline(time.monotonic() + seconds)
        with self._changed:
            if not self._running:  # otherwise the thread is awake before this one is due: all may take equally long
                self._changed.notify()
            self._running.add(deadline)
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._watch, name="responsys-deadlines", daemon=True)
                self._thread.start()
        return deadline

    def end(self, deadline: Deadline) -> bool:
        """Forget *deadline*; return whether the exchange came to its end before it."""
        with self._changed:
            self._running.discard(deadline)
            return not deadline.over

    def _watch(self) -> None:
        with self._changed:
            while self._cut_those_due() or self._changed.wait(LINGER) or self._running:
                pass
            self._thread = None

    def _cut_those_due(self) -> bool:
        """Cut what is due, and wait for what is due next; return False if there is nothing to wait for."""
        now = time.monotonic()
        for deadline in [each for each in self._running if each.at <= now]:
            deadline.cut()
            self._running.discard(deadline)
        if not self._running:
            return False
        self._changed.wait(min(each.at for each in self._running) - now)
        return True


def _shut_down(sock: socket.socket) -> None:
    # The plain way, also for TLS: a farewell could block, and its state belongs to the thread that reads.
    with suppress(OSError):
        socket.socket.shutdown(sock, socket.SHUT_RDWR)
