"""Wait for the results of pushes, many requests in one trigger."""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_provider_responsys.errors import (
    InvalidAnswer,
    InvalidSettings,
    LedgerUnreachable,
    ResponsysError,
)
from airflow_provider_responsys.hooks import (
    USUAL_LIMIT,
    account_of,
    new_tracking_id,
    user_agent,
)
from airflow_provider_responsys.ledgers import ledger_engine
from airflow_provider_responsys.metrics import Metrics
from airflow_provider_responsys.observers import WaitObserver
from airflow_provider_responsys.protocol.polling import Outcome, poll
from airflow_provider_responsys.protocol.ratelimit import poll_limit, rate_limits
from airflow_provider_responsys.protocol.results import Results
from airflow_provider_responsys.protocol.sizes import sizes_in
from airflow_provider_responsys.threads import LoopThreads
from airflow_provider_responsys.waiting.aside import Aside
from airflow_provider_responsys.waiting.engine import WaitEngine
from airflow_provider_responsys.waiting.event import Event, Status, unpack
from airflow_provider_responsys.waiting.recorder import Recorder
from airflow_provider_responsys.waiting.records import RequestRecords
from airflow_provider_responsys.waiting.schedule import troubles
from airflow_provider_responsys.waiting.sharing import Limits
from airflow_provider_responsys.waiting.state import WaitState
from airflow_provider_responsys.waiting.watch import Record, Watch, most_in_flight

if TYPE_CHECKING:
    from airflow_provider_responsys.protocol.account import Account
    from airflow_provider_responsys.transport.aio import Responsys
    from airflow_provider_responsys.transport.refused import Memory

FIRST_DELAY = 10.0
"""Seconds before the first poll. A task that resumes right after it deferred may be marked failed (a race in
Airflow 3.3's scheduler), and Responsys takes longer anyway."""

STOP_WITHIN = 10.0
"""Seconds that the ledger's connections get to close."""

LIMITS = Limits()
"""Of the accounts that this triggerer polls."""

IMPORTING = LoopThreads("responsys-imports", 1)
COUNTING = LoopThreads("responsys-metrics", 1)
"""Threads for what may block: modules that are read from disk, and a monitoring system whose address is looked up."""

AWAY_FOR = 600.0
"""Seconds for which a ledger that alone knows the requests may be away before the task is to be tried again."""


