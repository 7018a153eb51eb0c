"""The sensor that waits for what became of pushes."""

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NoReturn, Self

from airflow.providers.common.compat.sdk import (
    AirflowException,
    AirflowFailException,
    AirflowSensorTimeout,
    AirflowSkipException,
    BaseSensorOperator,
    PokeReturnValue,
)

from airflow_provider_responsys.errors import (
    InvalidAnswer,
    InvalidSettings,
    LedgerFailed,
    LimitExceeded,
    RequestsFailed,
    ResponsysError,
)
from airflow_provider_responsys.hooks import ResponsysHook, new_tracking_id, polls_per_minute
from airflow_provider_responsys.ledger.book import Book, log_unwritten, passes
from airflow_provider_responsys.ledgers import ledger_conn_id_of, ledger_engine
from airflow_provider_responsys.metrics import Metrics, count_answer, count_refusal
from airflow_provider_responsys.progress import WAIT, Note
from airflow_provider_responsys.protocol.event import MAX_PACKED, Event, Status, pack
from airflow_provider_responsys.protocol.pace import Pace
from airflow_provider_responsys.protocol.polling import ROWS_DIFFER, Outcome, poll
from airflow_provider_responsys.protocol.push import REQUEST_ID
from airflow_provider_responsys.protocol.ratelimit import TOLD_LATER, poll_limit
from airflow_provider_responsys.protocol.results import Results
from airflow_provider_responsys.protocol.schedule import PASSING
from airflow_provider_responsys.protocol.wire import Conversation, Pause
from airflow_provider_responsys.triggers import FIRST_DELAY, PushRequestTrigger, log_limit, log_progress, settle

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

MAX_TIMEOUT = 24 * 60 * 60  # Polling pages: results are kept for 24 hours
FEW_POLLS = 20
"""So many questions the worker asks itself before it defers: a push that is done already needs no trigger."""

A_HANDFUL = 5
"""So many of more: enough to see that the connection works. A worker slot is not for sweeping thousands."""

DEFER_GRACE = 120.0
"""Seconds after the deadline when Airflow ends the wait, if no trigger has done so."""

NO_IDS = (
    "the push left no request ids: it failed before anything was sent, or did not run. "
    "There is nothing to wait for; look at the push"
)


