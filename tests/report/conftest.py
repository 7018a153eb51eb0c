"""A ledger on each database, as tasks write it and people look at it."""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from airflow_provider_responsys.ledger.interface import FINGERPRINT_BYTES, Accepted, Wanted
from airflow_provider_responsys.ledger.sql import SqlLedger
from airflow_provider_responsys.ledger.sql_records import Records
from airflow_provider_responsys.report.from_ledger import LedgerReports
from airflow_provider_responsys.report.model import PushTask
from tests.ledger.conftest import (  # noqa: F401 -- fixtures
    SqlPlace,
    database,
    mariadb,
    postgresql,
    sqlite,
)

ANSWER_WITHIN = 70.0


def people(first: int, count: int) -> list[bytes]:
    """Return the fingerprints of *count* recipients, numbered from *first*."""
    return [number.to_bytes(FINGERPRINT_BYTES, "big") for number in range(first, first + count)]


def task(run_id: str = "run", *, dag_id: str = "dag", map_index: int | None = None) -> PushTask:
    """Return a task of a run."""
    return PushTask(dag_id=dag_id, task_id="push", run_id=run_id, map_index=map_index)


@dataclass
class Book:
    """What tasks write into a ledger."""

    place: SqlPlace
    records: Records
    reports: LedgerReports
    recipients: int = 0

    def begin(
        self, of: PushTask, *, campaign: str = "Autumn", send_key: str | None = None, try_number: int = 1
    ) -> SqlLedger:
        """Begin a try."""
        name = f"{of.dag_id}/{of.task_id}/{of.run_id}/{-1 if of.map_index is None else of.map_index}"
        ledger = self.place.open(
            try_number,
            task_instance=name,
            send_key=send_key or f"{of.dag_id}/{of.task_id}/{of.run_id}",
            answer_within=ANSWER_WITHIN,
            sleep=lambda seconds: None,
        )
        ledger.begin({"account": "api@host", "campaign_name": campaign})
        return ledger

    def send(self, ledger: SqlLedger, *sizes: int, lost: int = 0) -> None:
        """Let batches of *sizes* be accepted, all but the last *lost*."""
        wanted = [Wanted(number, self._new(size)) for number, size in enumerate(sizes, start=1)]
        ledger.commit([], wanted)
        answered = wanted[: len(wanted) - lost]
        ledger.commit([Accepted(want.number, f"request-{want.batch_id}", "corr 0") for want in answered], [])

    def push(
        self, of: PushTask, *sizes: int, lost: int = 0, campaign: str = "Autumn", send_key: str | None = None
    ) -> SqlLedger:
        """Let one try send batches of *sizes*."""
        ledger = self.begin(of, campaign=campaign, send_key=send_key)
        self.send(ledger, *sizes, lost=lost)
        return ledger

    def requests(self, of: PushTask) -> list[str]:
        """Return the ids of the accepted requests of a task, oldest first."""
        report = self.reports.push(of)
        assert report is not None
        return [batch.request_id for batch in report.batches if batch.request_id]

    def _new(self, size: int) -> list[bytes]:
        self.recipients += size
        return people(self.recipients - size, size)


@pytest.fixture
def book(database: SqlPlace) -> Iterator[Book]:  # noqa: F811 -- the fixture
    """Give a ledger on each database in turn."""
    records = Records(database.engine(), now=lambda: database.now)
    reports = LedgerReports(database.engine(), now=lambda: database.now)
    yield Book(database, records, reports)
    records.close()
    reports.close()
