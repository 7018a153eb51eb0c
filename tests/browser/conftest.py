"""A whole Airflow with pushes of every kind, and a real browser before it."""

import json
import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_responsys.sandbox import Fault, Sandbox
from example_dags.demo.standalone import Standalone

DAGS = Path(__file__).parent / "dags"
ENDED, DOUBTFUL, RUNNING, IN_SHARDS, NO_PUSH = "spring_offers", "autumn_sale", "winter_news", "in_shards", "report"
PEOPLE = 2_400
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@dataclass(frozen=True, slots=True)
class Ran:
    """An Airflow in which pushes have run, the ids of their runs, and a recipient of the first one."""

    airflow: Standalone
    runs: dict[str, str]
    recipient: str = "person-17"

    @property
    def url(self) -> str:
        """Return its address."""
        return self.airflow.url

    def tab(self, dag_id: str, task_id: str = "push", *, map_index: int | None = None) -> str:
        """Return the address of the tab of a task instance."""
        mapped = "" if map_index is None else f"/mapped/{map_index}"
        return f"{self.url}/dags/{dag_id}/runs/{self.runs[dag_id]}/tasks/{task_id}{mapped}/plugin/responsys-push"


@pytest.fixture(scope="session")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ran]:
    """Give what `pushed` makes."""
    with pushed(tmp_path_factory.mktemp("browser")) as made:
        yield made


@contextmanager
def pushed(folder: Path) -> Iterator[Ran]:
    """Run a push that ends well, one that is left in doubt, one in shards, and one that is still running."""
    source = folder / "marketing.db"
    with closing(sqlite3.connect(source)) as connection, connection:
        connection.execute("CREATE TABLE recipients (n INTEGER, customer_id TEXT, first_name TEXT)")
        connection.executemany("INSERT INTO recipients VALUES (?, ?, ?)", rows())
    # So that the answer of the third request of that one is lost, after it has had its effect.
    lost = [Fault("push", "lost", nth=3, when="after")]
    with (
        Sandbox(processing_time=2.0, campaigns=("*",)) as sandbox,
        Sandbox(processing_time=2.0, campaigns=("*",), faults=lost) as flaky,
    ):
        environment = {
            "AIRFLOW_CONN_RESPONSYS_DEFAULT": json.dumps(sandbox.connection()),
            "AIRFLOW_CONN_RESPONSYS_FLAKY": json.dumps(flaky.connection(timeout=3)),
            "AIRFLOW_CONN_MARKETING_DB": json.dumps({"conn_type": "sqlite", "host": str(source)}),
            "AIRFLOW_CONN_RESPONSYS_LEDGER": json.dumps({"conn_type": "sqlite", "host": str(folder / "ledger.db")}),
            "AIRFLOW__RESPONSYS__LEDGER_CONN_ID": "responsys_ledger",
        }
        with Standalone(DAGS, environment) as airflow:
            runs = {dag_id: airflow.run(dag_id) for dag_id in (ENDED, DOUBTFUL, IN_SHARDS, NO_PUSH)}
            runs[RUNNING] = airflow.trigger(RUNNING)
            airflow.wait_until(lambda: running(airflow, runs[RUNNING]), 120.0, "the last push did not begin")
            yield Ran(airflow, runs)


def rows() -> Iterator[tuple[int, str, str]]:
    """Yield recipients, of whom Responsys knows no device of some, and may not reach others."""
    for n in range(PEOPLE):
        kind = "NODEVICE-" if n % 40 == 0 else "UNDELIVERABLE-" if n % 300 == 7 else ""
        yield n, f"{kind}person-{n}", "Zoë"


def running(airflow: Standalone, run_id: str) -> bool:
    """Return whether the push has said how far it is."""
    note: Any = airflow.get(f"/dags/{RUNNING}/dagRuns/{run_id}/taskInstances/push/state-store/push_progress")
    return bool(note)


@pytest.fixture(scope="session")
def chromium() -> str:
    """Give the path of a Chromium; skip where there is none."""
    pytest.importorskip("playwright", reason="no playwright here: `make test-browser` installs it")
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)
    if not found:
        pytest.skip("no Chromium here: install the package chromium, or name its program in CHROMIUM")
    return found
