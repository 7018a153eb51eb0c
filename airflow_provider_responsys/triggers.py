"""Wait for what became of pushes, many requests in one trigger."""

import asyncio
import base64
import heapq
import lzma
import math
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from itertools import count
from typing import TYPE_CHECKING, Any, Self

from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_provider_responsys.errors import (
    FailedOver,
    InvalidAnswer,
    LimitExceeded,
    LoginExpired,
    NoAnswer,
    NotSent,
    ResponsysError,
    TryLater,
)
from airflow_provider_responsys.hooks import account_of, mask_token, observed, polls_per_minute, user_agent
from airflow_provider_responsys.protocol.polling import Failed, Finished, Gone, Outcome, Processing, Unclear, poll
from airflow_provider_responsys.protocol.results import Results
from airflow_provider_responsys.protocol.wire import Token
from airflow_provider_responsys.sending.pace import Pace

if TYPE_CHECKING:
    from airflow_provider_responsys.protocol.account import Account
    from airflow_provider_responsys.transport.aio import Responsys

MAX_PACKED = 60_000  # MySQL keeps a trigger's arguments, all together, in a TEXT of 65,535 bytes

FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": 1 << 20}]
"""A dictionary of a megabyte holds ten thousand ids; the usual eight would be taken from the triggerer."""

FIRST_DELAY = 10.0
"""Seconds before the first question. A task that resumes right after it deferred may be marked failed (a race in
Airflow 3.3's scheduler), and Responsys takes longer anyway."""

MAX_IN_FLIGHT = 32
"""Questions asked at once: enough for 1,000 a minute that take two seconds each."""

PROGRESS_EVERY = 30.0
COMPLAIN_EVERY = 60.0
"""Seconds between log lines."""

TROUBLE_WAITS = (5.0, 30.0, 120.0)
"""Seconds without questions after the first, second, and each further trouble in a row.
AFTM error page: two minutes apart after no answer, or the login may be disabled."""

PASSING = (FailedOver, InvalidAnswer, LoginExpired, NoAnswer, NotSent, TryLater)
"""What a later question may not run into: a failover ends, an outage too."""


class Status(StrEnum):
    """How a trigger ended."""

    FINISHED = "finished"
    TIMEOUT = "timeout"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Event:
    """What a trigger tells its sensor: how it ended, the counts until then, and, of an error, the reason."""

    status: Status
    results: Results
    message: str = ""

    def to_payload(self) -> dict[str, Any]:
        """Return this event as JSON values. It is stored and logged: counts only."""
        return {"status": self.status.value, "results": self.results.to_event(), "message": self.message}

    @classmethod
    def from_payload(cls, payload: object) -> Self:
        """Return the event in *payload*, or raise `InvalidAnswer`: it has crossed a process and a database."""
        if not isinstance(payload, Mapping):
            raise InvalidAnswer(f"the trigger's event is {type(payload).__name__}, not a mapping")
        try:
            status = Status(str(payload.get("status")))
        except ValueError:
            raise InvalidAnswer("the trigger's event has an unknown status") from None
        message = payload.get("message")
        if not isinstance(message, str):
            raise InvalidAnswer("the trigger's event has no message")
        results = Results.from_event(payload.get("results"))
        if status is Status.FINISHED and results.pending:
            raise InvalidAnswer(f"the trigger's event says finished, with {results.pending} requests pending")
        return cls(status, results, message)