class PushRequestSensor(BaseSensorOperator):
    """Wait until Responsys has results for pushes, and count them.

    Succeeded means handed to Responsys' personalization queue, not delivered.

    It waits in the triggerer unless *deferrable* is false, without a worker slot
    and with one trigger for all requests. With ``deferrable=False`` and
    ``mode="reschedule"`` it remembers nothing from one look to the next, so each
    asks about the requests again until it meets one that is not finished.

    With a SQL ledger and the push's whole output, each outcome is written to the
    ledger as soon as it is known, and whoever goes on waiting asks about the others
    only. A request that the ledger does not know is asked about all the same.

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
    :param timeout: seconds until the wait ends; at most 24 hours, when results are purged
    :param expected_errors: codes of recipients that are no failures
    :param max_failed: how many other recipients may fail: a number, or, below 1, a
        part of those whose outcome is known. A request that failed, whose answer is
        gone, or that has more or fewer results than recipients, always fails the task

    It returns ``requests``, ``recipients`` and ``errors``, all counts; the number of
    unknown recipients is null where it is not known. They are pushed as well when
    the task fails. With *soft_fail*, it is skipped instead.
    """

    template_fields = ("request_ids", "responsys_conn_id")
    first_delay = FIRST_DELAY
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
        responsys_conn_id: str = ResponsysHook.default_conn_name,
        ledger_conn_id: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(poke_interval=poke_interval, timeout=timeout, **kwargs)
        self.request_ids = request_ids
        self.deferrable = deferrable
        self.expected_errors = expected_errors
        self.max_failed = max_failed
        self.responsys_conn_id = responsys_conn_id
        self.ledger_conn_id = ledger_conn_id
        self._waiting: Waiting | None = None
        self._hook: ResponsysHook | None = None
        self._book: Book | None = None
        self._pace: Pace | None = None
        self._limit_read = False
        self._note: Note | None = None
        self._ended = False
        self._check_settings()

    def execute(self, context: "Context") -> Any:
        """Wait, or defer to a trigger that does, and return the counts."""
        try:
            self._waiting = waiting = Waiting.on(Asked.of(self.request_ids))
            if not waiting.open:
                self.log.info("There are no requests to wait for")
                return self._finish(context, waiting)
            return self._defer(context, waiting) if self.deferrable else self._stay(context, waiting)
        except ResponsysError as error:
            self._end(context, AirflowFailException(str(error)), error)
        finally:
            self._close()

    def execute_complete(self, context: "Context", event: Any = None) -> dict[str, Any]:  # noqa: RET503 -- or it raises
        """Return the counts in the trigger's *event*, or fail as they demand."""
        try:
            asked = Asked.of(self.request_ids)
            told = believed(event, asked)
        except ResponsysError as error:
            self._end(context, AirflowFailException(str(error)), error)
        self._waiting = waiting = Waiting(asked, told.results, recipients=told.recipients)
        match told.status:
            case Status.TIMEOUT:
                self._time_out(context, waiting)
            case Status.ERROR:
                self._end(context, AirflowFailException(told.message))
            case Status.FINISHED:
                return self._finish(context, waiting)

    def poke(self, context: "Context") -> PokeReturnValue:
        """Ask about the requests that are not known to be finished; done when there are none left."""
        try:
            waiting = self._waiting = self._waiting or Waiting.on(Asked.of(self.request_ids))
            if not self._consult(waiting):
                return PokeReturnValue(is_done=False)
            # A rescheduled task begins anew each time, unless there is a ledger: one open request is enough to know
            # that it must go on waiting.
            self._look(waiting, stop_at_open=self.reschedule and not waiting.book)
        except ResponsysError as error:
            self._end(context, AirflowFailException(str(error)), error)
        if waiting.open:
            log_progress(self.log, waiting.results)
            self._show(context, waiting)
            return PokeReturnValue(is_done=False)
        return PokeReturnValue(is_done=True, xcom_value=self._finish(context, waiting))

    def _defer(self, context: "Context", waiting: "Waiting") -> dict[str, Any]:  # noqa: RET503 -- to defer is to raise
        """Return the counts if they are all there already; hand what is open to a trigger otherwise."""
        deadline = time.time() + self.timeout
        consulted = self._consult(waiting)
        self._requests(context, waiting)  # whether they fit is known before anything is asked
        if consulted:
            few = len(waiting.open) <= FEW_POLLS * self._line().account().family.ids_per_poll
            self._look(waiting, most=FEW_POLLS if few else A_HANDFUL)
        if not waiting.open:
            return self._finish(context, waiting)
        self._show(context, waiting)
        self.defer(
            trigger=PushRequestTrigger(
                responsys_conn_id=self.responsys_conn_id,
                poll_interval=self.poke_interval,
                deadline=deadline,
                first_delay=self.first_delay,
                results=waiting.results.to_event(),
                **self._requests(context, waiting),
            ),
            method_name="execute_complete",
            timeout=timedelta(seconds=self.timeout + DEFER_GRACE),
        )

    def _requests(self, context: "Context", waiting: "Waiting") -> dict[str, Any]:
        """Return the trigger's arguments that say which requests are open."""
        arguments: dict[str, Any] = {}
        if self._book:
            arguments = {
                "ledger_conn_id": ledger_conn_id_of(self.ledger_conn_id),
                "send_keys": list(waiting.asked.send_keys),
            }
        if task_instances := waiting.task_instances():
            return {**arguments, "packed_task_instances": pack(task_instances)}
        packed = pack(waiting.open)
        if len(packed) <= MAX_PACKED:
            return {**arguments, "packed_ids": packed}
        message = f"{len(waiting.open)} request ids take {len(packed)} bytes, and a trigger has room for {MAX_PACKED}"
        if waiting.unread:
            error = AirflowException(f"{message}; they would fit if the ledger could be read: {waiting.unread}")
            self._end(context, error, waiting.unread)
        raise InvalidSettings(
            f"{message}: set a SQL ledger and give the push's whole output, split them over several sensors, "
            "or set deferrable=False"
        )

    def _consult(self, waiting: "Waiting") -> bool:
        """Let the ledger, if there is one, tell *waiting* what it knows; return whether it could."""
        if waiting.book:
            return True
        self._book = book = self._book or self._opened(waiting.asked)
        if not book:
            return True
        try:
            book.read()
        except LedgerFailed as error:
            if not passes(error):
                raise
            self.log.warning("The ledger can't be read at the moment, trying again later: %s", error)
            waiting.unread = error
            return False
        waiting.learn(book)
        if unknown := sum(not book.knows(request_id) for request_id in waiting.asked.ids):
            self.log.warning(
                "The ledger does not know %d of %d requests: what becomes of them is counted, and not recorded there",
                unknown,
                waiting.results.total,
            )
        return True

    def _opened(self, asked: "Asked") -> Book | None:
        """Return the ledger's book of what was *asked*, if there is a ledger and it can be found there."""
        ledger_conn_id = ledger_conn_id_of(self.ledger_conn_id)
        if ledger_conn_id and asked.send_keys:
            return Book.on(ledger_engine(ledger_conn_id), asked.send_keys, self.log)
        if self.ledger_conn_id:
            self.log.warning(
                "Outcomes are not recorded: only a push's whole output, push.output, says which send it is"
            )
        return None

    def _stay(self, context: "Context", waiting: "Waiting") -> Any:
        """Wait as every sensor does: in this worker slot, or rescheduled."""
        try:
            return super().execute(context)
        except (AirflowSensorTimeout, AirflowSkipException):
            if self._ended:
                raise
            self._time_out(context, waiting)

    def _look(self, waiting: "Waiting", *, most: int | None = None, stop_at_open: bool = False) -> None:
        """Ask about the open requests, in at most *most* polls; what may pass ends the look, nothing else."""
        hook = self._line()
        account = hook.account()
        polls = list(groups(waiting.open, account.family.ids_per_poll))
        stop_at_open = stop_at_open and len(polls) > FEW_POLLS
        polls = polls[:most]
        pace = self._paced(hook, len(polls))
        failure: LedgerFailed | None = None
        metrics = Metrics(self.log, conn_id=self.responsys_conn_id)
        for ids in polls:
            now = time.monotonic()
            wait = max(0.0, pace.earliest() - now)
            pace.take(now + wait)
            try:
                outcomes = hook.run(after(wait, poll(account, ids, tracking_id=new_tracking_id())))
            except PASSING as error:
                count_refusal(metrics, error)
                if isinstance(error, LimitExceeded):
                    pace.refused(now + wait, time.monotonic())
                self.log.warning("No results at the moment, asking again later: %s", error)
                return
            pace.accepted(now + wait, time.monotonic())
            count_answer(metrics, outcomes, waiting.book.sizes if waiting.book else {})
            still_open = waiting.settle(outcomes, self.log)
            if waiting.book and not failure and (failure := waiting.book.write()):
                self.log.warning("The ledger can't be written at the moment, trying again later: %s", failure)
            if still_open and stop_at_open:
                return

    def _paced(self, hook: ResponsysHook, polls: int) -> Pace:
        """Return the pace for so many *polls*: a few are within every limit, many go by the account's own."""
        account = hook.account()
        pace = self._pace = self._pace or Pace.at(polls_per_minute(account), time.monotonic())
        if account.poll_requests_per_minute or self._limit_read or polls <= FEW_POLLS:
            return pace
        try:
            limit = poll_limit(hook.get_rate_limits(), account.family)
        except ResponsysError as error:
            log_limit(self.log, None, error)
            self._limit_read = not isinstance(error, TOLD_LATER)
            return pace
        log_limit(self.log, limit)
        self._limit_read = True
        if limit and limit != pace.limit:
            self._pace = Pace.at(limit, time.monotonic())
        return self._pace

    def _finish(self, context: "Context", waiting: "Waiting") -> dict[str, Any]:
        """Return the counts, all requests having ended; fail if they demand it."""
        log_progress(self.log, waiting.results)
        if problems := [*self._problems(waiting.results), *waiting.mismatch()]:
            message = "; ".join(problems)
            self._end(context, AirflowFailException(message), RequestsFailed(message))
        self._show(context, waiting)
        return waiting.summary()

    def _problems(self, results: Results) -> list[str]:
        """Return why *results* are a failure, in counts and codes."""
        problems = []
        if lost := results.failed + results.unknown:
            errors = {code: number for code, number in results.request_errors.items() if code != ROWS_DIFFER}
            problems.append(f"{lost} of {results.total} requests ended without results ({codes(errors)})")
        if different := results.request_errors[ROWS_DIFFER]:
            problems.append(
                f"{different} of {results.total} requests have more or fewer results than recipients ({ROWS_DIFFER}): "
                "whose they are can't be told"
            )
        failures = {code: number for code, number in results.errors.items() if code not in self.expected_errors}
        failed = sum(failures.values())
        known = results.recipients_succeeded + results.recipients_failed
        tolerated = self.max_failed * known if self.max_failed < 1 else self.max_failed
        if failed > tolerated:
            problems.append(
                f"{failed} of {known} recipients failed ({codes(failures)}), {int(tolerated)} are tolerated"
            )
        return problems

    def _time_out(self, context: "Context", waiting: "Waiting") -> NoReturn:
        results = waiting.results
        text = f"{results.pending} of {results.total} requests have no results after {timedelta(seconds=self.timeout)}"
        self._end(context, AirflowSensorTimeout("; ".join([text, *self._problems(results)])))

    def _end(self, context: "Context", error: AirflowException, cause: Exception | None = None) -> NoReturn:
        """Fail with *error*, or be skipped where the DAG's author prefers that; the counts stay readable."""
        self._ended = True
        if self._waiting:
            self._show(context, self._waiting)
        if self._waiting and self.do_xcom_push and "ti" in context:
            context["ti"].xcom_push(key="return_value", value=self._waiting.summary())
        if self.soft_fail or self.never_fail:
            raise AirflowSkipException(str(error)) from error
        raise error from cause

    def _show(self, context: "Context", waiting: "Waiting") -> None:
        """Show how far the wait is. A trigger can't: it does not reach Airflow's task state store."""
        self._note = self._note or Note(context.get("task_state_store"), WAIT, self.log)
        self._note.write(waiting.summary())

    def _line(self) -> ResponsysHook:
        self._hook = self._hook or ResponsysHook(self.responsys_conn_id)
        return self._hook

    def _close(self) -> None:
        hook, self._hook = self._hook, None
        if hook:
            hook.close()
        book, self._book = self._book, None
        if book:
            if book.unwritten and (failure := book.write()):
                log_unwritten(self.log, book, failure)
            book.close()

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


