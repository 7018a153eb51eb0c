"""results_path: the outcome of each recipient, joined with who that is."""

import csv
import itertools
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pendulum
import pytest
from airflow.providers.common.compat.sdk import DAG, AirflowFailException, TaskDeferred
from airflow.sdk import ObjectStoragePath, task
from airflow.sdk.io import attach
from fsspec.implementations.memory import MemoryFileSystem

from airflow_provider_responsys.files import results_file
from airflow_provider_responsys.operators import TriggerPushOperator
from airflow_provider_responsys.sandbox import Fault, Sandbox
from airflow_provider_responsys.sensors import PushRequestSensor
from airflow_provider_responsys.waiting import engine

RunDag = Callable[[DAG], Any]

START = pendulum.datetime(2026, 1, 1, tz="UTC")
NUMBERS = itertools.count(1)

MODES: dict[str, dict[str, Any]] = {
    "deferrable": {},
    "poke": {"deferrable": False},
    "reschedule": {"deferrable": False, "mode": "reschedule"},
}


@pytest.fixture
def sandbox(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sandbox]:
    """Give a Responsys that takes its time, and a sensor that is impatient."""
    monkeypatch.setattr(PushRequestSensor, "first_delay", 0.0)
    monkeypatch.setattr(engine, "NOT_BELIEVED", ())
    with Sandbox(processing_time=0.2) as running:
        connection = running.connection(poll_requests_per_minute=60_000)
        monkeypatch.setenv("AIRFLOW_CONN_RESPONSYS_DEFAULT", json.dumps(connection))
        yield running


@pytest.fixture
def memory() -> Iterator[MemoryFileSystem]:
    """Give an object store in memory that Airflow knows."""
    store = MemoryFileSystem()
    attach("memory", fs=store)
    yield store
    store.store.clear()


