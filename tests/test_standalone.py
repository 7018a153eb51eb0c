"""Examples in a whole Airflow, with a log at DEBUG: the first as it is and with a SQL ledger, and the one in shards."""

import json
import os
import signal
import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pytest

from airflow_provider_responsys.sandbox import Sandbox
from example_dags.demo.standalone import Standalone

pytestmark = pytest.mark.standalone

FOLDER = Path(__file__).resolve().parent.parent / "example_dags"
PEOPLE = 450
PASSWORD = "a-password-to-look-for"
ALL_TASKS = ("push", "wait")
EXAMPLE = "push_campaign"
WITH_LEDGER = "push_campaign_with_ledger"
IN_SHARDS = "push_shards"
SHARDS, AT_ONCE, IN_FLIGHT = 4, 2, 2
ROWS, DIFFERENT = 2_400, 2_201
"""Rows that are pushed in shards, and people in them: the last rows repeat the first people, in other shards."""

RUN_WITHIN = 240.0


class InShards:
    """A run of the example in shards, two at a time, one of which is killed while it sends."""

    def __init__(self, airflow: Standalone, sandbox: Sandbox) -> None:
        self.sandbox = sandbox
        self._airflow = airflow
        airflow.post("/pools", {"name": "responsys", "slots": AT_ONCE})
        self._run_id = airflow.trigger(IN_SHARDS)
        self.killed = -1
        airflow.wait_until(self._killed, RUN_WITHIN, "no shard was in the middle of sending")

    def finish(self) -> None:
        """Wait for its end, and keep what it left."""
        self.state = self._airflow.wait_for(IN_SHARDS, self._run_id, RUN_WITHIN)
        self.buckets: Counter[str] = Counter()
        self.tries: list[Any] = []
        for shard in range(SHARDS):
            self.buckets.update(self._airflow.xcom(IN_SHARDS, self._run_id, "push", "recipients", map_index=shard))
            self.tries += self._get(f"push/{shard}/tries")
        self.waited = self._airflow.xcom(IN_SHARDS, self._run_id, "wait")

    def most_at_once(self) -> int:
        """Return how many shards ran at the same time."""
        changes = [(each["start_date"], 1) for each in self.tries] + [(each["end_date"], -1) for each in self.tries]
        running = [sum(change for _, change in sorted(changes)[: place + 1]) for place in range(len(changes))]
        return max(running)

    def _killed(self) -> bool:
        """Kill a shard that is sending, if there is one."""
        running = [shard for shard in self._get("push/listMapped") if shard["state"] == "running" and shard["pid"]]
        if self.sandbox.pushes and running:
            self.killed = running[0]["map_index"]
            os.kill(running[0]["pid"], signal.SIGKILL)
        return self.killed >= 0

    def _get(self, path: str) -> list[Any]:
        found = self._airflow.get(f"/dags/{IN_SHARDS}/dagRuns/{self._run_id}/taskInstances/{path}")
        return list(found["task_instances"]) if found else []


class Ran:
    """A run of each: the sandboxes they talked to, and all that they left behind."""

    def __init__(self, airflow: Standalone, sandbox: Sandbox, ledger: Path, for_shards: Sandbox) -> None:
        self.sandbox = sandbox
        self.shards = InShards(airflow, for_shards)
        run_ids = {dag_id: airflow.run(dag_id) for dag_id in (EXAMPLE, WITH_LEDGER)}
        self.state = {dag_id: airflow.state(dag_id, run_id) for dag_id, run_id in run_ids.items()}
        self.pushed = {dag_id: airflow.xcom(dag_id, run_id, "push") for dag_id, run_id in run_ids.items()}
        self.waited = {dag_id: airflow.xcom(dag_id, run_id, "wait") for dag_id, run_id in run_ids.items()}
        self.shards.finish()
        self.ledger = tables(ledger)
        self.logs = {path: path.read_text(errors="replace") for path in (airflow.home / "logs").rglob("*.log*")}
        self.logs[airflow.log] = airflow.log.read_text(errors="replace")
        self.tables = tables(airflow.home / "airflow.db")

    def trail(self) -> Iterator[tuple[str, str]]:
        """Yield the name and text of everything that Airflow keeps of the run."""
        for path, text in self.logs.items():
            yield path.name, text
        yield from self.tables.items()
        yield from self.ledger.items()


