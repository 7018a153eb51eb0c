"""One run of a DAG in a whole Airflow."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import requests

from airflow_provider_responsys.sandbox import Sandbox
from example_dags.demo.standalone import Standalone

RUN_WITHIN = 240.0


class Run:
    """One run of a DAG in *airflow*, seen from outside."""

    def __init__(self, airflow: Standalone, sandbox: Sandbox, dag_id: str) -> None:
        self.airflow = airflow
        self.sandbox = sandbox
        self.dag_id = dag_id
        self._before = Counter(sandbox.pushes)
        airflow.wait_until(lambda: airflow.get(f"/dags/{dag_id}") is not None, 60.0, f"{dag_id} was not parsed")
        self.run_id = airflow.trigger(dag_id)

    @property
    def pushed(self) -> Counter[Any]:
        """Return how often each recipient was pushed in this run."""
        return Counter(self.sandbox.pushes) - self._before

    def task(self, task_id: str) -> Any:
        """Return what Airflow's API says of a task."""
        return self.airflow.get(f"/dags/{self.dag_id}/dagRuns/{self.run_id}/taskInstances/{task_id}")

    def wait_until(self, condition: Callable[[], bool], what: str) -> None:
        """Wait until *condition* holds."""
        self.airflow.wait_until(condition, RUN_WITHIN, what)

    def clear(self, task_id: str) -> None:
        """Clear a task as a person does."""
        token = requests.get(f"{self.airflow.url}/auth/token", timeout=30).json()["access_token"]
        answer = requests.post(
            f"{self.airflow.url}/api/v2/dags/{self.dag_id}/clearTaskInstances",
            json={"dry_run": False, "dag_run_id": self.run_id, "task_ids": [task_id], "only_failed": False},
            headers={"Authorization": f"Bearer {token}"},
            timeout=30,
        )
        answer.raise_for_status()

    def pid(self, task_id: str) -> int:
        """Return the process of a running task."""
        return int(self.task(task_id)["pid"])