@pytest.fixture
def sqlite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Give the id of a connection to a SQLite ledger."""
    monkeypatch.setenv("AIRFLOW_CONN_LEDGER", json.dumps({"conn_type": "sqlite", "host": str(tmp_path / "ledger.db")}))
    return "ledger"


class Waited:
    """A push of *rows* and a wait, in a DAG of their own."""

    def __init__(
        self, run_dag: RunDag, rows: list[Any], *, push: dict[str, Any] | None = None, **arguments: Any
    ) -> None:
        self.path = str(arguments["results_path"])
        with DAG(f"waits_for_results_{next(NUMBERS)}", schedule=None, start_date=START) as dag:
            pushing = TriggerPushOperator(
                task_id="push",
                campaign_name="Summer_Push",
                recipients=rows,
                ledger_conn_id="ledger",
                max_in_flight=1,
                requests_per_minute=60_000,
                **(push or {}),
            )
            PushRequestSensor(
                task_id="wait",
                **{"request_ids": pushing.output, "poke_interval": 0.1, "ledger_conn_id": "ledger", **arguments},
            )
        self.run = run_dag(dag)
        self.ti = self.run.get_task_instance("wait")
        self.summary = self.ti.xcom_pull(task_ids="wait")
        self.pushed = self.ti.xcom_pull(task_ids="push")

    @property
    def lines(self) -> list[dict[str, Any]]:
        """Return the lines of the file."""
        return [json.loads(line) for line in ObjectStoragePath(self.path).read_text().splitlines()]


def people(*names: str) -> list[dict[str, str]]:
    """Return a row for each of *names*."""
    return [{"customerId": name} for name in names]


@pytest.mark.parametrize("mode", MODES)
def test_each_recipient_has_its_outcome_and_its_name(
    mode: str, sandbox: Sandbox, run_dag: RunDag, ledger: str, tmp_path: Path
) -> None:
    """However it waits, and on either ledger: the sandbox decides by the name, so the join is seen to be right."""
    names = [f"C{number}" for number in range(450)]
    names[7], names[230], names[449] = "NODEVICE-1", "UNDELIVERABLE-1", "NODEVICE-2"

    waited = Waited(
        run_dag,
        people(*names),
        push={"recipients_path": str(tmp_path / "sent.jsonl.gz")},
        results_path=str(tmp_path / "results.jsonl"),
        max_failed=1,
        **MODES[mode],
    )

    assert waited.run.state == "success"
    assert [line["value"] for line in waited.lines] == names
    assert [line["row"] for line in waited.lines] == list(range(1, 451))
    assert {line["identifier"] for line in waited.lines} == {"customerId"}
    failed = {line["value"]: line["code"] for line in waited.lines if line["outcome"] == "failed"}
    no, never = "NO_RECIPIENT_FOUND", "RECIPIENT_STATUS_UNDELIVERABLE"
    assert failed == {"NODEVICE-1": no, "UNDELIVERABLE-1": never, "NODEVICE-2": no}
    assert waited.summary["recipients"] == {"succeeded": 447, "failed": 3, "unknown": 0}
    assert Counter(line["outcome"] for line in waited.lines) == {"succeeded": 447, "failed": 3}


def test_without_the_pushs_file_it_tells_positions(
    sandbox: Sandbox, run_dag: RunDag, sqlite: str, tmp_path: Path
) -> None:
    """The ledger knows no names."""
    waited = Waited(run_dag, people("C1", "NODEVICE-1"), results_path=str(tmp_path / "results.jsonl"))

    request_id = waited.pushed["request_ids"][0]
    assert waited.lines == [
        {"request_id": request_id, "position": 0, "outcome": "succeeded", "code": None},
        {"request_id": request_id, "position": 1, "outcome": "failed", "code": "NO_RECIPIENT_FOUND"},
    ]


def test_a_wait_that_fails_writes_it_too(sandbox: Sandbox, run_dag: RunDag, sqlite: str, tmp_path: Path) -> None:
    """What no request says is unknown, with the code of the request that ended without results."""
    sandbox.plan(Fault("push", "expired", nth=1), Fault("push", "endless", nth=2))
    names = [f"C{number}" for number in range(450)]

    waited = Waited(
        run_dag,
        people(*names),
        push={"recipients_path": str(tmp_path / "sent.csv")},
        results_path=str(tmp_path / "results.jsonl"),
        timeout=3.0,
    )

    assert waited.run.state == "failed"
    told = Counter((line["outcome"], line["code"]) for line in waited.lines)
    assert told == {("unknown", "ASYNC_REQUEST_EXPIRED"): 200, ("unknown", None): 200, ("succeeded", None): 50}
    assert [line["value"] for line in waited.lines] == names
    assert waited.summary["recipients"]["succeeded"] == 50


def test_every_file_of_a_mapped_push_is_joined(
    sandbox: Sandbox, run_dag: RunDag, sqlite: str, memory: MemoryFileSystem
) -> None:
    """One wait for all of them; here in an object store, as CSV."""
    with DAG(f"waits_for_results_{next(NUMBERS)}", schedule=None, start_date=START) as dag:

        @task(show_return_value_in_logs=False)
        def shards() -> list[list[dict[str, str]]]:
            return [people("A1", "NODEVICE-A"), people("B1")]

        pushing = TriggerPushOperator.partial(
            task_id="push",
            campaign_name="Summer_Push",
            ledger_conn_id="ledger",
            recipients_path="memory://bucket/sent-{{ ti.map_index }}.csv.gz",
        ).expand(recipients=shards())
        PushRequestSensor(
            task_id="wait",
            request_ids=pushing.output,
            poke_interval=0.1,
            ledger_conn_id="ledger",
            results_path="memory://bucket/results.csv",
        )

    run = run_dag(dag)

    assert run.state == "success"
    text = ObjectStoragePath("memory://bucket/results.csv").read_text()
    found = [(line["row"], line["value"], line["outcome"], line["code"]) for line in csv.DictReader(text.splitlines())]
    assert sorted(found) == [
        ("1", "A1", "succeeded", ""),
        ("1", "B1", "succeeded", ""),
        ("2", "NODEVICE-A", "failed", "NO_RECIPIENT_FOUND"),
    ]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"ledger_conn_id": None}, "needs a SQL ledger"),
        ({"request_ids": ["some-id"]}, "push.output"),
        ({"results_path": "results.xlsx"}, "results_path"),
    ],
)
@pytest.mark.parametrize("mode", ["deferrable", "poke"])
def test_what_can_not_be_written_is_refused_before_it_waits(
    mode: str, sandbox: Sandbox, sqlite: str, arguments: dict[str, Any], says: str
) -> None:
    """Nothing is polled, and the message says what to give."""
    output = {"request_ids": ["some-id"], "send_key": "autumn"}
    settings = {"request_ids": output, "ledger_conn_id": "ledger", "results_path": "results.jsonl", **arguments}
    waiting = PushRequestSensor(task_id="wait", **MODES[mode], **settings)

    with pytest.raises(AirflowFailException, match=says):
        waiting.execute({})

    assert not sandbox.requests_seen


def test_a_trigger_is_told_nothing_of_files(sandbox: Sandbox, sqlite: str, tmp_path: Path) -> None:
    """It writes none, and its arguments are stored: neither path is among them."""
    sandbox.plan(Fault("push", "endless"))
    output = {"request_ids": ["some-id"], "send_key": "autumn", "recipients_path": "memory://bucket/sent.jsonl"}
    waiting = PushRequestSensor(
        task_id="wait", request_ids=output, ledger_conn_id="ledger", results_path=str(tmp_path / "results.jsonl")
    )
    sandbox.plan(Fault("poll", "lost", nth=list(range(1, 30))))

    with pytest.raises(TaskDeferred) as deferral:
        waiting.execute({})

    assert "jsonl" not in str(deferral.value.trigger.serialize())
    assert not (tmp_path / "results.jsonl").exists()


def test_results_that_can_not_be_written_fail_the_wait_at_its_end(
    sandbox: Sandbox, run_dag: RunDag, sqlite: str, tmp_path: Path
) -> None:
    """The counts are there, and a clear writes the file: the ledger has the outcomes."""
    (tmp_path / "in_the_way").write_text("")

    waited = Waited(run_dag, people("C1"), results_path=str(tmp_path / "in_the_way" / "results.jsonl"))

    assert waited.run.state == "failed"
    assert waited.summary["recipients"]["succeeded"] == 1


def test_a_push_file_that_is_gone_or_broken_is_told(
    sandbox: Sandbox, run_dag: RunDag, sqlite: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The outcomes are written without names, and the wait fails at its end: no message holds what stood there."""
    logged: list[str] = []
    original = results_file.ResultsFile._read_recipients

    def break_it(self: Any, recipients: Any) -> list[str]:
        (tmp_path / "sent.jsonl").write_text('{"request_id": "Person-1"}\nPerson-2')
        problems = original(self, recipients)
        logged.extend(problems)
        return problems

    monkeypatch.setattr(results_file.ResultsFile, "_read_recipients", break_it)

    waited = Waited(
        run_dag,
        people("C1"),
        push={"recipients_path": str(tmp_path / "sent.jsonl")},
        results_path=str(tmp_path / "results.jsonl"),
    )

    assert waited.run.state == "failed"
    assert [(line["outcome"], line["value"]) for line in waited.lines] == [("succeeded", None)]
    assert len(logged) == 1
    assert "JSONDecodeError" in logged[0]
    assert "Person" not in logged[0]


