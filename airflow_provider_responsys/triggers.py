"""Wait for what became of pushes, many requests in one trigger."""

import asyncio
import base64
import heapq
import lzma
import math
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import chain, count, repeat
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Self

from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_provider_responsys.errors import (
    FailedOver,
    InvalidAnswer,
    LedgerFailed,
    LimitExceeded,
    LoginExpired,
    NoAnswer,
    NotSent,
    ResponsysError,
    TryLater,
)
from airflow_provider_responsys.hooks import (
    account_of,
    ledger_engine,
    mask_token,
    observed,
    polls_per_minute,
    user_agent,
)
from airflow_provider_responsys.protocol.polling import (
    PURGED,
    ROWS_DIFFER,
    Failed,
    Finished,
    Gone,
    Outcome,
    Processing,
    Unclear,
    poll,
)
from airflow_provider_responsys.protocol.results import Results
from airflow_provider_responsys.protocol.wire import Token
from airflow_provider_responsys.sending.pace import Pace

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine

    from airflow_provider_responsys.ledger.sql_records import BatchRecord, Records
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

LAST_WAITS = (5.0, 30.0)
"""Seconds between the last attempts to write to the ledger what became of requests."""

STOP_WITHIN = 10.0
"""Seconds that the ledger's connections get to close: a database that does not answer stops nobody."""

PASSING = (FailedOver, InvalidAnswer, LoginExpired, NoAnswer, NotSent, TryLater)
"""What a later question may not run into: a failover ends, an outage too."""


