"""The first example in a whole Airflow, with a log at DEBUG: as it is, and with a SQL ledger."""

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_responsys.sandbox import Sandbox
from example_dags.demo.standalone import Standalone

pytestmark = pytest.mark.standalone

FOLDER = Path(__file__).resolve().parent.parent / "example_dags"
PEOPLE = 450
PASSWORD = "a-password-to-look-for"
ALL_TASKS = ("push", "wait", "report")
EXAMPLE = "push_campaign"
WITH_LEDGER = "push_campaign_with_ledger"


class Ran:
    """A run of the example and one with a ledger: the sandbox they talked to, and all that they left behind."""

    def __init__(self, airflow: Standalone, sandbox: Sandbox, ledger: Path) -> None:
        self.sandbox = sandbox
        run_ids = {dag_id: airflow.run(dag_id) for dag_id in (EXAMPLE, WITH_LEDGER)}
        self.state = {dag_id: airflow.state(dag_id, run_id) for dag_id, run_id in run_ids.items()}
        self.pushed = {dag_id: airflow.xcom(dag_id, run_id, "push") for dag_id, run_id in run_ids.items()}
        self.waited = {dag_id: airflow.xcom(dag_id, run_id, "wait") for dag_id, run_id in run_ids.items()}
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
def ran(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ran]:
    """Run the first example once; its answers come late enough for the triggerer."""
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
    with Sandbox(processing_time=8.0, password=PASSWORD) as sandbox:
        environment = {
            "AIRFLOW_CONN_RESPONSYS_DEFAULT": json.dumps(sandbox.connection()),
            "AIRFLOW_CONN_MARKETING_DB": json.dumps({"conn_type": "sqlite", "host": str(database)}),
            "AIRFLOW_CONN_LEDGER": json.dumps({"conn_type": "sqlite", "host": str(ledger)}),
            "AIRFLOW__LOGGING__LOGGING_LEVEL": "DEBUG",
        }
        with Standalone(dags, environment) as airflow:
            yield Ran(airflow, sandbox, ledger)


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
        "token": list(ran.sandbox._account.access._issued),
        "recipients": ["person-"],
        "optional data": ["fie-Person", "COUPON-Person"],
    }

    found = {name for name, text in ran.trail() for secret in wanted[what] if secret in text}

    assert wanted[what]
    assert not found