def test_a_push_without_the_file_that_was_asked_for_fails_the_wait(
    sandbox: Sandbox, run_dag: RunDag, sqlite: str, tmp_path: Path
) -> None:
    """The push succeeded, and nothing it did is undone; the run says that something is missing."""
    (tmp_path / "in_the_way").write_text("")

    waited = Waited(
        run_dag,
        people("C1"),
        push={"recipients_path": str(tmp_path / "in_the_way" / "sent.jsonl")},
        results_path=str(tmp_path / "results.jsonl"),
    )

    states = {ti.task_id: ti.state for ti in waited.run.get_task_instances()}
    assert states == {"push": "success", "wait": "failed"}
    assert [line["outcome"] for line in waited.lines] == ["succeeded"]


def test_no_recipient_is_in_a_log_or_an_xcom(
    sandbox: Sandbox,
    run_dag: RunDag,
    sqlite: str,
    tmp_path: Path,
    *,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Identifiers stand in the files, and nowhere else."""
    caplog.set_level(logging.DEBUG, "airflow_provider_responsys")

    waited = Waited(
        run_dag,
        people("Person-1", "NODEVICE-Person-2"),
        push={"recipients_path": str(tmp_path / "sent.jsonl")},
        results_path=str(tmp_path / "results.jsonl"),
    )

    logged = capfd.readouterr()
    assert [line["value"] for line in waited.lines] == ["Person-1", "NODEVICE-Person-2"]
    assert "Person-" not in logged.out + logged.err + caplog.text + str(waited.summary) + str(waited.pushed)


def test_an_empty_push_is_an_empty_file(sandbox: Sandbox, run_dag: RunDag, sqlite: str, tmp_path: Path) -> None:
    """There is no request, and the file is there all the same."""
    waited = Waited(run_dag, [], results_path=str(tmp_path / "results.jsonl"), timeout=timedelta(minutes=1))

    assert waited.run.state == "success"
    assert waited.lines == []
