"""What remembering costs: one campaign with no ledger, the task state store, SQL on SQLite, and SQL on PostgreSQL.

Twice each: at a limit of 1,000 requests a minute and 300 ms latency, where the
ledger must cost nothing, and without limit and latency, where it must clear ten
times that limit. The rate is that of the requests between the sandbox's first and
last. The task state store is Airflow's own, over its execution API, in ``airflow
standalone``, where a real operator sends; the other stores run the same engine in
this process.

Then the record of a million recipients in the task state store: a task's first try
writes it through the execution API and fails, and its second reads it back, beside
a spool of the same million. The time for that leaves the spooling out, the memory
of the task has it in.

python -m benchmarks.ledger [recipients sent to] [recipients on record]
"""

import json
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import sqlalchemy

from airflow_provider_responsys.ledger.memory import MemoryLedger
from airflow_provider_responsys.ledger.sql import SqlLedger
from airflow_provider_responsys.ledger.task_record import MAX_BATCHES
from benchmarks.ground import sandbox
from benchmarks.people import make_table
from benchmarks.report import Report
from benchmarks.sender import LOGIN, SQL, Seen, fill, send
from example_dags.demo.standalone import Standalone
from tests.support.databases import postgres_databases

LIMIT = 1_000  # requests a minute
LATENCY = 0.3  # seconds
NO_LIMIT = 1_000_000
LIMITED = ("--latency", str(LATENCY), "--push-limit", str(LIMIT))
LOG = ("--log-length", "100000")
MILLION = 1_000_000

GOAL_LIMITED = 98  # percent of the limit
GOAL_UNLIMITED = 10  # times the limit
GOAL_RECORD = 16  # MB per million recipients
GOAL_READ = 10  # seconds per million recipients
GOAL_MEMORY = 60  # MB over the start
AIRFLOWS_LIMIT = 65_535  # characters of a value: [state_store] max_value_storage_bytes

ROOT = Path(__file__).resolve().parent.parent
PUSH = """
import pendulum
from airflow.sdk import DAG
from airflow_provider_responsys.operators import TriggerPushOperator

for name, limit in (("limited", {limit}), ("unlimited", {no_limit})):
    with DAG(name, schedule=None, start_date=pendulum.datetime(2026, 1, 1)) as dag:
        TriggerPushOperator(
            task_id="push",
            campaign_name="Bench",
            sql="{sql}",
            sql_conn_id="source",
            requests_per_minute=limit,
            responsys_conn_id=name,
        )
    globals()[name] = dag
"""
RECORD = """
import pendulum
from airflow.sdk import DAG, BaseOperator


class Remember(BaseOperator):
    def execute(self, context):
        from benchmarks.record import remember

        remember(context, {source!r}, {rows}, {notes!r})


with DAG("record", schedule=None, start_date=pendulum.datetime(2026, 1, 1)):
    Remember(task_id="remember", retries=1, retry_delay=pendulum.duration(seconds=1))
"""


