"""The sharded example on two Celery workers, one of which is lost: ``make celery``.

A real CeleryExecutor with a broker, Airflow's database and the ledger on PostgreSQL,
each component a process: five minutes on two cores. Prints a table; ends with 0 if
every promise held, with 2 if something must be installed first.
"""

import argparse
import json
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psycopg
from psycopg.sql import SQL, Identifier
from sqlalchemy import make_url

from airflow_provider_responsys.sandbox import Sandbox
from tests.celery.cluster import Cluster, broker, what_is_missing
from tests.celery.scenes import LIMIT, POOL, QUICK, SLOTS, Play, Scene, Told, kill, stop
from tests.celery.table import table
from tests.support.databases import postgres_databases

ROWS = 12_000
PROCESSING = 12.0
"""Seconds until there are results: longer than the triggerer's first delay."""

STOPPED_WITHIN = 60.0
"""Seconds until a worker that was told to stop has ended: what it had in hand has ended long before."""

OVERLAPPING, APART = "overlapping", "apart"
CUSTOMERS = {
    # Every tenth customer stands in a second row, which is in another shard.
    OVERLAPPING: [f"C{number % (ROWS * 10 // 11 + 1)}" for number in range(ROWS)],
    APART: [f"C{number}" for number in range(ROWS)],
}
SCENES = (
    Scene("killed_ledger", "SQL on PostgreSQL", OVERLAPPING, ledger=True, strike=kill),
    Scene("killed_task_state", "task state store", APART, ledger=False, strike=kill),
    Scene("stopped_ledger", "SQL on PostgreSQL", OVERLAPPING, ledger=True, strike=stop),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Play all scenes; return 0 if every promise held."""
    parser = argparse.ArgumentParser(prog="tests.celery", description=__doc__)
    parser.add_argument("--keep", action="store_true", help="keep the folder with all logs")
    asked = parser.parse_args(arguments)
    if missing := what_is_missing():
        say(f"Not run: {missing}")
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    warnings.simplefilter("ignore")  # Airflow's own, of libraries
    began = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="responsys-celery-"))
    try:
        told = perform(folder)
    finally:
        if asked.keep:
            say(f"All logs are in {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
    say(f"\n{table(told)}\n\n{len(told)} runs in {time.monotonic() - began:.0f} s")
    wrong = [f"{each.scene.dag_id}: {problem}" for each in told for problem in each.problems()]
    say("\n".join(wrong))
    return 1 if wrong else 0


def perform(folder: Path) -> list[Told]:
    """Start everything in *folder*, and play all scenes."""
    dags, home = folder / "dags", folder / "airflow"
    dags.mkdir()
    home.mkdir()
    for scene in SCENES:
        (dags / f"{scene.dag_id}.py").write_text(scene.dag(), encoding="utf-8")
    with (
        postgres_databases() as database,
        broker(folder) as messages,
        Sandbox(latency=QUICK, processing_time=PROCESSING, push_limit=LIMIT, window="sliding") as sandbox,
    ):
        market = connection(database("marketing"))
        fill(market)
        env = {
            "AIRFLOW_CONN_RESPONSYS_DEFAULT": json.dumps(sandbox.connection(timeout=5)),
            "AIRFLOW_CONN_MARKETING_DB": json.dumps(market),
            "AIRFLOW_CONN_RESPONSYS_LEDGER": json.dumps(connection(database("ledger"))),
        }
        say("Starting PostgreSQL, Redis, scheduler, API server, DAG processor, triggerer and two workers ...")
        with Cluster(dags, env, home=home, database=database("airflow"), broker=messages) as cluster:
            cluster.post("/pools", {"name": POOL, "slots": SLOTS})
            return list(played(cluster, sandbox))


def played(cluster: Cluster, sandbox: Sandbox) -> Iterator[Told]:
    """Yield what there is to tell of each scene. Each begins with two workers and ends with one."""
    workers = [cluster.hire("worker-1")]
    for number, scene in enumerate(SCENES, start=2):
        workers.append(cluster.hire(f"worker-{number}"))
        told = Play(scene, cluster, sandbox, workers).play(CUSTOMERS[scene.table])
        say(f"{scene.dag_id}: {told.state} after {told.seconds:.0f} s")
        yield told
        workers.pop(0).process.wait(STOPPED_WITHIN)


def connection(address: str) -> dict[str, Any]:
    """Return an Airflow connection to the database at *address*."""
    url = make_url(address)
    return {
        "conn_type": "postgres",
        "host": url.query["host"],
        "port": int(str(url.query["port"])),
        "login": url.username,
        "password": "trusted",
        "schema": url.database,
    }


def fill(market: dict[str, Any]) -> None:
    """Make the tables of recipients."""
    server = {"host": market["host"], "port": market["port"], "user": market["login"], "dbname": market["schema"]}
    with psycopg.connect(**server) as database, database.cursor() as cursor:
        for name, customers in CUSTOMERS.items():
            table = Identifier(name)
            cursor.execute(SQL("CREATE TABLE {} (id int PRIMARY KEY, customer_id text, first_name text)").format(table))
            rows = [(number, customer, "Zoë 由紀") for number, customer in enumerate(customers)]
            cursor.executemany(SQL("INSERT INTO {} VALUES (%s, %s, %s)").format(table), rows)
            cursor.execute(SQL("ALTER TABLE {} ADD COLUMN coupon text DEFAULT 'SUMMER'").format(table))


def say(text: str) -> None:
    """Print at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
