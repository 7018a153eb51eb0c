"""A home for Airflow without its scheduler: settings, database, API server; and the sandboxes.

Everything is a process forked from this one, which has imported Airflow once and has no
threads; each ends by itself when this one is gone.
"""

import json
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Self

import requests

DAGS = Path(__file__).resolve().parent / "dags"
START_WITHIN = 60.0  # seconds
CAMPAIGN = "Summer_Push"


def settle_in(home: Path) -> str:
    """Point Airflow, which must not be imported yet, to *home*; return the address of its API server to be."""
    port = free_port()
    url = f"http://127.0.0.1:{port}/"
    os.environ.update(
        AIRFLOW_HOME=str(home),
        AIRFLOW__CORE__DAGS_FOLDER=str(DAGS),
        AIRFLOW__CORE__LOAD_EXAMPLES="False",
        AIRFLOW__CORE__EXECUTION_API_SERVER_URL=url,
        AIRFLOW__DATABASE__SQL_ALCHEMY_CONN=f"sqlite:///{home / 'airflow.db'}",
        AIRFLOW__API_AUTH__JWT_SECRET=os.urandom(32).hex(),
        AIRFLOW__LOGGING__LOGGING_LEVEL="WARNING",
        AIRFLOW__WORKERS__EXECUTION_API_RETRIES="3",
        AIRFLOW__WORKERS__EXECUTION_API_RETRY_WAIT_MIN="0.05",
        AIRFLOW__WORKERS__EXECUTION_API_RETRY_WAIT_MAX="0.2",
        # A supervisor may notice the end of its task only when its next heartbeat is due.
        AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL="1",
        NO_PROXY="127.0.0.1,localhost",
        PYTHONWARNINGS="ignore",
    )
    os.environ.pop("AIRFLOW__CORE__UNIT_TEST_MODE", None)
    return url


def free_port() -> int:
    """Return a port of the loopback interface that is free now."""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Child:
    """A process forked from this one; its output goes to *log*."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.status: int | None = None

    @classmethod
    def fork(cls, work: Callable[[], int | None], log: Path, env: Mapping[str, str] | None = None) -> Self:
        """Let a child do *work*; it exits with what that returns."""
        sys.stdout.flush()
        sys.stderr.flush()
        if pid := os.fork():
            return cls(pid)
        code = 1
        try:
            output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            os.dup2(output, 1)
            os.dup2(output, 2)
            os.environ.update(env or {})
            code = work() or 0
        except BaseException:  # noqa: BLE001 -- nothing of the parent may run on in the child
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def ended(self) -> bool:
        """Return whether it has ended."""
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.status = status if pid else None
        return self.status is not None

    def signal(self, number: int) -> bool:
        """Send a signal; return whether it was still there."""
        if self.ended():
            return False
        os.kill(self.pid, number)
        return True

    def children(self) -> list[int]:
        """Return the ids of its children."""
        try:
            return [int(pid) for pid in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()]
        except OSError:
            return []

    def stop(self) -> None:
        """Kill it and wait for its end."""
        self.signal(signal.SIGKILL)
        while not self.ended():
            time.sleep(0.005)


def while_parent_lives(parent: int) -> None:
    """Return when the process that this one was forked from is gone."""
    while os.getppid() == parent:
        time.sleep(0.5)


# The sandbox


class Server:
    """A sandbox in a process of its own."""

    def __init__(self, child: Child, connection: dict[str, Any]) -> None:
        self.child = child
        self.connection = connection
        self.url = f"http://{connection['host']}:{connection['port']}"

    @classmethod
    def start(cls, log: Path, faults: Sequence[Any], **settings: Any) -> Self:
        """Start it."""
        readable, writable = os.pipe()
        parent = os.getpid()

        def serve() -> None:
            from airflow_provider_responsys.sandbox import Sandbox  # noqa: PLC0415 -- imported before the fork

            with Sandbox(faults=faults, campaigns=(CAMPAIGN,), **settings) as sandbox:
                os.write(writable, json.dumps(sandbox.connection()).encode() + b"\n")
                while_parent_lives(parent)

        child = Child.fork(serve, log)
        os.close(writable)
        with os.fdopen(readable) as ready:
            line = ready.readline()
        if not line:
            raise RuntimeError(f"The sandbox did not start:\n{log.read_text()[-2000:]}")
        return cls(child, json.loads(line))

    def ask(self, what: str) -> Any:
        """Return what the sandbox says of itself."""
        return requests.get(f"{self.url}/sandbox/{what}", timeout=10).json()

    def stop(self) -> None:
        """Stop it."""
        self.child.stop()
