"""The operator that sends a push campaign to a list of recipients."""

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from functools import partial
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Literal

from airflow.providers.common.compat.sdk import AirflowFailException, BaseHook, BaseOperator, ObjectStoragePath

from airflow_provider_responsys.airflow_internals import RendersAside
from airflow_provider_responsys.errors import (
    Fenced,
    InvalidSettings,
    NotAllSent,
    code_of,
)
from airflow_provider_responsys.files.doubts import write_doubts
from airflow_provider_responsys.files.recipients_file import RecipientsFile
from airflow_provider_responsys.files.storage import Target
from airflow_provider_responsys.hooks import ResponsysHook, new_tracking_id, pushes_per_minute
from airflow_provider_responsys.ledger import tries
from airflow_provider_responsys.ledger.fingerprint import fingerprinter
from airflow_provider_responsys.ledger.memory import MemoryLedger
from airflow_provider_responsys.ledgers import ledger_conn_id_of, push_ledger, send_key_of
from airflow_provider_responsys.links import PushReportLink, show_link
from airflow_provider_responsys.metrics import Metrics
from airflow_provider_responsys.observers import PushObserver
from airflow_provider_responsys.progress import PUSH, TaskStateNote
from airflow_provider_responsys.protocol.call import authorized
from airflow_provider_responsys.protocol.pace import Pace
from airflow_provider_responsys.protocol.probe import probe
from airflow_provider_responsys.protocol.push import (
    MAX_BODY,
    MAX_RECIPIENTS,
    Push,
    check_campaign,
    overhead,
    push_request,
    submit,
)
from airflow_provider_responsys.push_reporter import PushReporter
from airflow_provider_responsys.recipients.data import Rows, is_data
from airflow_provider_responsys.recipients.fields import FieldSettings
from airflow_provider_responsys.recipients.rows import Chunk, from_sequence
from airflow_provider_responsys.recipients.spool import Spool
from airflow_provider_responsys.sending.aside import Aside
from airflow_provider_responsys.sending.budget import Budget
from airflow_provider_responsys.sending.checks import check_count, check_position
from airflow_provider_responsys.sending.engine import Delivery, Engine, Limits
from airflow_provider_responsys.sending.gate import Gate
from airflow_provider_responsys.sending.outcome import Resumed, Sent, doubt_lines, left_by_earlier_tries
from airflow_provider_responsys.sending.run import LOOK_UP, Halt, Inbox, Report, Run
from airflow_provider_responsys.sending.settings import check_choices, check_numbers
from airflow_provider_responsys.sending.source import Spooled
from airflow_provider_responsys.sending.verdict import FINAL, judge
from airflow_provider_responsys.threads import Call, Pool

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from airflow_provider_responsys.ledger.interface import Ledger

KILL_GRACE = 3.0
"""Seconds that a killed task waits for answers: Airflow sends SIGKILL five seconds after SIGTERM."""

ANSWER_MARGIN = 10.0
"""Seconds, beyond the read timeout, by which every answer has come or is lost."""

LAST_SECONDS = 0.5
"""Seconds beyond its grace after which a stopped sender is left behind, and what is known is reported without it."""

REPORT_SECONDS = 5.0
"""Seconds before the execution_timeout at which no answer is waited for any more."""


