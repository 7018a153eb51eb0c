"""The examples, as a user would run them."""

import json
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pytest
from airflow.dag_processing.dagbag import DagBag

from airflow_provider_responsys.sandbox import Fault, Sandbox

FOLDER = Path(__file__).resolve().parent.parent / "example_dags"
EXAMPLES = {"push_campaign", "push_from_task", "push_shards"}
PEOPLE, ROWS = 1_091, 1_200
"""In the table that is pushed in shards, the last rows repeat the first people, in other shards."""


@pytest.fixture
def sandbox(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Sandbox]:
    """Give a sandbox, and a table of recipients, that the examples' connections lead to."""
    database = tmp_path / "marketing.db"
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("CREATE TABLE recipients (customer_id TEXT, first_name TEXT, coupon TEXT)")
        rows = [(f"{'NODEVICE' if number % 50 == 0 else 'C'}{number}", "Jiří", "SUN") for number in range(450)]
        connection.executemany("INSERT INTO recipients VALUES (?, ?, ?)", rows)
    monkeypatch.setenv("AIRFLOW_CONN_MARKETING_DB", json.dumps({"conn_type": "sqlite", "host": str(database)}))
    with Sandbox(processing_time=0.0, campaigns=("Summer_Push", "Winners_Push")) as sandbox:
        monkeypatch.setenv("AIRFLOW_CONN_RESPONSYS_DEFAULT", json.dumps(sandbox.connection()))
        yield sandbox