class PushRequestTrigger(BaseTrigger):
    """Poll push requests until all have results. It never submits a push.

    :param responsys_conn_id: the connection to use.
    :param packed_ids: the ids of the requests, packed by `pack`; empty if they do not fit and the ledger knows them.
    :param poll_interval: seconds until a request that was not finished is polled again.
    :param deadline: when to give up, in seconds since the epoch.
    :param first_delay: seconds until the first poll.
    :param results: the counts of requests that finished before, as `Results.to_event` gives them.
    :param ledger_conn_id: the connection of the SQL ledger, which outcomes are written to.
    :param send_keys: the sends whose requests these are.
    :param packed_task_instances: the task instances whose requests these are, packed by `pack`.
    :param sizes: how many recipients each of the packed ids has, as `protocol.sizes.runs` says it; none if not known.
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
        sizes: list[list[int]] | None = None,
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
        self.sizes = sizes
        self._records: RequestRecords | None = None
        self._ledger: Aside | None = None
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
                "sizes": self.sizes,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Yield one event: how the wait ended."""
        # A trigger that raises fails its task without a reason, so whatever happens becomes an event.
        state = WaitState()
        try:
            self._check()
            state.results = Results.from_event(self.results) if self.results else state.results
            event = await self._wait(state)
        except (LedgerUnreachable, InvalidAnswer) as error:
            # Answers that can't be read are polled again by the wait: this one is about the trigger's own arguments,
            # which the task's next try makes anew. Another version of the provider may have stored these.
            event = Event(Status.RETRY, state.results, str(error))
        except ResponsysError as error:
            event = Event(Status.ERROR, state.results, str(error))
        except Exception as error:
            self.log.exception("The trigger failed")
            # As in a worker, where Airflow retries what is not said to be final.
            event = Event(Status.RETRY, state.results, f"the trigger failed with {type(error).__name__}: see its log")
        finally:
            await self.cleanup()
        yield TriggerEvent(event.to_payload())  # type: ignore[no-untyped-call]  # Airflow did not annotate it

    async def cleanup(self) -> None:
        """Give up the polls that are not answered, and leave the ledger. `run` closes its line to Responsys."""
        watch, self._watch = self._watch, None
        if watch is not None:
            await watch.stop()
        records, self._records = self._records, None
        aside, self._ledger = self._ledger, None
        if aside is not None:
            if records is not None:
                records.stop()
                with suppress(LedgerUnreachable):
                    await aside.call(records.close, STOP_WITHIN)
            aside.close()

    def _check(self) -> None:
        """Raise `InvalidAnswer` for arguments that can't be."""
        if not (
            self.packed_ids or (self.ledger_conn_id and self.send_keys and self.packed_task_instances and self.results)
        ):
            raise InvalidAnswer("the trigger was given no requests")

    async def _wait(self, state: WaitState) -> Event:
        """Poll until *state* has ended, and write outcomes to the ledger where there is one."""
        deadline = asyncio.get_running_loop().time() + self.deadline - time.time()
        if self.packed_ids:
            state.resume(ids := unpack(self.packed_ids), sizes_in(self.sizes, len(ids)) if self.sizes else None)
        recorder = None
        if self.ledger_conn_id and self.send_keys:
            self._ledger = aside = Aside("responsys-ledger")
            recorder = Recorder(self._open_records, aside, state, log=self.log, deadline=deadline)
            if not self.packed_ids:
                await self._find(state, recorder, deadline)
        if recorder is None:
            return Event(await self._poll(state, deadline), state.results, recipients=state.recipients)
        async with recorder:
            status = await self._poll(state, deadline, recorder.note)
        if recorder.refused and status is Status.FINISHED:
            message = f"outcomes were not written to the ledger: {recorder.refused}"
            return Event(Status.ERROR, state.results, message, state.recipients)
        return Event(status, state.results, recipients=state.recipients)

    async def _find(self, state: WaitState, recorder: Recorder, deadline: float) -> None:
        """Let the ledger tell which requests these are; raise `LedgerUnreachable` where it is away for long."""
        loop = asyncio.get_running_loop()
        total = state.results.total
        until = min(loop.time() + AWAY_FOR, deadline)
        for wait in troubles():
            try:
                records = await recorder.read(until)
            except LedgerUnreachable as error:
                if loop.time() + wait >= until:
                    raise
                self.log.warning("The ledger can't be read at the moment, trying again later: %s", error)
                await asyncio.sleep(wait)
            else:
                state.start(records.of(unpack(self.packed_task_instances or "")), total)
                state.learn(records)
                return

    def _open_records(self) -> RequestRecords:
        """Return what reads and writes the ledger. On the ledger's thread."""
        try:
            engine = ledger_engine(str(self.ledger_conn_id))
        except ResponsysError:
            raise
        except Exception as error:  # however a secrets backend, or Airflow's API, fails
            # The text of an unknown error may hold secrets.
            raise LedgerUnreachable(
                f"connection {self.ledger_conn_id!r} of the ledger can't be read ({type(error).__name__})"
            ) from error
        self._records = RequestRecords.on(engine, self.send_keys or [], self.log)
        return self._records

    async def _poll(self, state: WaitState, deadline: float, record: Record | None = None) -> Status:
        """Poll what is open in *state* until it has ended, or the *deadline*."""
        loop = asyncio.get_running_loop()
        if not state.open:
            await asyncio.sleep(self.first_delay)  # see FIRST_DELAY
            return Status.FINISHED
        observer = WaitObserver(Metrics(self.log, conn_id=self.responsys_conn_id))
        observer.begin_on(COUNTING)
        account = await self._account(deadline)
        if account is None:
            return Status.TIMEOUT
        self.log.info("Waiting for %d of %d requests", len(state.open), state.results.total)
        driver, memory = await IMPORTING.call(_driver)
        # A password that is changed while this waits is used at once, and the old one never again.
        reread = partial(account_of, self.responsys_conn_id)
        async with driver(account, user_agent=user_agent(), memory=memory, reread=reread) as line:
            ids_per_poll = account.family.ids_per_poll
            setting = account.poll_requests_per_minute
            shared = LIMITS.of(account.name, USUAL_LIMIT, clock=loop.time)
            engine = WaitEngine(
                state,
                pace=shared.join(setting),
                poll_interval=self.poll_interval,
                ids_per_poll=ids_per_poll,
                max_in_flight=most_in_flight(ids_per_poll),
                first_at=loop.time() + self.first_delay,
            )
            asking = Asking(line, account)
            limit = None if setting or shared.is_known else asking.limit
            self._watch = watch = Watch(
                engine, asking.poll, log=self.log, read_limit=limit, observer=observer, record=record
            )
            return await watch.until(deadline)

    async def _account(self, deadline: float) -> "Account | None":
        """Read the connection as soon as it can be read; None if that is not before the *deadline*."""
        loop = asyncio.get_running_loop()
        for wait in troubles():
            try:
                async with asyncio.timeout_at(deadline):
                    return await account_of(self.responsys_conn_id)
            except InvalidSettings:
                raise
            except Exception as error:  # noqa: BLE001 -- however a secrets backend, or Airflow's API, fails
                # The text of an unknown error may hold secrets.
                self.log.warning(
                    "Connection %s can't be read at the moment (%s), trying again later",
                    self.responsys_conn_id,
                    type(error).__name__,
                )
            if loop.time() + wait >= deadline:
                break
            await asyncio.sleep(wait)
        await asyncio.sleep(deadline - loop.time())
        return None


class Asking:
    """Polls over *line*.

    Its tokens are not given to Airflow's `mask_secret`, which keeps them for ever, in
    the triggerer and in its supervisor: each would make every log line slower, for
    hours after it expired. None of our log lines, errors or reprs holds a token.
    """

    def __init__(self, line: "Responsys", account: "Account") -> None:
        self._line = line
        self._account = account

    async def poll(self, ids: Sequence[str]) -> Mapping[str, Outcome]:
        """Return the outcome of each of *ids*."""
        return await self._line.run(poll(self._account, ids, tracking_id=new_tracking_id()))

    async def limit(self) -> int | None:
        """Return how many polls a minute the account has, None where that is not said."""
        return poll_limit(await self._line.run(rate_limits(self._account)), self._account.family)


def _driver() -> "tuple[type[Responsys], Memory]":
    # aiohttp is slow to import: not when a DAG is read, and not on the event loop.
    from airflow_provider_responsys.transport.aio import Responsys  # noqa: PLC0415 -- see above
    from airflow_provider_responsys.transport.refused import Memory  # noqa: PLC0415 -- as slow

    return Responsys, Memory()
