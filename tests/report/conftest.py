"""A ledger on each database, as tasks write it and people look at it."""

from collections.abc import Iterator

import pytest

from airflow_provider_responsys.ledger.sql_records import Records
from airflow_provider_responsys.report.from_ledger import LedgerReports
from tests.support.book import Book
from tests.support.places import SqlPlace
from tests.support.sql_places import database, mariadb, postgresql, sqlite  # noqa: F401 -- fixtures


@pytest.fixture
def book(database: SqlPlace) -> Iterator[Book]:  # noqa: F811 -- the fixture
    """Give a ledger on each database in turn."""
    records = Records(database.engine(), now=lambda: database.now)
    reports = LedgerReports(database.engine(), now=lambda: database.now)
    yield Book(database, records, reports)
    records.close()
    reports.close()
