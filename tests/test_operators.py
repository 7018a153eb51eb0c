"""The operator in real Airflow, against the sandbox over real HTTP."""

import copy
import itertools
import json
import os
import re
import shutil
import sqlite3
import threading
import time
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException, BaseOperator
from airflow.sdk import DAG, task
from airflow.sdk.exceptions import AirflowTaskTimeout
from airflow.utils.session import create_session
from pytest_mock import MockerFixture
from sqlalchemy import text
from uuid6 import uuid7  # as Airflow makes its ids

from airflow_provider_responsys import operators
from airflow_provider_responsys.errors import Fenced, LedgerFailed, NotAllSent, SourceFailed
from airflow_provider_responsys.ledger.marked import MarkedLedger
from airflow_provider_responsys.ledger.sql import SqlLedger
from airflow_provider_responsys.ledger.sql_records import Records
from airflow_provider_responsys.ledger.tries import CLAIMED, began
from airflow_provider_responsys.ledgers import ledger_engine
from airflow_provider_responsys.links import PUSH_KEY
from airflow_provider_responsys.observers import PushObserver
from airflow_provider_responsys.operators import TriggerPushOperator
from airflow_provider_responsys.protocol import pace
from airflow_provider_responsys.sandbox import Fault, Sandbox
from tests.support.pushes import BUCKETS, START, Push, RunDag, check, people


@pytest.fixture
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give a SQLite database of five people that marketing_db leads to."""
    path = tmp_path / "marketing.db"
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE people (customer_id TEXT, name TEXT)")
        connection.executemany("INSERT INTO people VALUES (?, 'Zoë')", [(f"C{number}",) for number in range(5)])
    monkeypatch.setenv("AIRFLOW_CONN_MARKETING_DB", json.dumps({"conn_type": "sqlite", "host": str(path)}))
    return path


def test_every_row_is_pushed_once_and_reported(sandbox: Sandbox, run_dag: RunDag) -> None:
    """The plain case: three batches, one summary, everybody in one bucket."""
    push = Push(run_dag, recipients=people(450))

    assert push.run.state == "success"
    members = {"campaign_name", "send_key", "dry_run", "request_ids", "request_sizes", "recipients", "problem"}
    assert set(push.result) == members | {"recipients_path", "recipients_problem"}
    assert sorted(size for size, times in push.result["request_sizes"] for _ in range(times)) == [50, 200, 200]
    assert set(push.result["recipients"]) == set(BUCKETS)
    assert push.recipients == {"read": 450, "accepted": 450}
    assert sorted(push.result["request_ids"]) == sorted(sandbox.request_ids)
    assert len(sandbox.request_ids) == 3
    assert len(sandbox.pushes) == 450
    sandbox.assert_no_duplicates()


def test_each_member_of_the_result_is_an_xcom_of_its_own(sandbox: Sandbox, run_dag: RunDag) -> None:
    """So that push.output["request_ids"] works."""
    push = Push(run_dag, recipients=people(1))

    assert {key: push.ti.xcom_pull(task_ids="push", key=key) for key in push.result} == push.result


def test_recipients_from_sql(sandbox: Sandbox, run_dag: RunDag, database: Path) -> None:
    """A table is the usual source; parameters are bound, not pasted."""
    push = Push(
        run_dag,
        sql="SELECT customer_id, name FROM people WHERE customer_id < :most",
        parameters={"most": "C2"},
        sql_conn_id="marketing_db",
    )

    assert push.recipients == {"read": 2, "accepted": 2}
    assert set(sandbox.pushes) == {("PROFILE", "customerId", "C0"), ("PROFILE", "customerId", "C1")}


def test_sql_from_a_file_is_a_template(sandbox: Sandbox, run_dag: RunDag, database: Path, tmp_path: Path) -> None:
    """A .sql file is rendered like any template of Airflow's."""
    (tmp_path / "whom.sql").write_text("SELECT customer_id FROM people WHERE customer_id = '{{ params.who }}'")
    dag = {"params": {"who": "C4"}, "template_searchpath": str(tmp_path)}

    push = Push(run_dag, sql="whom.sql", sql_conn_id="marketing_db", dag=dag)

    assert list(sandbox.pushes) == [("PROFILE", "customerId", "C4")]
    assert push.run.state == "success"


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ({"sql": "SELECT customer_id FROM missing_table", "sql_conn_id": "marketing_db"}, "missing_table"),
        ({"sql": "SELECT 1", "sql_conn_id": "nowhere_db"}, "nowhere_db"),
    ],
)
def test_a_source_that_fails_sends_nothing(
    sandbox: Sandbox, run_dag: RunDag, database: Path, source: dict[str, str], says: str
) -> None:
    """One plain sentence names the table or the connection."""
    push = Push(run_dag, **source)

    assert says in str(push.failures[0])
    assert not sandbox.counts["push"]


def test_an_empty_source_is_a_success(sandbox: Sandbox, run_dag: RunDag) -> None:
    """Nobody to push is not an error, and needs no login."""
    push = Push(run_dag, recipients=[])

    assert push.run.state == "success"
    assert push.recipients == {}
    assert not sandbox.requests_seen


def test_the_output_of_a_task_is_pushed_unchanged(sandbox: Sandbox, run_dag: RunDag) -> None:
    """What stands in the data is data: native rendering and Jinja leave it alone."""
    rows = [{"customerId": "12345", "A": "None", "B": "{{ 7*7 }}", "C": "1e5"}]
    sandbox.change(keep_bodies=True)
    with DAG("from_task", schedule=None, start_date=START, render_template_as_native_obj=True) as dag:

        @task(show_return_value_in_logs=False)
        def whom() -> list[dict[str, str]]:
            return rows

        TriggerPushOperator(task_id="push", campaign_name="Summer_Push", recipients=whom(), requests_per_minute=60_000)

    run = run_dag(dag)

    assert run.state == "success"
    sent = json.loads(next(seen.body for seen in sandbox.requests_seen if seen.endpoint == "push"))["recipientData"][0]
    assert sent["customerId"] == "12345"
    assert {each["name"]: each["value"] for each in sent["optionalData"]} == {"A": "None", "B": "{{ 7*7 }}", "C": "1e5"}


