"""Shows a person in Airflow how far a task is, while it runs."""

import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from airflow_provider_responsys.errors import Fenced, LimitExceeded, ResponsysError, code_of
from airflow_provider_responsys.metrics import Metrics
from airflow_provider_responsys.sending.outcome import Sent
from airflow_provider_responsys.sending.progress import Observer, Progress

PUSH = "push_progress"
WAIT = "wait_progress"
"""Keys in the task state store. The ledger's begin with ``responsys/``, which the UI lists after a push's."""

SILENCE = 600.0
"""Seconds without another attempt after one failed: Airflow may take a minute to find out that it can't write."""


class Note:
    """Numbers under *key* in Airflow's task state *store*, where the UI and the REST API show them.

    They are for people alone: nothing reads them, they expire as Airflow is set
    up, and whoever deletes them loses nothing. Without a store, nothing is written.
    """

    def __init__(self, store: Any, key: str, log: Any, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._key = key
        self._log = log
        self._clock = clock
        self._failed_at: float | None = None

    def write(self, numbers: Mapping[str, object]) -> None:
        """Show *numbers*, and when that was. A failure is logged once, and changes nothing else."""
        if self._store is None or (self._failed_at is not None and self._clock() - self._failed_at < SILENCE):
            return
        try:
            self._store.set(self._key, {**numbers, "updated": _told(datetime.now(UTC))})
        except Exception as error:  # noqa: BLE001 -- however the store fails: what is done matters, not that it is seen
            if self._failed_at is None:
                self._log.warning(
                    "How far the task is can't be shown in Airflow (%s): %s. It goes on", type(error).__name__, error
                )
            self._failed_at = self._clock()


class PushObserver(Observer):
    """Counts what becomes of a push in *metrics*, and keeps *note* up to date."""

    def __init__(self, metrics: Metrics, note: Note, *, try_number: int, accepted_earlier: int) -> None:
        self._metrics = metrics
        self._note = note
        self._try_number = try_number
        self._accepted_earlier = accepted_earlier

    def accepted(self, recipients: int) -> None:
        """Count an accepted request."""
        self._count("accepted", recipients)

    def rejected(self, recipients: int, code: str) -> None:
        """Count a request that was refused for good."""
        self._count("rejected", recipients, code=code)

    def in_doubt(self, recipients: int) -> None:
        """Count a request whose answer was lost."""
        self._count("in_doubt", recipients)

    def put_off(self, error: ResponsysError) -> None:
        """Count a request that will be sent again."""
        name = "limited" if isinstance(error, LimitExceeded) else "put_off"
        self._metrics.count(f"push.requests.{name}", code=code_of(error))

    def progress(self, progress: Progress) -> None:
        """Show how far the send is."""
        self._note.write(
            {
                "try_number": self._try_number,
                "to_send": progress.total,
                "accepted": progress.accepted,
                "accepted_earlier": self._accepted_earlier,
                "rejected": progress.rejected,
                "in_doubt": progress.in_doubt,
                "left": progress.left,
                "requests": progress.requests,
                "requests_per_minute": round(progress.per_minute),
                "limit_per_minute": round(progress.limit),
                "estimated_end": progress.ends_at and _told(progress.ends_at),
            }
        )

    def end(self, sent: Sent) -> None:
        """Show what became of everybody: all tries of the send, as the task reports it."""
        if isinstance(sent.report.stopped, Fenced):
            return  # another try shows how far it is
        buckets = sent.buckets.as_dict()
        requests = len(sent.request_ids)
        self._note.write({"try_number": self._try_number, **buckets, "requests": requests, "ended": True})

    def _count(self, what: str, recipients: int, **tags: str) -> None:
        self._metrics.count(f"push.requests.{what}", 1, **tags)
        self._metrics.count(f"push.recipients.{what}", recipients, **tags)


def _told(moment: datetime) -> str:
    return moment.isoformat(timespec="seconds")
