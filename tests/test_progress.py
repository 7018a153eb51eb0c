"""What a person sees in Airflow's task state store while a push or a wait runs, and afterwards."""

import json
import logging
import threading
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from http import HTTPStatus
from typing import Any

import pendulum
import pytest
from airflow.providers.common.compat.sdk import DAG, AirflowFailException
from airflow.utils.session import create_session
from pytest_mock import MockerFixture
from sqlalchemy import delete, select

from airflow_provider_responsys.errors import NotAllSent
from airflow_provider_responsys.operators import TriggerPushOperator
from airflow_provider_responsys.progress import PUSH, SILENCE, WAIT, TaskStateNote
from airflow_provider_responsys.sandbox import Fault, Sandbox
from airflow_provider_responsys.sending import run as shell
from airflow_provider_responsys.sensors import PushRequestSensor

stores = pytest.importorskip("airflow.models.task_state_store", reason="Airflow 3.3 has a task state store")
metastore = pytest.importorskip("airflow.state.metastore")

RunDag = Callable[[DAG], Any]

START = pendulum.datetime(2026, 1, 1, tz="UTC")
LEDGER = "responsys/"


@pytest.fixture
def sandbox(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sandbox]:
    """Give a Responsys that responsys_default leads to, and a sensor that is impatient."""
    monkeypatch.setattr(PushRequestSensor, "first_delay", 0.0)
    with Sandbox(processing_time=0.0) as sandbox:
        connection = sandbox.connection(poll_requests_per_minute=60_000)
        monkeypatch.setenv("AIRFLOW_CONN_RESPONSYS_DEFAULT", json.dumps(connection))
        yield sandbox


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """Give what Airflow's store is told, in order; it is really written."""
    seen: list[tuple[str, Any]] = []
    write = metastore.MetastoreBackend.set

    def note(self: Any, scope: Any, key: str, value: str, **options: Any) -> None:
        seen.append((key, json.loads(value)))
        write(self, scope, key, value, **options)

    monkeypatch.setattr(metastore.MetastoreBackend, "set", note)
    return seen


class Push:
    """A push in a DAG of its own, with a wait behind it if that has settings."""

    def __init__(
        self, run_dag: RunDag, dag_id: str, count: int, wait: dict[str, Any] | None = None, **arguments: Any
    ) -> None:
        self.failures: list[BaseException] = []
        self.rows: list[dict[str, Any]] = []
        defaults = {"requests_per_minute": 60_000, "max_in_flight": 1, "retry_delay": timedelta(0)}
        with DAG(dag_id, schedule=None, start_date=START) as dag:
            push = arguments.pop("kind", TriggerPushOperator)(
                task_id="push",
                campaign_name="Summer_Push",
                recipients=[{"customerId": f"SECRET{number}"} for number in range(count)],
                on_retry_callback=self._note,
                on_failure_callback=self._note,
                **{**defaults, **arguments},
            )
            if wait is not None:
                PushRequestSensor(task_id="wait", request_ids=push.output, **wait)
        self.run = run_dag(dag)

    def _note(self, context: Any) -> None:
        """Remember why a try failed, and what the UI shows of it."""
        self.failures.append(context["exception"])
        self.rows.append(shown(context["run_id"], context["dag"].dag_id))

    def shown(self, task_id: str = "push") -> dict[str, Any]:
        """Return what the UI shows of a task."""
        return shown(self.run.run_id, self.run.dag_id, task_id)


def rows(run_id: str, dag_id: str, task_id: str = "push") -> list[Any]:
    """Return what Airflow's API reads for the UI."""
    model = stores.TaskStateStoreModel
    with create_session() as session:
        return list(
            session.execute(
                select(model.key, model.value, model.expires_at)
                .where(model.dag_id == dag_id, model.run_id == run_id, model.task_id == task_id)
                .order_by(model.key)
            )
        )


def shown(run_id: str, dag_id: str, task_id: str = "push") -> dict[str, Any]:
    """Return the values of a task by their keys."""
    return {row.key: json.loads(row.value) for row in rows(run_id, dag_id, task_id)}


def told(written: list[tuple[str, Any]], key: str) -> list[dict[str, Any]]:
    """Return what was written under *key*, without the times."""
    return [{name: value[name] for name in value if name != "updated"} for where, value in written if where == key]


