"""recipients_path: each row of the source in one bucket, and the buckets are the report's."""

import csv
import gzip
import itertools
import json
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pendulum
import pytest
from airflow.providers.common.compat.sdk import AirflowFailException
from airflow.sdk import DAG, ObjectStoragePath, task
from airflow.sdk.io import attach
from airflow.utils.session import create_session
from fsspec.implementations.memory import MemoryFileSystem
from sqlalchemy import text

from airflow_provider_responsys import operators
from airflow_provider_responsys.operators import TriggerPushOperator
from airflow_provider_responsys.recipients import outcomes
from airflow_provider_responsys.sandbox import Fault, Sandbox

RunDag = Callable[[DAG], Any]

START = pendulum.datetime(2026, 1, 1, tz="UTC")
NUMBERS = itertools.count(1)
COLUMNS = ["row", "identifier", "value", "bucket", "request_id", "position", "code", "reason"]


@pytest.fixture
def sandbox(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sandbox]:
    """Give a sandbox that responsys_default leads to."""
    monkeypatch.setattr(operators, "ANSWER_MARGIN", 0.5)
    with Sandbox(processing_time=0.0, keep_bodies=True) as sandbox:
        monkeypatch.setenv("AIRFLOW_CONN_RESPONSYS_DEFAULT", json.dumps(sandbox.connection(timeout=2)))
        yield sandbox


@pytest.fixture
def memory() -> Iterator[MemoryFileSystem]:
    """Give an object store in memory that Airflow knows."""
    store = MemoryFileSystem()
    attach("memory", fs=store)
    yield store
    store.store.clear()


class Push:
    """A push that writes to *path*, in a DAG of its own."""

    def __init__(self, run_dag: RunDag, path: Path | str, **arguments: Any) -> None:
        self.path = str(path)
        self.failures: list[BaseException] = []
        note = lambda context: self.failures.append(context["exception"])  # noqa: E731 -- a callback
        defaults: dict[str, Any] = {
            "campaign_name": "Summer_Push",
            "requests_per_minute": 60_000,
            "retry_delay": timedelta(0),
            "max_in_flight": 1,
        }
        with DAG(f"tells_{next(NUMBERS)}", schedule=None, start_date=START) as self.dag:
            arguments.pop("kind", TriggerPushOperator)(
                task_id="push",
                recipients_path=self.path,
                on_failure_callback=note,
                on_retry_callback=note,
                **{**defaults, **arguments},
            )
        self.run = run_dag(self.dag)
        self.ti = self.run.get_task_instance("push")

    @property
    def result(self) -> Any:
        """Return what the push reported."""
        return self.ti.xcom_pull(task_ids="push")

    @property
    def lines(self) -> list[dict[str, Any]]:
        """Return the lines of the file."""
        return read(self.path)

    @property
    def gone(self) -> list[dict[str, Any]]:
        """Return the lines of the file beside it."""
        aside = self.path.replace(".jsonl", ".not_in_source.jsonl")
        return read(aside) if ObjectStoragePath(aside).exists() else []

    def check(self) -> dict[str, int]:
        """Check that the file tells what the report does; return the buckets that hold recipients."""
        counts = Counter(line["bucket"] for line in self.lines)
        for line in self.gone:
            counts[line["bucket"]] += line["recipients"]
        told = {name: count for name, count in self.result["recipients"].items() if count and name != "read"}
        assert dict(counts) == told
        assert counts.total() == self.result["recipients"]["read"]
        assert self.result["recipients_path"] == self.path
        assert self.result["recipients_problem"] is None
        assert [line["row"] for line in self.lines] == list(range(1, len(self.lines) + 1))
        return told


def read(path: str) -> list[dict[str, Any]]:
    """Return the lines of a file of JSON lines."""
    return [json.loads(line) for line in ObjectStoragePath(path).read_text().splitlines()]


def people(count: int, prefix: str = "C") -> list[dict[str, str]]:
    """Return rows for *count* recipients."""
    return [{"customerId": f"{prefix}{number}", "NAME": "Zoë"} for number in range(count)]


