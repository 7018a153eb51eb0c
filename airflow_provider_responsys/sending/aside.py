"""Calls that may hang, on a thread of their own, so that a stop is noticed meanwhile."""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import islice
from queue import Empty
from typing import Any, TypeVar

from airflow_provider_responsys.errors import LedgerFailed
from airflow_provider_responsys.sending.run import LOOK_UP, Halt, Inbox, Written
from airflow_provider_responsys.threads import Call, Pool

CHUNK = 100
"""Items that are fetched together."""

CLOSED_WITHIN = 2.0
"""Seconds that the last call may take."""

HANGS_WITHIN = 0.3
"""Seconds in which a call ends that does not hang."""

T = TypeVar("T")


class Aside:
    """The one thread that calls a ledger. What is told through *inbox* meanwhile is heard.

    It is also the only one: a database's connection may not change threads.
    """

    def __init__(self, inbox: Inbox, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.pool = Pool(1, "responsys-ledger")
        self._inbox = inbox
        self._clock = clock
        self._hangs: Call[Any] | None = None
        """The call that was left behind, if one was."""

    def call(self, function: Callable[[], T]) -> T:
        """Return what *function* returns; told to stop, raise the reason if that takes longer than the stop allows.

        After that, raise at once as long as what was left behind has not ended.
        """
        if self._hangs and not self._hangs.ended:
            raise LedgerFailed("The ledger has not answered an earlier call")
        call = Call(function, then=lambda: self._inbox.put(Written()))
        self.pool.submit(call)
        halt: Halt | None = None
        until = math.inf
        while not call.ended and (halt is None or self._clock() < until):
            with suppress(Empty):
                event = self._inbox.get(timeout=LOOK_UP)
                if isinstance(event, Halt):
                    halt = halt or event
                    until = min(until, self._clock() + event.grace)
        if halt:
            self._inbox.put(halt)  # what comes next has to stop, too
            if not call.ended:
                self._hangs = call
                raise halt.reason
        return call.result()

    def iterate(self, function: Callable[[], Iterable[T]]) -> Iterator[T]:
        """Yield what the iterable yields that *function* returns."""
        iterator = self.call(lambda: iter(function()))
        while some := self.call(lambda: list(islice(iterator, CHUNK))):
            yield from some

    def close(self, last: Callable[[], object]) -> None:
        """Call *last*, and end; hardly wait for it where an earlier call hangs."""
        hangs = self.pool.is_at_work
        call = Call(last)
        self.pool.submit(call)
        if call.wait(HANGS_WITHIN if hangs else CLOSED_WITHIN):
            self.pool.close()
            call.result()
