"""Where a page's numbers come from: the SQL ledger if one is set, and Airflow's own database."""

import logging
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING

from airflow.providers.common.compat.sdk import AirflowException

from airflow_provider_responsys.errors import ResponsysError
from airflow_provider_responsys.ledger.fingerprint import fingerprinter
from airflow_provider_responsys.ledgers import ledger_conn_id_of, ledger_engine
from airflow_provider_responsys.report import from_airflow
from airflow_provider_responsys.report.from_airflow import Kind, Progress, TaskReport
from airflow_provider_responsys.report.model import PersonInSend, PushReport, PushState, PushSummary, PushTask

if TYPE_CHECKING:
    from airflow_provider_responsys.report.batches import PositionOutcome
    from airflow_provider_responsys.report.from_ledger import LedgerReports

PAGE = 50
"""Rows of a page."""

RUNNING = 200
"""So many pushes are looked at that a ledger takes for running."""

log = logging.getLogger(__name__)


class LedgerState(StrEnum):
    """Whether there is a ledger to read."""

    READ = "read"
    NOT_SET = "not set"
    EMPTY = "empty"
    UNREADABLE = "unreadable"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What a list is asked for."""

    dag_ids: Collection[str]
    campaign: str | None = None
    state: PushState | None = None
    since: datetime | None = None
    until: datetime | None = None
    page: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """A page of a list of *total* pushes, and how far those are that run; *cut* where older ones were not looked at."""

    pushes: list[PushSummary]
    total: int
    progress: Mapping[PushTask, Progress]
    cut: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """What is known of one task: *report* is None where it is no push, *task* where Airflow does not know it."""

    report: PushReport | None
    task: TaskReport | None
    in_ledger: bool = False


class Ledger:
    """The configured ledger, for one answer of the page; without one, what Airflow knows."""

    def __init__(self, state: LedgerState, reports: "LedgerReports | None" = None, conn_id: str = "") -> None:
        self.state = state
        self.conn_id = conn_id
        self._reports = reports

    def pushes(self, wanted: Wanted) -> Listed:
        """Return a page of the pushes, in doubt first."""
        offset = (wanted.page - 1) * PAGE
        if self._reports:
            return self._listed(self._reports, wanted, offset)
        known, progress, cut = from_airflow.push_summaries(
            dag_ids=wanted.dag_ids,
            campaign=wanted.campaign,
            state=wanted.state,
            since=wanted.since,
            until=wanted.until,
        )
        return Listed(pushes=known[offset : offset + PAGE], total=len(known), progress=progress, cut=cut)

    def _listed(self, reports: "LedgerReports", wanted: Wanted, offset: int) -> Listed:
        """Return a page of the ledger's pushes. For a while it takes for running what Airflow knows to have ended."""
        progress: dict[PushTask, Progress] = {}

        def asked(state: PushState | None, offset: int, limit: int) -> tuple[list[PushSummary], int]:
            found, total = reports.pushes(
                dag_ids=wanted.dag_ids,
                campaign=wanted.campaign,
                state=state,
                since=wanted.since,
                until=wanted.until,
                offset=offset,
                limit=limit,
            )
            merged, running = from_airflow.merged_summaries(found)
            progress.update(running)
            return merged, total

        if wanted.state is None:
            found, total = asked(None, offset, PAGE)
            found.sort(key=lambda push: push.state is not PushState.IN_DOUBT)
            return Listed(pushes=found, total=total, progress=progress)
        running, _ = asked(PushState.RUNNING, 0, RUNNING)
        ended = [push for push in running if push.state is wanted.state]
        first = ended[offset : offset + PAGE]
        if wanted.state is PushState.RUNNING:
            return Listed(pushes=first, total=len(ended), progress=progress)
        found, total = asked(wanted.state, max(0, offset - len(ended)), PAGE - len(first))
        return Listed(pushes=[*first, *found], total=total + len(ended), progress=progress)

    def push(self, task: PushTask, page: int) -> Shown:
        """Return what is known of one push."""
        found = from_airflow.task_report(task)
        report = self._reports.push(task, offset=(page - 1) * PAGE, limit=PAGE) if self._reports else None
        if report is None:
            return Shown(report=from_airflow.as_report(found) if found.kind is Kind.PUSH else None, task=found)
        if not found.airflow_states:
            return Shown(report=report, task=None, in_ledger=True)
        return Shown(report=from_airflow.merged(report, found), task=replace(found, kind=Kind.PUSH), in_ledger=True)

    def outcomes(self, task: PushTask) -> "Iterator[PositionOutcome]":
        """Yield each outcome of *task*'s recipients by request and position; none without a ledger."""
        if self._reports:
            yield from self._reports.outcomes_by_position(task)

    def person(self, identity: str) -> list[PersonInSend]:
        """Return in which sends one recipient is recorded; none without a ledger."""
        if not self._reports:
            return []
        return self._reports.person(fingerprinter(self._reports.fingerprint_key())(identity))

    def close(self) -> None:
        """Close the connections."""
        if self._reports:
            self._reports.close()


@contextmanager
def ledger_read() -> Iterator[Ledger]:
    """Give the ledger that Airflow's config names, or the word for why there is none."""
    conn_id = ledger_conn_id_of(None)
    if conn_id is None:
        yield Ledger(LedgerState.NOT_SET)
        return
    state, reports = _opened(conn_id)
    ledger = Ledger(state, reports, conn_id)
    try:
        yield ledger
    finally:
        ledger.close()


def _opened(conn_id: str) -> "tuple[LedgerState, LedgerReports | None]":
    from sqlalchemy.exc import SQLAlchemyError  # noqa: PLC0415 -- with the ledger

    from airflow_provider_responsys.report.from_ledger import (  # noqa: PLC0415 -- the same
        NO_LEDGER,
        LedgerReports,
    )

    reports = None
    try:
        with warnings.catch_warnings():
            # Airflow warns of what its own connections do when they are asked for their hook.
            warnings.simplefilter("ignore")
            reports = LedgerReports(ledger_engine(conn_id))
        reports.fingerprint_key()
    except (ResponsysError, AirflowException, ImportError, SQLAlchemyError) as error:
        if reports:
            reports.close()
        if str(error) == NO_LEDGER:
            return LedgerState.EMPTY, None
        # By its type alone: its text may name the address, or the password.
        log.warning("The ledger of connection %s can't be read (%s)", conn_id, type(error).__name__)
        return LedgerState.UNREADABLE, None
    return LedgerState.READ, reports