def requests(sandbox: Sandbox) -> list[list[str]]:
    """Return who was in each request, in the order of their arrival."""
    bodies = [json.loads(seen.body) for seen in sandbox.requests_seen if seen.endpoint == "push"]
    return [[one["customerId"] for one in body["recipientData"]] for body in bodies]


def test_each_line_names_a_recipient_its_request_and_its_place_there(
    sandbox: Sandbox, run_dag: RunDag, tmp_path: Path
) -> None:
    """The position counts from 0 in the request, as results do."""
    push = Push(run_dag, tmp_path / "sent.jsonl", recipients=people(450))

    assert push.check() == {"accepted": 450}
    assert list(push.lines[0]) == COLUMNS
    assert {line["identifier"] for line in push.lines} == {"customerId"}
    placed = {(line["request_id"], line["position"]): line["value"] for line in push.lines}
    asked = dict(zip(sandbox.request_ids, requests(sandbox), strict=True))
    assert placed == {(one, place): who for one, all_of_it in asked.items() for place, who in enumerate(all_of_it)}
    assert [entry.name for entry in tmp_path.iterdir()] == ["sent.jsonl"]


def test_no_path_no_file(sandbox: Sandbox, run_dag: RunDag) -> None:
    """The output says so, and nothing is kept while it sends."""
    with DAG(f"tells_{next(NUMBERS)}", schedule=None, start_date=START) as dag:
        TriggerPushOperator(task_id="push", campaign_name="Summer_Push", recipients=people(3))

    run = run_dag(dag)

    result = run.get_task_instance("push").xcom_pull(task_ids="push")
    assert (result["recipients_path"], result["recipients_problem"]) == (None, None)


def test_rows_that_were_not_sent_to_say_why(sandbox: Sandbox, run_dag: RunDag, tmp_path: Path) -> None:
    """A duplicate tells the bucket of the row that it repeats; an invalid row has no value."""
    sandbox.plan(Fault("push", "INVALID_PARAMETER", nth=1), Fault("push", "lost", when="after", nth=2))
    rows = [
        *people(200),
        {"customerId": "C0"},
        {"customerId": "", "NAME": "Geheim"},
        *people(200, "D"),
        *people(5, "E"),
    ]

    push = Push(run_dag, tmp_path / "sent.jsonl", recipients=rows, on_invalid="skip")

    assert push.check() == {"rejected": 200, "duplicate": 1, "invalid": 1, "in_doubt": 200, "accepted": 5}
    lines = push.lines
    assert (lines[0]["code"], lines[0]["request_id"]) == ("INVALID_PARAMETER", None)
    assert lines[200]["reason"] == "the same recipient as row 1, which is rejected"
    assert (lines[201]["identifier"], lines[201]["value"]) == (None, None)
    assert "is missing" in lines[201]["reason"]
    assert lines[202]["reason"].startswith("batch 2 (")
    assert "no whole answer" in lines[202]["reason"]


def test_what_is_left_is_not_sent_and_says_why(sandbox: Sandbox, run_dag: RunDag, tmp_path: Path) -> None:
    """A failing try writes the file, too."""
    sandbox.plan(Fault("push", "SERVICE_UNAVAILABLE", nth=[2, 3, 4, 5]))

    push = Push(run_dag, tmp_path / "sent.jsonl", recipients=people(600), retry_for=0.5)

    assert push.check() == {"accepted": 200, "not_sent": 400}
    assert push.lines[599]["code"] == "NotAllSent"
    assert "retry_for" in push.lines[599]["reason"]


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ({"dry_run": True}, None),
        ({"min_recipients": 4}, "InvalidRecipients"),
        ({"campaign_name": "No_Such_Campaign"}, "CAMPAIGN_NOT_FOUND"),
    ],
)
def test_nothing_sent(
    sandbox: Sandbox, run_dag: RunDag, tmp_path: Path, arguments: dict[str, Any], code: str | None
) -> None:
    """Each row is told all the same, and why."""
    push = Push(run_dag, tmp_path / "sent.jsonl", recipients=people(3), **arguments)

    assert push.check() == ({"rejected": 3} if code == "CAMPAIGN_NOT_FOUND" else {"not_sent": 3})
    assert {line["code"] for line in push.lines} == {code}
    assert all(line["reason"] for line in push.lines)


