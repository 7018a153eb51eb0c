"""What benchmarks stand on: a sandbox, a fresh process, and memory as the kernel counts it."""

import re
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import psycopg
import sqlalchemy

KILOBYTES = 1024  # the kernel counts memory in kilobytes

T = TypeVar("T")


@contextmanager
def sandbox(*options: str, campaign: str = "Bench") -> Iterator[str]:
    """Run a sandbox with the command-line *options* in a process of its own; give its address."""
    command = [sys.executable, "-m", "airflow_provider_responsys.sandbox", "--port", "0", "--campaign", campaign]
    command += ["--no-exact", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            found = re.search(r"http://\S+", process.stdout.readline() if process.stdout else "")
            if not found:
                raise RuntimeError("the sandbox did not start")
            yield found[0]
        finally:
            process.terminate()


def apart(measure: Callable[..., T], *arguments: Any) -> T:
    """Run *measure* in a fresh process: what another one used, it must not find."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(measure, *arguments).result()


def resident(what: str = "VmRSS") -> float:
    """Return the memory of this process in MB: ``VmRSS`` now, ``VmHWM`` at its highest."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split(f"{what}:")[1].split()[0]) / KILOBYTES


def forget_highest() -> None:
    """Let ``VmHWM`` count from now: what imports needed, no work needs again."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def hook_at(url: str) -> Any:
    """Return what a source needs of a database hook, for the SQLite file or the PostgreSQL database at *url*."""
    address = sqlalchemy.make_url(url)

    def connect() -> Any:
        if address.drivername == "sqlite":
            return sqlite3.connect(str(address.database))
        return psycopg.connect(**address.translate_connect_args(username="user", database="dbname"), **address.query)

    return SimpleNamespace(get_conn=connect)