def main(recipients: int = 200_000, on_record: int = MILLION) -> None:
    """Measure the rates with each store and the record of many, and report."""
    report = Report(
        "ledger",
        "What remembering costs",
        {"recipients sent to": f"{recipients:,}", "on record": f"{on_record:,}", "latency": f"{LATENCY} s, or none"},
        baseline="sending without a ledger",
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = folder / "source.db"
        fill(source, recipients)
        plain: tuple[float, float] | None = None
        for store, (limited, unlimited) in rates(folder, source):
            share, times = limited / LIMIT * 100, unlimited / LIMIT
            goals = (GOAL_LIMITED, GOAL_UNLIMITED) if plain else (None, None)
            other = plain or (None, None)
            what = f"{store}, {LIMIT:,} a minute allowed"
            report.add(what, share, "% of the limit", baseline=other[0], at_least=goals[0])
            report.add(f"{store}, no limit", times, f"x {LIMIT:,} a min", baseline=other[1], at_least=goals[1])
            plain = plain or (share, times)
        written, read = record(folder, on_record)
    size(report, written, read, on_record)
    report.write()


def size(report: Report, written: Mapping[str, float], read: Mapping[str, float], recipients: int) -> None:
    """Report the record of a million, as two tries of a task found it."""
    if read["left"] or read["accepted"] != recipients:
        raise RuntimeError(f"the record was not read back whole: {read}")
    scale = MILLION / recipients
    report.add("record of a million, in all", written["megabytes"] * scale, "MB", at_most=GOAL_RECORD)
    report.add("record of a million, batches a key", written["batches"], "at most", at_most=MAX_BATCHES)
    report.add("record of a million, largest value", written["largest"], "characters", at_most=AIRFLOWS_LIMIT)
    report.add("record of a million, written", written["seconds"] * scale, "s")
    report.add("record of a million, read back", read["seconds"] * scale, "s", at_most=GOAL_READ)
    report.add("memory of the try that reads it", read["memory"], "MB over start", at_most=GOAL_MEMORY)


def rates(folder: Path, source: Path) -> Iterator[tuple[str, tuple[float, float]]]:
    """Yield each store with its requests a minute: limited, and not."""
    yield "no ledger", both(source, lambda _: MemoryLedger(try_number=1))
    yield "task state store", in_airflow(folder, source)
    yield "SQL on SQLite", both(source, lambda run: sql(f"sqlite:///{folder / f'ledger-{run}.db'}"))
    with postgres_databases() as server:
        yield "SQL on PostgreSQL", both(source, lambda run: sql(server(run)))


def both(source: Path, ledger: Any) -> tuple[float, float]:
    """Return the rates of a run at the limit and one without."""
    with sandbox(*LOG, *LIMITED) as url:
        send(url, source, ledger("limited"), LIMIT)
        limited = per_minute(url)
    with sandbox(*LOG) as url:
        send(url, source, ledger("unlimited"), NO_LIMIT)
        return limited, per_minute(url)


def in_airflow(folder: Path, source: Path) -> tuple[float, float]:
    """Return the rates of the operator in a whole Airflow, with its own task state store."""
    dags = folder / "dags"
    dags.mkdir()
    (dags / "bench.py").write_text(PUSH.format(limit=LIMIT, no_limit=NO_LIMIT, sql=SQL))
    with sandbox(*LOG, *LIMITED) as limited, sandbox(*LOG) as unlimited:
        environment = {"AIRFLOW_CONN_SOURCE": json.dumps({"conn_type": "sqlite", "host": str(source)})}
        for name, url in (("LIMITED", limited), ("UNLIMITED", unlimited)):
            connection = {"conn_type": "responsys", "host": url, **LOGIN}
            environment[f"AIRFLOW_CONN_{name}"] = json.dumps(connection)
        with Standalone(dags, environment) as airflow:
            for name in ("limited", "unlimited"):
                run_id = airflow.run(name, within=1_800)
                if airflow.state(name, run_id) != "success":
                    raise RuntimeError(f"the push of {name} ended as {airflow.state(name, run_id)}")
        return per_minute(limited), per_minute(unlimited)


def per_minute(url: str) -> float:
    """Return the pushes a minute that the sandbox saw between the first and the last."""
    saw = Seen.at(url)
    if saw.refusals:
        print(f"  refused: {saw.refusals}")
    return saw.per_minute


def record(folder: Path, recipients: int) -> list[dict[str, float]]:
    """Return what the two tries of a task noted that keeps a record in a whole Airflow."""
    dags, notes = folder / "record", folder / "notes"
    dags.mkdir()
    source = f"sqlite:///{folder / 'people.db'}"
    make_table(source, recipients)
    dag = RECORD.format(source=source, rows=recipients, notes=str(notes))
    (dags / "record.py").write_text(dag, encoding="utf-8")
    with Standalone(dags, {"PYTHONPATH": str(ROOT)}) as airflow:
        run_id = airflow.run("record", within=600)
        if (state := airflow.state("record", run_id)) != "success":
            raise RuntimeError(f"the record ended as {state}")
    return [json.loads(line) for line in notes.read_text(encoding="utf-8").splitlines()]


def sql(url: str) -> SqlLedger:
    """Return a SQL ledger at *url*."""
    engine = sqlalchemy.create_engine(url)
    return SqlLedger(engine, send_key="bench", task_instance="bench", try_number=1, max_tries=0, retries=0)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