def test_mapped_pushes_keep_their_recipients_out_of_rendered_fields(
    sandbox: Sandbox, run_dag: RunDag, airflow_db: None
) -> None:
    """Mapped tasks too: what Airflow stores and shows is a count."""
    with DAG("mapped", schedule=None, start_date=START) as dag:

        @task(show_return_value_in_logs=False)
        def shards() -> list[list[dict[str, str]]]:
            return [people(3, "someone-"), people(2, "another-")]

        TriggerPushOperator.partial(task_id="push", campaign_name="Summer_Push", requests_per_minute=60_000).expand(
            recipients=shards()
        )

    run = run_dag(dag)

    assert run.state == "success"
    assert len(sandbox.pushes) == 5
    with create_session() as session:
        stored = (
            session.execute(text("SELECT rendered_fields FROM rendered_task_instance_fields WHERE dag_id = 'mapped'"))
            .scalars()
            .all()
        )
    assert any("<3 recipients>" in str(fields) for fields in stored)
    assert not any("someone-" in str(fields) or "another-" in str(fields) for fields in stored)


def test_duplicate_rows_are_pushed_once(sandbox: Sandbox, run_dag: RunDag) -> None:
    """The first row of a person is sent, the others are counted."""
    rows = [{"email_address": "Anna@Example.com "}, {"email_address": "anna@example.com"}]

    push = Push(run_dag, recipients=rows)

    assert push.recipients == {"read": 2, "accepted": 1, "duplicate": 1}
    sandbox.assert_no_duplicates()


def test_a_wrong_row_stops_everything_before_the_first_request(sandbox: Sandbox, run_dag: RunDag) -> None:
    """The message names the position, never the data; another try would change nothing."""
    push = Push(run_dag, recipients=[*people(2), {"customerId": "", "NAME": "secret name"}], retries=2)

    assert isinstance(push.failures[0], AirflowFailException)
    assert "row 3" in str(push.failures[0])
    assert "secret name" not in str(push.failures[0])
    assert push.ti.try_number == 1
    assert not sandbox.requests_seen


def test_wrong_rows_can_be_left_out(sandbox: Sandbox, run_dag: RunDag) -> None:
    """They are counted as invalid, the others are pushed."""
    push = Push(run_dag, recipients=[*people(2), {"customerId": ""}], on_invalid="skip")

    assert push.recipients == {"read": 3, "accepted": 2, "invalid": 1}


@pytest.mark.parametrize(("name", "limit"), [("min_recipients", 4), ("max_recipients", 2)])
def test_guards_hold_before_the_first_request(sandbox: Sandbox, run_dag: RunDag, name: str, limit: int) -> None:
    """Too few or too many: nothing is sent."""
    push = Push(run_dag, recipients=people(3), **{name: limit})

    assert f"{name} is {limit}" in str(push.failures[0])
    assert not sandbox.requests_seen


