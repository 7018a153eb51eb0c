"""A handful of faults in a whole Airflow: its scheduler, worker, triggerer and API server."""

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path

from airflow_provider_responsys.sandbox import Sandbox
from example_dags.demo.standalone import Standalone
from tests.faults.home import CAMPAIGN, DAGS
from tests.faults.planted import Told
from tests.support.dag_run import RUN_WITHIN, Run
from tests.support.verdict import BATCH, Verdict, judge_push, judge_wait

STORE = "whole Airflow"
PEOPLE = 1_500
IN_FLIGHT = 2
LATENCY = 0.5
"""Seconds a request takes: long enough for a kill to come in between."""

PROCESSING = 15.0
"""Seconds until there are results: longer than the triggerer's first delay."""

HEARTBEATS = {
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "10",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "3",
    "AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL": "2",
}


def kill_task(run: Run) -> int:
    """Kill the task's process when a batch is out; return how many kills that were."""
    run.wait_until(lambda: len(run.pushed) > 0, "nobody was pushed")
    os.kill(run.pid("push"), signal.SIGKILL)
    return 1


def kill_host(run: Run) -> int:
    """Kill the task's process with its supervisor: nobody tells Airflow."""
    run.wait_until(lambda: len(run.pushed) > 0, "nobody was pushed")
    pid = run.pid("push")
    supervisor = parent_of(pid)
    os.kill(supervisor, signal.SIGKILL)
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    return 1


def clear_running(run: Run) -> int:
    """Clear the push while it runs."""
    run.wait_until(lambda: len(run.pushed) > 0, "nobody was pushed")
    run.clear("push")
    return 1


def clear_deferred(run: Run) -> int:
    """Clear the sensor while the triggerer waits for it."""
    run.wait_until(lambda: run.task("wait")["state"] == "deferred", "the sensor did not defer")
    run.clear("wait")
    return 0


HANDFUL: dict[str, tuple[str, Callable[[Run], int]]] = {
    "task killed, task state store": ("push_only", kill_task),
    "task killed, SQL on SQLite": ("push_with_ledger", kill_task),
    "task and supervisor killed": ("push_only", kill_host),
    "push cleared while running": ("push_only", clear_running),
    "sensor cleared while deferred": ("push_and_wait", clear_deferred),
}


def verdicts(folder: Path) -> Iterator[tuple[str, Verdict, float]]:
    """Yield what came of each of the handful, and how long it took."""
    told = Told(people=list(range(PEOPLE)), in_flight=IN_FLIGHT, quick=False)
    with Sandbox(latency=LATENCY, processing_time=PROCESSING, campaigns=(CAMPAIGN,)) as sandbox:
        environment = {
            **told.to_environment(),
            **HEARTBEATS,
            "PYTHONPATH": os.pathsep.join((str(Path.cwd()), os.environ.get("PYTHONPATH", ""))).rstrip(os.pathsep),
            "AIRFLOW_CONN_RESPONSYS_DEFAULT": json.dumps(sandbox.connection(timeout=5)),
            "AIRFLOW_CONN_LEDGER": json.dumps({"conn_type": "sqlite", "host": str(folder / "ledger.db")}),
        }
        with Standalone(DAGS, environment) as airflow:
            for name, (dag_id, strike) in HANDFUL.items():
                began = time.monotonic()
                verdict = one(Run(airflow, sandbox, dag_id), strike)
                yield name, verdict, time.monotonic() - began


def one(run: Run, strike: Callable[[Run], int]) -> Verdict:
    """Strike once; return what came of it."""
    try:
        kills = strike(run)
        run.airflow.wait_for(run.dag_id, run.run_id, RUN_WITHIN)
    except RuntimeError as error:
        return Verdict(problem=str(error)[:300])
    time.sleep(2 * LATENCY)  # a request that a killed process had sent
    report = run.airflow.xcom(run.dag_id, run.run_id, "push", "recipients")
    verdict = judge_push(PEOPLE, list(run.pushed.values()), report, bound=kills * IN_FLIGHT * BATCH)
    if run.dag_id != "push_and_wait" or verdict.problem or not report:
        return verdict
    ids = run.airflow.xcom(run.dag_id, run.run_id, "push", "request_ids")
    wrong = judge_wait(ids, report["accepted"], run.airflow.xcom(run.dag_id, run.run_id, "wait"))
    return Verdict(verdict.duplicates, verdict.forgotten, verdict.in_doubt, verdict.bound, wrong)


def parent_of(pid: int) -> int:
    """Return the parent of the process *pid*."""
    with closing(Path(f"/proc/{pid}/stat").open()) as stat:
        return int(stat.read().rpartition(")")[2].split()[1])