def tables(database: Path) -> dict[str, str]:
    """Return everything that stands in Airflow's *database*, by table."""
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        names = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return {name: repr(connection.execute(f'SELECT * FROM "{name}"').fetchall()) for name in names}  # noqa: S608 -- a table's own name


@pytest.fixture(scope="module")
def market(postgres: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Give a database with a table for the shards."""
    server = {"host": postgres["host"], "port": postgres["port"], "user": postgres["login"]}
    with psycopg.connect(**server, dbname="postgres", autocommit=True) as connection:
        connection.execute("CREATE DATABASE market")
        with psycopg.connect(**server, dbname="market") as market:
            market.execute("CREATE TABLE recipients (id bigint, customer_id text, first_name text, coupon text)")
            market.execute(
                "INSERT INTO recipients SELECT n, 'person-' || MOD(n, %s), 'Žofie-Person', 'COUPON-Person' "
                "FROM generate_series(0, %s - 1) AS n",
                (DIFFERENT, ROWS),
            )
        yield {"conn_type": "postgres", **postgres, "schema": "market"}
        connection.execute("DROP DATABASE market WITH (FORCE)")


def in_shards() -> str:
    """Return the example in shards, with fewer of them, and retries after a second."""
    example = (FOLDER / f"{IN_SHARDS}.py").read_text()
    for now, then in (
        ("SHARDS = 8", f"SHARDS = {SHARDS}"),
        ("minutes=1", "seconds=1"),
        ("requests_per_minute=", f"max_in_flight={IN_FLIGHT}, requests_per_minute="),
        ("task_id=", 'responsys_conn_id="responsys_shards", task_id='),
        ("marketing_db", "market"),
    ):
        assert now in example
        example = example.replace(now, then)
    return example


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory, market: dict[str, Any]) -> Iterator[Ran]:
    """Run each example once; their answers come late enough for the triggerer."""
    database = tmp_path_factory.mktemp("source") / "marketing.db"
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("CREATE TABLE recipients (customer_id TEXT, first_name TEXT, coupon TEXT)")
        rows = [
            (f"{'NODEVICE-' if n % 50 == 0 else ''}person-{n}", "Žofie-Person", "COUPON-Person") for n in range(PEOPLE)
        ]
        connection.executemany("INSERT INTO recipients VALUES (?, ?, ?)", rows)
    dags, ledger = tmp_path_factory.mktemp("dags"), tmp_path_factory.mktemp("ledger") / "ledger.db"
    example = (FOLDER / f"{EXAMPLE}.py").read_text()
    (dags / f"{EXAMPLE}.py").write_text(example)
    (dags / f"{WITH_LEDGER}.py").write_text(
        example.replace(f'"{EXAMPLE}"', f'"{WITH_LEDGER}"').replace("task_id=", 'ledger_conn_id="ledger", task_id=')
    )
    (dags / f"{IN_SHARDS}.py").write_text(in_shards())
    with (
        Sandbox(processing_time=8.0, password=PASSWORD) as sandbox,
        # A request takes long enough for a kill to come in between, and a retry waits for lost answers so much longer.
        Sandbox(processing_time=8.0, password=PASSWORD, latency=1.0) as for_shards,
    ):
        environment = {
            "AIRFLOW_CONN_RESPONSYS_DEFAULT": json.dumps(sandbox.connection()),
            "AIRFLOW_CONN_RESPONSYS_SHARDS": json.dumps(for_shards.connection(timeout=3)),
            "AIRFLOW_CONN_RESPONSYS_LEDGER": json.dumps(market),
            "AIRFLOW_CONN_MARKET": json.dumps(market),
            "AIRFLOW_CONN_MARKETING_DB": json.dumps({"conn_type": "sqlite", "host": str(database)}),
            "AIRFLOW_CONN_LEDGER": json.dumps({"conn_type": "sqlite", "host": str(ledger)}),
            "AIRFLOW__LOGGING__LOGGING_LEVEL": "DEBUG",
        }
        with Standalone(dags, environment) as airflow:
            yield Ran(airflow, sandbox, ledger, for_shards)


@pytest.mark.parametrize("dag_id", [EXAMPLE, WITH_LEDGER])
def test_everybody_is_pushed_once_and_accounted_for(ran: Ran, dag_id: str) -> None:
    """Through scheduler, worker and triggerer."""
    assert ran.state[dag_id] == "success"
    assert ran.pushed[dag_id]["recipients"] == {
        "read": PEOPLE,
        "accepted": PEOPLE,
        "rejected": 0,
        "in_doubt": 0,
        "not_sent": 0,
        "withheld": 0,
        "duplicate": 0,
        "invalid": 0,
    }
    assert ran.waited[dag_id] == {
        "requests": {"total": 3, "finished": 3, "failed": 0, "unknown": 0, "pending": 0},
        "recipients": {"succeeded": PEOPLE - 9, "failed": 9, "unknown": 0},
        "errors": {"NO_RECIPIENT_FOUND": 9},
    }
    # Two runs without a common send key are two sends.
    assert set(ran.sandbox.pushes.values()) == {2}
    assert len(ran.sandbox.pushes) == PEOPLE


def test_whoever_stands_in_two_shards_is_pushed_once_although_one_is_killed(ran: Ran) -> None:
    """Shards that send at the same time, in a pool, into one ledger; the one that was killed goes on."""
    shards, people = ran.shards, ran.shards.buckets

    assert shards.most_at_once() == AT_ONCE
    assert [each["map_index"] for each in shards.tries if each["try_number"] > 1] == [shards.killed]
    assert (people["read"], people["duplicate"]) == (ROWS, ROWS - DIFFERENT)
    assert people["accepted"] + people["in_doubt"] == DIFFERENT
    assert people["in_doubt"] <= IN_FLIGHT * 200
    assert people["accepted"] <= len(shards.sandbox.pushes) <= DIFFERENT
    shards.sandbox.assert_no_duplicates()


def test_one_wait_reads_the_answers_of_all_shards(ran: Ran) -> None:
    """Also of what a shard sent before it was killed; and who is in doubt makes the run a failure."""
    accepted, in_doubt = ran.shards.buckets["accepted"], ran.shards.buckets["in_doubt"]

    assert ran.shards.waited["recipients"] == {"succeeded": accepted, "failed": 0, "unknown": 0}
    assert ran.shards.state == ("failed" if in_doubt else "success")


def test_the_ledger_knows_what_became_of_each_request(ran: Ran) -> None:
    """The triggerer has written it while it polled."""
    batches = ran.ledger["responsys_batches"]
    assert batches.count("NO_RECIPIENT_FOUND") == 1  # sorted by their ids, those without a device come in one request
    assert batches.count("'{}'") == 2  # and nobody failed in the other two


def test_the_wait_was_in_the_triggerer(ran: Ran) -> None:
    """No worker slot is held while waiting."""
    assert any("trigger" in path.name and "PushRequestTrigger" in text for path, text in ran.logs.items())


def test_each_task_left_a_log(ran: Ran) -> None:
    """What the next test searches is there, and at DEBUG."""
    for task_id in ALL_TASKS:
        logs = [text for path, text in ran.logs.items() if f"task_id={task_id}" in str(path)]
        assert any("debug" in text.lower() for text in logs), task_id


@pytest.mark.parametrize("what", ["password", "token", "recipients", "optional data"])
def test_nothing_that_airflow_keeps_names_a_secret_or_a_person(ran: Ran, what: str) -> None:
    """No log at any level, and no table: XCom, rendered fields, triggers, task state, events."""
    wanted: dict[str, Any] = {
        "password": [PASSWORD],
        "token": [*ran.sandbox._account.access._issued, *ran.shards.sandbox._account.access._issued],
        "recipients": ["person-"],
        "optional data": ["fie-Person", "COUPON-Person"],
    }

    found = {name for name, text in ran.trail() for secret in wanted[what] if secret in text}

    assert wanted[what]
    assert not found
