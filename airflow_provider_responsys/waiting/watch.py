"""The poller in the triggerer: many polls at a time on one event loop, and the outcomes written to the ledger."""

import asyncio
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from airflow_provider_responsys.errors import ResponsysError, TryLater
from airflow_provider_responsys.protocol.polling import Outcome
from airflow_provider_responsys.protocol.ratelimit import TOLD_LATER
from airflow_provider_responsys.waiting.engine import Counted, WaitEngine
from airflow_provider_responsys.waiting.event import Status
from airflow_provider_responsys.waiting.schedule import PASSING, troubles
from airflow_provider_responsys.waiting.telling import Observer, Unobserved, log_limit, log_outcomes, log_progress

MAX_IN_FLIGHT = 40
"""Polls in flight: enough for 1,000 a minute that take two seconds each."""

MAX_LARGE_IN_FLIGHT = 2
"""Of those for many requests: an answer of 40,000 results takes 3 MB, and a tenth of a second to read."""

PROGRESS_EVERY = 30.0
COMPLAIN_EVERY = 60.0
"""Seconds between log lines."""

Ask = Callable[[Sequence[str]], Awaitable[Mapping[str, Outcome]]]
"""Polls some requests."""

ReadLimit = Callable[[], Awaitable[int | None]]
"""Reads how many polls a minute the account has, None where that is not said."""

Record = Callable[[Mapping[str, Outcome]], object]
"""Takes note of final outcomes."""


def most_in_flight(ids_per_poll: int) -> int:
    """Return how many polls may be in flight, each of up to *ids_per_poll* requests."""
    return MAX_IN_FLIGHT if ids_per_poll == 1 else MAX_LARGE_IN_FLIGHT


class Watch:
    """Polls as *engine* decides until everything has ended, or the deadline has come.

    *ask* sends one poll. *read_limit* reads the account's limit, where nothing else
    says it. *record* is told of each final outcome.
    """

    def __init__(
        self,
        engine: WaitEngine,
        ask: Ask,
        *,
        log: Any,
        read_limit: ReadLimit | None = None,
        observer: Observer | None = None,
        record: Record | None = None,
    ) -> None:
        self._engine = engine
        self._ask = ask
        self._log = log
        self._read_limit = read_limit
        self._observer = observer or Unobserved()
        self._record = record
        self._polls: set[asyncio.Future[None]] = set()
        self._woken = asyncio.Event()
        self._next_at = math.inf
        self._learning: asyncio.Future[None] | None = None
        self._failure: Exception | None = None
        self._complain_at = -math.inf
        self._report_at = math.inf

    async def until(self, deadline: float) -> Status:
        """Poll until everything has ended or the loop's clock reads *deadline*; raise what will not pass."""
        loop = asyncio.get_running_loop()
        self._report_at = loop.time() + PROGRESS_EVERY
        if self._read_limit and self._engine.schedule:
            self._learning = asyncio.ensure_future(self._learn_limit(self._read_limit, self._engine.schedule.due))
        try:
            while (status := self._status(deadline, loop.time())) is None:
                self._next_at = self._send(loop.time())
                await self._woken_by(min(self._next_at, deadline, self._report_at))
                self._report(loop.time())
        finally:
            await self.stop()
        return status

    async def stop(self) -> None:
        """Give up the polls that are not answered."""
        stopping = [*self._polls, *filter(None, [self._learning])]
        for task in stopping:
            task.cancel()
        await asyncio.gather(*stopping, return_exceptions=True)

    def _status(self, deadline: float, now: float) -> Status | None:
        """Return how the wait has ended, or None if it has not; raise what will not pass."""
        if self._failure:
            raise self._failure
        if self._engine.ended:
            return Status.FINISHED
        return Status.TIMEOUT if now >= deadline else None

    def _report(self, now: float) -> None:
        if now >= self._report_at:
            self._report_at = now + PROGRESS_EVERY
            log_progress(self._log, self._engine.state.results)

    def _send(self, now: float) -> float:
        """Send the polls that leave *now*, and return when the next one may."""
        for ids in self._engine.take(now):
            sending = asyncio.ensure_future(self._poll(ids))
            self._polls.add(sending)
            sending.add_done_callback(self._end)
        return self._engine.next_at

    def _end(self, sending: "asyncio.Future[None]") -> None:
        self._polls.discard(sending)
        # Most answers change nothing about when the next poll leaves, and waking the watch costs more than looking.
        if not self._polls or self._failure or self._engine.next_at < self._next_at:
            self._woken.set()

    async def _woken_by(self, until: float) -> None:
        """Wait until an answer calls for something, but not longer than *until*."""
        self._woken.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout_at(until):
                await self._woken.wait()

    async def _poll(self, ids: Sequence[str]) -> None:
        loop = asyncio.get_running_loop()
        sent = loop.time()
        try:
            try:
                outcomes = await self._ask(ids)
            except ResponsysError as error:
                self._take_in(self._engine.failed(ids, error, sent, loop.time()))
                self._observer.refused(error)
                self._complain(error, loop.time())
            else:
                counted = self._engine.answered(outcomes, sent, loop.time())
                self._observer.answered(counted.found)
                self._take_in(counted)
        except Exception as error:  # noqa: BLE001 -- raised again by `until`
            self._failure = error

    def _take_in(self, counted: Counted) -> None:
        log_outcomes(self._log, counted.final, self._engine.state.sizes)
        if self._record and counted.final:
            self._record(counted.final)

    def _complain(self, error: ResponsysError, now: float) -> None:
        if isinstance(error, PASSING) and now >= self._complain_at:
            self._complain_at = now + COMPLAIN_EVERY
            self._log.warning(
                "No results at the moment (%d times so far), polling again later: %s",
                self._engine.patience.troubles,
                error,
            )

    async def _learn_limit(self, read_limit: ReadLimit, start: float) -> None:
        """Go by the account's own limit once it can be read; nothing about it ends the wait, or holds it up."""
        # What may not be polled yet is not asked for anything else either: see the trigger's first delay.
        await asyncio.sleep(start - asyncio.get_running_loop().time())
        told = False
        for wait in troubles():
            try:
                self._keep_to(await read_limit())
            except ResponsysError as error:
                if not told:
                    log_limit(self._log, None, round(self._engine.pace.limit), error)
                    told = True
                if not isinstance(error, TOLD_LATER):
                    return
                await asyncio.sleep(max(wait, error.wait if isinstance(error, TryLater) else 0.0))
            except Exception:  # noqa: BLE001 -- logged, and a default serves instead
                self._log.exception("The account's limits can't be read")
                return
            else:
                return

    def _keep_to(self, limit: int | None) -> None:
        """Poll at most *limit* times a minute from now on, or go on as before if it is not known."""
        if limit and self._engine.use_limit(limit, asyncio.get_running_loop().time()):
            self._woken.set()  # the next poll is due at another time
        log_limit(self._log, limit, round(self._engine.pace.limit))
