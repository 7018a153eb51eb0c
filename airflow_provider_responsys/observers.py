"""What sending and waiting tell a monitoring system, and the note that a person sees in Airflow."""

import threading
from typing import TYPE_CHECKING

from airflow_provider_responsys.errors import Fenced, LimitExceeded, ResponsysError, code_of
from airflow_provider_responsys.metrics import Metrics
from airflow_provider_responsys.progress import TaskStateNote, told
from airflow_provider_responsys.protocol.results import Results
from airflow_provider_responsys.threads import Call, LoopThreads

if TYPE_CHECKING:  # a sensor imports this, and has no use for the sender
    from airflow_provider_responsys.sending.outcome import Sent
    from airflow_provider_responsys.sending.progress import Progress

FIRST = threading.Lock()
"""Held while the first counter is sent: Airflow connects to the monitoring system then, and should do so once."""


class PushObserver:
    """Counts the requests of a push by outcome in *metrics*, and keeps *note* up to date."""

    def __init__(self, metrics: Metrics, note: TaskStateNote, *, try_number: int, accepted_earlier: int) -> None:
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

    def progress(self, progress: "Progress") -> None:
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
                "estimated_end": progress.ends_at and told(progress.ends_at),
            }
        )

    def end(self, sent: "Sent") -> None:
        """Show the recipients by outcome: of all tries of the send, as the task reports it."""
        if isinstance(sent.report.stopped, Fenced):
            return  # another try shows how far it is
        buckets = sent.buckets.as_dict()
        requests = len(sent.request_ids)
        self._note.write({"try_number": self._try_number, **buckets, "requests": requests, "ended": True})

    def _count(self, what: str, recipients: int, **tags: str) -> None:
        self._metrics.count(f"push.requests.{what}", 1, **tags)
        self._metrics.count(f"push.recipients.{what}", recipients, **tags)


class WaitObserver:
    """Counts the polls of a wait in *metrics*, and what they added."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._begun: Call[None] | None = None

    def begin_on(self, threads: LoopThreads) -> None:
        """Count a wait on *threads*, and nothing else until that is done.

        The first counter may look up an address, which may hang: neither the event
        loop nor the wait may depend on it. What is polled until then is not counted.
        """
        self._begun = Call(self.begun)
        threads.pool.submit(self._begun)

    @property
    def _counts(self) -> bool:
        return self._begun is None or self._begun.ended

    def begun(self) -> None:
        """Count a wait. Never on an event loop: see `begin_on`."""
        with FIRST:
            self._metrics.count("wait.begun")

    def answered(self, found: Results) -> None:
        """Count a poll that was answered, and what it added to the counts."""
        if not self._counts:
            return
        metrics = self._metrics
        metrics.count("wait.polls.answered")
        metrics.count("wait.requests.ended", found.finished, outcome="finished")
        metrics.count("wait.requests.ended", found.failed, outcome="failed")
        metrics.count("wait.requests.ended", found.unknown, outcome="unknown")
        metrics.count("wait.recipients.succeeded", found.recipients_succeeded)
        for code, number in found.errors.items():
            metrics.count("wait.recipients.failed", number, code=code)

    def refused(self, error: ResponsysError) -> None:
        """Count a poll that failed."""
        if not self._counts:
            return
        name = "limited" if isinstance(error, LimitExceeded) else "failed"
        self._metrics.count(f"wait.polls.{name}", code=code_of(error))
