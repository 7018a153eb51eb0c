"""A distributed Airflow on this machine: PostgreSQL, a broker, each component a process, and Celery workers.

All of it listens on the loopback interface or on sockets in folders, and ends with the context managers.
"""

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from example_dags.demo.standalone import BIN, Standalone, free_port

COMPONENTS = ("scheduler", "dag-processor", "api-server", "triggerer")
SLOTS = 2
"""Tasks that a worker runs at a time."""

ROOT = Path(__file__).resolve().parent.parent.parent
WORKER = "RESPONSYS_WORKER"
WORKER_WITHIN = 60.0  # seconds; 10 on two cores
BROKER_WITHIN = 10.0

# An operator of Airflow waits minutes until a task whose worker is gone is given up; here it is seconds. The broker
# gives a message to another worker when it is not acknowledged in time: far too early here, while tasks still run.
IMPATIENCE = {
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "10",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "3",
    "AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL": "2",
    "AIRFLOW__CELERY_BROKER_TRANSPORT_OPTIONS__VISIBILITY_TIMEOUT": "8",
    "AIRFLOW__CELERY_BROKER_TRANSPORT_OPTIONS__UNACKED_RESTORE_INTERVAL": "2",
    "AIRFLOW__CELERY_BROKER_TRANSPORT_OPTIONS__UNACKED_RESTORE_THROTTLE": "1",
}


def what_is_missing() -> str:
    """Return what must be installed before this can run, if anything."""
    try:
        version("apache-airflow-providers-celery")
    except PackageNotFoundError:
        return "CeleryExecutor is not installed: pip install --constraint constraints.txt '.[celery]'"
    if not redis_server():
        return "There is no broker: apt-get install redis-server"
    return ""


def redis_server() -> str | None:
    """Return the path of a Redis server: one that came with the Python packages, or the system's."""
    return shutil.which("redis-server", path=f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}")


@contextmanager
def broker(folder: Path) -> Iterator[str]:
    """Run a Redis server that keeps nothing on disk; give its address."""
    port = free_port()
    command = [redis_server() or "redis-server", "--bind", "127.0.0.1", "--port", str(port), "--save", ""]
    with (folder / "redis.log").open("wb") as log:
        process = subprocess.Popen([*command, "--dir", str(folder)], stdout=log, stderr=log, start_new_session=True)
    try:
        deadline = time.monotonic() + BROKER_WITHIN
        while not _answers(port):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"The broker did not start:\n{(folder / 'redis.log').read_text()}")
            time.sleep(0.05)
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        process.terminate()
        process.wait(BROKER_WITHIN)


@dataclass(frozen=True, slots=True)
class Worker:
    """A Celery worker; Airflow knows its machine by its *name*."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    def family(self) -> list[int]:
        """Return its process and all that descend from it: pool, supervisors, tasks."""
        return list(_descendants(self.process.pid))

    def kill(self) -> None:
        """Kill it with all its tasks, as a machine that loses power."""
        for number in (signal.SIGSTOP, signal.SIGKILL):  # stopped first: nothing is forked in between
            for pid in self.family():
                with suppress(ProcessLookupError):
                    os.kill(pid, number)
        self.process.wait()


class Cluster(Standalone):
    """Airflow with the CeleryExecutor: every component, and no worker until `hire`.

    *database* and *broker* are the addresses of Airflow's database and of the broker.
    """

    def __init__(self, dags: Path, env: Mapping[str, str], *, home: Path, database: str, broker: str) -> None:
        settings = {
            "AIRFLOW__CORE__EXECUTOR": "CeleryExecutor",
            # What a home would make up for itself must be the same everywhere.
            "AIRFLOW__CORE__FERNET_KEY": "",
            "AIRFLOW__API__SECRET_KEY": os.urandom(16).hex(),
            "AIRFLOW__API_AUTH__JWT_SECRET": os.urandom(32).hex(),
            "AIRFLOW__CORE__PARALLELISM": "16",
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": database,
            "AIRFLOW__CELERY__BROKER_URL": broker,
            "AIRFLOW__CELERY__RESULT_BACKEND": f"db+{database}",
            **IMPATIENCE,
            **env,
        }
        paths = (str(ROOT), os.environ.get("PYTHONPATH", ""))
        super().__init__(dags, {"PYTHONPATH": os.pathsep.join(filter(None, paths)), **settings}, home)
        self.workers: list[Worker] = []

    def start(self) -> None:
        """Make Airflow's database, and start all components."""
        migrated = self.launch("database", "db", "migrate").wait()
        if migrated:
            raise RuntimeError(f"Airflow's database could not be made:\n{self.log_of('database').read_text()[-4000:]}")
        del self._processes["database"]
        for name in COMPONENTS:
            self.launch(name, name)

    def hire(self, name: str) -> Worker:
        """Start a worker, and wait until it takes tasks."""
        home = self.home / name
        home.mkdir()
        env = {
            "AIRFLOW_HOME": str(home),
            "AIRFLOW__LOGGING__WORKER_LOG_SERVER_PORT": str(free_port()),
            "AIRFLOW__CORE__HOSTNAME_CALLABLE": f"{__name__}.{worker_name.__name__}",
            WORKER: name,
        }
        options = ("--celery-hostname", name, "--concurrency", str(SLOTS))
        worker = Worker(name, self.launch(name, "celery", "worker", *options, env=env), self.log_of(name))
        self.workers.append(worker)
        ready = lambda: "ready." in worker.log.read_text(errors="replace")  # noqa: E731 -- a name for the wait
        self.wait_until(ready, WORKER_WITHIN, f"{name} did not start")
        return worker

    def leave(self, worker: Worker) -> None:
        """Don't expect *worker* to be there any more."""
        del self._processes[worker.name]

    def __exit__(self, *why: object) -> None:
        for worker in self.workers:
            if worker.process.poll() is None:
                worker.kill()
        super().__exit__(*why)


def worker_name() -> str:
    """Return what a worker calls the machine it runs on: all of them run on this one."""
    return os.environ[WORKER]


def _descendants(pid: int) -> Iterator[int]:
    yield pid
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            for child in children.read_text().split():
                yield from _descendants(int(child))


def _answers(port: int) -> bool:
    try:
        with closing(socket.create_connection(("127.0.0.1", port), timeout=1)) as line:
            line.sendall(b"PING\r\n")
            return line.recv(7) == b"+PONG\r\n"
    except OSError:
        return False
