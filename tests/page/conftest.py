"""Airflow's real API server, with our page in it, and pushes that have run."""

import json
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import DAG, task

from airflow_provider_responsys.operators import TriggerPushOperator
from airflow_provider_responsys.sandbox import Fault, Sandbox
from airflow_provider_responsys.sensors import PushRequestSensor

PEOPLE = 450
NO_DEVICE_EVERY = 50
RECIPIENT = "person-17"
LATER_SEEN = "NODEVICE-person-50"
USERS = "viewer:viewer,admin:admin"


@dataclass(frozen=True, slots=True)
class Sent:
    """A push that ended well, one in doubt and one without a ledger: the DAGs' names are their keys in *runs*."""

    ledger: Path
    runs: dict[str, str]

    def query(self, dag_id: str, task_id: str = "push", **more: str) -> dict[str, str]:
        """Return what the page is asked for to show a task."""
        return {"dag_id": dag_id, "run_id": self.runs[dag_id], "task_id": task_id, **more}


def rows(count: int = PEOPLE) -> list[dict[str, str]]:
    """Return recipients, of whom Responsys knows no device of some."""
    kinds = ["NODEVICE-" if n % NO_DEVICE_EVERY == 0 else "" for n in range(count)]
    return [{"customer_id": f"{kind}person-{n}", "first_name": "Zoë"} for n, kind in enumerate(kinds)]


def dag_of(dag_id: str, *, ledger_conn_id: str | None, **push_settings: Any) -> DAG:
    """Return a DAG that pushes and waits, and has a task that does neither."""
    with DAG(dag_id, schedule=None) as dag:
        settings = {"campaign_name": f"Campaign_{dag_id}", "recipients": rows(), "retries": 0, **push_settings}
        push = TriggerPushOperator(task_id="push", ledger_conn_id=ledger_conn_id, **settings)
        wait = PushRequestSensor(
            task_id="wait",
            request_ids=push.output,
            ledger_conn_id=ledger_conn_id,
            deferrable=False,
            poke_interval=0.2,
            trigger_rule="all_done",
        )

        @task(trigger_rule="all_done")
        def other() -> None:
            """Be no push."""

        push >> wait >> other()
    return dag


@pytest.fixture(scope="session")
def sent(run_dag: Callable[[Any], Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sent]:
    """Run the pushes once."""
    folder = tmp_path_factory.mktemp("page")
    lost = [Fault("push", "lost", nth=2, when="after")]
    with Sandbox(processing_time=0.1, campaigns=("*",)) as sandbox, pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(folder / "state"))
        patch.setenv("AIRFLOW_CONN_RESPONSYS_DEFAULT", json.dumps(sandbox.connection(timeout=1)))
        patch.setenv("AIRFLOW_CONN_LEDGER", json.dumps({"conn_type": "sqlite", "host": str(folder / "ledger.db")}))
        runs = {"well": run_dag(dag_of("well", ledger_conn_id="ledger")).run_id}
        runs["hidden"] = run_dag(dag_of("hidden", ledger_conn_id="ledger", recipients=rows(20))).run_id
        runs["alone"] = run_dag(dag_of("alone", ledger_conn_id=None)).run_id
        sandbox.plan(*lost)
        doubtful = dag_of("doubtful", ledger_conn_id="ledger", max_in_flight=1, max_in_doubt=0.9)
        runs["doubtful"] = run_dag(doubtful).run_id
        yield Sent(folder / "ledger.db", runs)


@pytest.fixture
def with_ledger(sent: Sent, monkeypatch: pytest.MonkeyPatch) -> Sent:
    """Let the page read the ledger."""
    monkeypatch.setenv("AIRFLOW_CONN_LEDGER", json.dumps({"conn_type": "sqlite", "host": str(sent.ledger)}))
    monkeypatch.setenv("AIRFLOW__RESPONSYS__LEDGER_CONN_ID", "ledger")
    return sent


@pytest.fixture(scope="session")
def server(sent: Sent) -> Iterator[Callable[[], Any]]:
    """Give a function that makes a client of Airflow's own API server, who is not signed in."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        # Airflow's server, and the web framework it stands on, warn of what they do themselves.
        warnings.simplefilter("ignore")
        patch.setenv("AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS", USERS)
        patch.setenv("AIRFLOW__API_AUTH__JWT_SECRET", "a-secret-that-is-long-enough-" * 4)
        from airflow.api_fastapi.app import create_app  # noqa: PLC0415 -- importing Airflow's server takes seconds
        from starlette.testclient import TestClient  # noqa: PLC0415 -- the same

        app = create_app()
        yield lambda: TestClient(app, raise_server_exceptions=True)


@pytest.fixture
def stranger(server: Callable[[], Any]) -> Any:
    """Give a client who is not signed in."""
    return server()


@pytest.fixture
def page(server: Callable[[], Any]) -> Any:
    """Give a client who is signed in as a viewer, as a browser is: by a cookie."""
    return signed_in(server(), "viewer")


def signed_in(client: Any, user: str) -> Any:
    """Sign *user* in at Airflow itself."""
    from airflow.api_fastapi.auth.managers.simple.simple_auth_manager import (  # noqa: PLC0415 -- see server
        SimpleAuthManager,
    )

    password = SimpleAuthManager.get_passwords()[user]
    answer = client.post("/auth/token", json={"username": user, "password": password})
    client.cookies.set("_token", answer.json()["access_token"])
    client.headers["Accept"] = "text/html"
    return client
