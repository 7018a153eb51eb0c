"""How fast a table gets to the spool, and in how much memory, beside bare fetchmany + json.dumps of the same rows.

python benchmarks/spool.py [rows] [rows already claimed]
"""

import json
import platform
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace

import sqlalchemy

from airflow_provider_responsys.ledger.interface import FINGERPRINT_BYTES
from airflow_provider_responsys.protocol.recipient import wire_text
from airflow_provider_responsys.recipients.fields import FieldSettings
from airflow_provider_responsys.recipients.spool import Spool
from airflow_provider_responsys.recipients.sql import query

SELECT = "SELECT customer_id, first_name, city, code, points FROM people"
CHUNK_ROWS = 2000
BATCH_ROWS = 200
BATCH_BYTES = 10_000_000
MEGABYTE = 1024  # the kernel counts in kilobytes
GOAL_SECONDS_A_MILLION = 20
GOAL_MEGABYTES = 60


@dataclass(frozen=True, slots=True)
class Measured:
    """Seconds to the end of a step, and the most memory over the start so far."""

    step: str
    rows: int
    seconds: float
    megabytes: float


def main(rows: int = 1_000_000, claimed: int = 0) -> list[Measured]:
    """Measure both ways, each in a process of its own, and print them."""
    print(f"{rows:,} rows of 5 columns from SQLite {sqlite3.sqlite_version}, Python {platform.python_version()}")
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "people.db"
        make_table(source, rows)
        [bare] = apart(baseline, source, claimed)
        ours = apart(spool, source, claimed)
    for measured in (bare, *ours):
        rate = measured.rows / measured.seconds
        speed = f"{measured.seconds:7.2f} s{rate:12,.0f} rows/s"
        print(f"{measured.step:<28}{speed}{measured.megabytes:8.1f} MB over the start")
    filled = ours[0]
    print(f"ratio, spool to bare: {filled.seconds / bare.seconds:.2f}")
    goal = GOAL_SECONDS_A_MILLION * rows / 1_000_000
    print(f"goals: {filled.seconds:.1f} of {goal:.1f} s, {ours[-1].megabytes:.0f} of {GOAL_MEGABYTES} MB")
    return [bare, *ours]


def baseline(source: Path, _: int) -> list[Measured]:
    """Read the rows and write each as JSON, nothing else."""
    start, memory, count = time.perf_counter(), resident("VmRSS"), 0
    with closing(sqlite3.connect(source)) as database:
        cursor = database.execute(SELECT)
        while rows := cursor.fetchmany(CHUNK_ROWS):
            count += sum(1 for row in rows if json.dumps(row))
    return [Measured("fetchmany + json.dumps", count, time.perf_counter() - start, resident("VmHWM") - memory)]


def spool(source: Path, claimed: int) -> list[Measured]:
    """Read, validate, fingerprint and spool the rows; exclude the *claimed*; cut the rest into batches."""
    hook = SimpleNamespace(get_sqlalchemy_engine=lambda: sqlalchemy.create_engine(f"sqlite:///{source}"))
    memory, measured = resident("VmRSS"), []

    def timed(step: str, run: Callable[[], int]) -> None:
        start = time.perf_counter()
        count = run()
        measured.append(Measured(step, count, time.perf_counter() - start, resident("VmHWM") - memory))

    with Spool() as spool:

        def fill() -> int:
            with query(hook, SELECT) as chunks:
                spool.fill(chunks, FieldSettings(), fingerprint)
            return len(spool)

        timed("spooled", fill)
        if claimed:
            timed("excluded", lambda: sum(map(spool.exclude, claims(claimed))))
        timed("batches", lambda: sum(map(len, spool.batches(max_recipients=BATCH_ROWS, max_bytes=BATCH_BYTES))))
    return measured


def claims(count: int) -> Iterator[list[bytes]]:
    """Yield what an earlier try claimed, in batches, every second person of the table."""
    people = (fingerprint(f'["PROFILE","customerId",{wire_text(customer(2 * number))}]') for number in range(count))
    while batch := list(islice(people, BATCH_ROWS)):
        yield batch


def fingerprint(identity: str) -> bytes:
    """Return what a ledger would keep."""
    return blake2b(identity.encode(), key=b"benchmark", digest_size=FINGERPRINT_BYTES).digest()


def customer(number: int) -> str:
    """Return a customer id."""
    return f"C{number:09}"


def make_table(path: Path, rows: int) -> None:
    """Write the table that is read."""
    with closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE people (customer_id TEXT, first_name TEXT, city TEXT, code TEXT, points REAL)")
        people = ((customer(n), f"Zoë {n}", "São Paulo", f"WELCOME{n % 97}", n / 2) for n in range(rows))
        database.executemany("INSERT INTO people VALUES (?, ?, ?, ?, ?)", people)
        database.commit()


def apart(measure: Callable[[Path, int], list[Measured]], source: Path, claimed: int) -> list[Measured]:
    """Run *measure* in a process of its own: what one used, the other must not find."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(measure, source, claimed).result()


def resident(what: str) -> float:
    """Return the memory of this process in MB: ``VmRSS`` now, ``VmHWM`` at its highest."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split(f"{what}:")[1].split()[0]) / MEGABYTE


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
