"""What a wait tells the log, and what it tells those who count."""

from collections.abc import Mapping
from typing import Any, Protocol

from airflow_provider_responsys.errors import ResponsysError
from airflow_provider_responsys.protocol.polling import Failed, Finished, Gone, Outcome, Unclear
from airflow_provider_responsys.protocol.results import Results


class Observer(Protocol):
    """Is told of each poll as it ends. Nothing may raise."""

    def answered(self, found: Results) -> None:
        """Take note of an answer, and what it added to the counts."""

    def refused(self, error: ResponsysError) -> None:
        """Take note of a poll that failed, and is sent again."""


class Unobserved:
    """An observer that does nothing."""

    def answered(self, found: Results) -> None:
        """Do nothing."""

    def refused(self, error: ResponsysError) -> None:
        """Do nothing."""


def log_outcomes(log: Any, outcomes: Mapping[str, Outcome], sizes: Mapping[str, int]) -> None:
    """Name the requests, of *sizes* recipients, that ended without results that can be counted."""
    for request_id, outcome in outcomes.items():
        match outcome:
            case Finished(rows=rows) if (size := sizes.get(request_id)) not in (None, rows):
                log.warning(
                    "Request %s has %d results for %d recipients: which result is whose can't be told",
                    request_id,
                    rows,
                    size,
                )
            case Failed(code=code) | Gone(code=code):
                log.warning("Request %s ended without results: %s", request_id, code)
            case Unclear(status=status):
                log.info("Request %s is neither finished nor in progress (%s)", request_id, status or "no status")
            case _:
                pass


def log_limit(log: Any, limit: int | None, used: int, error: ResponsysError | None = None) -> None:
    """Tell that at most *used* polls a minute are sent: the account's *limit*, one that was set, or a default.

    *error* is why the account's limit could not be read.
    """
    if limit and used < limit:
        log.info(
            "Polling at most %d requests a minute (poll_requests_per_minute of a connection that another wait uses; "
            "the account's limit is %d)",
            used,
            limit,
        )
        return
    if limit:
        log.info("Polling at most %d requests a minute (the account's limit)", limit)
        return
    log.info(
        "Polling at most %d requests a minute (a default, as %s: set poll_requests_per_minute in the connection)",
        used,
        f"the account's limits can't be read: {error}" if error else "the account's limits do not name polls",
    )


def log_progress(log: Any, results: Results) -> None:
    """Tell, in counts, how far the wait is."""
    log.info(
        "%d of %d requests have ended (%d without results); %d recipients handed over to Responsys' queue, %d failed",
        results.total - results.pending,
        results.total,
        results.failed + results.unknown,
        results.recipients_succeeded,
        results.recipients_failed,
    )