def test_the_end_is_shown_as_the_task_reports_it(sandbox: Sandbox, run_dag: RunDag) -> None:
    """First in the list, and with the time of it; the ledger's own keys are as they were."""
    push = Push(run_dag, "progress_end", 450)

    first, *others = rows(push.run.run_id, push.run.dag_id)
    value = json.loads(first.value)
    assert datetime.fromisoformat(value.pop("updated")).tzinfo
    assert (first.key, value) == (
        PUSH,
        {
            "try_number": 1,
            "read": 450,
            "accepted": 450,
            "rejected": 0,
            "in_doubt": 0,
            "not_sent": 0,
            "withheld": 0,
            "duplicate": 0,
            "invalid": 0,
            "requests": 3,
            "ended": True,
        },
    )
    assert all(row.key.startswith(LEDGER) for row in others)
    assert {row.key.split("/")[1] for row in others} == {"try", "people", "log"}


def test_it_expires_and_the_record_does_not(sandbox: Sandbox, run_dag: RunDag) -> None:
    """`airflow state-store clean` takes what a person has long since seen, and nothing that a retry needs."""
    push = Push(run_dag, "progress_expiry", 1)

    expiry = {row.key: row.expires_at for row in rows(push.run.run_id, push.run.dag_id)}
    assert expiry.pop(PUSH) is not None
    assert set(expiry.values()) == {None}


