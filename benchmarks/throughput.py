"""How many recipients a second the operator gets through, end to end, beside bare fetchmany + json.dumps.

The real `TriggerPushOperator` runs in a real ``airflow standalone``: scheduler,
worker, API server and triggerer are processes of their own, and what is sent is
remembered in Airflow's task state store, through its execution API. The source is
SQLite; the sandbox has neither limit nor latency. All share one machine.

*End to end* is from the operator's ``pre_execute`` to its ``post_execute``: reading,
checking and spooling the source, logging in, every claim, request and settlement,
and the result. It leaves out what Airflow does before and after: scheduling the
task, starting its process, importing the DAG, storing the XComs. The sandbox's log
divides it at the first and the last request. Processor time is counted from before
the DAG run to its end, for the task itself from ``pre_execute`` to ``post_execute``.

python -m benchmarks.throughput [recipients]
"""

import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from airflow_provider_responsys.protocol.push import MAX_RECIPIENTS
from benchmarks.ground import apart, sandbox
from benchmarks.people import SELECT, bare, make_table
from benchmarks.report import Report
from benchmarks.sender import CAMPAIGN, LOGIN, Seen
from example_dags.demo.standalone import Standalone

GOAL = 25_000  # recipients a second
MILLION = 1_000_000
NO_LIMIT = 1_000_000  # requests a minute
WITHIN = 900.0  # seconds

DAG = """
import json
import time

import pendulum
from airflow.sdk import DAG

from airflow_provider_responsys.operators import TriggerPushOperator


def note(*_):
    with open({notes!r}, "a") as notes:
        print(json.dumps([time.time(), time.process_time()]), file=notes)


with DAG("push", schedule=None, start_date=pendulum.datetime(2026, 1, 1)):
    TriggerPushOperator(
        task_id="push",
        campaign_name={campaign!r},
        sql={sql!r},
        sql_conn_id="source",
        requests_per_minute={limit},
        pre_execute=note,
        post_execute=note,
    )
"""


@dataclass(frozen=True, slots=True)
class Measured:
    """What one run took, in seconds: three parts of the time of ``execute``, and processor time by who used it."""

    spooling: float
    sending: float
    ending: float
    task: float
    sandbox: float
    api_server: float
    duplicates: int

    @property
    def total(self) -> float:
        """Return the seconds of ``execute``."""
        return self.spooling + self.sending + self.ending


def main(recipients: int = MILLION) -> None:
    """Measure both, and report."""
    report = Report(
        "throughput",
        "Throughput of the operator, end to end",
        {"recipients": f"{recipients:,}", "per request": MAX_RECIPIENTS, "store": "task state", "source": "SQLite"},
        baseline="fetchmany + json.dumps of the same rows",
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = folder / "people.db"
        make_table(f"sqlite:///{source}", recipients)
        alone = apart(bare, f"sqlite:///{source}")
        found = in_airflow(folder, source, recipients)
    rate = "recipients/s"
    report.add("end to end", recipients / found.total, rate, baseline=alone, at_least=GOAL)
    report.add("until the first request", recipients / found.spooling, rate, baseline=alone)
    report.add("from the first to the last request", recipients / found.sending, rate)
    report.add("after the last request", found.ending, "s")
    for who in ("task", "sandbox", "api_server"):
        seconds = getattr(found, who) * MILLION / recipients
        report.add(f"processor time of the {who.replace('_', ' ')}", seconds, "s per million")
    report.add("pushed more than once", found.duplicates, "recipients", at_most=0)
    report.write()


def in_airflow(folder: Path, source: Path, recipients: int) -> Measured:
    """Run the DAG once in a whole Airflow."""
    dags, notes = folder / "dags", folder / "notes"
    dags.mkdir()
    dag = DAG.format(notes=str(notes), campaign=CAMPAIGN, sql=SELECT, limit=NO_LIMIT)
    (dags / "push.py").write_text(dag, encoding="utf-8")
    with sandbox("--log-length", str(recipients)) as url:
        environment = {
            "AIRFLOW_CONN_SOURCE": json.dumps({"conn_type": "sqlite", "host": str(source)}),
            "AIRFLOW_CONN_RESPONSYS_DEFAULT": json.dumps({"conn_type": "responsys", "host": url, **LOGIN}),
        }
        with Standalone(dags, environment) as airflow:
            used = processor_time()
            run_id = airflow.run("push", within=WITHIN)
            if (state := airflow.state("push", run_id)) != "success":
                raise RuntimeError(f"the push ended as {state}")
            in_sandbox, in_api_server = used()
        saw = Seen.at(url)
    if saw.report["recipients"]["pushed"] != recipients:
        raise RuntimeError(f"the sandbox counted {saw.report['recipients']}, of {recipients}")
    (began, task_began), (ended, task_ended) = map(json.loads, notes.read_text(encoding="utf-8").splitlines())
    return Measured(
        spooling=saw.times[0] - began,
        sending=saw.times[-1] - saw.times[0],
        ending=ended - saw.times[-1],
        task=task_ended - task_began,
        sandbox=in_sandbox,
        api_server=in_api_server,
        duplicates=saw.duplicates,
    )


def processor_time() -> Callable[[], tuple[float, float]]:
    """Return what tells the seconds since now that the sandbox and the API server used."""
    below = psutil.Process().children(recursive=True)
    two = [next(each for each in below if word in " ".join(each.cmdline())) for word in (".sandbox", "api_server")]

    def used() -> list[float]:
        return [each.cpu_times().user + each.cpu_times().system for each in two]

    before = used()

    def since() -> tuple[float, float]:
        sandbox_now, api_now = used()
        return sandbox_now - before[0], api_now - before[1]

    return since


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
