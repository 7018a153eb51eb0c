"""A whole Airflow on this machine, for as long as it takes: scheduler, worker, triggerer and API server."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import requests

BIN = Path(sys.executable).parent
START_WITHIN = 180.0  # seconds; 20 to 40 on two cores
STOP_WITHIN = 10.0
COMPONENTS = ("metadatabase", "scheduler", "triggerer", "dag_processor")


class Standalone:
    """``airflow standalone`` in a home of its own, as a context manager.

    *dags* is the DAGs folder; *env* is added to the environment, connections
    (``AIRFLOW_CONN_…``) among them.
    """

    def __init__(self, dags: Path, env: Mapping[str, str], home: Path | None = None) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="responsys-airflow-", ignore_cleanup_errors=True)
        self.home = home or Path(self._folder.name)
        self.url = f"http://127.0.0.1:{free_port()}"
        port = self.url.rpartition(":")[2]
        self.env = {
            **os.environ,
            # It starts its components by name.
            "PATH": f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}",
            "AIRFLOW_HOME": str(self.home),
            "AIRFLOW__CORE__DAGS_FOLDER": str(dags),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
            "AIRFLOW__CORE__PARALLELISM": "4",
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
            "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{self.url}/execution/",
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{self.home / 'airflow.db'}",
            "AIRFLOW__API__HOST": "127.0.0.1",
            "AIRFLOW__API__PORT": port,
            "AIRFLOW__API__BASE_URL": self.url,
            "AIRFLOW__API__WORKERS": "1",
            "AIRFLOW__LOGGING__WORKER_LOG_SERVER_PORT": str(free_port()),
            "AIRFLOW__LOGGING__TRIGGER_LOG_SERVER_PORT": str(free_port()),
            "AIRFLOW__DAG_PROCESSOR__REFRESH_INTERVAL": "5",
            "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
            "NO_PROXY": "127.0.0.1,localhost",
            **env,
        }
        self.env.pop("AIRFLOW__CORE__UNIT_TEST_MODE", None)
        self._session = requests.Session()
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def log(self) -> Path:
        """Return where all components write to."""
        return self.log_of("standalone")

    def log_of(self, name: str) -> Path:
        """Return where the command *name* writes to."""
        return self.home / f"{name}.log"

    def __enter__(self) -> Self:
        try:
            self.start()
            self.wait_until(self._healthy, START_WITHIN, "Airflow did not start")
            token = self._session.get(f"{self.url}/auth/token", timeout=30).json()["access_token"]
            self._session.headers["Authorization"] = f"Bearer {token}"
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        processes, self._processes = self._processes, {}
        deadline = time.monotonic() + STOP_WITHIN
        for process in processes.values():
            signal_group(process, signal.SIGINT)
        for process in processes.values():
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
            signal_group(process, signal.SIGKILL)
            process.wait(STOP_WITHIN)
        self._session.close()
        self._folder.cleanup()

    def start(self) -> None:
        """Start the components."""
        self.launch("standalone", "standalone")

    def launch(self, name: str, *command: str, env: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
        """Start an ``airflow`` *command*, in a process group of its own that is stopped with the others."""
        with self.log_of(name).open("wb") as log:
            process = self._processes[name] = subprocess.Popen(  # noqa: S603 -- our own Airflow
                [BIN / "airflow", *command],
                env={**self.env, **(env or {})},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return process

    def run(self, dag_id: str, within: float = 300.0) -> str:
        """Run the DAG *dag_id* to its end; return the run's id."""
        run_id = self.trigger(dag_id)
        self.wait_for(dag_id, run_id, within)
        return run_id

    def trigger(self, dag_id: str) -> str:
        """Start the DAG *dag_id* as soon as it is parsed; return the run's id."""
        self.wait_until(lambda: self.get(f"/dags/{dag_id}") is not None, 60.0, f"{dag_id} was not parsed")
        return str(self.post(f"/dags/{dag_id}/dagRuns", {"logical_date": None})["dag_run_id"])

    def wait_for(self, dag_id: str, run_id: str, within: float) -> str:
        """Wait until the run has ended; return its state."""
        ended = lambda: self.state(dag_id, run_id) in ("success", "failed")  # noqa: E731 -- a name for the wait
        self.wait_until(ended, within, f"{dag_id} did not end")
        return self.state(dag_id, run_id)

    def state(self, dag_id: str, run_id: str) -> str:
        """Return the run's state."""
        return str(self.get(f"/dags/{dag_id}/dagRuns/{run_id}")["state"])

    def xcom(self, dag_id: str, run_id: str, task_id: str, key: str = "return_value", *, map_index: int = -1) -> Any:
        """Return what the task pushed as *key*, or None."""
        path = f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/xcomEntries/{key}"
        found = self.get(f"{path}?map_index={map_index}&deserialize=true")
        if found is None:
            return None
        value = found["value"]
        return json.loads(value) if isinstance(value, str) and value[:1] in "{[" else value

    def wait(self) -> None:
        """Wait until a component ends, or a signal comes."""
        for process in self._processes.values():
            process.wait()

    def get(self, path: str) -> Any:
        """Return what the API says at *path*, or None where there is nothing."""
        answer = self._session.get(f"{self.url}/api/v2{path}", timeout=30)
        if answer.status_code == requests.codes.not_found:
            return None
        answer.raise_for_status()
        return answer.json()

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """Return what the API answers to *body* at *path*."""
        answer = self._session.post(f"{self.url}/api/v2{path}", json=body, timeout=30)
        answer.raise_for_status()
        return answer.json()

    def wait_until(self, condition: Callable[[], bool], within: float, otherwise: str) -> None:
        """Wait until *condition* holds; raise with the end of each log if it does not *within* seconds."""
        deadline = time.monotonic() + within
        while not condition():
            if time.monotonic() > deadline or any(process.poll() is not None for process in self._processes.values()):
                logs = {name: self.log_of(name).read_text(errors="replace")[-4000:] for name in self._processes}
                tails = "".join(f"\nThe end of the log of {name}:\n{text}" for name, text in logs.items())
                raise RuntimeError(f"{otherwise} within {within:.0f} s.{tails}")
            time.sleep(0.5)

    def _healthy(self) -> bool:
        try:
            health = self._session.get(f"{self.url}/api/v2/monitor/health", timeout=5).json()
        except (requests.RequestException, ValueError):
            return False
        return all((health.get(name) or {}).get("status") == "healthy" for name in COMPONENTS)


def signal_group(process: subprocess.Popen[bytes], number: int) -> None:
    """Send a signal to the process group of *process*, if it is still there."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def free_port() -> int:
    """Return a port of the loopback interface that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
