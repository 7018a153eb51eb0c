"""A worker's memory while it sends to millions, and how soon it begins, beside bare fetchmany + json.dumps.

1,000,000 recipients from PostgreSQL, remembered in a SQL ledger there, and
5,000,000 from SQLite, remembered as in the task state store: each as a first try,
and as a retry that finds every second one of them claimed by the try before. And
1,000,000 from SQLite, remembered in a SQL ledger on SQLite. Each in a process of its
own, with the parts that the operator uses and without Airflow; the sandbox, the
server and what stands for Airflow's store are outside of it.

Memory is the process's resident set over what it is after all imports, looked at
every tenth of a second. Flat means that it is no more than 5 MB higher in the last
third of the sending than in the first. Time to the first request is from the start of
the try: beginning in the ledger, reading, checking, spooling, and on a retry reading
back and leaving out. The spool holds everybody; the sending ends after *seconds*
where not everybody is sent to by then.

python -m benchmarks.memory [recipients from PostgreSQL] [recipients from SQLite] [seconds]
"""

import queue
import sqlite3
import sys
import tempfile
import threading
import time
from contextlib import closing
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Self

import sqlalchemy

from airflow_provider_responsys.ledger.fingerprint import fingerprinter
from airflow_provider_responsys.ledger.interface import Ledger
from airflow_provider_responsys.ledger.sql import SqlLedger
from airflow_provider_responsys.ledger.task_state import TaskStateLedger
from airflow_provider_responsys.protocol.pace import Pace
from airflow_provider_responsys.protocol.push import MAX_BODY, MAX_RECIPIENTS, Push, submit
from airflow_provider_responsys.recipients.fields import FieldSettings
from airflow_provider_responsys.recipients.spool import Spool
from airflow_provider_responsys.recipients.sql import query
from airflow_provider_responsys.sending.engine import Engine, Limits
from airflow_provider_responsys.sending.outcome import Resumed
from airflow_provider_responsys.sending.run import Run
from airflow_provider_responsys.transport.sync import Responsys
from benchmarks.ground import apart, forget_highest, hook_at, resident, sandbox
from benchmarks.people import SELECT, bare, make_table
from benchmarks.record import claim
from benchmarks.report import Report
from benchmarks.sender import CAMPAIGN, account_at
from tests.support.databases import postgres_databases

POSTGRES, SQLITE = 1_000_000, 5_000_000  # recipients
SECONDS = 90.0  # of sending
MILLION = 1_000_000
NO_LIMIT = 1_000_000  # requests a minute
LOOK_EVERY = 0.1  # seconds
GOAL_MEMORY = 60  # MB
GOAL_FLAT = 5  # MB between the first and the last third
GOAL_FIRST_REQUEST = 20  # seconds per million


@dataclass(frozen=True, slots=True)
class Case:
    """One try: the addresses of its *source*, its *ledger* and its *sandbox*, and for how many *seconds* it sends."""

    source: str
    ledger: str
    sandbox: str
    seconds: float
    try_number: int = 1


@dataclass(frozen=True, slots=True)
class Measured:
    """What a try took: seconds until its first request, and megabytes over the start."""

    read: int
    claimed: int
    sent: int
    first_request: float
    peak: float
    first_third: float
    last_third: float


def main(from_postgres: int = POSTGRES, from_sqlite: int = SQLITE, seconds: float = SECONDS) -> None:
    """Measure a first try and a retry on either database, and report."""
    report = Report(
        "memory",
        "Memory of a worker that sends to millions, and its first request",
        {
            "from PostgreSQL": f"{from_postgres:,}",
            "from SQLite": f"{from_sqlite:,}",
            "sending ends after": f"{seconds:.0f} s",
        },
        baseline="fetchmany + json.dumps of the same rows, alone",
    )
    with tempfile.TemporaryDirectory() as name, postgres_databases() as address:
        folder = Path(name)
        for what, rows, source, ledgers in (
            ("PostgreSQL", from_postgres, address("people"), [address("first"), address("retry")]),
            ("SQLite", from_sqlite, f"sqlite:///{folder / 'people'}", [str(folder / "first"), str(folder / "retry")]),
            ("SQLite ledger", from_postgres, f"sqlite:///{folder / 'few'}", [f"sqlite:///{folder / 'ledger'}"]),
        ):
            apart(make_table, source, rows)
            alone = MILLION / apart(bare, source)
            for try_number, ledger in enumerate(ledgers, 1):
                if try_number > 1:
                    apart(claim_half, ledger, rows)
                with sandbox("--log-length", "1") as url:
                    found = apart(measure, Case(source, ledger, url, seconds, try_number))
                add(report, f"{what}, {'first try' if try_number == 1 else 'retry'}", found, alone)
    report.write()


