"""Wait for what became of pushes, many requests in one trigger."""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Self

from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_provider_responsys.errors import (
    InvalidAnswer,
    LedgerFailed,
    LimitExceeded,
    ResponsysError,
    TryLater,
)
from airflow_provider_responsys.hooks import (
    POLLS_PER_MINUTE,
    account_of,
    mask_token,
    new_tracking_id,
    observed,
    polls_per_minute,
    user_agent,
)
from airflow_provider_responsys.ledger.book import Book, log_unwritten, passes
from airflow_provider_responsys.ledgers import ledger_engine
from airflow_provider_responsys.metrics import Metrics, count_answer, count_begin, count_refusal
from airflow_provider_responsys.protocol.event import Event, Status, unpack
from airflow_provider_responsys.protocol.pace import Pace
from airflow_provider_responsys.protocol.polling import (
    Failed,
    Finished,
    Gone,
    Outcome,
    Processing,
    Unclear,
    poll,
)
from airflow_provider_responsys.protocol.ratelimit import TOLD_LATER, poll_limit, rate_limits
from airflow_provider_responsys.protocol.results import Results
from airflow_provider_responsys.protocol.schedule import PASSING, Patience, Schedule, paced, troubles
from airflow_provider_responsys.protocol.wire import Token

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine

    from airflow_provider_responsys.protocol.account import Account
    from airflow_provider_responsys.transport.aio import Responsys
    from airflow_provider_responsys.transport.refused import Memory

FIRST_DELAY = 10.0
"""Seconds before the first question. A task that resumes right after it deferred may be marked failed (a race in
Airflow 3.3's scheduler), and Responsys takes longer anyway."""

MAX_IN_FLIGHT = 40
"""Questions asked at once: enough for 1,000 a minute that take two seconds each."""

MAX_LARGE_IN_FLIGHT = 2
"""Of those about many requests: an answer of 40,000 results takes 3 MB, and a tenth of a second to read."""

EARLY = 0.1
"""How much of the poll interval a request may be asked about early, in a question that has room for it."""

PROGRESS_EVERY = 30.0
COMPLAIN_EVERY = 60.0
"""Seconds between log lines."""

LAST_WAITS = (5.0, 30.0)
"""Seconds between the last attempts to write to the ledger what became of requests."""

STOP_WITHIN = 10.0
"""Seconds that the ledger's connections get to close: a database that does not answer stops nobody."""