class PushRequestTrigger(BaseTrigger):
    """Ask for the results of push requests until all are there. It never submits a push.

    :param responsys_conn_id: the connection to use.
    :param packed_ids: the ids of the requests, packed by `pack`.
    :param poll_interval: seconds until a request that was not finished is asked about again.
    :param deadline: when to give up, in seconds since the epoch.
    :param first_delay: seconds until the first question.
    :param results: the counts of requests that finished before, as `Results.to_event` gives them.
    """

    def __init__(
        self,
        *,
        responsys_conn_id: str,
        packed_ids: str,
        poll_interval: float,
        deadline: float,
        first_delay: float = FIRST_DELAY,
        results: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # Airflow did not annotate it
        self.responsys_conn_id = responsys_conn_id
        self.packed_ids = packed_ids
        self.poll_interval = poll_interval
        self.deadline = deadline
        self.first_delay = first_delay
        self.results = results
        self._watch: Watch | None = None

    def __repr__(self) -> str:
        """Return a text that is short: the ids may be many."""
        return f"<PushRequestTrigger on {self.responsys_conn_id}>"

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return what Airflow stores. No secrets, and no people: it is plain text in Airflow's database."""
        return (
            # The path is stored with every deferred task: moving this class strands them.
            "airflow_provider_responsys.triggers.PushRequestTrigger",
            {
                "responsys_conn_id": self.responsys_conn_id,
                "packed_ids": self.packed_ids,
                "poll_interval": self.poll_interval,
                "deadline": self.deadline,
                "first_delay": self.first_delay,
                "results": self.results,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Yield one event: how the wait ended."""
        # A trigger that raises fails its task without a reason, so whatever happens becomes an event.
        results = Results()
        try:
            ids = unpack(self.packed_ids)
            results = self._counted(len(ids))
            event = Event(await self._wait(ids, results), results)
        except ResponsysError as error:
            event = Event(Status.ERROR, results, str(error))
        except Exception as error:
            self.log.exception("The trigger failed")
            event = Event(Status.ERROR, results, f"the trigger failed with {type(error).__name__}: see its log")
        yield TriggerEvent(event.to_payload())  # type: ignore[no-untyped-call]  # Airflow did not annotate it

    async def cleanup(self) -> None:
        """Forget the questions that are not answered. `run` closes its line to Responsys, however it ends."""
        watch, self._watch = self._watch, None
        if watch is not None:
            await watch.stop()

    def _counted(self, open_requests: int) -> Results:
        """Return what was counted before the task deferred."""
        results = Results.from_event(self.results) if self.results else Results(total=open_requests)
        if results.pending != open_requests:
            raise InvalidAnswer(f"the trigger was given {open_requests} requests, and {results.pending} to wait for")
        return results

    async def _wait(self, ids: Sequence[str], results: Results) -> Status:
        driver = await asyncio.to_thread(_driver)
        account = await account_of(self.responsys_conn_id)
        now = asyncio.get_running_loop().time()
        limit = polls_per_minute(account)
        self.log.info("Waiting for %d of %d requests, with at most %d polls a minute", len(ids), results.total, limit)
        async with driver(account, user_agent=user_agent()) as line:
            watch = Watch(
                line,
                account,
                Schedule(ids, now + self.first_delay),
                results,
                pace=Pace.at(limit, now),
                poll_interval=self.poll_interval,
                log=self.log,
            )
            self._watch = watch
            return await watch.until(now + self.deadline - time.time())


class Schedule:
    """Which requests to ask about next: oldest due first."""

    def __init__(self, ids: Iterable[str], due: float) -> None:
        self._order = count()
        self._waiting = [(due, next(self._order), request_id) for request_id in ids]

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def due(self) -> float:
        """Return when the next request is due."""
        return self._waiting[0][0]

    def take(self, now: float, most: int) -> list[str]:
        """Return up to *most* requests that are due *now*, and forget them."""
        taken: list[str] = []
        while self._waiting and self.due <= now and len(taken) < most:
            taken.append(heapq.heappop(self._waiting)[2])
        return taken

    def put_back(self, ids: Iterable[str], due: float) -> None:
        """Let *ids* be asked about again when they are *due*."""
        for request_id in ids:
            heapq.heappush(self._waiting, (due, next(self._order), request_id))


class Watch:
    """Asks about the requests of *schedule*, at *pace*, and counts what it learns in *results*."""

    def __init__(
        self,
        line: "Responsys",
        account: "Account",
        schedule: Schedule,
        results: Results,
        *,
        pace: Pace,
        poll_interval: float,
        log: Any,
    ) -> None:
        self._line = line
        self._account = account
        self._schedule = schedule
        self._results = results
        self._pace = pace
        self._poll_interval = poll_interval
        self._log = log
        self._asking: set[asyncio.Future[None]] = set()
        self._masked: Token | None = None
        self._masking: set[asyncio.Future[None]] = set()
        self._answered = asyncio.Event()
        self._failure: Exception | None = None
        self._troubles = 0
        self._troubles_in_a_row = 0
        self._quiet_until = -math.inf
        self._complain_at = -math.inf
        self._report_at = math.inf

    async def until(self, deadline: float) -> Status:
        """Ask until everything is answered or the loop's clock reads *deadline*; raise what will not pass."""
        loop = asyncio.get_running_loop()
        self._report_at = loop.time() + PROGRESS_EVERY
        try:
            while (status := self._status(deadline, loop.time())) is None:
                next_question = self._ask(loop.time())
                await self._answer_or(min(next_question, deadline, self._report_at))
                self._report(loop.time())
        finally:
            await self.stop()
        return status

    async def stop(self) -> None:
        """Forget the questions that are not answered."""
        for question in self._asking:
            question.cancel()
        await asyncio.gather(*self._asking, *self._masking, return_exceptions=True)

    def _status(self, deadline: float, now: float) -> Status | None:
        """Return how the wait has ended, or None if it has not; raise what will not pass."""
        if self._failure:
            raise self._failure
        if not (self._schedule or self._asking):
            return Status.FINISHED
        return Status.TIMEOUT if now >= deadline else None

    def _report(self, now: float) -> None:
        if now >= self._report_at:
            self._report_at = now + PROGRESS_EVERY
            log_progress(self._log, self._results)

    def _ask(self, now: float) -> float:
        """Ask what is due, and return when the next question is."""
        while self._schedule and len(self._asking) < MAX_IN_FLIGHT:
            earliest = max(self._schedule.due, self._pace.earliest(), self._quiet_until)
            if earliest > now:
                return earliest
            ids = self._schedule.take(now, self._account.family.ids_per_poll)
            self._pace.take(now)
            question = asyncio.ensure_future(self._question(ids))
            self._asking.add(question)
            question.add_done_callback(self._end)
        return math.inf

    def _end(self, question: "asyncio.Future[None]") -> None:
        self._asking.discard(question)
        self._answered.set()

    async def _answer_or(self, until: float) -> None:
        """Wait for an answer, but not longer than *until*."""
        self._answered.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout_at(until):
                await self._answered.wait()

    async def _question(self, ids: Sequence[str]) -> None:
        try:
            self._settle(await self._line.run(observed(poll(self._account, ids), self._mask)))
        except PASSING as error:
            self._ride_out(error, ids)
        except Exception as error:  # noqa: BLE001 -- raised again by the one who waits for the answers
            self._failure = error

    def _settle(self, outcomes: Mapping[str, Outcome]) -> None:
        now = asyncio.get_running_loop().time()
        self._troubles_in_a_row = 0
        self._pace.accepted(now)
        self._schedule.put_back(settle(self._results, outcomes, self._log), now + self._poll_interval)

    def _ride_out(self, error: ResponsysError, ids: Sequence[str]) -> None:
        now = asyncio.get_running_loop().time()
        self._schedule.put_back(ids, now + self._poll_interval)
        if isinstance(error, LimitExceeded):
            self._pace.refused(now, error.wait)
        wait = error.wait if isinstance(error, TryLater) else 0.0
        if now >= self._quiet_until:  # further answers to what was asked before say nothing new
            wait = max(wait, TROUBLE_WAITS[min(self._troubles_in_a_row, len(TROUBLE_WAITS) - 1)])
            self._troubles_in_a_row += 1
        self._quiet_until = max(self._quiet_until, now + wait)
        self._troubles += 1
        if now >= self._complain_at:
            self._complain_at = now + COMPLAIN_EVERY
            self._log.warning(
                "No results at the moment (%d times so far), asking again later: %s", self._troubles, error
            )

    def _mask(self, token: Token) -> None:
        if token == self._masked:
            return
        self._masked = token
        # Masking talks to Airflow's supervisor and waits for its answer: never on the event loop.
        masking = asyncio.get_running_loop().run_in_executor(None, mask_token, token)
        self._masking.add(masking)
        masking.add_done_callback(self._masking.discard)


def pack(ids: Iterable[str]) -> str:
    """Return *ids* as a short text."""
    return base64.b64encode(lzma.compress("\n".join(ids).encode("ascii"), filters=FILTERS)).decode("ascii")


def unpack(packed: str) -> list[str]:
    """Return what `pack` was given."""
    try:
        return lzma.decompress(base64.b64decode(packed, validate=True)).decode("ascii").split("\n")
    except (ValueError, TypeError, lzma.LZMAError) as error:
        raise InvalidAnswer(f"the trigger's list of requests can't be read ({type(error).__name__})") from None


def settle(results: Results, outcomes: Mapping[str, Outcome], log: Any) -> list[str]:
    """Count *outcomes* in *results*; return those requests that have not ended."""
    still_open = []
    for request_id, outcome in outcomes.items():
        if not results.add(outcome):
            still_open.append(request_id)
        match outcome:
            case Failed(code=code) | Gone(code=code):
                log.warning("Request %s ended without results: %s", request_id, code)
            case Unclear(status=status):
                log.info("Request %s is neither finished nor in progress: %r", request_id, status)
            case Finished() | Processing():
                pass
    return still_open


def log_progress(log: Any, results: Results) -> None:
    """Tell, in counts, how far the wait is."""
    log.info(
        "%d of %d requests have ended (%d without results); %d recipients handed over to Responsys' queue, %d failed",
        results.total - results.pending,
        results.total,
        results.failed + results.unknown,
        results.recipients_succeeded,
        results.recipients_failed,
    )


def _driver() -> "type[Responsys]":
    # aiohttp is slow to import: not when a DAG is read, and not on the event loop.
    from airflow_provider_responsys.transport.aio import Responsys  # noqa: PLC0415 -- see above

    return Responsys