def test_while_it_runs_the_numbers_of_the_log_are_shown(
    sandbox: Sandbox, run_dag: RunDag, written: list[tuple[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the beginning, and by the thread that keeps the record: the others only send."""
    monkeypatch.setattr(shell, "PROGRESS_EVERY", 0.0)
    threads = set()
    write = TaskStateNote.write

    def watched(note: TaskStateNote, numbers: dict[str, object]) -> None:
        threads.add(threading.current_thread())
        write(note, numbers)

    monkeypatch.setattr(TaskStateNote, "write", watched)

    Push(run_dag, "progress_running", 600)

    *running, end = told(written, PUSH)
    assert running[0] == {
        "try_number": 1,
        "to_send": 600,
        "accepted": 0,
        "accepted_earlier": 0,
        "rejected": 0,
        "in_doubt": 0,
        "left": 600,
        "requests": 0,
        "requests_per_minute": 0,
        "limit_per_minute": 60_000,
        "estimated_end": None,
    }
    half_way = next(each for each in running if each["accepted"] == 200)
    assert (half_way["left"], half_way["requests"]) == (400, 1)
    assert half_way["requests_per_minute"] > 0
    assert datetime.fromisoformat(half_way["estimated_end"]).tzinfo
    assert (end["accepted"], end["ended"]) == (600, True)
    assert len(threads) == 1
    assert "SECRET" not in json.dumps(written)


def test_a_retry_shows_its_own_numbers_and_the_earlier_ones(
    sandbox: Sandbox, run_dag: RunDag, written: list[tuple[str, Any]]
) -> None:
    """What the first try left stands there until the second one begins to send."""
    sandbox.plan(Fault("push", "SERVICE_UNAVAILABLE", nth=3))

    push = Push(run_dag, "progress_retry", 1_000, retry_for=1.0, retries=1)

    assert push.run.state == "success"
    assert push.rows[0][PUSH]["try_number"] == 1
    assert (push.rows[0][PUSH]["accepted"], push.rows[0][PUSH]["not_sent"]) == (400, 600)
    begun = [each for each in told(written, PUSH) if each["try_number"] == 2]
    assert (begun[0]["to_send"], begun[0]["accepted"], begun[0]["accepted_earlier"]) == (600, 0, 400)
    end = push.shown()[PUSH]
    assert (end["try_number"], end["read"], end["accepted"], end["requests"]) == (2, 1_000, 1_000, 5)


def forget_the_record(context: Any) -> None:
    """Delete what the ledger wrote, and leave the rest."""
    model = stores.TaskStateStoreModel
    with create_session() as session:
        session.execute(delete(model).where(model.run_id == context["run_id"], model.key.startswith(LEDGER)))


class Forgetful(TriggerPushOperator):
    """A push whose record is gone before its second try."""

    def execute(self, context: Any) -> dict[str, Any]:
        """Lose the record, and push."""
        if context["ti"].try_number == 2:
            forget_the_record(context)
        return super().execute(context)


def test_what_is_shown_is_no_record(sandbox: Sandbox, run_dag: RunDag) -> None:
    """Where it alone is left, everything is lost: the next try fails closed, and shows no numbers of its own."""
    sandbox.plan(Fault("push", "SERVICE_UNAVAILABLE", nth=2))

    push = Push(run_dag, "progress_lost", 400, kind=Forgetful, retry_for=1.0, retries=5)

    assert [type(failure) for failure in push.failures] == [NotAllSent, AirflowFailException]
    assert "record of the earlier ones is gone" in str(push.failures[1])
    assert list(push.shown()) == [PUSH]
    assert push.shown()[PUSH]["try_number"] == 1
    assert len(sandbox.pushes) == 200


class Tidied(TriggerPushOperator):
    """A push whose progress somebody deletes before its second try."""

    def execute(self, context: Any) -> dict[str, Any]:
        """Lose the progress, and push."""
        if context["ti"].try_number == 2:
            context["task_state_store"].delete(PUSH)
        return super().execute(context)


def test_whoever_deletes_it_loses_nothing(sandbox: Sandbox, run_dag: RunDag) -> None:
    """By hand, or with `airflow state-store clean`."""
    sandbox.plan(Fault("push", "SERVICE_UNAVAILABLE", nth=2))

    push = Push(run_dag, "progress_tidied", 400, kind=Tidied, retry_for=1.0, retries=5)

    assert push.run.state == "success"
    assert push.shown()[PUSH]["accepted"] == 400
    sandbox.assert_no_duplicates()


@pytest.mark.parametrize("ledger", ["sqlite"], indirect=True)
def test_with_a_sql_ledger_it_is_shown_as_well(sandbox: Sandbox, run_dag: RunDag, ledger: str) -> None:
    """The store is there, and holds beside it how far the ledger's claims had come."""
    push = Push(run_dag, "progress_sql", 300, ledger_conn_id=ledger)

    assert [key for key in push.shown() if not key.startswith(LEDGER)] == [PUSH]
    assert push.shown()[PUSH]["accepted"] == 300


def break_progress(monkeypatch: pytest.MonkeyPatch, key: str) -> list[str]:
    """Let Airflow's API refuse what is written under *key*; return where it did."""
    from fastapi import HTTPException  # noqa: PLC0415 -- Airflow brings it where it has a store

    refused: list[str] = []
    write = metastore.MetastoreBackend.set

    def refuse(self: Any, scope: Any, where: str, value: str, **options: Any) -> None:
        if where == key:
            refused.append(where)
            raise HTTPException(HTTPStatus.UNPROCESSABLE_ENTITY, "no room")
        write(self, scope, where, value, **options)

    monkeypatch.setattr(metastore.MetastoreBackend, "set", refuse)
    return refused


@pytest.mark.parametrize("ledger_conn_id", [None, "ledger"])
@pytest.mark.parametrize("ledger", ["sqlite"], indirect=True)
def test_a_store_that_can_not_be_written_changes_nothing(
    sandbox: Sandbox,
    run_dag: RunDag,
    ledger: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    *,
    ledger_conn_id: str | None,
) -> None:
    """It is said once, and the push goes on."""
    monkeypatch.setattr(shell, "PROGRESS_EVERY", 0.0)
    refused = break_progress(monkeypatch, PUSH)

    push = Push(run_dag, f"progress_broken_{ledger_conn_id}", 600, ledger_conn_id=ledger_conn_id)

    assert push.run.state == "success"
    assert len(sandbox.pushes) == 600
    assert refused == [PUSH]
    assert PUSH not in push.shown()
    assert capfd.readouterr().out.count("can't be shown in Airflow") == 1


def test_a_try_that_was_replaced_shows_nothing(
    sandbox: Sandbox, run_dag: RunDag, written: list[tuple[str, Any]], mocker: MockerFixture
) -> None:
    """Its numbers would stand over its successor's."""
    from airflow_provider_responsys.errors import Fenced  # noqa: PLC0415 -- only here
    from airflow_provider_responsys.ledger.task_state import TaskStateLedger  # noqa: PLC0415 -- the same

    mocker.patch.object(TaskStateLedger, "commit", side_effect=Fenced("another try has taken this one's place"))

    push = Push(run_dag, "progress_fenced", 300)

    assert push.run.state == "failed"
    assert [each.get("ended") for each in told(written, PUSH)] == [None]


def test_a_dry_run_shows_nothing(sandbox: Sandbox, run_dag: RunDag) -> None:
    """It reports at once, and leaves nothing behind."""
    assert Push(run_dag, "progress_dry", 300, dry_run=True).shown() == {}


def test_a_wait_shows_its_counts(sandbox: Sandbox, run_dag: RunDag, written: list[tuple[str, Any]]) -> None:
    """Before it defers, and at its end; the trigger in between can't."""
    sandbox.plan(Fault("poll", "lost", nth=1))  # the worker learns nothing, the triggerer all

    push = Push(run_dag, "progress_wait", 450, wait={"poke_interval": 0.5})

    before, after = told(written, WAIT)
    assert before["requests"] == {"total": 3, "finished": 0, "failed": 0, "unknown": 0, "pending": 3}
    assert after["requests"] == {"total": 3, "finished": 3, "failed": 0, "unknown": 0, "pending": 0}
    assert after["recipients"] == {"succeeded": 450, "failed": 0, "unknown": 0}
    assert push.shown("wait")[WAIT].keys() == {*after, "updated"}


@pytest.mark.parametrize("mode", ["poke", "reschedule"])
def test_a_wait_in_the_worker_shows_each_look(
    sandbox: Sandbox, run_dag: RunDag, written: list[tuple[str, Any]], mode: str
) -> None:
    """And what it was when the time was over."""
    sandbox.plan(Fault("push", "endless", nth=2))

    push = Push(
        run_dag,
        f"progress_{mode}",
        250,
        wait={"poke_interval": 0.1, "timeout": 1.0, "deferrable": False, "mode": mode},
    )

    counts = [each["requests"] for each in told(written, WAIT)]
    assert push.run.state == "failed"
    assert len(counts) > 1
    assert counts[-1] == {"total": 2, "finished": 1, "failed": 0, "unknown": 0, "pending": 1}


def test_a_wait_goes_on_without_a_store_that_can_be_written(
    sandbox: Sandbox, run_dag: RunDag, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it shows is not what it is for."""
    refused = break_progress(monkeypatch, WAIT)

    push = Push(run_dag, "progress_wait_broken", 10, wait={"poke_interval": 0.1})

    assert push.run.state == "success"
    assert refused


class Store:
    """A store that fails as often as it is asked, for a while."""

    def __init__(self, failures: int) -> None:
        self.failures = failures
        self.kept: dict[str, Any] = {}
        self.asked = 0

    def set(self, key: str, value: Any) -> None:
        self.asked += 1
        if self.failures:
            self.failures -= 1
            raise ConnectionError("no answer")
        self.kept[key] = value


def test_after_a_failure_it_is_left_alone_for_a_while(caplog: pytest.LogCaptureFixture) -> None:
    """Airflow may take a minute to find out that it can't write, and nobody sends meanwhile."""
    store, now = Store(failures=2), [0.0]
    note = TaskStateNote(store, PUSH, logging.getLogger("progress"), clock=lambda: now[0])
    asked = []

    for moment in (0.0, 30.0, SILENCE - 1, SILENCE, SILENCE + 30, 2 * SILENCE, 2 * SILENCE + 30):
        now[0] = moment
        note.write({"accepted": 1})
        asked.append(store.asked)

    assert asked == [1, 1, 1, 2, 2, 3, 4]
    assert store.kept[PUSH]["accepted"] == 1
    assert len(caplog.messages) == 1


def test_a_timeout_in_the_middle_of_a_write_is_not_held_back() -> None:
    """It ends the task, as it would anywhere else: nothing after it may use Airflow's store."""

    class TimedOut(BaseException):
        """As Airflow raises it, out of a signal handler."""

    class Slow(Store):
        def set(self, key: str, value: Any) -> None:
            raise TimedOut

    with pytest.raises(TimedOut):
        TaskStateNote(Slow(0), PUSH, logging.getLogger("progress")).write({})


def test_without_a_store_nothing_is_written() -> None:
    """Airflow before 3.3."""
    TaskStateNote(None, PUSH, None).write({"accepted": 1})