@dataclass(frozen=True, slots=True)
class Asked:
    """What the DAG's author asks about: requests, how many recipients were *accepted* in them, and of which sends."""

    ids: tuple[str, ...]
    accepted: int | None
    send_keys: tuple[str, ...] = ()

    @classmethod
    def of(cls, value: Any) -> Self:
        """Read *value*, or raise `InvalidSettings` if no push leaves such a thing."""
        ids: dict[str, None] = {}
        accepted: list[int | None] = []
        send_keys: dict[str, None] = {}
        problem: object = None
        for found in _pushes(value):
            if isinstance(found, Mapping):
                problem = problem or found.get("problem")
                ids.update(dict.fromkeys(_ids_of(found)))
                accepted.append(_accepted_of(found))
                if isinstance(send_key := found.get("send_key"), str):
                    send_keys[send_key] = None
            else:
                ids[_checked(found)] = None
                accepted.append(None)
        if problem and not ids:
            raise InvalidSettings(f"the push failed ({problem}), and sent nothing to wait for: look at the push")
        return cls(tuple(ids), None if None in accepted else sum(filter(None, accepted)), tuple(send_keys))


@dataclass(slots=True)
class Waiting:
    """How far the wait is: the counts so far, and which requests are *open*.

    *book* is what the ledger knows, *unread* why that could not be read, and
    *recipients* how many the requests are for, if the ledger says so.
    """

    asked: Asked
    results: Results
    open: list[str] = field(default_factory=list)
    recipients: int | None = None
    book: Book | None = None
    unread: LedgerFailed | None = None

    @classmethod
    def on(cls, asked: Asked) -> Self:
        """Return a wait that has just begun."""
        return cls(asked, Results(total=len(asked.ids)), list(asked.ids))

    def learn(self, book: Book) -> None:
        """Count what *book* knows already, and go on with it."""
        self.book, self.unread = book, None
        self.open = book.recall(self.open, self.results)
        if all(map(book.knows, self.asked.ids)):
            self.recipients = sum(book.sizes[request_id] for request_id in self.asked.ids)

    def task_instances(self) -> list[str]:
        """Return the tasks by whose names the ledger finds exactly what was asked for, if there are such."""
        if not self.book or not all(map(self.book.knows, self.asked.ids)):
            return []
        task_instances = self.book.task_instances(self.asked.ids)
        return task_instances if set(self.book.of(task_instances)) == set(self.asked.ids) else []

    def settle(self, outcomes: Mapping[str, Outcome], log: Any) -> bool:
        """Count *outcomes*, and note them for the ledger; return whether one of those requests is still open."""
        still_open = settle(self.results, outcomes, log, self.book.sizes if self.book else {})
        ended = outcomes.keys() - still_open
        self.open = [request_id for request_id in self.open if request_id not in ended]
        if self.book:
            self.book.note(outcomes)
        return bool(still_open)

    def mismatch(self) -> list[str]:
        """Return what is wrong with the number of results, where the requests alone do not show it."""
        results, accepted = self.results, self.asked.accepted
        known = results.recipients_succeeded + results.recipients_failed
        # Fewer are counted as unknown: a batch that a person settled by hand has no request, and no results.
        if accepted is None or known <= accepted or results.request_errors[ROWS_DIFFER]:
            return []
        return [f"{known} results came for {accepted} recipients ({ROWS_DIFFER}): whose they are can't be told"]

    def summary(self) -> dict[str, Any]:
        """Return what the sensor returns. Unknown recipients are counted where their number is known, or null."""
        summary: dict[str, Any] = self.results.summary()
        known = self.results.recipients_succeeded + self.results.recipients_failed
        unknown = None
        if self.asked.accepted is not None and self.asked.accepted >= known:
            unknown = self.asked.accepted - known
        elif self.recipients is not None:
            unknown = self.recipients - known
        elif self.results.finished == self.results.total:
            unknown = self.results.recipients_unknown
        summary["recipients"]["unknown"] = unknown
        return summary