def add(report: Report, what: str, found: Measured, alone: float) -> None:
    """Report one try."""
    first_request = found.first_request * MILLION / found.read
    print(f"{what}: {found.read:,} read, {found.claimed:,} of them claimed before, {found.sent:,} sent")
    report.add(
        f"{what}: to the first request", first_request, "s per million", baseline=alone, at_most=GOAL_FIRST_REQUEST
    )
    report.add(f"{what}: memory at its highest", found.peak, "MB over start", at_most=GOAL_MEMORY)
    report.add(f"{what}: first third of the sending", found.first_third, "MB over start", at_most=GOAL_MEMORY)
    flat = found.first_third + GOAL_FLAT
    report.add(f"{what}: last third of the sending", found.last_third, "MB over start", at_most=flat)


def measure(case: Case) -> Measured:
    """Send as the operator does, and look at the memory of this process meanwhile."""
    with Watch() as watch, closing(ledger_at(case.ledger, case.try_number)) as ledger, Spool() as spool:
        hook = hook_at(case.source)
        account, push = account_at(case.sandbox), Push(CAMPAIGN)
        key = ledger.begin({"campaign_name": CAMPAIGN})
        with query(hook, SELECT) as chunks:
            spool.fill(chunks, FieldSettings(), fingerprinter(key))
        resumed = Resumed.of(ledger.earlier(), spool)
        with Responsys(account, user_agent="benchmark") as responsys:
            watch.sending_since = time.monotonic()
            sent = Run(
                Engine(
                    limits=Limits(deadline=watch.sending_since + case.seconds),
                    pace=Pace.at(NO_LIMIT, watch.sending_since),
                ),
                spool.batches(max_recipients=MAX_RECIPIENTS, max_bytes=MAX_BODY - 1_000),
                len(spool) - resumed.here,
                ledger=ledger,
                post=lambda batch, bodies: responsys.run(submit(account, push, bodies, tracking_id=str(batch))),
                probe=lambda: None,
                inbox=queue.SimpleQueue(),
            ).to_end()
            watch.sending_until = time.monotonic()
        if sent.in_doubt or sent.rejected or resumed.in_doubt:
            raise RuntimeError(f"{sent.in_doubt} in doubt, {sent.rejected}, {resumed.in_doubt} before")
        return Measured(len(spool), resumed.here, sent.accepted, *watch.found())


class Watch:
    """Looks at the memory of this process, again and again, on a thread of its own."""

    def __init__(self) -> None:
        forget_highest()
        self._start = resident()
        self._began = time.monotonic()
        self.sending_since = self.sending_until = self._began
        self._looks: list[tuple[float, float]] = []
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def found(self) -> tuple[float, float, float, float]:
        """Return the seconds until the sending, and the highest memory: at all, in its first and in its last third."""
        third = (self.sending_until - self.sending_since) / 3
        return (
            self.sending_since - self._began,
            resident("VmHWM") - self._start,
            self._highest(self.sending_since, self.sending_since + third),
            self._highest(self.sending_until - third, self.sending_until),
        )

    def _highest(self, since: float, until: float) -> float:
        return max((memory for at, memory in self._looks if since <= at <= until), default=0.0) - self._start

    def _look(self) -> None:
        while not self._end.wait(LOOK_EVERY):
            self._looks.append((time.monotonic(), resident()))


class FileStore:
    """Stands for Airflow's task state store: outside of the worker's memory, and without its round trips."""

    def __init__(self, path: str) -> None:
        self._database = sqlite3.connect(path, isolation_level=None)
        self._database.execute("CREATE TABLE IF NOT EXISTS state (key TEXT PRIMARY KEY, value TEXT)")

    def get(self, key: str) -> str | None:
        """Return the value of *key*, None if there is none."""
        found = self._database.execute("SELECT value FROM state WHERE key = ?", (key,)).fetchone()
        return found and str(found[0])

    def set(self, key: str, value: str, *, retention: timedelta | None = None) -> None:  # noqa: ARG002 -- as Airflow's
        """Write *value*."""
        self._database.execute("INSERT OR REPLACE INTO state VALUES (?, ?)", (key, value))

    def delete(self, key: str) -> None:
        """Remove *key*."""
        self._database.execute("DELETE FROM state WHERE key = ?", (key,))


def ledger_at(place: str, try_number: int) -> Ledger:
    """Return a SQL ledger where *place* is an address, otherwise one on a store in the file *place*."""
    if "://" not in place:
        return TaskStateLedger(FileStore(place), try_number=try_number, max_tries=1, retries=1)
    engine = sqlalchemy.create_engine(place)
    return SqlLedger(engine, send_key="bench", task_instance="bench", try_number=try_number, max_tries=1, retries=1)


def claim_half(place: str, rows: int) -> None:
    """Be the try before: every second row is claimed and accepted."""
    with closing(ledger_at(place, 1)) as ledger:
        claim(ledger, range(0, rows, 2))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
