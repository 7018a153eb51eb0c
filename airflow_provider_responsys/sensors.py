"""The sensor that waits for the results of pushes."""

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

from airflow.providers.common.compat.sdk import (
    AirflowException,
    AirflowFailException,
    AirflowSensorTimeout,
    AirflowSkipException,
    BaseSensorOperator,
    ObjectStoragePath,
    PokeReturnValue,
)

from airflow_provider_responsys.airflow_internals import PokesInTime
from airflow_provider_responsys.errors import (
    InvalidAnswer,
    InvalidSettings,
    LedgerUnreachable,
    RequestsFailed,
    ResponsysError,
)
from airflow_provider_responsys.files.results_file import ResultsFile
from airflow_provider_responsys.hooks import ResponsysHook, new_tracking_id, polls_per_minute
from airflow_provider_responsys.ledgers import ledger_conn_id_of, ledger_engine, ledger_records
from airflow_provider_responsys.links import WaitReportLink, show_link
from airflow_provider_responsys.metrics import Metrics
from airflow_provider_responsys.observers import WaitObserver
from airflow_provider_responsys.progress import WAIT, TaskStateNote
from airflow_provider_responsys.protocol.polling import Outcome, poll
from airflow_provider_responsys.protocol.ratelimit import TOLD_LATER, poll_limit
from airflow_provider_responsys.protocol.results import Results
from airflow_provider_responsys.protocol.sizes import runs
from airflow_provider_responsys.protocol.wire import Conversation, Pause
from airflow_provider_responsys.triggers import FIRST_DELAY, PushRequestTrigger
from airflow_provider_responsys.waiting.asked import Asked
from airflow_provider_responsys.waiting.engine import WaitEngine
from airflow_provider_responsys.waiting.event import MAX_PACKED, Event, Status, pack
from airflow_provider_responsys.waiting.ledger_look import LedgerLook
from airflow_provider_responsys.waiting.memory import Kept, Memory
from airflow_provider_responsys.waiting.records import RequestRecords
from airflow_provider_responsys.waiting.schedule import paced
from airflow_provider_responsys.waiting.state import WaitState
from airflow_provider_responsys.waiting.sweep import sweep
from airflow_provider_responsys.waiting.telling import log_limit, log_progress
from airflow_provider_responsys.waiting.verdict import problems

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

MAX_TIMEOUT = 24 * 60 * 60  # Polling pages: results are kept for 24 hours
FEW_POLLS = 20
"""So many polls the worker sends itself before it defers: a push that is done already needs no trigger."""

A_HANDFUL = 5
"""So many of more: enough to see that the connection works. A worker slot is not for sweeping thousands."""

MAX_RUNS = 200
"""Pairs of a size and a number of requests that a trigger is told: some bytes each."""

PUSH_OPERATOR = ("airflow_provider_responsys.operators", "TriggerPushOperator")

FAILED_STATES = ["failed", "upstream_failed"]

MOST_PROBLEMS = 3
"""Of so many pushes it is told why they failed."""

DEFER_GRACE = 120.0
"""Seconds after the deadline when Airflow ends the wait, if no trigger has done so."""