def test_an_empty_source_is_an_empty_file(sandbox: Sandbox, run_dag: RunDag, tmp_path: Path) -> None:
    """It is there: what waits for it need not ask."""
    push = Push(run_dag, tmp_path / "sent.jsonl", recipients=[])

    assert push.check() == {}
    assert push.lines == []


def test_a_login_that_fails_leaves_all_rows_not_sent(
    sandbox: Sandbox, run_dag: RunDag, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The source was read by then."""
    wrong = {**sandbox.connection(), "password": "wrong-password"}
    monkeypatch.setenv("AIRFLOW_CONN_RESPONSYS_DEFAULT", json.dumps(wrong))

    push = Push(run_dag, tmp_path / "sent.jsonl", recipients=people(3))

    assert push.check() == {"not_sent": 3}


@pytest.mark.parametrize("remembers", ["store", "ledger"])
def test_after_a_retry_it_tells_the_whole_send(
    sandbox: Sandbox, run_dag: RunDag, tmp_path: Path, ledger: str, remembers: str
) -> None:
    """Earlier tries included: what they got accepted with its request, and what they left in doubt."""
    sandbox.plan(Fault("push", "lost", when="after", nth=2), Fault("push", "SERVICE_UNAVAILABLE", nth=3))

    push = Push(
        run_dag,
        tmp_path / "sent.jsonl",
        recipients=people(1_000),
        retry_for=1.5,
        retries=3,
        on_in_doubt="continue",
        **({"ledger_conn_id": ledger} if remembers == "ledger" else {}),
    )

    assert push.run.state == "success"
    assert push.ti.try_number > 1
    assert push.check() == {"accepted": 800, "in_doubt": 200}
    placed = {(line["request_id"], line["position"]): line["value"] for line in push.lines if line["request_id"]}
    asked = dict(zip(sandbox.request_ids, arrived(sandbox), strict=True))
    del asked[sandbox.request_ids[1]]
    assert placed == {(one, place): who for one, all_of_it in asked.items() for place, who in enumerate(all_of_it)}
    assert "no answer was recorded since" in push.lines[200]["reason"]


def arrived(sandbox: Sandbox) -> list[list[str]]:
    """Return who was in each request that was accepted."""
    seen = requests(sandbox)
    return [seen[0], seen[1], *seen[3:]]


def test_rows_that_left_the_source_are_counted_beside_it(
    sandbox: Sandbox, run_dag: RunDag, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ledger knows them as hashes alone: so many of this request."""
    database(tmp_path, monkeypatch)
    sandbox.plan(Fault("push", "lost", when="after", nth=2), Fault("push", "SERVICE_UNAVAILABLE", nth=3))

    push = Push(
        run_dag,
        tmp_path / "sent.jsonl",
        sql="SELECT customer_id FROM people{{ '' if ti.try_number == 1 else ' WHERE number % 4 > 0' }}",
        sql_conn_id="marketing_db",
        retry_for=1.5,
        retries=2,
        on_in_doubt="continue",
    )

    assert push.run.state == "success"
    assert push.check() == {"accepted": 350, "in_doubt": 200}
    assert len(push.lines) == 450
    gone = [(line["bucket"], line["request_id"], line["recipients"]) for line in push.gone]
    assert gone == [("accepted", sandbox.request_ids[0], 50), ("in_doubt", None, 50)]


def database(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let marketing_db lead to a table of 600 people."""
    with closing(sqlite3.connect(folder / "marketing.db")) as connection, connection:
        connection.execute("CREATE TABLE people (number INTEGER PRIMARY KEY, customer_id TEXT)")
        connection.executemany("INSERT INTO people VALUES (?, ?)", [(number, f"C{number}") for number in range(600)])
    uri = {"conn_type": "sqlite", "host": str(folder / "marketing.db")}
    monkeypatch.setenv("AIRFLOW_CONN_MARKETING_DB", json.dumps(uri))


def test_a_file_beside_it_that_is_out_of_date_is_removed(sandbox: Sandbox, run_dag: RunDag, tmp_path: Path) -> None:
    """A try with the whole source leaves none of an earlier one."""
    (tmp_path / "sent.not_in_source.jsonl").write_text("old")

    push = Push(run_dag, tmp_path / "sent.jsonl", recipients=people(3))

    assert push.check() == {"accepted": 3}
    assert not (tmp_path / "sent.not_in_source.jsonl").exists()


def test_at_least_once_tells_what_came_of_a_doubt(
    sandbox: Sandbox, run_dag: RunDag, tmp_path: Path, ledger: str
) -> None:
    """What was sent again and accepted is accepted, with the request that was."""
    sandbox.plan(Fault("push", "lost", when="after", nth=2), Fault("push", "SERVICE_UNAVAILABLE", nth=3))

    push = Push(
        run_dag,
        tmp_path / "sent.jsonl",
        recipients=people(600),
        delivery="at_least_once",
        ledger_conn_id=ledger,
        retry_for=1.5,
        retries=2,
    )

    assert push.run.state == "success"
    assert push.check() == {"accepted": 600}
    assert {line["request_id"] for line in push.lines} == set(push.result["request_ids"])


def test_at_least_once_a_doubt_that_no_try_could_send_again_stays_one(
    sandbox: Sandbox, run_dag: RunDag, tmp_path: Path
) -> None:
    """It is noted before it is sent again, and nothing came after."""
    sandbox.plan(
        Fault("push", "lost", when="after", nth=1), Fault("push", "SERVICE_UNAVAILABLE", nth=list(range(2, 40)))
    )

    push = Push(
        run_dag,
        tmp_path / "sent.jsonl",
        recipients=people(300),
        delivery="at_least_once",
        retry_for=1.0,
        retries=1,
    )

    assert push.check() == {"in_doubt": 200, "not_sent": 100}


def test_a_recipient_that_another_task_claimed_is_a_duplicate(
    sandbox: Sandbox, run_dag: RunDag, tmp_path: Path, ledger: str
) -> None:
    """Two tasks with one send key never push one recipient twice."""
    Push(run_dag, tmp_path / "first.jsonl", recipients=people(100), send_key="autumn", ledger_conn_id=ledger)

    push = Push(run_dag, tmp_path / "second.jsonl", recipients=people(250), send_key="autumn", ledger_conn_id=ledger)

    assert push.check() == {"accepted": 150, "duplicate": 100}
    assert push.lines[0]["reason"] == "claimed by another task with the same send key"
    assert [line["position"] for line in push.lines[100:200]] == list(range(100))


@pytest.mark.parametrize("suffix", [".jsonl", ".json.gz", ".csv", ".csv.gz"])
@pytest.mark.parametrize("where", ["local", "memory"])
def test_the_suffix_decides_how_it_is_written(
    sandbox: Sandbox, run_dag: RunDag, tmp_path: Path, memory: MemoryFileSystem, *, where: str, suffix: str
) -> None:
    """JSON lines or CSV, compressed or not, on local disk and in an object store."""
    path = (tmp_path / f"deep/er/sent{suffix}").as_uri() if where == "local" else f"memory://bucket/sent{suffix}"
    rows = [{"customerId": 'a "quoted", 由紀\nname'}, {"customerId": ""}]

    push = Push(run_dag, path, recipients=rows, on_invalid="skip")

    data = ObjectStoragePath(path).read_bytes()
    written = (gzip.decompress(data) if suffix.endswith("gz") else data).decode()
    found: list[Any] = (
        list(csv.DictReader(written.splitlines(keepends=True)))
        if ".csv" in suffix
        else [json.loads(line) for line in written.splitlines()]
    )
    assert push.result["recipients_path"] == path
    assert [list(line) for line in found] == [COLUMNS, COLUMNS]
    assert [line["value"] or "" for line in found] == ['a "quoted", 由紀\nname', ""]
    assert [line["bucket"] for line in found] == ["accepted", "invalid"]


@pytest.mark.parametrize("path", ["sent.txt", "sent", "sent.gz", "", "nowhere://bucket/sent.jsonl"])
def test_a_path_that_can_not_be_right_is_refused_before_anything_is_sent(
    sandbox: Sandbox, run_dag: RunDag, path: str
) -> None:
    """The message names the parameter."""
    push = Push(run_dag, path, recipients=people(3))

    assert isinstance(push.failures[0], AirflowFailException)
    assert "recipients_path" in str(push.failures[0])
    assert not sandbox.requests_seen


def mapped(path: str) -> DAG:
    """Return a DAG with a push that is mapped over two lists, and writes to *path*."""
    with DAG(f"tells_{next(NUMBERS)}", schedule=None, start_date=START) as dag:

        @task(show_return_value_in_logs=False)
        def shards() -> list[list[dict[str, str]]]:
            return [people(3, "someone-"), people(2, "another-")]

        TriggerPushOperator.partial(
            task_id="push", campaign_name="Summer_Push", requests_per_minute=60_000, recipients_path=path
        ).expand(recipients=shards())
    return dag


def test_the_path_of_a_mapped_push_must_hold_the_map_index(sandbox: Sandbox, run_dag: RunDag, tmp_path: Path) -> None:
    """Or its tasks would write over each other's files; nothing is sent, and the message says what to add."""
    run = run_dag(mapped(f"{tmp_path.as_uri()}/sent.jsonl"))

    assert run.state == "failed"
    assert not sandbox.requests_seen


def test_each_task_of_a_mapped_push_writes_its_own_file(sandbox: Sandbox, run_dag: RunDag, tmp_path: Path) -> None:
    """The path is a template; what Airflow stores of it and of the recipients names none of them."""
    dag = mapped(f"{tmp_path.as_uri()}/sent-{{{{ ti.map_index }}}}.jsonl")

    run = run_dag(dag)

    assert run.state == "success"
    assert [len(read(f"{tmp_path}/sent-{number}.jsonl")) for number in (0, 1)] == [3, 2]
    with create_session() as session:
        query = text("SELECT rendered_fields FROM rendered_task_instance_fields WHERE dag_id = :dag")
        stored = [str(fields) for fields in session.execute(query, {"dag": dag.dag_id}).scalars()]
        values = [
            str(value) for value in session.execute(text("SELECT value FROM xcom WHERE task_id = 'push'")).scalars()
        ]
    assert any("sent-1.jsonl" in fields for fields in stored)
    assert not any("someone-" in found or "another-" in found for found in [*stored, *values])


@pytest.mark.parametrize("where", ["local", "memory"])
def test_a_file_that_can_not_be_written_changes_nothing_else(
    sandbox: Sandbox, run_dag: RunDag, tmp_path: Path, memory: MemoryFileSystem, where: str
) -> None:
    """The send succeeds; the output says why there is no file, and the old one is as it was."""
    (tmp_path / "in_the_way").write_text("")
    memory.pipe_file("/bucket", b"")
    path = f"{tmp_path}/in_the_way/sent.jsonl" if where == "local" else "memory://bucket/sent.jsonl"

    push = Push(run_dag, path, recipients=people(3))

    assert push.run.state == "success"
    assert push.result["recipients"]["accepted"] == 3
    assert push.result["recipients_path"] is None
    assert "could not be written" in push.result["recipients_problem"]


@pytest.mark.parametrize("where", ["local", "memory"])
def test_an_error_on_the_way_discards_what_was_begun(
    sandbox: Sandbox,
    run_dag: RunDag,
    tmp_path: Path,
    memory: MemoryFileSystem,
    *,
    where: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whole or not at all: a file that does not add up to the report is no file, and what was there stays."""
    path = (tmp_path / "sent.jsonl").as_uri() if where == "local" else "memory://bucket/sent.jsonl"
    ObjectStoragePath(path).write_text("of an earlier try")
    monkeypatch.setattr(outcomes.Outcomes, "note_repetitions", lambda *_: None)

    push = Push(run_dag, path, recipients=[*people(3), *people(1)])

    assert push.run.state == "success"
    assert push.result["recipients"]["duplicate"] == 1
    assert push.result["recipients_path"] is None
    assert ObjectStoragePath(path).read_text() == "of an earlier try"
    assert sorted(entry.name for entry in tmp_path.iterdir() if "sent" in entry.name) == (
        ["sent.jsonl"] if where == "local" else []
    )


def test_a_disk_that_is_full_harms_no_send(
    sandbox: Sandbox, run_dag: RunDag, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outcomes are kept in a file of their own: where that fails, there is no file, and all is sent."""
    monkeypatch.setattr(outcomes, "RECIPIENT", "INSERT INTO no_such_table VALUES (?, ?, ?)")

    push = Push(run_dag, tmp_path / "sent.jsonl", recipients=people(450))

    assert push.run.state == "success"
    assert push.result["recipients"]["accepted"] == 450
    assert push.result["recipients_path"] is None
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_try_left_unfinished_is_removed(sandbox: Sandbox, run_dag: RunDag, tmp_path: Path) -> None:
    """Recipients stand in it."""
    (tmp_path / ".sent.jsonl.0123456789abcdef.part").write_text("half")

    Push(run_dag, tmp_path / "sent.jsonl", recipients=people(3))

    assert [entry.name for entry in tmp_path.iterdir()] == ["sent.jsonl"]


def test_a_source_that_can_not_be_read_leaves_an_earlier_file_as_it_is(
    sandbox: Sandbox, run_dag: RunDag, tmp_path: Path
) -> None:
    """That one still tells the truth, with names that this try does not know."""
    (tmp_path / "sent.jsonl").write_text("of an earlier try")

    push = Push(run_dag, tmp_path / "sent.jsonl", recipients=[{"customerId": ""}])

    assert (tmp_path / "sent.jsonl").read_text() == "of an earlier try"
    assert push.result["recipients_path"] is None
    assert "source was not read" in push.result["recipients_problem"]


def test_a_task_that_is_told_to_stop_leaves_the_file_to_the_next_try(
    sandbox: Sandbox, run_dag: RunDag, tmp_path: Path
) -> None:
    """It has seconds to live; the next try tells the whole send."""
    tries = itertools.count(1)

    class Killed(TriggerPushOperator):
        """A push whose first try is told to stop while it sends."""

        def _engine(self, *arguments: Any) -> Any:
            engine = super()._engine(*arguments)
            if next(tries) == 1:
                self.on_kill()
                missing.append(not (tmp_path / "sent.jsonl").exists())
            return engine

    missing: list[bool] = []
    with DAG(f"tells_{next(NUMBERS)}", schedule=None, start_date=START) as dag:
        Killed(
            task_id="push",
            campaign_name="Summer_Push",
            recipients=people(3),
            recipients_path=str(tmp_path / "sent.jsonl"),
            retries=1,
            retry_delay=timedelta(0),
            on_retry_callback=lambda _: missing.append(not (tmp_path / "sent.jsonl").exists()),
        )

    run = run_dag(dag)

    assert run.state == "success"
    assert missing == [True, True]
    assert [line["bucket"] for line in read(str(tmp_path / "sent.jsonl"))] == ["accepted"] * 3


def test_no_recipient_is_in_a_log(
    sandbox: Sandbox,
    run_dag: RunDag,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Identifiers stand in the file, and nowhere else."""
    rows = [{"customerId": f"Person-{number}"} for number in range(5)]

    for path in (tmp_path / "sent.jsonl", tmp_path / "sent.jsonl" / "in_the_way.jsonl"):
        Push(run_dag, path, recipients=rows)

    logged = capfd.readouterr()
    assert "sent.jsonl" in logged.out + logged.err + caplog.text
    assert "Person-" not in logged.out + logged.err + caplog.text
