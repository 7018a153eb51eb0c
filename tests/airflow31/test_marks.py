"""What holds on an Airflow before 3.3: no task state store, and XCom marks instead."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path

import pytest

from airflow_provider_responsys.ledger.tries import CLAIMED, began
from airflow_provider_responsys.sandbox import Sandbox
from example_dags.demo.standalone import Standalone
from tests.support.dag_run import Run
from tests.support.verdict import BATCH, judge_push

HERE = version("apache-airflow")
ROOT = Path(__file__).resolve().parent.parent.parent
PEOPLE = 1_000
LATENCY = 0.6
"""Seconds that a request takes: long enough for a kill to come in between."""

HEARTBEATS = {
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "15",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "3",
}

pytestmark = [
    pytest.mark.standalone,
    pytest.mark.skipif(not HERE.startswith("3.1."), reason=f"needs Airflow 3.1, this is {HERE}: make airflow-3.1"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder with a source in SQLite."""
    path = tmp_path_factory.mktemp("marks")
    with closing(sqlite3.connect(path / "source.db")) as source, source:
        source.execute("CREATE TABLE people (customerId TEXT)")
        source.executemany("INSERT INTO people VALUES (?)", [(f"C{number}",) for number in range(PEOPLE)])
    return path


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    """Give a Responsys."""
    with Sandbox(latency=LATENCY) as sandbox:
        yield sandbox


@pytest.fixture(scope="module")
def airflow(folder: Path, sandbox: Sandbox) -> Iterator[Standalone]:
    """Give a whole Airflow 3.1."""
    connections = {
        "RESPONSYS_DEFAULT": sandbox.connection(timeout=5),
        "LEDGER": {"conn_type": "sqlite", "host": str(folder / "ledger.db")},
        "SOURCE": {"conn_type": "sqlite", "host": str(folder / "source.db")},
        "ABSENT": {"conn_type": "a_provider_that_is_missing", "host": "nowhere"},
    }
    environment = {
        **HEARTBEATS,
        **{f"AIRFLOW_CONN_{name}": json.dumps(connection) for name, connection in connections.items()},
        "MARKS_FOLDER": str(folder),
        "PYTHONPATH": str(ROOT),
    }
    with Standalone(Path(__file__).parent / "dags", environment) as airflow:
        yield airflow


def killed_while_pushing(run: Run) -> None:
    """Kill the task when its second request is out."""
    run.wait_until(lambda: len(run.pushed) > 0, "nobody was pushed")
    os.kill(run.pid("push"), signal.SIGKILL)


def mark_of(run: Run, key: str) -> object:
    """Return what the task's XCom *key* holds, None if there is none."""
    return run.airflow.xcom(run.dag_id, run.run_id, "push", key)


def test_a_try_that_may_have_claimed_closes_the_send(airflow: Standalone, sandbox: Sandbox) -> None:
    """Without a ledger, who was pushed is known to nothing: the next try sends nothing, and no other follows it."""
    run = Run(airflow, sandbox, "without_ledger")
    killed_while_pushing(run)
    time.sleep(2 * LATENCY)  # for the request that was out
    pushed = sum(run.pushed.values())

    state = airflow.wait_for(run.dag_id, run.run_id, 240.0)

    assert state == "failed"
    assert run.task("push")["try_number"] == 2
    assert sum(run.pushed.values()) == pushed < PEOPLE
    assert [mark_of(run, key) for key in (CLAIMED, began(1), began(2))] == [2, None, None]


def test_a_mark_that_comes_late_opens_no_closed_send(airflow: Standalone, sandbox: Sandbox) -> None:
    """The second try took the marks and died before ``execute``; a late copy of the first one's is all that is left."""
    run = Run(airflow, sandbox, "dies_on_the_way")
    killed_while_pushing(run)
    time.sleep(2 * LATENCY)  # for the request that was out
    pushed = sum(run.pushed.values())

    state = airflow.wait_for(run.dag_id, run.run_id, 240.0)

    assert state == "failed"
    assert run.task("push")["try_number"] == 3
    assert sum(run.pushed.values()) == pushed < PEOPLE
    assert mark_of(run, CLAIMED) == 3


def test_a_try_that_claimed_nothing_stands_in_no_ones_way(airflow: Standalone, sandbox: Sandbox, folder: Path) -> None:
    """It died as the provider of its source was missing; the next one finds it installed, and sends."""
    run = Run(airflow, sandbox, "provider_missing")
    run.wait_until(lambda: run.task("push")["state"] == "up_for_retry", "the first try did not fail")
    mark = mark_of(run, began(1))
    (folder / "installed").touch()

    state = airflow.wait_for(run.dag_id, run.run_id, 240.0)

    assert state == "success"
    assert mark == 1
    assert run.task("push")["try_number"] > 1
    assert list(run.pushed.values()) == [1] * PEOPLE


def test_marks_that_were_cleaned_close_a_cleared_send(airflow: Standalone, sandbox: Sandbox) -> None:
    """What ``airflow db clean`` has taken can't say that nothing was claimed."""
    run = Run(airflow, sandbox, "without_ledger")
    assert airflow.wait_for(run.dag_id, run.run_id, 240.0) == "success"
    clean_xcoms(airflow)

    run.clear("push")
    state = airflow.wait_for(run.dag_id, run.run_id, 240.0)

    assert state == "failed"
    assert list(run.pushed.values()) == [1] * PEOPLE


def test_marks_alone_close_a_cleared_send(airflow: Standalone, sandbox: Sandbox) -> None:
    """A person's clear does not tell who was pushed."""
    run = Run(airflow, sandbox, "without_ledger")
    assert airflow.wait_for(run.dag_id, run.run_id, 240.0) == "success"

    run.clear("push")
    state = airflow.wait_for(run.dag_id, run.run_id, 240.0)

    assert state == "failed"
    assert list(run.pushed.values()) == [1] * PEOPLE


def test_a_sql_ledger_goes_on(airflow: Standalone, sandbox: Sandbox) -> None:
    """The next try sends to each recipient who was neither accepted nor is in doubt."""
    run = Run(airflow, sandbox, "with_ledger")
    killed_while_pushing(run)

    airflow.wait_for(run.dag_id, run.run_id, 240.0)

    report = airflow.xcom(run.dag_id, run.run_id, "push", "recipients")
    verdict = judge_push(PEOPLE, list(run.pushed.values()), report, bound=BATCH)
    assert verdict.holds, verdict


def clean_xcoms(airflow: Standalone) -> None:
    """Do what a nightly clean-up does."""
    until = (datetime.now(UTC) + timedelta(days=1)).isoformat()
    command = [
        str(Path(sys.executable).parent / "airflow"),
        "db",
        "clean",
        "--tables",
        "xcom",
        "--yes",
        "--skip-archive",
    ]
    cleaned = subprocess.run(
        [*command, "--clean-before-timestamp", until],
        env=airflow.env,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert cleaned.returncode == 0, cleaned.stdout + cleaned.stderr