def believed(event: Any, asked: Asked) -> Event:
    """Return what the trigger tells in *event*, or raise `InvalidAnswer` if it is not about what was *asked*."""
    told = Event.from_payload(event)
    if told.results.total != len(asked.ids):
        raise InvalidAnswer(f"the trigger tells of {told.results.total} requests, and {len(asked.ids)} were asked for")
    return told


def groups(ids: list[str], size: int) -> Iterator[list[str]]:
    """Yield *ids* in lists of up to *size*."""
    for start in range(0, len(ids), size):
        yield ids[start : start + size]


def after(seconds: float, conversation: Conversation[dict[str, Outcome]]) -> Conversation[dict[str, Outcome]]:
    """Hold *conversation*, *seconds* from now."""
    if seconds > 0:
        yield Pause(seconds)
    return (yield from conversation)


def codes(counts: Mapping[str, int]) -> str:
    """Return *counts* by code for a message, the largest first."""
    return ", ".join(
        f"{code}: {number}" for code, number in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    )


def _pushes(value: Any) -> Iterator[Any]:
    """Yield every request id and every push's output in *value*, however deep mapping has nested them."""
    if value is None:
        raise InvalidSettings(f"request_ids is None: {NO_IDS}")
    if isinstance(value, (str, bytes)):
        raise InvalidSettings(
            'request_ids is a text: give a list, or the push itself (push.output or push.output["request_ids"]); '
            "a template in quotes renders to a text"
        )
    if isinstance(value, Mapping):
        yield value
    elif isinstance(value, Iterable):
        for item in value:
            if isinstance(item, str):
                yield item
            else:
                yield from _pushes(item)
    else:
        raise InvalidSettings(f"request_ids holds a {type(value).__name__}: give a list of request ids")


def _ids_of(push: Mapping[str, Any]) -> list[str]:
    if "request_ids" not in push:
        raise InvalidSettings("request_ids holds a mapping without request_ids: it is not the output of a push")
    ids = push["request_ids"]
    if ids is None:
        raise InvalidSettings(f"request_ids is None: {NO_IDS}")
    if not isinstance(ids, (list, tuple)):
        raise InvalidSettings("request_ids in the output of a push is not a list")
    return [_checked(request_id) for request_id in ids]


def _accepted_of(push: Mapping[str, Any]) -> int | None:
    recipients = push.get("recipients")
    accepted = recipients.get("accepted") if isinstance(recipients, Mapping) else None
    return accepted if type(accepted) is int and accepted >= 0 else None


def _checked(request_id: Any) -> str:
    if not isinstance(request_id, str) or not REQUEST_ID.fullmatch(request_id):
        raise InvalidSettings("request_ids holds something that is no request id")
    return request_id