class Status(StrEnum):
    """How a trigger ended."""

    FINISHED = "finished"
    TIMEOUT = "timeout"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Event:
    """What a trigger tells its sensor: how it ended, the counts until then, and, of an error, the reason.

    *recipients* is how many the requests are for, if the ledger says so.
    """

    status: Status
    results: Results
    message: str = ""
    recipients: int | None = None

    def to_payload(self) -> dict[str, Any]:
        """Return this event as JSON values. It is stored and logged: counts only."""
        return {
            "status": self.status.value,
            "results": self.results.to_event(),
            "message": self.message,
            "recipients": self.recipients,
        }

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
        recipients = payload.get("recipients")
        if not (recipients is None or (type(recipients) is int and recipients >= 0)):
            raise InvalidAnswer("the trigger's event has no number of recipients")
        results = Results.from_event(payload.get("results"))
        if status is Status.FINISHED and results.pending:
            raise InvalidAnswer(f"the trigger's event says finished, with {results.pending} requests pending")
        return cls(status, results, message, recipients)


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
    :param packed_owners: the tasks whose requests these are, packed by `pack`.
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
        packed_owners: str | None = None,
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
        self.packed_owners = packed_owners
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
                "packed_owners": self.packed_owners,
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
        if not (self.packed_ids or (self.ledger_conn_id and self.send_keys and self.packed_owners and self.results)):
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
        wait.go_on(ids, book, unpack(self.packed_owners) if self.packed_owners else [])
        if not wait.open:
            await asyncio.sleep(self.first_delay)  # see FIRST_DELAY
            return Status.FINISHED
        async with Recorder(book, self.log) as recorder:
            return await self._ask(wait, deadline, recorder.note)

    async def _read(self, book: "Book", deadline: float) -> bool:
        """Read what the ledger knows, as soon as it can be read; return whether that was before the *deadline*."""
        loop = asyncio.get_running_loop()
        for wait in _troubles():
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
        driver = await asyncio.to_thread(_driver)
        account = await account_of(self.responsys_conn_id)
        now = asyncio.get_running_loop().time()
        limit = polls_per_minute(account)
        results = wait.results
        self.log.info(
            "Waiting for %d of %d requests, with at most %d polls a minute", len(wait.open), results.total, limit
        )
        async with driver(account, user_agent=user_agent()) as line:
            watch = Watch(
                line,
                account,
                Schedule(wait.open, now + self.first_delay),
                results,
                pace=Pace.at(limit, now),
                poll_interval=self.poll_interval,
                log=self.log,
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

    def go_on(self, ids: Sequence[str] | None, book: "Book", owners: Iterable[str]) -> None:
        """Wait for those of *ids*, or, without them, of all requests of *owners*, that are open in *book*."""
        if ids is None:
            ids = book.of(owners)
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
        self._sizes = sizes
        self._record = record
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
        still_open = settle(self._results, outcomes, self._log, self._sizes)
        self._schedule.put_back(still_open, now + self._poll_interval)
        if self._record:
            self._record(outcomes)

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


class Book:
    """What the SQL ledger knows of the requests of some sends, and what it is still to be told.

    `read`, `write` and `close` block, and wait for each other.
    """

    def __init__(self, records: "Records", send_keys: Sequence[str], log: Any) -> None:
        self._records = records
        self._send_keys = send_keys
        self._log = log
        self._keys: dict[str, str] = {}
        self._owners: dict[str, str] = {}
        self._ended: dict[str, Outcome] = {}
        self._unwritten: deque[tuple[str, Ending]] = deque()
        """Filled by one thread, and emptied by another."""
        self._busy = threading.Lock()
        self._stopped = False
        self.sizes: dict[str, int] = {}
        """How many recipients each request has."""

    @classmethod
    def on(cls, engine: "Engine", send_keys: Sequence[str], log: Any) -> Self:
        """Return the book of *send_keys* on *engine*, which is its own; nothing is read yet."""
        from airflow_provider_responsys.ledger.sql_records import Records  # noqa: PLC0415 -- brings SQLAlchemy

        return cls(Records(engine), send_keys, log)

    @property
    def unwritten(self) -> int:
        """Return how many outcomes the ledger is still to be told."""
        return len(self._unwritten)

    def read(self) -> None:
        """Read what the ledger knows, or raise `LedgerFailed`."""
        with self._busy:
            self._read()

    def knows(self, request_id: str) -> bool:
        """Tell whether *request_id* is in the ledger."""
        return request_id in self.sizes

    def owners(self, ids: Iterable[str]) -> list[str]:
        """Return the tasks that sent *ids*, all of which are known."""
        return sorted({self._owners[request_id] for request_id in ids})

    def of(self, owners: Iterable[str]) -> list[str]:
        """Return the requests that the tasks *owners* sent, oldest first."""
        wanted = set(owners)
        return [request_id for request_id, owner in self._owners.items() if owner in wanted]

    def recall(self, ids: Iterable[str], results: Results) -> list[str]:
        """Count in *results* those of *ids* whose outcome is recorded, and return the others."""
        still_open = []
        for request_id in ids:
            if outcome := self._ended.get(request_id):
                results.add(outcome, self.sizes[request_id])
            else:
                still_open.append(request_id)
        return still_open

    def note(self, outcomes: Mapping[str, Outcome]) -> None:
        """Keep those of *outcomes* that are final until they are written."""
        for request_id, outcome in outcomes.items():
            size = self.sizes.get(request_id)
            if size is not None and (ending := Ending.of(outcome, size)):
                self._unwritten.append((request_id, ending))

    def write(self) -> LedgerFailed | None:
        """Record the outcomes noted so far, one write each; return what kept them from being written, if anything."""
        with self._busy:
            while self._unwritten and not self._stopped:
                request_id, ending = self._unwritten[0]
                try:
                    self._records.record_outcome(self._keys[request_id], request_id, **ending.as_arguments())
                except LedgerFailed as error:
                    if passes(error):
                        return error
                    self._log.warning("What became of request %s can't be recorded: %s", request_id, error)
                self._unwritten.popleft()
        return None

    def stop(self) -> None:
        """Let a write that goes on in another thread end early: who starts again asks again."""
        self._stopped = True

    def close(self) -> None:
        """Close the connections. Harmless to repeat."""
        with self._busy:
            self._records.close()

    def _read(self) -> None:
        from airflow_provider_responsys.ledger.sql_records import State  # noqa: PLC0415 -- brings SQLAlchemy

        self._records.fingerprint_key()  # makes the tables if there are none
        for send_key in self._send_keys:
            for batch in self._records.show(send_key):
                # What a restart of the push gave up counts no more; what was settled by hand has no request.
                if batch.request_id is not None and batch.state is not State.FORGOTTEN:
                    self._note(send_key, batch.request_id, batch)

    def _note(self, send_key: str, request_id: str, batch: "BatchRecord") -> None:
        self._keys[request_id] = send_key
        self._owners[request_id] = batch.owner
        self.sizes[request_id] = batch.size
        if batch.outcome_at:
            self._ended[request_id] = _recorded(batch)


@dataclass(frozen=True, slots=True)
class Ending:
    """How a request ended, as the ledger takes it."""

    succeeded: int = 0
    failed: Mapping[str, Sequence[int]] = field(default_factory=dict)
    error: str | None = None

    @classmethod
    def of(cls, outcome: Outcome, size: int) -> Self | None:
        """Return what to record of a request of *size* recipients, or None while it is open."""
        match outcome:
            case Finished(rows=rows) if rows != size:
                return cls(error=ROWS_DIFFER)
            case Finished(rows=rows, failed=failed):
                return cls(succeeded=rows - outcome.failures, failed=failed)
            case Gone(code=code) | Failed(code=code):
                return cls(error=code)
            case Processing() | Unclear():
                return None

    def as_arguments(self) -> dict[str, Any]:
        """Return what `Records.record_outcome` takes."""
        return {"succeeded": self.succeeded, "failed": self.failed, "error": self.error}


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
        troubles = _troubles()
        while True:
            await self._told.wait()
            self._told.clear()
            if failure := await self._write():
                self._log.warning("The ledger can't be written at the moment, trying again later: %s", failure)
                await asyncio.sleep(next(troubles))
                self._told.set()
            else:
                troubles = _troubles()

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


def passes(error: LedgerFailed) -> bool:
    """Tell whether the ledger could not be reached, as opposed to: it was, and said no."""
    return error.__cause__ is not None


def pack(ids: Iterable[str]) -> str:
    """Return *ids* as a short text."""
    return base64.b64encode(lzma.compress("\n".join(ids).encode(), filters=FILTERS)).decode("ascii")


def unpack(packed: str) -> list[str]:
    """Return what `pack` was given."""
    try:
        return lzma.decompress(base64.b64decode(packed, validate=True)).decode().split("\n")
    except (ValueError, TypeError, lzma.LZMAError) as error:
        raise InvalidAnswer(f"the trigger's list of requests can't be read ({type(error).__name__})") from None


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


def log_unwritten(log: Any, book: Book, failure: LedgerFailed) -> None:
    """Tell that the ledger lacks outcomes; the counts have them."""
    log.warning("The ledger lacks what became of %d requests, which is known here: %s", book.unwritten, failure)


def _recorded(batch: "BatchRecord") -> Outcome:
    """Return the outcome in *batch*. Which positions failed stays in the ledger: here they are numbered anew."""
    if batch.request_error == PURGED:
        return Gone(PURGED)
    if batch.request_error == ROWS_DIFFER:
        return Finished(0)
    if batch.request_error:
        return Failed(batch.request_error)
    failed = {code: tuple(range(number)) for code, number in batch.failed.items()}
    return Finished(batch.succeeded + sum(batch.failed.values()), failed)


def _troubles() -> Iterator[float]:
    """Yield how long to wait after each trouble in a row."""
    return chain(TROUBLE_WAITS, repeat(TROUBLE_WAITS[-1]))


async def _engine(ledger_conn_id: str) -> "Engine":
    # Where Airflow's own trigger code looks connections up: before 3.3 a thread of another kind can't reach it.
    from asgiref.sync import sync_to_async  # noqa: PLC0415 -- only for those with a ledger

    return await sync_to_async(ledger_engine)(ledger_conn_id)


def _driver() -> "type[Responsys]":
    # aiohttp is slow to import: not when a DAG is read, and not on the event loop.
    from airflow_provider_responsys.transport.aio import Responsys  # noqa: PLC0415 -- see above

    return Responsys