@pytest.mark.parametrize("where", ["operator", "connection"])
def test_a_dry_run_reads_and_reports_and_sends_nothing(
    sandbox: Sandbox, run_dag: RunDag, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everyone valid is not_sent, and that is a success."""
    if where == "connection":
        monkeypatch.setenv("AIRFLOW_CONN_RESPONSYS_DEFAULT", json.dumps(sandbox.connection(dry_run=True)))

    push = Push(run_dag, recipients=people(3), dry_run=where == "operator")

    assert push.run.state == "success"
    assert push.result["dry_run"] is True
    assert push.recipients == {"read": 3, "not_sent": 3}
    assert not sandbox.requests_seen


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"recipients": [], "sql": "SELECT 1", "sql_conn_id": "x"}, "exactly one"),
        ({}, "exactly one"),
        ({"sql": "SELECT 1"}, "sql_conn_id"),
        ({"recipients": [], "campaign_name": "no/slash"}, "no/slash"),
        ({"recipients": [], "on_invalid": "ignore"}, "on_invalid"),
        ({"recipients": [], "list_type": "people"}, "list_type"),
        ({"recipients": [], "delivery": "exactly_once"}, "delivery"),
        ({"recipients": [], "requests_per_minute": 0}, "requests_per_minute"),
        ({"recipients": [], "max_in_flight": 0}, "max_in_flight"),
        ({"recipients": [], "max_in_doubt": 0}, "max_in_doubt"),
        ({"recipients": [], "max_in_doubt": 1.0}, "max_in_doubt"),
        ({"recipients": "{{ 1 }}"}, "output"),
        ({"recipients": [], "message_expiration": 60}, "haAsyncApi"),
        ({"recipients": [], "reference_data": object()}, "reference_data"),
    ],
)
def test_a_wrong_parameter_is_named(sandbox: Sandbox, run_dag: RunDag, arguments: dict[str, Any], says: str) -> None:
    """And nothing is read, logged in to, or sent."""
    push = Push(run_dag, **arguments)

    assert isinstance(push.failures[0], AirflowFailException)
    assert says in str(push.failures[0])
    assert not sandbox.requests_seen


def test_the_other_family_takes_an_expiration(
    sandbox: Sandbox, run_dag: RunDag, monkeypatch: pytest.MonkeyPatch
) -> None:
    """asyncApi: its paths, and how long a push may wait in the queue."""
    monkeypatch.setenv("AIRFLOW_CONN_RESPONSYS_DEFAULT", json.dumps(sandbox.connection(api="asyncApi")))

    push = Push(run_dag, recipients=people(3), message_expiration=600)

    sent = next(seen for seen in sandbox.requests_seen if seen.endpoint == "push")
    assert push.run.state == "success"
    assert sent.path == "/rest/asyncApi/v1.3/campaigns/Summer_Push/push"
    assert dict(sent.headers)["message-expiration"] == "600"


def test_a_wrong_password_is_tried_once(sandbox: Sandbox, run_dag: RunDag, monkeypatch: pytest.MonkeyPatch) -> None:
    """Accounts lock after five: no retry of ours or Airflow's helps."""
    wrong = {**sandbox.connection(), "password": "wrong-password"}
    monkeypatch.setenv("AIRFLOW_CONN_RESPONSYS_DEFAULT", json.dumps(wrong))

    push = Push(run_dag, recipients=people(3), retries=3)

    assert isinstance(push.failures[0], AirflowFailException)
    assert sandbox.counts["login"] == 1
    assert push.ti.try_number == 1


def test_an_unknown_campaign_stops_the_send(sandbox: Sandbox, run_dag: RunDag) -> None:
    """A refusal of the campaign stops everything: the rest is not sent, and no retry helps."""
    push = Push(run_dag, recipients=people(2_000), campaign_name="No_Such_Campaign", max_in_flight=1, retries=2)

    assert isinstance(push.failures[0], AirflowFailException)
    assert "CAMPAIGN_NOT_FOUND" in str(push.failures[0])
    assert sandbox.counts["push"] == 1
    assert not sandbox.pushes


def test_a_refused_batch_fails_at_the_end(sandbox: Sandbox, run_dag: RunDag) -> None:
    """The other batches go out, and the summary is pushed although the task fails."""
    sandbox.plan(Fault("push", "INVALID_PARAMETER", nth=1))

    push = Push(run_dag, recipients=people(500), max_in_flight=1, retries=2)

    assert isinstance(push.failures[0], AirflowFailException)
    assert "INVALID_PARAMETER: 200" in str(push.failures[0])
    assert push.recipients == {"read": 500, "accepted": 300, "rejected": 200}
    assert len(push.result["request_ids"]) == 2


@pytest.mark.parametrize("kind", ["lost", "reset", "unlisted", "html_503", "bad_gateway", "truncated"])
def test_a_lost_answer_is_in_doubt_and_never_sent_again(sandbox: Sandbox, run_dag: RunDag, kind: str) -> None:
    """The push may have gone out: it is named, counted, and left alone."""
    sandbox.plan(Fault("push", kind, when="after", nth=2))

    push = Push(run_dag, recipients=people(600), max_in_flight=1, retries=2)

    assert isinstance(push.failures[0], AirflowFailException)
    assert push.recipients == {"read": 600, "accepted": 400, "in_doubt": 200}
    assert len(push.result["request_ids"]) == 2
    assert len(sandbox.pushes) == 600
    sandbox.assert_no_duplicates()


def test_at_least_once_sends_again_what_an_earlier_try_left_in_doubt(sandbox: Sandbox, run_dag: RunDag) -> None:
    """Asked for by name: here the lost answer was of a push that had arrived, and 200 people are pushed twice."""
    sandbox.plan(Fault("push", "lost", when="after", nth=2), Fault("push", "SERVICE_UNAVAILABLE", nth=3))

    push = Push(
        run_dag,
        recipients=people(600),
        delivery="at_least_once",
        max_in_flight=1,
        retry_for=1.5,
        retries=2,
    )

    assert push.run.state == "success"
    assert push.recipients == {"read": 600, "accepted": 600}
    assert sum(times == 2 for times in sandbox.pushes.values()) == 200


def test_at_least_once_whoever_left_the_source_stays_in_doubt(
    sandbox: Sandbox, run_dag: RunDag, database: Path
) -> None:
    """They may have been pushed, and nobody can push them now: the report has them, and the others of their batch."""
    sandbox.plan(Fault("push", "lost", when="after", nth=2))

    push = Push(
        run_dag,
        sql="SELECT 'C' || a.rowid || '-' || b.rowid || '-' || c.rowid || '-' || d.rowid AS customer_id "
        "FROM people a, people b, people c, people d{{ '' if ti.try_number == 1 else ' WHERE d.rowid < 5' }} "
        "ORDER BY a.rowid, b.rowid, c.rowid, d.rowid",
        sql_conn_id="marketing_db",
        delivery="at_least_once",
        max_in_flight=1,
        retry_for=1.5,
        retries=2,
    )

    assert isinstance(push.failures[0], NotAllSent)
    assert isinstance(push.failures[1], AirflowFailException)
    # Of 625, 45 had left before they were read for the first time; of two batches of 200, 40 each.
    assert push.recipients == {"read": 580, "accepted": 540, "in_doubt": 40}
    assert sum(times == 2 for times in sandbox.pushes.values()) == 160
    assert len(sandbox.pushes) == 580


def test_at_least_once_a_try_that_stops_leaves_the_doubt_to_the_next(sandbox: Sandbox, run_dag: RunDag) -> None:
    """Nobody is missing but those in doubt: Airflow still retries."""
    sandbox.plan(
        Fault("push", "lost", when="after", nth=1),
        Fault("push", "SERVICE_UNAVAILABLE", nth=[2, 3]),
    )

    push = Push(run_dag, recipients=people(200), delivery="at_least_once", max_in_flight=1, retry_for=1.5, retries=3)

    assert push.run.state == "success"
    assert push.recipients == {"read": 200, "accepted": 200}
    assert push.ti.try_number > 2
    assert all(isinstance(failure, NotAllSent) for failure in push.failures)
    assert "0 of 200 accepted, 200 in doubt (200 of those in doubt are sent to again by another try)" in str(
        push.failures[0]
    )
    assert set(sandbox.pushes.values()) == {2}


def test_doubt_may_be_tolerated(sandbox: Sandbox, run_dag: RunDag) -> None:
    """on_in_doubt="continue" goes on to the next task, with the count in the summary."""
    sandbox.plan(Fault("push", "lost", when="after", nth=1))

    push = Push(run_dag, recipients=people(300), on_in_doubt="continue", max_in_flight=1)

    assert push.run.state == "success"
    assert push.recipients == {"read": 300, "accepted": 100, "in_doubt": 200}


@pytest.mark.parametrize("status", [400, 401, 429])
def test_a_limit_that_is_run_into_is_waited_for(
    sandbox: Sandbox, run_dag: RunDag, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    """Another program uses a part of the limit: what was refused is sent later, and once."""
    monkeypatch.setattr(pace, "SCOUT", 0.05)
    sandbox.plan(Fault("push", "API_LIMIT_EXCEEDED", nth=[2, 3, 4], status=status))

    push = Push(run_dag, recipients=people(1_000))

    assert push.run.state == "success"
    assert push.recipients == {"read": 1_000, "accepted": 1_000}
    assert sandbox.faults_happened == {"API_LIMIT_EXCEEDED": 3}
    assert sandbox.counts["push"] == 5 + 3
    sandbox.assert_no_duplicates()


def test_a_limit_that_others_use_up_leaves_people_not_sent(
    sandbox: Sandbox, run_dag: RunDag, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Patience has an end, retry_for; another try may be luckier."""
    monkeypatch.setattr(pace, "SCOUT", 0.05)
    sandbox.plan(Fault("push", "API_LIMIT_EXCEEDED", nth=list(range(2, 1_000))))

    push = Push(run_dag, recipients=people(400), retry_for=1.0)

    assert push.recipients == {"read": 400, "accepted": 200, "not_sent": 200}
    assert isinstance(push.failures[0], NotAllSent)
    assert "retry_for" in str(push.failures[0])


def test_a_retry_goes_on_where_the_first_try_stopped(sandbox: Sandbox, run_dag: RunDag) -> None:
    """What was accepted is reported as accepted, with its request ids, and nobody is pushed twice."""
    sandbox.plan(Fault("push", "SERVICE_UNAVAILABLE", nth=3))

    push = Push(run_dag, recipients=people(1_000), max_in_flight=1, retry_for=1.0, retries=3)

    assert push.run.state == "success"
    assert isinstance(push.failures[0], NotAllSent)
    assert push.ti.try_number == 2
    assert push.recipients == {"read": 1_000, "accepted": 1_000}
    assert sorted(push.result["request_ids"]) == sorted(sandbox.request_ids)
    sandbox.assert_no_duplicates()


def test_a_retry_leaves_what_is_in_doubt_alone(sandbox: Sandbox, run_dag: RunDag) -> None:
    """In doubt in the first try is in doubt in the second, and fails at the very end."""
    sandbox.plan(Fault("push", "lost", when="after", nth=2), Fault("push", "SERVICE_UNAVAILABLE", nth=3))

    push = Push(run_dag, recipients=people(1_000), max_in_flight=1, retry_for=1.5, retries=3)

    assert [type(failure) for failure in push.failures] == [NotAllSent, AirflowFailException]
    assert push.recipients == {"read": 1_000, "accepted": 800, "in_doubt": 200}
    assert len(sandbox.pushes) == 1_000
    sandbox.assert_no_duplicates()


def test_what_an_earlier_try_sent_is_reported_when_the_source_fails(
    sandbox: Sandbox, run_dag: RunDag, database: Path
) -> None:
    """Its request ids must not be lost with the try that can't read the table any more."""
    sandbox.plan(Fault("push", "SERVICE_UNAVAILABLE", nth=2))

    push = Push(
        run_dag,
        sql="SELECT 'C' || a.rowid || '-' || b.rowid || '-' || c.rowid || '-' || d.rowid AS customer_id "
        "FROM people{{ '' if ti.try_number == 1 else '_gone' }} a, people b, people c, people d",
        sql_conn_id="marketing_db",
        max_in_flight=1,
        retry_for=1.0,
        retries=1,
    )

    assert [type(failure) for failure in push.failures] == [NotAllSent, SourceFailed]
    assert push.recipients == {"read": 200, "accepted": 200}
    assert push.result["request_ids"] == list(sandbox.request_ids)


def test_a_failed_xcom_push_is_made_good_by_a_retry(sandbox: Sandbox, run_dag: RunDag, mocker: MockerFixture) -> None:
    """XCom comes last: when it fails, the ledger knows everything already."""
    from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance  # noqa: PLC0415 -- imported by running

    real, calls = RuntimeTaskInstance.xcom_push, iter([RuntimeError("xcom backend down")])

    def failing(self: Any, key: str, value: Any) -> None:
        if key == "recipients" and (error := next(calls, None)):
            raise error
        real(self, key, value)

    mocker.patch.object(RuntimeTaskInstance, "xcom_push", failing)

    push = Push(run_dag, recipients=people(300), retries=1)

    assert push.run.state == "success"
    assert push.ti.try_number == 2
    assert push.recipients == {"read": 300, "accepted": 300}
    sandbox.assert_no_duplicates()


def test_a_changed_campaign_fails_closed_on_a_retry(sandbox: Sandbox, run_dag: RunDag) -> None:
    """Another campaign is another send: the record of the first can't speak for it."""
    sandbox.change(campaigns=("*",))
    sandbox.plan(Fault("push", "SERVICE_UNAVAILABLE", nth=(2, 3)))

    push = Push(
        run_dag,
        recipients=people(400),
        campaign_name="Push_{{ ti.try_number }}",
        max_in_flight=1,
        retry_for=1.0,
        retries=3,
    )

    assert isinstance(push.failures[-1], AirflowFailException)
    assert "Push_1" in str(push.failures[-1])
    assert len(sandbox.pushes) == 200


def test_no_log_names_a_recipient_or_a_secret(
    sandbox: Sandbox, run_dag: RunDag, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """At DEBUG, with a lost answer and a wrong row on the way."""
    caplog.set_level("DEBUG")
    sandbox.plan(Fault("push", "lost", when="after", nth=1))
    rows = [{"customerId": f"Person-{number}", "NAME": "Geheim"} for number in range(300)]

    Push(run_dag, recipients=[*rows, {"customerId": "", "NAME": "Geheim"}], on_invalid="skip", max_in_flight=1)

    logged = capfd.readouterr()
    text = logged.out + logged.err + caplog.text
    assert "in doubt" in text
    for secret in ("Person-", "Geheim", str(sandbox.connection()["password"]), *sandbox._account.access._issued):
        assert secret not in text


def test_who_is_in_doubt_is_written_where_the_user_asks(sandbox: Sandbox, run_dag: RunDag, tmp_path: Path) -> None:
    """Identifiers and reason, one JSON text a line; the log has only counts."""
    sandbox.plan(Fault("push", "lost", when="after", nth=2))
    path = tmp_path / "in_doubt.jsonl"

    Push(run_dag, recipients=people(450), max_in_flight=1, in_doubt_path=path.as_uri())

    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(lines) == 200
    assert lines[0]["batch"] == "batch 2"
    assert int(lines[0]["batch_id"]) > 0
    assert lines[0]["recipient"] == {"customerId": "C200", "listType": "PROFILE"}
    assert "no whole answer" in lines[0]["reason"]


def test_a_path_that_can_not_be_written_changes_nothing(sandbox: Sandbox, run_dag: RunDag, tmp_path: Path) -> None:
    """What was sent was sent."""
    sandbox.plan(Fault("push", "lost", when="after", nth=1))

    push = Push(run_dag, recipients=people(200), in_doubt_path=(tmp_path / "no" / "such").as_uri())

    assert push.recipients == {"read": 200, "in_doubt": 200}


def test_a_retry_on_a_sql_ledger_goes_on_where_the_first_try_stopped(
    sandbox: Sandbox, run_dag: RunDag, ledger: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same as on the task state store; it waits until no answer to the first try can come any more."""
    monkeypatch.setattr(operators, "ANSWER_MARGIN", 0.5)
    monkeypatch.setenv("AIRFLOW_CONN_RESPONSYS_DEFAULT", json.dumps(sandbox.connection(timeout=2)))
    sandbox.plan(Fault("push", "lost", when="after", nth=2), Fault("push", "SERVICE_UNAVAILABLE", nth=3))

    push = Push(
        run_dag,
        recipients=people(1_000),
        ledger_conn_id=ledger,
        max_in_flight=1,
        retry_for=1.5,
        retries=3,
        on_in_doubt="continue",
    )

    assert push.run.state == "success"
    assert push.recipients == {"read": 1_000, "accepted": 800, "in_doubt": 200}
    assert sorted(push.result["request_ids"]) == sorted(set(sandbox.request_ids) - {sandbox.request_ids[1]})
    assert len(sandbox.pushes) == 1_000
    sandbox.assert_no_duplicates()


def test_a_try_that_begins_after_its_successor_leaves_no_trace(
    sandbox: Sandbox, run_dag: RunDag, ledger: str, mocker: MockerFixture
) -> None:
    """It pushes nobody, and no XCom but its mark, which takes nothing from its successor's."""
    from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance  # noqa: PLC0415 -- imported by running

    real, ids = SqlLedger.begin, []

    def begin(self: SqlLedger, identity: Any) -> bytes:
        ids.append(self._mine.instance_id)
        successor = SqlLedger(
            ledger_engine(ledger),
            send_key=self._mine.send_key,
            task_instance=self._mine.task_instance,
            try_number=self._mine.try_number + 1,
            max_tries=1,
            retries=1,
            instance_id=str(uuid7()),
            may_have_claimed=False,
        )
        real(successor, identity)
        successor.close()
        return real(self, identity)

    mocker.patch.object(SqlLedger, "begin", begin)
    xcoms = mocker.spy(RuntimeTaskInstance, "xcom_push")

    push = Push(run_dag, recipients=people(3), ledger_conn_id=ledger)

    assert ids == [str(push.ti.id)]
    assert [type(failure) for failure in push.failures] == [Fenced]
    assert [call.kwargs["key"] for call in xcoms.call_args_list] == [PUSH_KEY, began(1)]
    assert sandbox.pushes == {}


def test_later_tries_and_runs_made_anew_have_greater_ids(run_dag: RunDag) -> None:
    """The SQL ledger orders tries by them: where a logical date is tested again, the run's start date is the same."""
    ids: list[UUID] = []

    class Note(BaseOperator):
        def execute(self, context: Any) -> None:
            ids.append(context["ti"].id)
            raise RuntimeError("try again")

    with DAG("ids", schedule=None, start_date=START) as dag:
        Note(task_id="note", retries=1, retry_delay=timedelta(0))
    run_dag(dag)
    for _ in range(2):
        dag.test(logical_date=START)

    assert len(ids) == 6
    assert ids == sorted(set(ids))
    assert {each.version for each in ids} == {7}


def test_two_tasks_with_one_send_key_push_nobody_twice(sandbox: Sandbox, run_dag: RunDag, ledger: str) -> None:
    """Whom another task has claimed is a duplicate here."""
    first = Push(run_dag, recipients=people(300), ledger_conn_id=ledger, send_key="autumn")
    second = Push(run_dag, recipients=people(500), ledger_conn_id=ledger, send_key="autumn")

    assert first.recipients == {"read": 300, "accepted": 300}
    assert second.recipients == {"read": 500, "accepted": 200, "duplicate": 300}
    assert second.result["send_key"] == "autumn"
    sandbox.assert_no_duplicates()


def test_one_send_key_serves_one_campaign(sandbox: Sandbox, run_dag: RunDag, ledger: str) -> None:
    """Another campaign under it fails closed, and says so."""
    sandbox.change(campaigns=("*",))
    Push(run_dag, recipients=people(3), ledger_conn_id=ledger, send_key="autumn")

    other = Push(run_dag, recipients=people(3), ledger_conn_id=ledger, send_key="autumn", campaign_name="Other")

    assert isinstance(other.failures[0], AirflowFailException)
    assert "One send key serves one campaign" in str(other.failures[0])
    assert len(sandbox.pushes) == 3


def test_a_rehearsal_on_another_account_is_no_send_of_this_one(
    sandbox: Sandbox, run_dag: RunDag, ledger: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under one key, production would find everybody a duplicate and succeed: it fails, and names both accounts."""
    with Sandbox(processing_time=0.0) as elsewhere:
        monkeypatch.setenv("AIRFLOW_CONN_RESPONSYS_REHEARSAL", json.dumps(elsewhere.connection()))
        rehearsal = Push(
            run_dag,
            recipients=people(3),
            ledger_conn_id=ledger,
            send_key="autumn",
            responsys_conn_id="responsys_rehearsal",
        )

    production = Push(run_dag, recipients=people(3), ledger_conn_id=ledger, send_key="autumn")

    assert rehearsal.recipients == {"read": 3, "accepted": 3}
    assert production.run.state == "failed"
    assert isinstance(production.failures[0], AirflowFailException)
    assert f"127.0.0.1:{elsewhere.port}" in str(production.failures[0])
    assert f"127.0.0.1:{sandbox.port}" in str(production.failures[0])
    assert sandbox.pushes == {}


def test_a_send_key_needs_a_sql_ledger(sandbox: Sandbox, run_dag: RunDag) -> None:
    """Without one it could not keep its word."""
    push = Push(run_dag, recipients=people(3), send_key="autumn")

    assert "ledger_conn_id" in str(push.failures[0])
    assert not sandbox.requests_seen


def test_the_ledger_may_be_configured_for_all(
    sandbox: Sandbox, run_dag: RunDag, ledger: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """[responsys] ledger_conn_id serves every task that names none."""
    monkeypatch.setenv("AIRFLOW__RESPONSYS__LEDGER_CONN_ID", ledger)

    first = Push(run_dag, recipients=people(3), send_key="winter")
    second = Push(run_dag, recipients=people(3), send_key="winter")

    assert first.recipients["accepted"] == 3
    assert second.recipients["duplicate"] == 3


def test_a_task_that_is_told_to_stop_settles_what_came_back(sandbox: Sandbox, run_dag: RunDag) -> None:
    """It claims nothing more, and its next try goes on with the rest."""
    sandbox.change(latency=0.2)

    class Killed(TriggerPushOperator):
        """A push that is told to stop when its first request has been queued, as SIGTERM does it."""

        def execute(self, context: Any) -> dict[str, Any]:
            threading.Thread(target=self.kill, args=(len(sandbox.pushes),), daemon=True).start()
            return super().execute(context)

        def kill(self, before: int) -> None:
            while len(sandbox.pushes) == before:
                time.sleep(0.01)
            self.on_kill()

    push = Push(run_dag, kind=Killed, recipients=people(1_600), max_in_flight=1, retries=2)

    assert all("told to stop" in str(failure) for failure in push.failures)
    assert len(push.failures) == 3
    assert 0 < push.recipients["accepted"] < 1_600
    assert "in_doubt" not in push.recipients
    assert push.recipients["accepted"] == len(sandbox.pushes)
    sandbox.assert_no_duplicates()


def test_a_task_ends_before_its_execution_timeout(sandbox: Sandbox, run_dag: RunDag) -> None:
    """It stops by itself, settled, and its next try goes on with the rest."""
    sandbox.change(latency=1.0)

    push = Push(run_dag, recipients=people(2_400), max_in_flight=1, retries=9, execution_timeout=timedelta(seconds=12))

    assert push.run.state == "success"
    assert push.ti.try_number > 1
    assert all("execution_timeout is near" in str(failure) for failure in push.failures)
    assert push.recipients == {"read": 2_400, "accepted": 2_400}
    sandbox.assert_no_duplicates()


def test_an_operator_can_be_copied() -> None:
    """Airflow copies tasks to run a part of a DAG."""
    operator = TriggerPushOperator(task_id="push", campaign_name="Summer_Push", recipients=people(2))

    copied = copy.deepcopy(operator)

    assert list(copied.recipients) == people(2)
    copied.on_kill()  # harmless before it runs


class Cleaned(TriggerPushOperator):
    """A push whose record somebody deletes before its second try."""

    def execute(self, context: Any) -> dict[str, Any]:
        """Lose the record, and push."""
        if context["ti"].try_number == 2:
            context["task_state_store"].clear()
        return super().execute(context)


def test_a_lost_record_fails_closed_and_names_the_way_out(sandbox: Sandbox, run_dag: RunDag) -> None:
    """Nobody knows any more whom the first try pushed."""
    sandbox.plan(Fault("push", "SERVICE_UNAVAILABLE", nth=2))

    push = Push(run_dag, kind=Cleaned, recipients=people(400), max_in_flight=1, retry_for=1.0, retries=5)

    assert [type(failure) for failure in push.failures] == [NotAllSent, AirflowFailException]
    assert 'on_clear="restart"' in str(push.failures[1])
    assert push.ti.xcom_pull(task_ids="push", key=CLAIMED) == 2
    assert len(sandbox.pushes) == 200


def test_half_of_the_requests_reset_at_once_stop_the_send(sandbox: Sandbox, run_dag: RunDag) -> None:
    """At 3,000 requests a minute, answered within milliseconds: at most 1,200 of 8,000 are in doubt."""
    sandbox.plan(Fault("push", "reset", every=2))

    push = Push(run_dag, recipients=people(8_000), requests_per_minute=3_000, retries=3)

    assert isinstance(push.failures[-1], AirflowFailException)
    assert "max_in_doubt" in str(push.failures[-1])
    assert "TooManyInDoubt" in push.result["problem"]
    assert push.ti.try_number == len(push.failures) == 1
    assert 800 <= push.recipients["in_doubt"] <= 1_200
    assert push.recipients["not_sent"] > 5_000
    assert push.recipients["accepted"] == len(sandbox.pushes)
    check(push)


@pytest.mark.parametrize("echoes", [True, False])
def test_a_doubt_can_be_named_to_oracles_support(
    sandbox: Sandbox, run_dag: RunDag, ledger: str, *, echoes: bool
) -> None:
    """By the id that its request carried, and by that of its answer, which has a space in it."""
    sandbox.change(echo_request_id=echoes)
    sandbox.plan(Fault("push", "bare_503", nth=1))

    push = Push(run_dag, recipients=people(3), ledger_conn_id=ledger)
    records = Records(ledger_engine(ledger))
    [batch] = records.show(push.result["send_key"])
    records.close()

    assert push.recipients["in_doubt"] == 3
    assert re.fullmatch(r"Id-[0-9a-f]{24} 0", batch.correlation_id or "")


def test_what_waits_for_a_login_is_not_in_doubt(sandbox: Sandbox, run_dag: RunDag) -> None:
    """Every token expires, logins are limited, and the task is told to stop: all of them were refused for certain."""
    sandbox.change(latency=0.05)

    class Killed(TriggerPushOperator):
        """A push that is told to stop when its requests wait for a login."""

        def execute(self, context: Any) -> dict[str, Any]:
            threading.Thread(target=self.kill, daemon=True).start()
            return super().execute(context)

        def kill(self) -> None:
            while len(sandbox.pushes) < 1_000:
                time.sleep(0.01)
            sandbox.change(token_lifetime=0.0, login_limit=0)
            while sandbox.counts["login"] < 2:
                time.sleep(0.01)
            time.sleep(0.5)
            self.on_kill()

    push = Push(run_dag, kind=Killed, recipients=people(20_000), max_in_flight=32)

    assert "told to stop" in str(push.failures[0])
    assert "in_doubt" not in push.recipients
    assert push.recipients["accepted"] == len(sandbox.pushes)
    sandbox.assert_no_duplicates()
    check(push)


@pytest.mark.parametrize("hangs", ["source", "ledger"])
def test_a_report_exists_after_an_execution_timeout(
    sandbox: Sandbox, run_dag: RunDag, monkeypatch: pytest.MonkeyPatch, hangs: str
) -> None:
    """Airflow raises it between any two instructions; the first try's acceptances are in the second try's report."""
    sandbox.plan(Fault("push", "SERVICE_UNAVAILABLE", nth=2))
    released = threading.Event()

    class Hangs(TriggerPushOperator):
        """A push whose second try hangs."""

        def execute(self, context: Any) -> dict[str, Any]:
            if context["ti"].try_number == 2:
                if hangs == "source":
                    self._source = lambda: released.wait(60)  # type: ignore[method-assign,assignment,return-value]
                else:
                    commit = MarkedLedger.commit
                    monkeypatch.setattr(MarkedLedger, "commit", lambda *_: released.wait(60) and commit(*_))
            return super().execute(context)

    push = Push(
        run_dag,
        kind=Hangs,
        recipients=people(600),
        max_in_flight=1,
        retry_for=1.0,
        retries=1,
        execution_timeout=timedelta(seconds=12),
    )
    released.set()

    assert [type(failure) for failure in push.failures] == [
        NotAllSent,
        AirflowTaskTimeout if hangs == "source" else NotAllSent,
    ]
    assert push.recipients["accepted"] == 200
    assert push.result["request_ids"] == list(sandbox.request_ids)
    assert len(sandbox.pushes) == 200
    check(push)


def test_a_report_exists_after_an_error_of_our_own(sandbox: Sandbox, run_dag: RunDag, mocker: MockerFixture) -> None:
    """What was accepted is settled and reported, and another try goes on."""
    real, calls = PushObserver.accepted, itertools.count(1)

    def failing(self: PushObserver, recipients: int) -> None:
        real(self, recipients)
        if next(calls) == 3:
            raise RuntimeError("a defect")

    mocker.patch.object(PushObserver, "accepted", failing)

    push = Push(run_dag, recipients=people(2_000), max_in_flight=2, retries=1)

    assert "an unexpected error (RuntimeError)" in str(push.failures[0])
    assert push.run.state == "success"
    assert push.recipients == {"read": 2_000, "accepted": 2_000}
    sandbox.assert_no_duplicates()


def test_a_ledger_that_fails_unexpectedly_sends_nothing_more(
    sandbox: Sandbox, run_dag: RunDag, mocker: MockerFixture
) -> None:
    """The last try: its report has what was accepted before, and says why it failed."""
    real, calls = MarkedLedger.commit, itertools.count(1)

    def failing(self: MarkedLedger, *args: Any) -> Any:
        if next(calls) == 3:
            raise KeyError("a defect")
        return real(self, *args)

    mocker.patch.object(MarkedLedger, "commit", failing)

    push = Push(run_dag, recipients=people(2_000), max_in_flight=1)

    assert "failed unexpectedly (KeyError)" in str(push.failures[0])
    assert isinstance(push.failures[0].__cause__, LedgerFailed)
    assert push.recipients["accepted"] == len(sandbox.pushes)
    check(push)


def test_a_report_exists_where_the_record_is_lost(sandbox: Sandbox, run_dag: RunDag) -> None:
    """Airflow has deleted the earlier try's; this one says what is known, which is nothing."""
    sandbox.plan(Fault("push", "SERVICE_UNAVAILABLE", nth=2))

    push = Push(run_dag, kind=Cleaned, recipients=people(400), max_in_flight=1, retry_for=1.0, retries=5)

    assert push.result["problem"] == "what earlier tries sent is not known: StateLost"
    assert push.recipients == {}
    check(push)


def test_a_report_exists_where_nothing_was_sent(sandbox: Sandbox, run_dag: RunDag) -> None:
    """The campaign does not exist: everyone is in a bucket, and the problem is a code."""
    push = Push(run_dag, recipients=people(300), campaign_name="No_Such_Campaign", max_in_flight=1)

    assert push.result["problem"] == "0 of 300 accepted, 200 rejected, 100 not sent: CAMPAIGN_NOT_FOUND"
    check(push)


def test_a_report_exists_where_a_guard_holds(sandbox: Sandbox, run_dag: RunDag) -> None:
    """The source was read: its recipients are not sent."""
    push = Push(run_dag, recipients=people(3), min_recipients=4)

    assert push.result["problem"] == "0 of 3 accepted, 3 not sent: InvalidRecipients"
    assert push.recipients == {"read": 3, "not_sent": 3}
    check(push)


def test_a_doubt_is_logged_with_what_to_type(
    sandbox: Sandbox, run_dag: RunDag, ledger: str, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The id in the log is the request's X-Request-Id, and the one that the command takes."""
    sandbox.plan(Fault("push", "lost", when="after", nth=2))
    path = tmp_path / "in_doubt.jsonl"

    Push(run_dag, recipients=people(450), max_in_flight=1, ledger_conn_id=ledger, in_doubt_path=path.as_uri())

    sent = [dict(seen.headers)["x-request-id"] for seen in sandbox.requests_seen if seen.endpoint == "push"]
    logged = capfd.readouterr().out
    assert f"airflow responsys settle {sent[1]} --not-sent (or --sent)" in logged
    assert "250 of 450 accepted, 200 in doubt" in logged
    assert {json.loads(line)["batch_id"] for line in path.read_text().splitlines()} == {sent[1]}


def test_a_stop_is_noticed_while_the_ledger_hangs(sandbox: Sandbox, run_dag: RunDag, mocker: MockerFixture) -> None:
    """Told to stop, the task ends within its grace; what the ledger did not confirm is not sent, then or later."""
    real, released = MarkedLedger.commit, threading.Event()

    class Killed(TriggerPushOperator):
        """A push whose third commit hangs, and that is told to stop then."""

        def execute(self, context: Any) -> dict[str, Any]:
            calls = itertools.count(1)

            def hanging(ledger: MarkedLedger, *args: Any) -> Any:
                if next(calls) == 3:
                    self.on_kill()
                    released.wait(60)
                return real(ledger, *args)

            mocker.patch.object(MarkedLedger, "commit", hanging)
            return super().execute(context)

    push = Push(run_dag, kind=Killed, recipients=people(2_000), max_in_flight=1)
    pushed = len(sandbox.pushes)
    released.set()
    time.sleep(0.5)

    assert "told to stop" in str(push.failures[0])
    assert push.recipients["accepted"] == pushed == len(sandbox.pushes) == 400
    assert "in_doubt" not in push.recipients
    check(push)


class PutBack(TriggerPushOperator):
    """A push whose SQLite ledger is, at its third try, as it was before the second."""

    def execute(self, context: Any) -> dict[str, Any]:
        """Keep a copy, or restore it; then push."""
        ledger = Path(json.loads(os.environ["AIRFLOW_CONN_LEDGER"])["host"])
        backup = ledger.with_suffix(".backup")
        if context["ti"].try_number == 2:
            shutil.copy(ledger, backup)
        elif context["ti"].try_number == 3:
            shutil.copy(backup, ledger)
        return super().execute(context)


@pytest.mark.parametrize("ledger", ["sqlite"], indirect=True)
def test_a_ledger_that_was_put_back_closes_the_send(sandbox: Sandbox, run_dag: RunDag, ledger: str) -> None:
    """It knows the first try, and has no trace of whom the second one pushed: Airflow's task state has."""
    sandbox.plan(Fault("push", "SERVICE_UNAVAILABLE", nth=2), Fault("push", "SERVICE_UNAVAILABLE", nth=4))

    push = Push(
        run_dag,
        kind=PutBack,
        recipients=people(1_000),
        ledger_conn_id=ledger,
        max_in_flight=1,
        retry_for=1.0,
        retries=5,
    )

    assert [type(failure) for failure in push.failures] == [NotAllSent, NotAllSent, AirflowFailException]
    assert "put back" in str(push.failures[2])
    assert len(sandbox.pushes) == 400
    sandbox.assert_no_duplicates()
