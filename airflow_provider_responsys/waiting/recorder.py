"""Writes outcomes to the ledger while a wait goes on, and never holds it up."""

import asyncio
import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Self

from airflow_provider_responsys.errors import LedgerFailed, LedgerUnreachable
from airflow_provider_responsys.protocol.polling import Outcome
from airflow_provider_responsys.waiting.aside import Aside
from airflow_provider_responsys.waiting.records import RequestRecords, log_unwritten
from airflow_provider_responsys.waiting.schedule import troubles
from airflow_provider_responsys.waiting.state import WaitState

AT_ONCE = 30.0
"""Seconds that one call of the ledger may take: a lock, and a statement, are waited for less."""

IDLE = 10.0
"""Seconds without an outcome after which the connections are closed: a wait may last for a day."""

FIRST_READ = 15.0
"""Seconds that the first poll waits for the ledger."""

LAST_WAITS = (5.0, 30.0)
"""Seconds between the last attempts to write."""

LAST_CALL = 5.0
"""Seconds that a last attempt has at the deadline."""


class Recorder:
    """Tells *state* what the ledger knows, and the ledger what becomes known, as soon as it can be reached.

    *open_records* connects; it and all that it returns is called on *aside*. No call
    outlasts the *deadline* of the wait. *refused* is why the ledger does not take
    anything, where that will not pass.
    """

    def __init__(
        self,
        open_records: Callable[[], RequestRecords],
        aside: Aside,
        state: WaitState,
        *,
        log: Any,
        deadline: float,
    ) -> None:
        self._open = open_records
        self._aside = aside
        self._state = state
        self._log = log
        self._deadline = deadline
        self._records: RequestRecords | None = None
        self._early: dict[str, Outcome] = {}
        """Outcomes that became known before the ledger could be read."""
        self._told = asyncio.Event()
        self._work: asyncio.Future[None] | None = None
        self.refused: LedgerFailed | None = None

    async def __aenter__(self) -> Self:
        if self._records is None:  # what is recorded need not be polled again
            with suppress(LedgerFailed):
                self._state.learn(await self.read(asyncio.get_running_loop().time() + FIRST_READ))
        self._work = asyncio.ensure_future(self._keep_up())
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._work:
            self._work.cancel()
            await asyncio.gather(self._work, return_exceptions=True)
        # A wait that is cancelled goes on elsewhere, and polls again what is not written.
        if kind is None or issubclass(kind, Exception):
            await self._write_the_rest()

    def note(self, outcomes: Mapping[str, Outcome]) -> None:
        """Have *outcomes*, which are final, written."""
        if self._records is None:
            self._early.update(outcomes)
        else:
            self._records.note(outcomes)
        self._told.set()

    async def read(self, until: float = math.inf) -> RequestRecords:
        """Return what the ledger knows; raise `LedgerUnreachable` where it is away."""
        if self._records is None:
            self._records = records = await self._call(self._opened, until)
            records.polls = self._state.polls
            records.note(self._early)
            self._early.clear()
            if unknown := sum(not records.knows(request_id) for request_id in self._state.open):
                self._log.warning(
                    "The ledger does not know %d of %d open requests: their outcomes are counted and not written there",
                    unknown,
                    len(self._state.open),
                )
        return self._records

    def _opened(self) -> RequestRecords:
        records = self._open()
        records.read()
        return records

    async def _call(self, function: Callable[[], Any], until: float = math.inf) -> Any:
        left = min(self._deadline, until) - asyncio.get_running_loop().time()
        return await self._aside.call(function, min(AT_ONCE, max(left, LAST_CALL)))

    async def _keep_up(self) -> None:
        """Read the ledger, then write to it whatever is noted, until this is cancelled."""
        waits = troubles()
        while True:
            try:
                if self._records is None:
                    self._state.learn(await self.read())
                if failure := await self._call(self._records.write):  # type: ignore[union-attr]  # it is read by now
                    raise failure
            except LedgerUnreachable as error:
                self._log.warning("The ledger can't be reached at the moment, trying again later: %s", error)
                await asyncio.sleep(next(waits))
                continue
            except LedgerFailed as error:
                self.refused = error
                self._log.error(
                    "Outcomes are not written to the ledger: %s. The wait goes on, and fails at its end", error
                )
                return
            waits = troubles()
            await self._something_to_write()

    async def _something_to_write(self) -> None:
        """Wait for the next outcome; hold no connection where it takes long."""
        try:
            async with asyncio.timeout(IDLE):
                await self._told.wait()
        except TimeoutError:
            if self._records is not None:
                with suppress(LedgerUnreachable):
                    await self._call(self._records.close)
            await self._told.wait()
        self._told.clear()

    async def _write_the_rest(self) -> None:
        loop = asyncio.get_running_loop()
        failure: LedgerFailed | None = self.refused
        for wait in (*LAST_WAITS, None):
            if self.refused or not (self._early or (self._records and self._records.unwritten)):
                break
            try:
                records = await self.read()
                failure = await self._call(records.write)
            except LedgerFailed as error:
                failure = error
            if failure and not isinstance(failure, LedgerUnreachable):
                self.refused = failure
                break
            if failure is None or wait is None or loop.time() + wait >= self._deadline:
                break
            await asyncio.sleep(wait)
        unwritten = len(self._early) + (self._records.unwritten if self._records else 0)
        if failure and unwritten:
            log_unwritten(self._log, unwritten, failure)