class TriggerPushOperator(RendersAside, BaseOperator):
    """Send a Responsys push campaign to a list of recipients, each at most once.

    The recipients are read, checked and de-duplicated before the first request
    leaves. The task ends when Responsys has queued every batch; pass its output
    to a `PushRequestSensor` to wait for their results. While it sends, its log
    says each half minute how far it is; Airflow's task state store (3.3 and newer)
    shows the same under ``push_progress``. `metrics` names what it counts.

    :param campaign_name: name of an existing push campaign (templated)
    :param recipients: rows as mappings, or the output of a task that returns
        them; give either this or *sql*
    :param sql: query whose rows are the recipients, or the name of a ``.sql``
        file (templated)
    :param sql_conn_id: connection to run *sql* on; any whose hook is a DB-API hook
    :param parameters: values for the placeholders in *sql* (templated)
    :param match_on: the identifier to use where rows carry several
    :param list_type: ``PROFILE`` (known people) or ``PUSH`` (devices), for rows
        that do not say
    :param api_key: app to send to, for rows that do not say; none means all apps
    :param reference_data: text or mapping that polling returns with the request
        (templated)
    :param on_invalid: ``fail`` sends nothing if any row is wrong, ``skip`` leaves
        those rows out and counts them
    :param min_recipients: fail before the first request if there are fewer
    :param max_recipients: fail before the first request if there are more
    :param delivery: ``at_most_once``, or ``at_least_once``, which sends again what
        may have been lost, also by an earlier try: people may be pushed twice
    :param on_in_doubt: after all else is sent, ``fail`` or ``continue`` when
        recipients are in doubt
    :param max_in_doubt: stop sending when so many recipients are in doubt: a count, or
        below 1 a share of those in the source. A share is at least what is in flight
        at a time. The other recipients are left ``not_sent``, and Airflow does not
        retry: find out what loses answers, then clear the task, and it goes on with
        them. It counts over all tries, and anew after a clear
    :param on_clear: after a person cleared the task, ``resume`` sends to everyone
        who is neither accepted nor in doubt; ``restart`` forgets what this task
        sent before
    :param send_key: name of the send in the SQL ledger (templated): two tasks with one
        key never push one recipient twice, and one key serves one campaign; otherwise
        DAG, task and run
    :param ledger_conn_id: connection to the database that remembers who has been
        pushed, across tasks and runs; otherwise config ``[responsys] ledger_conn_id``,
        and without either Airflow's task state store
    :param in_doubt_path: object storage path to write the recipients in doubt to, as
        JSON lines (templated)
    :param recipients_path: object storage path to write the outcome of each row of the
        source to, as JSON lines or CSV by its suffix, ``.jsonl`` or ``.csv``, or either
        with ``.gz`` (templated). That of a mapped push holds ``{{ ti.map_index }}``
    :param message_expiration: seconds that a push may wait in Responsys' queue;
        ``asyncApi`` only, where Responsys' own default is an hour
    :param requests_per_minute: pace; otherwise the connection's, the account's own
        limit, or 200
    :param max_in_flight: most requests that wait for an answer at a time
    :param retry_for: how long to wait out limits and outages before the rest is
        left ``not_sent``
    :param dry_run: read, check, plan and report, and send nothing
    :param responsys_conn_id: connection to Responsys (templated)

    It returns ``campaign_name``, ``send_key``, ``dry_run``, ``request_ids``,
    ``request_sizes``, ``recipients`` and ``problem``. ``request_sizes`` are pairs: so
    many recipients in each of so many requests in a row. ``recipients`` says how many
    were ``read``, and of those ``accepted``, ``rejected``, ``in_doubt``, ``not_sent``,
    ``withheld``, ``duplicate`` and ``invalid``, which add up to ``read``. ``problem``
    is why the task failed, in counts and codes, or none. Each is also an XCom key of
    its own. All of it is pushed as well when the task fails, unless another try has
    taken its place. ``recipients_path`` is where the file is, or none; where one was
    asked for and is not there, ``recipients_problem`` says why.

    A line at *recipients_path* has ``row`` (from 1), ``identifier`` (such as
    ``customerId``), ``value``, ``bucket``, ``request_id``, ``position`` (from 0, in the
    request), ``code`` and ``reason``. It tells of all tries of the send. The lines of each
    bucket, together with ``recipients`` in ``<name>.not_in_source.<suffix>``, where batches
    of earlier tries are counted whose recipients the source no longer has, add up to the
    report. It is written whole or not at all; to fail to write it changes nothing else.

    :raises NotAllSent: recipients were not sent to, for a reason that may pass;
        another try goes on where this one stopped
    :raises AirflowFailException: another try would change nothing; the message
        says why
    """

    template_fields: Sequence[str] = (
        "campaign_name",
        "recipients",
        "sql",
        "parameters",
        "reference_data",
        "send_key",
        "in_doubt_path",
        "recipients_path",
        "responsys_conn_id",
    )
    template_ext: Sequence[str] = (".sql",)
    template_fields_renderers = {"sql": "sql", "parameters": "json"}  # noqa: RUF012 -- Airflow's own form
    operator_extra_links = (PushReportLink(),)
    ui_color = "#f3d9d0"

    def __init__(
        self,
        *,
        campaign_name: str,
        recipients: Any = None,
        sql: str | None = None,
        sql_conn_id: str | None = None,
        parameters: Sequence[Any] | Mapping[str, Any] | None = None,
        match_on: str | None = None,
        list_type: str = "PROFILE",
        api_key: str | None = None,
        reference_data: str | Mapping[str, Any] | None = None,
        on_invalid: Literal["fail", "skip"] = "fail",
        min_recipients: int | None = None,
        max_recipients: int | None = None,
        delivery: Literal["at_most_once", "at_least_once"] = "at_most_once",
        on_in_doubt: Literal["fail", "continue"] = "fail",
        max_in_doubt: float = 0.05,
        on_clear: tries.OnClear = "resume",
        send_key: str | None = None,
        ledger_conn_id: str | None = None,
        in_doubt_path: str | None = None,
        recipients_path: str | None = None,
        message_expiration: int | None = None,
        requests_per_minute: int | None = None,
        max_in_flight: int = 64,
        retry_for: float | timedelta = 3600.0,
        dry_run: bool = False,
        responsys_conn_id: str = "responsys_default",
        **kwargs: Any,
    ) -> None:
        kwargs.setdefault("multiple_outputs", True)
        super().__init__(**kwargs)
        if recipients is not None:
            self.check_rendering()
        self.campaign_name = campaign_name
        self.recipients = Rows(recipients) if is_data(recipients) else recipients
        self.sql = sql
        self.sql_conn_id = sql_conn_id
        self.parameters = parameters
        self.match_on = match_on
        self.list_type = list_type
        self.api_key = api_key
        self.reference_data = reference_data
        self.on_invalid = on_invalid
        self.min_recipients = min_recipients
        self.max_recipients = max_recipients
        self.delivery = delivery
        self.on_in_doubt = on_in_doubt
        self.max_in_doubt = max_in_doubt
        self.on_clear = on_clear
        self.send_key = send_key
        self.ledger_conn_id = ledger_conn_id
        self.in_doubt_path = in_doubt_path
        self.recipients_path = self._recipients_template = recipients_path
        self.message_expiration = message_expiration
        self.requests_per_minute = requests_per_minute
        self.max_in_flight = max_in_flight
        self.retry_for = retry_for.total_seconds() if isinstance(retry_for, timedelta) else retry_for
        self.plan_only = dry_run  # BaseOperator has a method dry_run
        self.responsys_conn_id = responsys_conn_id
        self._rows: Any = None
        self._inbox: Inbox | None = None
        self._stopped_early = False
        self._stop: Halt | None = None
        self._stopped_at = math.inf
        self._file = RecipientsFile()

    def take_rendered(self, fields: Iterable[str]) -> None:
        """Take the recipients out of the *fields* that Airflow stores and shows."""
        if "recipients" in fields:
            self._rows = self.recipients
            if self._rows is not None:
                self.recipients = str(Rows(self._rows))

    def execute(self, context: "Context") -> dict[str, Any]:
        """Send the campaign; return who was accepted and who was not."""
        show_link(PushReportLink(), context)
        self._inbox = SimpleQueue()
        self._stop, self._stopped_at = None, math.inf
        if self._stopped_early:
            self.on_kill()
        reporter = PushReporter(
            context,
            self.log,
            campaign_name=self.campaign_name,
            send_key=send_key_of(context, self.send_key),
            record="sql" if ledger_conn_id_of(self.ledger_conn_id) else "none",
            told_of_files=self._told_of_files,
        )
        # Aside: Airflow's execution_timeout is raised on this thread, between any two instructions.
        sender = Call(partial(self._execute, context, self._inbox, reporter))
        Pool(1, "responsys-send").submit(sender)
        try:
            while not sender.wait(LOOK_UP):
                if time.monotonic() > self._stopped_at + KILL_GRACE + LAST_SECONDS:
                    reporter.leave_behind(NotAllSent("the task was told to stop"))
        except BaseException as error:
            if not (sender.ended or reporter.left_behind):
                self._tell(Halt(NotAllSent("the task ran into its execution_timeout"), KILL_GRACE))
                if not sender.wait(KILL_GRACE + LAST_SECONDS):
                    reporter.leave_behind(error)
            if sender.returned:  # its result is no report of its own: Airflow pushes it only where a task succeeds
                reporter.push({**sender.result(), "problem": code_of(error)})
            raise
        return sender.result()

    def on_kill(self) -> None:
        """Ask the sender to stop; it settles what came back and raises."""
        # Called from a signal handler: it may do no more than this. Airflow may call it before `execute`.
        self._stopped_early = self._inbox is None
        self._tell(Halt(NotAllSent("the task was told to stop"), KILL_GRACE))

    def _tell(self, halt: Halt) -> None:
        if self._inbox is not None and self._stop is None:
            self._stop, self._stopped_at = halt, time.monotonic()
            self._inbox.put(halt)

    def _execute(self, context: "Context", inbox: Inbox, reporter: PushReporter) -> dict[str, Any]:
        """Send and report; raise what the task must fail with."""
        began = time.monotonic()
        try:
            settings = self._check()
            self._file = self._recipients_file(context)
            with ResponsysHook(self.responsys_conn_id) as hook:
                # What can't be put into a request is found here, not on the way.
                push_request(hook.account().family, self._push_settings(), ("{}",))
                if self.plan_only or hook.account().dry_run:
                    return self._plan(settings, reporter)
                sent = self._send(context, hook, settings, inbox=inbox, began=began, reporter=reporter)
        except Fenced:
            raise
        except FINAL as error:
            reporter.push_known(error)
            raise AirflowFailException(str(error)) from error
        except Exception as error:
            reporter.push_known(error)
            raise
        return self._ended(sent, reporter)

    def _ended(self, sent: Sent, reporter: PushReporter) -> dict[str, Any]:
        """Return the report of a send that has come to its end; push it and raise where the task must fail."""
        reporter.log_doubts(sent)
        report = sent.report
        if report.unwritten:
            self.log.warning("%d acceptances were not written to the ledger: %s", report.unwritten, report.stopped)
        verdict = judge(self.campaign_name, sent, on_in_doubt=self.on_in_doubt)
        result = reporter.result(sent, problem=verdict.problem if verdict else None)
        # XCom does not tell the tries of a task apart: a try that was replaced must not write over its successor's.
        if isinstance(report.stopped, Fenced):
            raise report.stopped
        if verdict is None:
            return result
        reporter.push(result)
        failure = AirflowFailException if verdict.final else NotAllSent
        raise failure(verdict.message) from report.stopped

    def _plan(self, settings: FieldSettings, reporter: PushReporter) -> dict[str, Any]:
        """Read and check the source, and report what would be sent."""
        with Spool(keeps_outcomes=self._file.is_wanted) as spool, self._file.of(spool):
            self._fill(spool, MemoryLedger(try_number=1).begin({}), settings)
            unsent = Sent.of(spool, Resumed(), Report(len(spool), not_sent=len(spool)))
            self._file.knows(unsent)
            check_count(len(spool), least=self.min_recipients, most=self.max_recipients)
        return reporter.result(unsent, dry_run=True)

    def _send(
        self,
        context: "Context",
        hook: ResponsysHook,
        settings: FieldSettings,
        *,
        inbox: Inbox,
        began: float,
        reporter: PushReporter,
    ) -> Sent:
        """Open the ledger, and send to the recipients whom no earlier try sent to."""
        ledger = self._ledger(context, hook.account().timeout + ANSWER_MARGIN)
        aside = Aside(inbox)
        try:
            reporter.known = partial(left_by_earlier_tries, partial(aside.iterate, ledger.earlier))
            key = aside.call(partial(ledger.begin, self._identity(hook, settings)))
            with Spool(keeps_outcomes=self._file.is_wanted) as spool, self._file.of(spool):
                self._fill(spool, key, settings)
                resumed = self._resume(context, spool, aside, ledger, reporter)
                check_count(len(spool), least=self.min_recipients, most=self.max_recipients)
                observer = self._observer(context, resumed)
                left = len(spool) - resumed.here
                report = Report(0)
                if left or resumed.repeats:
                    engine = self._engine(hook, began, self._budget(spool, resumed))
                    run = self._run(
                        hook, engine, spool, resumed, aside=aside, ledger=ledger, inbox=inbox, observer=observer
                    )
                    reporter.known = lambda: Sent.of(spool, resumed, run.so_far())
                    report = run.to_end()
                sent = Sent.of(spool, resumed, report)
                reporter.known = lambda: sent
                self._file.knows(sent)
                observer.end(sent)
                if sent.doubts and self.in_doubt_path:
                    lines = doubt_lines(sent.doubts, spool)
                    write_doubts(self.in_doubt_path, lines, open_path=ObjectStoragePath, log=self.log)
                return sent
        except Exception as error:
            reporter.look_back(error)
            raise
        finally:
            aside.close(ledger.close)

    def _resume(
        self, context: "Context", spool: Spool, aside: Aside, ledger: "Ledger", reporter: PushReporter
    ) -> Resumed:
        """Leave out of *spool* what earlier tries sent; return what they did."""
        take_out = partial(spool.take_out, max_recipients=MAX_RECIPIENTS, max_bytes=self._most_bytes)
        again = Delivery(self.delivery) is Delivery.AT_LEAST_ONCE
        # A clear adds the task's retries to its tries so far.
        first_try = context["ti"].max_tries - (self.retries or 0) + 1
        # On this thread, as the spool is: SQL ledgers have nothing to compare, Airflow's store takes calls from any.
        ledger.compare(Spooled(spool, MAX_RECIPIENTS, self._most_bytes))
        earlier = aside.iterate(ledger.earlier)
        taking_out = take_out if again else None
        resumed = Resumed.of(earlier, spool, taking_out, first_try=first_try, outcomes=spool.outcomes)
        unsent = Report.of_nothing_sent(len(spool) - resumed.here, resumed.repeats)
        known = Sent.of(spool, resumed, unsent)
        reporter.known = lambda: known
        self._file.knows(known)
        if not ledger_conn_id_of(self.ledger_conn_id):
            check_position(resumed, context["ti"].map_index)
        return resumed

    def _run(
        self,
        hook: ResponsysHook,
        engine: Engine,
        spool: Spool,
        resumed: Resumed,
        *,
        aside: Aside,
        ledger: "Ledger",
        inbox: Inbox,
        observer: PushObserver,
    ) -> Run:
        """Return what sends to those who are left."""
        push, gate = self._push_settings(), Gate()
        return Run(
            engine,
            spool.batches(max_recipients=MAX_RECIPIENTS, max_bytes=self._most_bytes),
            len(spool) - resumed.here,
            repeats=resumed.repeats,
            ledger=ledger,
            post=lambda batch_id, bodies: hook.run(
                gate.guard(batch_id, submit(hook.account(), push, bodies, tracking_id=str(batch_id)))
            ),
            probe=lambda: hook.run(probe(hook.account(), tracking_id=new_tracking_id())),
            inbox=inbox,
            gate=gate,
            aside=aside.pool,
            observer=observer,
            note=spool.outcomes.note if spool.outcomes else None,
        )

    def _observer(self, context: "Context", resumed: Resumed) -> PushObserver:
        """Return what counts the requests by their outcome, and shows how far the send is."""
        metrics = Metrics(self.log, conn_id=self.responsys_conn_id, campaign_name=self.campaign_name)
        metrics.count("push.recipients.found_in_doubt", resumed.found_in_doubt)
        note = TaskStateNote(context.get("task_state_store"), PUSH, self.log)
        return PushObserver(metrics, note, try_number=context["ti"].try_number, accepted_earlier=resumed.accepted)

    def _told_of_files(self) -> dict[str, str | None]:
        return self._file.told()

    def _recipients_file(self, context: "Context") -> RecipientsFile:
        """Return what writes the outcome of each row, or raise `InvalidSettings` where it can't be written there."""
        where = Target.of(
            "recipients_path",
            self.recipients_path,
            ObjectStoragePath,
            map_index=context["ti"].map_index,
            template=self._recipients_template,
        )
        return RecipientsFile(where, is_stopped=lambda: self._stop is not None, log=self.log)

    def _push_settings(self) -> Push:
        return Push(self.campaign_name, self.reference_data, self.message_expiration)

    @property
    def _most_bytes(self) -> int:
        return MAX_BODY - overhead(self._push_settings())

    def _check(self) -> FieldSettings:
        """Raise `InvalidSettings` for a parameter that can't be right; return how rows are read."""
        check_campaign(self.campaign_name)
        if (self._rows is None) == (self.sql is None):
            raise InvalidSettings("give exactly one of recipients and sql")
        if self.sql is not None and not self.sql_conn_id:
            raise InvalidSettings("sql needs sql_conn_id, the connection to run it on")
        check_choices(
            on_invalid=self.on_invalid, delivery=self.delivery, on_in_doubt=self.on_in_doubt, on_clear=self.on_clear
        )
        check_numbers(
            requests_per_minute=self.requests_per_minute,
            max_in_flight=self.max_in_flight,
            max_in_doubt=self.max_in_doubt,
        )
        return FieldSettings(list_type=self.list_type, match_on=self.match_on, api_key=self.api_key)

    def _ledger(self, context: "Context", answer_within: float) -> "Ledger":
        """Return the store that remembers this task's send across tries."""
        return push_ledger(
            context,
            retries=self.retries or 0,
            on_clear=self.on_clear,
            send_key=self.send_key,
            ledger_conn_id=self.ledger_conn_id,
            answer_within=answer_within,
        )

    def _identity(self, hook: ResponsysHook, settings: FieldSettings) -> dict[str, str]:
        """Return the settings that make a recipient's identity."""
        return {"account": hook.account().name, "campaign_name": self.campaign_name, **settings.identity()}

    def _fill(self, spool: Spool, key: bytes, settings: FieldSettings) -> None:
        """Read, check and spool the whole source."""
        with self._source() as chunks:
            spool.fill(
                self._until_told_to_stop(chunks),
                settings,
                fingerprinter(key),
                on_invalid=self.on_invalid,
                max_body_bytes=self._most_bytes,
            )
        for example in spool.invalid_examples:
            self.log.warning("Left out: %s", example)
        self.log.info(
            "Read %d rows: %d recipients, %d duplicates, %d invalid",
            spool.read,
            len(spool),
            spool.duplicates,
            spool.invalid,
        )

    def _until_told_to_stop(self, chunks: Iterable[Chunk]) -> Iterator[Chunk]:
        for chunk in chunks:
            if self._stop:
                raise self._stop.reason
            yield chunk

    def _source(self) -> "AbstractContextManager[Iterable[Chunk]]":
        if self.sql is None:
            return nullcontext(from_sequence(self._rows))
        from airflow_provider_responsys.recipients.sql import query  # noqa: PLC0415 -- brings SQLAlchemy

        hook = BaseHook.get_connection(str(self.sql_conn_id)).get_hook()  # type: ignore[no-untyped-call]  # Airflow's own
        return query(hook, self.sql, self.parameters)

    def _budget(self, spool: Spool, resumed: Resumed) -> Budget:
        return Budget(most=self.max_in_doubt, recipients=len(spool), found=resumed.lost_lately)

    def _engine(self, hook: ResponsysHook, began: float, budget: Budget) -> Engine:
        """Log in, and return what decides how fast and how long to send."""
        hook.run(authorized(None))
        grace = hook.account().timeout + ANSWER_MARGIN
        total = self.execution_timeout.total_seconds() if self.execution_timeout else math.inf
        limits = Limits(
            max_in_flight=self.max_in_flight,
            retry_for=self.retry_for,
            grace=grace,
            deadline=began + total - min(grace, total / 3),
            end=began + total - min(REPORT_SECONDS, total / 5),
            delivery=Delivery(self.delivery),
        )
        return Engine(
            limits=limits,
            pace=Pace.at(pushes_per_minute(hook, self.requests_per_minute), time.monotonic()),
            budget=budget,
        )