@pytest.fixture
def shards(
    sandbox: Sandbox, fresh_postgres: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> Iterator[psycopg.Connection[Any]]:
    """Give a table of recipients in PostgreSQL, with the ledger beside it, that the connections lead to instead."""
    address = json.dumps({"conn_type": "postgres", **fresh_postgres})
    monkeypatch.setenv("AIRFLOW_CONN_MARKETING_DB", address)
    monkeypatch.setenv("AIRFLOW_CONN_RESPONSYS_LEDGER", address)
    server = {"host": fresh_postgres["host"], "port": fresh_postgres["port"], "user": fresh_postgres["login"]}
    with psycopg.connect(**server, dbname=fresh_postgres["schema"], autocommit=True) as connection:
        connection.execute("CREATE TABLE recipients (id bigint, customer_id text, first_name text, coupon text)")
        connection.execute(
            "INSERT INTO recipients SELECT n, 'C' || MOD(n, %s), 'Jiří', 'SUN' FROM generate_series(0, %s - 1) AS n",
            (PEOPLE, ROWS),
        )
        yield connection


def sums(run: Any) -> Counter[str]:
    """Return what the shards of *run* report, in all."""
    total: Counter[str] = Counter()
    for ti in run.get_task_instances():
        if ti.task_id == "push":
            total.update(ti.xcom_pull(task_ids="push", key="recipients", map_indexes=ti.map_index) or {})
    return total


@pytest.fixture
def examples(airflow_db: None) -> DagBag:
    """Give the examples, parsed as Airflow parses them."""
    return DagBag(dag_folder=str(FOLDER))


def test_every_example_is_parsed_and_nothing_else(examples: DagBag) -> None:
    """The demo's programs are no DAGs."""
    assert examples.import_errors == {}
    assert set(examples.dags) == EXAMPLES


def test_the_table_is_pushed_and_waited_for(examples: DagBag, sandbox: Sandbox, run_dag: Callable[[Any], Any]) -> None:
    """The first example: 450 people in three requests, of whom nine have no device."""
    run = run_dag(examples.dags["push_campaign"])

    assert run.state == "success"
    assert run.get_task_instance("push").xcom_pull(task_ids="push", key="recipients")["accepted"] == 450
    sizes = run.get_task_instance("push").xcom_pull(task_ids="push", key="request_sizes")
    assert sum(size * times for size, times in sizes) == 450
    waited = run.get_task_instance("wait").xcom_pull(task_ids="wait")
    assert waited["recipients"] == {"succeeded": 441, "failed": 9, "unknown": 0}
    sandbox.assert_no_duplicates()


def test_the_output_of_a_task_is_pushed_and_waited_for(
    examples: DagBag, sandbox: Sandbox, run_dag: Callable[[Any], Any]
) -> None:
    """The second example."""
    run = run_dag(examples.dags["push_from_task"])

    assert run.state == "success"
    waited = run.get_task_instance("wait").xcom_pull(task_ids="wait")
    assert waited["recipients"] == {"succeeded": 3, "failed": 0, "unknown": 0}


def test_the_wait_reads_the_answers_of_a_push_that_failed_after_sending(
    examples: DagBag, sandbox: Sandbox, run_dag: Callable[[Any], Any]
) -> None:
    """The trigger rule lets the wait run; it counts the results, and fails with what the push failed with."""
    sandbox.plan(Fault("push", "lost", when="after", nth=2))

    run = run_dag(examples.dags["push_campaign"])

    states = {ti.task_id: str(ti.state) for ti in run.get_task_instances()}
    waited = run.get_task_instance("wait").xcom_pull(task_ids="wait")
    assert states == {"push": "failed", "wait": "failed"}
    assert run.state == "failed"
    assert waited["requests"]["finished"] == 2
    # Which of three requests that leave together comes second differs.
    accepted = run.get_task_instance("push").xcom_pull(task_ids="push", key="recipients")["accepted"]
    outcomes = waited["recipients"]
    assert accepted in (250, 400)
    assert (outcomes["succeeded"] + outcomes["failed"], outcomes["unknown"]) == (accepted, 0)
    sandbox.assert_no_duplicates()


def test_the_wait_fails_after_a_push_that_sent_nothing(
    examples: DagBag, sandbox: Sandbox, run_dag: Callable[[Any], Any]
) -> None:
    """There is nothing to wait for, and no success to claim."""
    sandbox.change(campaigns=("Other",))

    run = run_dag(examples.dags["push_campaign"])

    states = {ti.task_id: str(ti.state) for ti in run.get_task_instances()}
    assert states == {"push": "failed", "wait": "failed"}


def test_whoever_stands_in_two_shards_is_pushed_once(
    examples: DagBag, sandbox: Sandbox, shards: psycopg.Connection[Any], run_dag: Callable[[Any], Any]
) -> None:
    """The shards have one ledger and one send key without being told."""
    run = run_dag(examples.dags["push_shards"])

    assert run.state == "success"
    total, waited = sums(run), run.get_task_instance("wait").xcom_pull(task_ids="wait")
    assert (total["read"], total["accepted"], total["duplicate"]) == (ROWS, PEOPLE, ROWS - PEOPLE)
    assert waited["recipients"] == {"succeeded": PEOPLE, "failed": 0, "unknown": 0}
    assert len(sandbox.pushes) == PEOPLE
    sandbox.assert_no_duplicates()


def test_a_shard_that_fails_leaves_the_others_alone(
    examples: DagBag, sandbox: Sandbox, shards: psycopg.Connection[Any], run_dag: Callable[[Any], Any]
) -> None:
    """One shard's answer is lost, another shard sends nothing: the wait reads the rest, and the run has failed."""
    shards.execute("UPDATE recipients SET customer_id = '' WHERE id = 3")
    sandbox.plan(Fault("push", "lost", when="after", nth=2))

    run = run_dag(examples.dags["push_shards"])

    total = sums(run)
    states = Counter((ti.task_id, str(ti.state)) for ti in run.get_task_instances())
    waited = run.get_task_instance("wait").xcom_pull(task_ids="wait")
    assert states == {
        ("push", "success"): 6,
        ("push", "failed"): 2,
        ("wait", "failed"): 1,
    }
    assert run.state == "failed"
    assert total["read"] == total["accepted"] + total["in_doubt"] + total["duplicate"] == ROWS * 7 // 8
    assert len(sandbox.pushes) == total["accepted"] + total["in_doubt"]
    assert waited["recipients"] == {"succeeded": total["accepted"], "failed": 0, "unknown": 0}
    sandbox.assert_no_duplicates()
