"""Sends from a table to a sandbox as the operator does, without Airflow, and reads what the sandbox saw."""

import queue
import sqlite3
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import requests

from airflow_provider_responsys.ledger.fingerprint import fingerprinter
from airflow_provider_responsys.ledger.interface import Ledger
from airflow_provider_responsys.protocol.account import Account, account_from
from airflow_provider_responsys.protocol.pace import Pace
from airflow_provider_responsys.protocol.push import MAX_BODY, MAX_RECIPIENTS, Push, submit
from airflow_provider_responsys.recipients.fields import FieldSettings
from airflow_provider_responsys.recipients.spool import Spool
from airflow_provider_responsys.recipients.sql import query
from airflow_provider_responsys.sending.engine import Engine, Limits
from airflow_provider_responsys.sending.run import Report, Run
from airflow_provider_responsys.transport.sync import Responsys
from benchmarks.ground import hook_at

CAMPAIGN = "Bench"
SQL = "SELECT customer_id, first_name FROM recipients"
MINUTE = 60.0
LOGIN = {"login": "api_user", "password": "sandbox-password"}


def fill(database: Path, recipients: int) -> None:
    """Make the table of recipients."""
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("CREATE TABLE recipients (customer_id TEXT PRIMARY KEY, first_name TEXT)")
        rows = ((f"C{number:08d}", "Zoë 由紀") for number in range(recipients))
        connection.executemany("INSERT INTO recipients VALUES (?, ?)", rows)


def account_at(url: str) -> Account:
    """Return the account of the sandbox at *url*."""
    return account_from(host=url, port=None, schema=None, extra={}, **LOGIN)


def send(
    url: str,
    source: Path,
    ledger: Ledger,
    limit: float,
    *,
    seconds: float | None = None,
    batch: int = MAX_RECIPIENTS,
) -> Report:
    """Send the whole *source*, *batch* recipients a request, or as much as *seconds* allow; return what came of it."""
    account = account_at(url)
    hook = hook_at(f"sqlite:///{source}")
    key = ledger.begin({"campaign_name": CAMPAIGN})
    with closing(ledger), Spool() as spool, Responsys(account, user_agent="benchmark") as responsys:
        with query(hook, SQL) as chunks:
            spool.fill(chunks, FieldSettings(), fingerprinter(key))
        push = Push(CAMPAIGN)
        began = time.monotonic()
        limits = Limits() if seconds is None else Limits(deadline=began + seconds)
        return Run(
            Engine(limits=limits, pace=Pace.at(limit, began)),
            spool.batches(max_recipients=batch, max_bytes=MAX_BODY - 1_000),
            len(spool),
            ledger=ledger,
            post=lambda batch, bodies: responsys.run(submit(account, push, bodies, tracking_id=str(batch))),
            probe=lambda: None,
            inbox=queue.SimpleQueue(),
        ).to_end()


@dataclass(frozen=True, slots=True)
class Seen:
    """What a sandbox saw: when each push came, refused ones too, and its own report."""

    times: list[float]
    report: dict[str, Any]

    @classmethod
    def at(cls, url: str) -> Self:
        """Ask the sandbox at *url*."""
        log = requests.get(f"{url}/sandbox/requests", timeout=60).json()
        report = requests.get(f"{url}/sandbox/report", timeout=60).json()
        return cls([each["time"] for each in log if each["endpoint"] == "push"], report)

    @property
    def per_minute(self) -> float:
        """Return the pushes a minute between the first and the last."""
        return (len(self.times) - 1) / (max(self.times) - min(self.times)) * 60

    def accepted(self, since: float, until: float) -> int:
        """Return how many pushes were accepted in the minutes of the clock from *since* to *until*."""
        minutes = self.report["accepted_by_minute"]
        return sum(minutes.get(str(minute), 0) for minute in range(int(since // MINUTE), int(until // MINUTE)))

    @property
    def refusals(self) -> dict[str, int]:
        """Return how many requests were refused, by code."""
        return dict(self.report["refusals"])

    @property
    def duplicates(self) -> int:
        """Return how many recipients were pushed more than once."""
        return int(self.report["recipients"]["more_than_once"])
