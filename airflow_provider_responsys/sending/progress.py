"""How far a send is, and who is told."""

from collections import deque
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from airflow_provider_responsys.errors import ResponsysError

LATELY = 60.0
"""Seconds over which the rate is taken: limits count requests a minute."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far one try is: counts of recipients, and the *requests* accepted, *per_minute* at a *limit* a minute.

    *ends_at* is when the last one will be accepted if it goes on like this: None
    at the end, and where it can't be told. *left* have no outcome yet, *not_sent*
    will have none in this try.
    """

    total: int
    accepted: int
    rejected: int
    in_doubt: int
    not_sent: int
    left: int
    requests: int
    per_minute: float
    limit: float
    now: datetime
    ends_at: datetime | None = None

    def __str__(self) -> str:
        counts = {"rejected": self.rejected, "not sent": self.not_sent}
        others = "".join(f", {number} {name}" for name, number in counts.items() if number)
        return (
            f"Accepted {self.accepted} of {self.total} recipients in {self.requests} requests, "
            f"{self.per_minute:.0f} requests a minute (limit {self.limit:.0f}), {self.in_doubt} in doubt{others}"
            f"{self._rest()}"
        )

    def _rest(self) -> str:
        if not self.left:
            return ""
        if self.ends_at is None:
            return f"; {self.left} to go, nothing was accepted lately"
        minutes = (self.ends_at - self.now).total_seconds() / 60
        return f"; about {minutes:.0f} min to go, until {self.ends_at:%F %H:%M %Z}"


class Observer(Protocol):
    """Is told the outcome of requests, each of so many recipients, as it happens.

    All of it on the thread that claims and settles. Nothing may raise.
    """

    def accepted(self, recipients: int) -> None:
        """Responsys queued a request."""

    def rejected(self, recipients: int, code: str) -> None:
        """Responsys refused a request for good."""

    def in_doubt(self, recipients: int) -> None:
        """Whether Responsys queued a request is not known."""

    def put_off(self, error: ResponsysError) -> None:
        """Responsys queued nothing, and the request will be sent again."""

    def progress(self, progress: Progress) -> None:
        """Take note of how far the send is: when it begins, and each half minute."""


class Unobserved:
    """An observer that does nothing."""

    def accepted(self, recipients: int) -> None:
        """Do nothing."""

    def rejected(self, recipients: int, code: str) -> None:
        """Do nothing."""

    def in_doubt(self, recipients: int) -> None:
        """Do nothing."""

    def put_off(self, error: ResponsysError) -> None:
        """Do nothing."""

    def progress(self, progress: Progress) -> None:
        """Do nothing."""


@dataclass(slots=True)
class Speed:
    """How much was accepted lately, since *began*. Times are in seconds."""

    began: float
    marks: deque[tuple[float, int, int]] = field(default_factory=deque)

    def lately(self, now: float, requests: int, recipients: int) -> tuple[float, float]:
        """Return how many requests, and recipients, a second were accepted lately, if these are those until *now*."""
        while len(self.marks) > 1 and self.marks[1][0] <= now - LATELY:
            self.marks.popleft()
        since, requests_before, recipients_before = self.marks[0] if self.marks else (self.began, 0, 0)
        self.marks.append((now, requests, recipients))
        seconds = max(now - since, 0.001)
        return (requests - requests_before) / seconds, (recipients - recipients_before) / seconds