class PushRequestTrigger(BaseTrigger):
    """Ask for the results of push requests until all are there. It never submits a push.

    :param responsys_conn_id: the connection to use.
    :param packed_ids: the ids of the requests, packed by `pack`; empty if the ledger knows them.
    :param poll_interval: seconds until a request that was not finished is asked about again.
    :param deadline: when to give up, in seconds since the epoch.
    :param first_delay: seconds until the first question.
    :param results: the counts of requests that finished before, as `Results.to_event` gives them.
    :param ledger_conn_id: the connection of the SQL ledger, which remembers what became of requests.
    :param send_keys: the sends whose requests these are.
    :param packed_task_instances: the task instances whose requests these are, packed by `pack`.
    """

    def __init__(
        self,
        *,
        responsys_conn_id: str,
        poll_interval: float,
        deadline: float,
        packed_ids: str = "",
        first_delay: float = FIRST_DELAY,
        results: dict[str, Any] | None = None,
        ledger_conn_id: str | None = None,
        send_keys: list[str] | None = None,
        packed_task_instances: str | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # Airflow did not annotate it
        self.responsys_conn_id = responsys_conn_id
        self.packed_ids = packed_ids
        self.poll_interval = poll_interval
        self.deadline = deadline
        self.first_delay = first_delay
        self.results = results
        self.ledger_conn_id = ledger_conn_id
        self.send_keys = send_keys
        self.packed_task_instances = packed_task_instances
        self._book: Book | None = None
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
                "ledger_conn_id": self.ledger_conn_id,
                "send_keys": self.send_keys,
                "packed_task_instances": self.packed_task_instances,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Yield one event: how the wait ended."""
        # A trigger that raises fails its task without a reason, so whatever happens becomes an event.
        wait = Wait()
        try:
            self._check()
            wait.results = Results.from_event(self.results) if self.results else wait.results
            event = Event(await self._wait(wait), wait.results, recipients=wait.recipients)
        except ResponsysError as error:
            event = Event(Status.ERROR, wait.results, str(error))
        except Exception as error:
            self.log.exception("The trigger failed")
            event = Event(Status.ERROR, wait.results, f"the trigger failed with {type(error).__name__}: see its log")
        finally:
            await self.cleanup()
        yield TriggerEvent(event.to_payload())  # type: ignore[no-untyped-call]  # Airflow did not annotate it

    async def cleanup(self) -> None:
        """Forget the questions that are not answered, and leave the ledger. `run` closes its line to Responsys."""
        watch, self._watch = self._watch, None
        if watch is not None:
            await watch.stop()
        book, self._book = self._book, None
        if book is not None:
            book.stop()
            with suppress(TimeoutError):
                await asyncio.wait_for(asyncio.to_thread(book.close), STOP_WITHIN)

    def _check(self) -> None:
        """Raise `InvalidAnswer` for arguments that can't be."""
        if not (
            self.packed_ids or (self.ledger_conn_id and self.send_keys and self.packed_task_instances and self.results)
        ):
            raise InvalidAnswer("the trigger was given no requests")

    async def _wait(self, wait: "Wait") -> Status:
        """Ask until *wait* has ended, and record what became of requests where there is a ledger."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.deadline - time.time()
        ids = unpack(self.packed_ids) if self.packed_ids else None
        if not self.ledger_conn_id or not self.send_keys:
            wait.begin(ids or [])
            return await self._ask(wait, deadline)
        engine = await _engine(self.ledger_conn_id)
        self._book = book = await asyncio.to_thread(Book.on, engine, self.send_keys, self.log)
        if not await self._read(book, deadline):
            return Status.TIMEOUT
        wait.go_on(ids, book, unpack(self.packed_task_instances) if self.packed_task_instances else [])
        if not wait.open:
            await asyncio.sleep(self.first_delay)  # see FIRST_DELAY
            return Status.FINISHED
        async with Recorder(book, self.log) as recorder:
            return await self._ask(wait, deadline, recorder.note)

    async def _read(self, book: Book, deadline: float) -> bool:
        """Read what the ledger knows, as soon as it can be read; return whether that was before the *deadline*."""
        loop = asyncio.get_running_loop()
        for wait in troubles():
            try:
                await asyncio.to_thread(book.read)
            except LedgerFailed as error:
                if not passes(error):
                    raise
                self.log.warning("The ledger can't be read at the moment, trying again later: %s", error)
            else:
                return True
            if loop.time() + wait >= deadline:
                break
            await asyncio.sleep(wait)
        await asyncio.sleep(deadline - loop.time())
        return False

    async def _ask(self, wait: "Wait", deadline: float, record: "Record | None" = None) -> Status:
        driver, memory = await asyncio.to_thread(_driver)
        metrics = Metrics(self.log, conn_id=self.responsys_conn_id)
        await asyncio.to_thread(count_begin, metrics)
        account = await account_of(self.responsys_conn_id)
        now = asyncio.get_running_loop().time()
        results = wait.results
        self.log.info("Waiting for %d of %d requests", len(wait.open), results.total)
        # A password that is changed while this waits is used at once, and the old one never again.
        reread = partial(account_of, self.responsys_conn_id)
        async with driver(account, user_agent=user_agent(), memory=memory, reread=reread) as line:
            watch = Watch(
                line,
                account,
                Schedule(wait.open, now + self.first_delay),
                results,
                pace=paced(polls_per_minute(account), now),
                poll_interval=self.poll_interval,
                log=self.log,
                metrics=metrics,
                sizes=wait.sizes,
                record=record,
            )
            self._watch = watch
            return await watch.until(deadline)


Record = Callable[[Mapping[str, Outcome]], object]
"""Takes note of what became of requests."""


@dataclass(slots=True)
class Wait:
    """Which requests are *open*, what became of the others, and how many recipients each has, if that is known."""

    results: Results = field(default_factory=Results)
    open: Sequence[str] = ()
    sizes: Mapping[str, int] = field(default_factory=dict)
    recipients: int | None = None

    def begin(self, ids: Sequence[str]) -> None:
        """Wait for *ids*, which are what was open when the task deferred."""
        self.open = ids
        if not self.results.total:
            self.results.total = len(ids)
        if self.results.pending != len(ids):
            raise InvalidAnswer(f"the trigger was given {len(ids)} requests, and {self.results.pending} to wait for")

    def go_on(self, ids: Sequence[str] | None, book: Book, task_instances: Iterable[str]) -> None:
        """Wait for those of *ids*, or, without them, of all requests of *task_instances*, that are open in *book*."""
        if ids is None:
            ids = book.of(task_instances)
            if len(ids) != self.results.total:
                raise LedgerFailed(
                    f"the ledger has {len(ids)} of the {self.results.total} requests to wait for: it is another "
                    "database than the sensor's, or was pruned, or the push ran again. Clear the sensor"
                )
            self.results = Results(total=len(ids))
            self.recipients = sum(book.sizes[request_id] for request_id in ids)
        self.begin(ids)
        self.sizes = book.sizes
        self.open = book.recall(ids, self.results)


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
        metrics: Metrics | None = None,
        sizes: Mapping[str, int] = MappingProxyType({}),
        record: Record | None = None,
    ) -> None:
        self._line = line
        self._account = account
        self._schedule = schedule
        self._results = results
        self._pace = pace
        self._poll_interval = poll_interval
        self._log = log
        self._metrics = metrics or Metrics(log)
        self._sizes = sizes
        self._record = record
        self._most_in_flight = MAX_IN_FLIGHT if account.family.ids_per_poll == 1 else MAX_LARGE_IN_FLIGHT
        self._asking: set[asyncio.Future[None]] = set()
        self._masked: Token | None = None
        self._masking: set[asyncio.Future[None]] = set()
        self._woken = asyncio.Event()
        self._next_question = math.inf
        self._learning: asyncio.Future[None] | None = None
        self._failure: Exception | None = None
        self._patience = Patience()
        self._complain_at = -math.inf
        self._report_at = math.inf

    async def until(self, deadline: float) -> Status:
        """Ask until everything is answered or the loop's clock reads *deadline*; raise what will not pass."""
        loop = asyncio.get_running_loop()
        self._report_at = loop.time() + PROGRESS_EVERY
        if not self._account.poll_requests_per_minute:
            self._learning = asyncio.ensure_future(self._learn_limit(self._schedule.due))
        try:
            while (status := self._status(deadline, loop.time())) is None:
                self._next_question = self._ask(loop.time())
                await self._woken_by(min(self._next_question, deadline, self._report_at))
                self._report(loop.time())
        finally:
            await self.stop()
        return status

    async def stop(self) -> None:
        """Forget the questions that are not answered."""
        stopping = [*self._asking, *filter(None, [self._learning])]
        for task in stopping:
            task.cancel()
        await asyncio.gather(*stopping, *self._masking, return_exceptions=True)

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
        """Ask what is due, and return when the next question is.

        As many leave at once as the pace allows: to be woken for each of them costs more than to ask it.
        """
        most, early = self._account.family.ids_per_poll, self._poll_interval * EARLY
        if self._next() <= now:
            for _ in range(min(self._pace.slots(now), self._most_in_flight - len(self._asking))):
                if not (ids := self._schedule.take(now, most, early)):
                    break
                self._pace.take(now)
                question = asyncio.ensure_future(self._question(ids))
                self._asking.add(question)
                question.add_done_callback(self._end)
        return self._next()

    def _next(self) -> float:
        """Return when the next question is; none is before an answer has come."""
        if not self._schedule or len(self._asking) >= self._most_in_flight:
            return math.inf
        return max(self._schedule.due, self._pace.due, self._patience.quiet_until)

    def _end(self, question: "asyncio.Future[None]") -> None:
        self._asking.discard(question)
        # Most answers change nothing about when the next question is, and waking somebody costs more than looking.
        if not self._asking or self._failure or self._next() < self._next_question:
            self._woken.set()

    async def _woken_by(self, until: float) -> None:
        """Wait until an answer calls for something, but not longer than *until*."""
        self._woken.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout_at(until):
                await self._woken.wait()

    async def _question(self, ids: Sequence[str]) -> None:
        sent = asyncio.get_running_loop().time()
        try:
            asked = poll(self._account, ids, tracking_id=new_tracking_id())
            self._settle(await self._line.run(observed(asked, self._mask)), sent)
        except PASSING as error:
            self._ride_out(error, ids, sent)
        except Exception as error:  # noqa: BLE001 -- raised again by the one who waits for the answers
            self._failure = error

    def _settle(self, outcomes: Mapping[str, Outcome], sent: float) -> None:
        now = asyncio.get_running_loop().time()
        self._patience.answered()
        self._pace.accepted(sent, now)
        count_answer(self._metrics, outcomes, self._sizes)
        still_open = settle(self._results, outcomes, self._log, self._sizes)
        self._schedule.put_back(still_open, now + self._poll_interval)
        if self._record:
            self._record(outcomes)

    def _ride_out(self, error: ResponsysError, ids: Sequence[str], sent: float) -> None:
        now = asyncio.get_running_loop().time()
        count_refusal(self._metrics, error)
        if isinstance(error, LimitExceeded):
            self._schedule.put_back(ids, now)
            self._pace.refused(sent, now)  # which waits, and finds out for how long
            self._patience.troubles += 1
        else:
            self._schedule.put_back(ids, now + self._poll_interval)
            self._patience.trouble(now, error.wait if isinstance(error, TryLater) else 0.0)
        if now >= self._complain_at:
            self._complain_at = now + COMPLAIN_EVERY
            self._log.warning(
                "No results at the moment (%d times so far), asking again later: %s", self._patience.troubles, error
            )

    async def _learn_limit(self, start: float) -> None:
        """Go by the account's own limit once it can be read; nothing about it ends the wait, or holds it up."""
        # Whoever may not ask about requests yet asks for nothing else either: see FIRST_DELAY.
        await asyncio.sleep(start - asyncio.get_running_loop().time())
        told = False
        for wait in troubles():
            try:
                limits = await self._line.run(observed(rate_limits(self._account), self._mask))
                self._keep_to(poll_limit(limits, self._account.family))
            except ResponsysError as error:
                if not told:
                    log_limit(self._log, None, error)
                    told = True
                if not isinstance(error, TOLD_LATER):
                    return
                await asyncio.sleep(max(wait, error.wait if isinstance(error, TryLater) else 0.0))
            except Exception:  # noqa: BLE001 -- logged, and a guess serves instead
                self._log.exception("The account's limits can't be read")
                return
            else:
                return

    def _keep_to(self, limit: int | None) -> None:
        """Ask at most *limit* times a minute from now on, or go on as before if it is not known."""
        log_limit(self._log, limit)
        if limit and limit != self._pace.limit:
            self._pace = paced(limit, asyncio.get_running_loop().time())
            self._woken.set()  # the next question is due at another time

    def _mask(self, token: Token) -> None:
        if token == self._masked:
            return
        self._masked = token
        # Masking talks to Airflow's supervisor and waits for its answer: never on the event loop.
        masking = asyncio.get_running_loop().run_in_executor(None, mask_token, token)
        self._masking.add(masking)
        masking.add_done_callback(self._masking.discard)


class Recorder:
    """Writes to *book* what it is told, in a thread, and again where the ledger could not be reached."""

    def __init__(self, book: Book, log: Any) -> None:
        self._book = book
        self._log = log
        self._told = asyncio.Event()
        self._work: asyncio.Future[None] | None = None

    async def __aenter__(self) -> Self:
        self._work = asyncio.ensure_future(self._keep_writing())
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._work:
            self._work.cancel()
            await asyncio.gather(self._work, return_exceptions=True)
        # Whoever is cancelled is started again elsewhere, and asks again for what is not written.
        if kind is None or issubclass(kind, Exception):
            await self._write_the_rest()

    def note(self, outcomes: Mapping[str, Outcome]) -> None:
        """Have those of *outcomes* that are final written."""
        self._book.note(outcomes)
        self._told.set()

    async def _keep_writing(self) -> None:
        waits = troubles()
        while True:
            await self._told.wait()
            self._told.clear()
            if failure := await self._write():
                self._log.warning("The ledger can't be written at the moment, trying again later: %s", failure)
                await asyncio.sleep(next(waits))
                self._told.set()
            else:
                waits = troubles()

    async def _write(self) -> LedgerFailed | None:
        return await asyncio.to_thread(self._book.write)

    async def _write_the_rest(self) -> None:
        for wait in (*LAST_WAITS, None):
            if not (self._book.unwritten and (failure := await self._write())):
                return
            if wait is None:
                log_unwritten(self._log, self._book, failure)
            else:
                await asyncio.sleep(wait)


def settle(results: Results, outcomes: Mapping[str, Outcome], log: Any, sizes: Mapping[str, int]) -> list[str]:
    """Count *outcomes* of requests, of *sizes* recipients, in *results*; return those that have not ended."""
    still_open = []
    for request_id, outcome in outcomes.items():
        size = sizes.get(request_id)
        if not results.add(outcome, size):
            still_open.append(request_id)
        match outcome:
            case Finished(rows=rows) if size not in (None, rows):
                log.warning(
                    "Request %s has %d results for %d recipients: whose they are can't be told", request_id, rows, size
                )
            case Failed(code=code) | Gone(code=code):
                log.warning("Request %s ended without results: %s", request_id, code)
            case Unclear(status=status):
                log.info("Request %s is neither finished nor in progress: %r", request_id, status)
            case Finished() | Processing():
                pass
    return still_open


def log_limit(log: Any, limit: int | None, error: ResponsysError | None = None) -> None:
    """Tell by which *limit* questions are asked: the account's, or a guess, and which *error* made that necessary."""
    if limit:
        log.info("Asking at most %d times a minute (the account's limit)", limit)
        return
    log.info(
        "Asking at most %d times a minute (a guess, as %s: set poll_requests_per_minute in the connection)",
        POLLS_PER_MINUTE,
        f"the account's limits can't be read: {error}" if error else "the account's limits do not name polls",
    )


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


async def _engine(ledger_conn_id: str) -> "Engine":
    # Where Airflow's own trigger code looks connections up: before 3.3 a thread of another kind can't reach it.
    from asgiref.sync import sync_to_async  # noqa: PLC0415 -- only for those with a ledger

    return await sync_to_async(ledger_engine)(ledger_conn_id)


def _driver() -> "tuple[type[Responsys], Memory]":
    # aiohttp is slow to import: not when a DAG is read, and not on the event loop.
    from airflow_provider_responsys.transport.aio import Responsys  # noqa: PLC0415 -- see above
    from airflow_provider_responsys.transport.refused import Memory  # noqa: PLC0415 -- as slow

    return Responsys, Memory()