class PushRequestSensor(PokesInTime, BaseSensorOperator):
    """Wait until Responsys has results for pushes, and count them.

    Succeeded means handed to Responsys' personalization queue, not delivered.

    It waits in the triggerer unless *deferrable* is false, without a worker slot
    and with one trigger for all requests. With ``deferrable=False`` and
    ``mode="reschedule"`` it keeps its counts from look to look in Airflow's task state
    store (3.3 and newer) or in a SQL ledger. Without either, each look polls the
    requests again until it meets one that is not finished.

    With a SQL ledger and the push's whole output, each outcome is written to the
    ledger as soon as it is known, and a wait that goes on elsewhere polls the others
    only. A request that the ledger does not know is polled all the same.

    Airflow's task state store (3.3 and newer) shows the counts under
    ``wait_progress`` when it begins to wait, and at the end: a trigger can't write
    there, and says in its log how far it is. `metrics` names what is counted.

    :param request_ids: the ids (templated): a list, the lists of a mapped push, or
        the push's whole output, with which the counts of recipients are complete;
        an empty list succeeds at once
    :param responsys_conn_id: the connection to use (templated)
    :param ledger_conn_id: the connection of the SQL ledger that outcomes are written to;
        otherwise config ``[responsys] ledger_conn_id``
    :param deferrable: wait in the triggerer; it comes before *mode*
    :param poke_interval: seconds until a request that was not finished is asked about again
    :param timeout: seconds until the wait ends, from its first try on; at most 24 hours,
        when results are purged. Without Airflow's task state store (3.3 and newer) each
        retry begins it anew; a clear always does
    :param expected_errors: codes of recipients that are no failures
    :param max_failed: how many other recipients may fail: a number, or, below 1, a
        part of those whose outcome is known. A request that failed, whose answer is
        gone, or that has more or fewer results than recipients, always fails the task
    :param fail_with_push: fail, after everything is counted, where a push failed: by the
        push's whole output, or by the state of a push directly upstream; or where one
        did not write the file that was asked for. A DAG run's state is that of its last tasks
    :param results_path: object storage path to write the outcome of each recipient to, as
        JSON lines or CSV by its suffix, ``.jsonl`` or ``.csv``, or either with ``.gz``
        (templated). It needs a SQL ledger and the push's whole output. That of a mapped
        sensor holds ``{{ ti.map_index }}``

    It returns ``requests``, ``recipients`` and ``errors``, all counts; the number of
    unknown recipients is null where it is not known. They are pushed as well when
    the task fails. With *soft_fail*, it is skipped instead.

    A line at *results_path* has ``request_id``, ``position`` (from 0, in the request),
    ``outcome`` (``succeeded``, ``failed`` or ``unknown``) and ``code``; and ``row``,
    ``identifier`` and ``value`` where the push wrote a file at its ``recipients_path``.
    It is written by the worker when the wait ends, also when it fails, whole or not at all.
    """

    template_fields = ("request_ids", "responsys_conn_id", "results_path")
    first_delay = FIRST_DELAY
    operator_extra_links = (WaitReportLink(),)
    ui_color = "#f3e6d0"

    def __init__(
        self,
        *,
        request_ids: Any,
        deferrable: bool = True,
        poke_interval: timedelta | float = 60,
        timeout: timedelta | float = MAX_TIMEOUT,
        expected_errors: Iterable[str] = ("NO_RECIPIENT_FOUND",),  # AFTM push page: often normal for a push
        max_failed: float = 0,
        fail_with_push: bool = True,
        results_path: str | None = None,
        responsys_conn_id: str = ResponsysHook.default_conn_name,
        ledger_conn_id: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(poke_interval=poke_interval, timeout=timeout, **kwargs)
        self.request_ids = request_ids
        self.deferrable = deferrable
        self.expected_errors = expected_errors
        self.max_failed = max_failed
        self.fail_with_push = fail_with_push
        self.results_path = self._results_template = results_path
        self.responsys_conn_id = responsys_conn_id
        self.ledger_conn_id = ledger_conn_id
        self._asked: Asked | None = None
        self._state: WaitState | None = None
        self._engine: WaitEngine | None = None
        self._hook: ResponsysHook | None = None
        self._ledger = LedgerLook(lambda: None, self.log)  # until the wait begins: Airflow copies the task before that
        self._limit_read = False
        self._note: TaskStateNote | None = None
        self._ended = self._told = False
        self._memory: Memory | None = None
        self._kept = Kept(0.0, math.inf)
        self._check_settings()

    def execute(self, context: "Context") -> Any:
        """Wait, or defer to a trigger that does, and return the counts."""
        show_link(WaitReportLink(), context)
        try:
            state = self._begin(context)
            if not state.open:
                self.log.info("There are no requests to wait for")
                return self._finish(context, state)
            return self._defer(context, state) if self.deferrable else self._stay(context, state)
        except ResponsysError as error:
            self._end(context, AirflowFailException(str(error)), error)
        finally:
            self._close()

    def execute_complete(self, context: "Context", event: Any = None) -> dict[str, Any]:  # noqa: RET503 -- or it raises
        """Return the counts in the trigger's *event*, or fail as they demand."""
        try:
            asked = self._asked = Asked.of(self.request_ids)
            told = believed(event, asked)
        except ResponsysError as error:
            self._end(context, AirflowFailException(str(error)), error)
        self._state = state = WaitState(
            told.results, sizes=asked.sizes, recipients=told.recipients, accepted=asked.accepted, asked=asked.ids
        )
        match told.status:
            case Status.TIMEOUT:
                self._time_out(context, state)
            case Status.ERROR:
                self._end(context, AirflowFailException(told.message))
            case Status.RETRY:
                self._end(context, AirflowException(told.message))
            case Status.FINISHED:
                return self._finish(context, state)

    def poke(self, context: "Context") -> PokeReturnValue:
        """Poll the requests that are not known to be finished; done when there are none left."""
        try:
            state = self._begin(context)
            self._ledger.consult(state)
            # Where nothing of a look is kept, one open request is enough to know that the task must go on waiting.
            keeps = self._ledger.is_read or (self._memory and self._memory.keeps_counts)
            self._look(state, stop_at_open=self.reschedule and not keeps)
        except ResponsysError as error:
            self._end(context, AirflowFailException(str(error)), error)
        if state.open:
            log_progress(self.log, state.results)
            self._show(context, state)
            if self.seconds_left() <= 0.0:
                self._time_out(context, state)
            if self._memory and self.reschedule:
                self._memory.keep(self._kept, state)
            return PokeReturnValue(is_done=False)
        return PokeReturnValue(is_done=True, xcom_value=self._finish(context, state))

    def _begin(self, context: "Context") -> WaitState:
        """Return the state of this wait, which may have begun in an earlier try, or before it was rescheduled."""
        if self._state is None:
            asked = self._asked = Asked.of(self.request_ids)
            self._results_file(context, asked)  # whether it can be written is known before anything is polled
            self._state = state = WaitState.on(asked.ids, sizes=asked.sizes, accepted=asked.accepted)
            self._ledger = LedgerLook(self._opened, self.log)
            ti = context.get("ti")
            max_tries = ti.max_tries if ti else None
            self._memory = Memory(context.get("task_state_store"), asked.ids, max_tries, self.log)
            first = ti.get_first_reschedule_date(context) if ti and self.reschedule else None
            self._kept = kept = self._memory.recall(self.timeout, began=first.timestamp() if first else None)
            if kept.open is not None and kept.results:
                state.go_on(kept.open, kept.results)
        return self._state

    def seconds_left(self) -> float:
        """Return for how long the wait may go on."""
        return self._kept.deadline - time.time()

    def _defer(self, context: "Context", state: WaitState) -> dict[str, Any]:  # noqa: RET503 -- to defer is to raise
        """Return the counts if they are all there already; hand what is open to a trigger otherwise."""
        self._ledger.consult(state)
        self._requests(context, state)  # whether they fit is known before anything is polled
        few = len(state.open) <= FEW_POLLS * self._line().account().family.ids_per_poll
        self._look(state, most=FEW_POLLS if few else A_HANDFUL)
        if not state.open:
            return self._finish(context, state)
        self._show(context, state)
        left = self.seconds_left()
        if left <= 0.0:
            self._time_out(context, state)
        self.defer(
            trigger=PushRequestTrigger(
                responsys_conn_id=self.responsys_conn_id,
                poll_interval=self.poke_interval,
                deadline=self._kept.deadline,
                first_delay=self.first_delay,
                results=state.results.to_event(),
                **self._requests(context, state),
            ),
            method_name="execute_complete",
            timeout=timedelta(seconds=left + DEFER_GRACE),
        )

    def _requests(self, context: "Context", state: WaitState) -> dict[str, Any]:
        """Return the trigger's arguments that say which requests are open."""
        arguments: dict[str, Any] = {}
        if self._ledger.records and self._asked:
            arguments = {
                "ledger_conn_id": ledger_conn_id_of(self.ledger_conn_id),
                "send_keys": list(self._asked.send_keys),
            }
        packed = pack(state.open)
        if len(packed) <= MAX_PACKED:
            sizes = runs(state.sizes.get(request_id) for request_id in state.open)
            return {**arguments, "packed_ids": packed, "sizes": sizes if len(sizes) <= MAX_RUNS else None}
        # The ledger tells the trigger which they are, where it knows them by their tasks.
        if task_instances := self._ledger.task_instances(state):
            return {**arguments, "packed_task_instances": pack(task_instances)}
        message = f"{len(state.open)} request ids take {len(packed)} bytes, and a trigger has room for {MAX_PACKED}"
        if isinstance(self._ledger.unread, LedgerUnreachable):
            error = AirflowException(f"{message}; they would fit if the ledger could be read: {self._ledger.unread}")
            self._end(context, error, self._ledger.unread)
        raise InvalidSettings(
            f"{message}: set a SQL ledger and give the push's whole output, split them over several sensors, "
            "or set deferrable=False"
        )

    def _opened(self) -> RequestRecords | None:
        """Return what reads and writes the ledger, if there is one and what was asked for can be found there."""
        ledger_conn_id = ledger_conn_id_of(self.ledger_conn_id)
        if ledger_conn_id and self._asked and self._asked.send_keys:
            return RequestRecords.on(ledger_engine(ledger_conn_id), self._asked.send_keys, self.log)
        if self.ledger_conn_id:
            self.log.warning(
                "Outcomes are not recorded: only a push's whole output, push.output, says which send it is"
            )
        return None

    def _stay(self, context: "Context", state: WaitState) -> Any:
        """Wait as every sensor does: in this worker slot, or rescheduled."""
        try:
            return super().execute(context)
        except (AirflowSensorTimeout, AirflowSkipException):
            if self._ended:
                raise
            self._time_out(context, state)

    def _look(self, state: WaitState, *, most: int | None = None, stop_at_open: bool = False) -> None:
        """Poll the open requests, in at most *most* polls; what may pass ends the look, nothing else."""
        hook = self._line()
        account = hook.account()
        engine = self._paced(hook, state, most)
        polls = -(-len(state.open) // account.family.ids_per_poll)

        def ask(ids: Sequence[str], wait: float) -> Mapping[str, Outcome]:
            return hook.run(after(wait, poll(account, ids, tracking_id=new_tracking_id())))

        sweep(
            engine,
            ask,
            log=self.log,
            observer=WaitObserver(Metrics(self.log, conn_id=self.responsys_conn_id)),
            record=self._ledger.record,
            most=most,
            seconds=self.seconds_left(),
            stop_at_open=stop_at_open and polls > FEW_POLLS,
        )

    def _paced(self, hook: ResponsysHook, state: WaitState, most: int | None) -> WaitEngine:
        """Return the engine of this look. A few polls are within every limit, many go by the account's own."""
        account, now = hook.account(), time.monotonic()
        size = account.family.ids_per_poll
        if self._engine is None:
            self._engine = WaitEngine(
                state,
                pace=paced(polls_per_minute(account), now),
                poll_interval=self.poke_interval,
                ids_per_poll=size,
                max_in_flight=1,
                first_at=now,
                waited=time.time() - self._kept.began,
            )
        engine = self._engine
        engine.schedule.bring_forward(now, now + self.poke_interval)
        polls = -(-len(state.open) // size)
        if account.poll_requests_per_minute or self._limit_read or min(polls, most or polls) <= FEW_POLLS:
            return engine
        try:
            limit = poll_limit(hook.get_rate_limits(), account.family)
        except ResponsysError as error:
            log_limit(self.log, None, polls_per_minute(account), error)
            self._limit_read = not isinstance(error, TOLD_LATER)
            return engine
        log_limit(self.log, limit, polls_per_minute(account))
        self._limit_read = True
        if limit:
            engine.use_limit(limit, time.monotonic())
        return engine

    def _finish(self, context: "Context", state: WaitState) -> dict[str, Any]:
        """Return the counts, all requests having ended; fail if they demand it."""
        log_progress(self.log, state.results)
        found = [*self._problems(state.results), *state.mismatch(), *self._push_problems(context)]
        found += self._write_results(context, state)
        if self._ledger.refused:
            found.append(f"outcomes were not written to the ledger: {self._ledger.refused}")
        if found:
            message = "; ".join(found)
            self._end(context, AirflowFailException(message), RequestsFailed(message))
        self._show(context, state)
        return state.summary()

    def _problems(self, results: Results) -> list[str]:
        return problems(results, expected_errors=tuple(self.expected_errors), max_failed=self.max_failed)

    def _push_problems(self, context: "Context") -> list[str]:
        """Return why the pushes that are waited for failed, as their outputs and Airflow say."""
        if not self.fail_with_push:
            return []
        failed, left = self._failed_pushes(context)
        told = list(self._asked.problems if self._asked else ()) or ([] if self._is_one_of_many(context) else left)
        unwritten = list(self._asked.unwritten if self._asked else ())
        more = f", and {len(told) - MOST_PROBLEMS} more" if len(told) > MOST_PROBLEMS else ""
        found = [f"the push failed: {'; '.join(told[:MOST_PROBLEMS])}{more}"] if told else []
        if unwritten:
            found.append(f"{len(unwritten)} pushes wrote no file at their recipients_path: {unwritten[0]}")
        if failed > len(left):
            found.append(f"{failed - len(left)} upstream pushes failed and left no output: look at their logs")
        return found

    def _failed_pushes(self, context: "Context") -> tuple[int, list[str]]:
        """Return how many direct upstream pushes, mapped ones counted one by one, failed, and the problems they left.

        Of the pushes in its own mapped task group, a wait sees the one at its own map
        index. Of all others, each wait would see the same: the first one tells.
        """
        ti = context.get("ti")
        pushes = [task for task in self.upstream_list if is_push(task)] if ti else []
        if ti is None or not pushes:
            return 0, []
        group, place = self.get_closest_mapped_task_group(), -1 if ti.map_index is None else ti.map_index
        beside = [task.task_id for task in pushes if group and task.get_closest_mapped_task_group() == group]
        others = [task.task_id for task in pushes if task.task_id not in beside]
        failed, left = 0, list[str]()
        run: dict[str, Any] = {"dag_id": ti.dag_id, "run_ids": [ti.run_id], "states": FAILED_STATES}
        if beside:
            failed += ti.get_ti_count(map_index=place, task_ids=beside, **run)
            left += filter(None, ti.xcom_pull(task_ids=beside, key="problem", map_indexes=place))
        if others and place <= 0:
            failed += ti.get_ti_count(task_ids=others, **run)
            left += filter(None, ti.xcom_pull(task_ids=others, key="problem"))
        return failed, left

    def _is_one_of_many(self, context: "Context") -> bool:
        """Return whether this wait is of one item of a list, and not in a mapped task group."""
        ti = context.get("ti")
        return bool(ti and ti.map_index is not None and ti.map_index >= 0 and not self.get_closest_mapped_task_group())

    def _time_out(self, context: "Context", state: WaitState) -> NoReturn:
        results = state.results
        text = f"{results.pending} of {results.total} requests have no results after {timedelta(seconds=self.timeout)}"
        found = [text, *self._problems(results)]
        try:
            found += self._push_problems(context)
        except Exception as error:  # noqa: BLE001 -- however Airflow's API fails, the wait has timed out
            self.log.warning("The states of upstream pushes can't be read (%s): not in the error", type(error).__name__)
        self._end(context, AirflowSensorTimeout("; ".join(found)))

    def _end(self, context: "Context", error: AirflowException, cause: Exception | None = None) -> NoReturn:
        """Fail with *error*, or be skipped where the DAG's author prefers that; the counts stay readable."""
        self._ended = True
        if self._state:
            self._show(context, self._state)
            self._write_results(context, self._state)
        if self._state and self.do_xcom_push and "ti" in context:
            context["ti"].xcom_push(key="return_value", value=self._state.summary())
        if self.soft_fail or self.never_fail:
            raise AirflowSkipException(str(error)) from error
        raise error from cause

    def _results_file(self, context: "Context", asked: Asked) -> ResultsFile | None:
        """Return what writes the outcomes, if that is wanted, or raise `InvalidSettings` where it can't be done."""
        ti = context.get("ti")
        return ResultsFile.of(
            self.results_path,
            asked,
            map_index=ti.map_index if ti else None,
            template=self._results_template,
            ledger_conn_id=ledger_conn_id_of(self.ledger_conn_id),
            open_path=ObjectStoragePath,
            log=self.log,
        )

    def _write_results(self, context: "Context", state: WaitState) -> list[str]:
        """Write the outcome of each recipient where that was asked for, once; return what is wrong with it."""
        file = self._results_file(context, self._asked) if self._asked and not self._told else None
        self._told = True
        if file is None:
            return []
        self._ledger.write_the_rest()
        return file.write(partial(ledger_records, str(ledger_conn_id_of(self.ledger_conn_id))), state.results)

    def _show(self, context: "Context", state: WaitState) -> None:
        """Show how far the wait is. A trigger can't: it does not reach Airflow's task state store."""
        self._note = self._note or TaskStateNote(context.get("task_state_store"), WAIT, self.log)
        self._note.write(state.summary())

    def _line(self) -> ResponsysHook:
        self._hook = self._hook or ResponsysHook(self.responsys_conn_id)
        return self._hook

    def _close(self) -> None:
        hook, self._hook = self._hook, None
        if hook:
            hook.close()
        self._ledger.close()

    def _check_settings(self) -> None:
        if self.timeout > MAX_TIMEOUT:
            raise InvalidSettings(
                f"timeout is {timedelta(seconds=self.timeout)}: at most 24 hours make sense, then results are purged"
            )
        if isinstance(self.expected_errors, str):
            raise InvalidSettings(
                f"expected_errors is a text: give a list of codes, such as [{self.expected_errors!r}]"
            )
        if isinstance(self.max_failed, bool) or not self.max_failed >= 0:
            raise InvalidSettings("max_failed must be a number from 0 up: a count, or a part below 1")


def believed(event: Any, asked: Asked) -> Event:
    """Return what the trigger tells in *event*, or raise `InvalidAnswer` if it is not about what was *asked*."""
    told = Event.from_payload(event)
    if told.results.total != len(asked.ids):
        raise InvalidAnswer(f"the trigger tells of {told.results.total} requests, and {len(asked.ids)} were asked for")
    return told


def after(seconds: float, conversation: Conversation[dict[str, Outcome]]) -> Conversation[dict[str, Outcome]]:
    """Hold *conversation*, *seconds* from now."""
    if seconds > 0:
        yield Pause(seconds)
    return (yield from conversation)


def is_push(task: Any) -> bool:
    """Return whether *task* sends pushes, mapped or not; without importing what would send them."""
    kind = getattr(task, "operator_class", type(task))
    return isinstance(kind, type) and any((base.__module__, base.__name__) == PUSH_OPERATOR for base in kind.__mro__)
