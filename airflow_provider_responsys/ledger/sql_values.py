"""What the SQL ledger tells of sends, batches and requests."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum


class State(StrEnum):
    """What is known of a batch."""

    IN_DOUBT = "in doubt"
    """Claimed, without an answer: it may be on its way at this moment."""
    ACCEPTED = "accepted"
    """Responsys queued it; how it ended is not known yet."""
    FINISHED = "finished"
    """Its results were read."""
    FAILED = "failed"
    """Its request ended without results."""
    NOT_SENT = "not sent"
    """A person resolved it so: its recipients may be claimed again."""
    MOVED = "moved"
    """All of its recipients are in batches that send to them again (at least once)."""
    FORGOTTEN = "forgotten"
    """A restart gave its claims up."""


COUNT = frozenset({State.IN_DOUBT, State.ACCEPTED, State.FINISHED, State.FAILED})
"""The states of batches whose claims stand."""


@dataclass(frozen=True, slots=True)
class Resolution:
    """How a person resolved a doubt."""

    resolved_as: str
    by: str
    at: datetime
    reason: str


@dataclass(frozen=True, slots=True)
class BatchRecord:
    """One batch. *batch_id* is what `Records.settle_by_hand` takes, and its request's ``X-Request-Id``."""

    batch_id: int
    send_key: str
    task_instance: str
    try_number: int
    number: int
    size: int
    state: State
    claimed_at: datetime
    settled_at: datetime | None
    request_id: str | None
    correlation_id: str | None
    polls: int
    outcome_at: datetime | None
    succeeded: int
    failed: Mapping[str, int]
    """How many recipients by error code."""
    request_error: str | None
    resolution: Resolution | None

    @property
    def counts(self) -> bool:
        """Return whether its claims stand."""
        return self.state in COUNT


@dataclass(frozen=True, slots=True)
class SendRecord:
    """One send, and how many recipients of it are in which state."""

    send_key: str
    account: str
    campaign_name: str
    created_at: datetime
    tries: int
    recipients: Mapping[State, int]


@dataclass(frozen=True, slots=True)
class RequestOutcome:
    """How one request ended: *failed* are positions in it by error code, *error* the code of one without results."""

    request_id: str
    size: int
    succeeded: int
    failed: Mapping[str, Sequence[int]]
    error: str | None


@dataclass(frozen=True, slots=True)
class PersonRecord:
    """One push of one recipient: the error *code* it ended with, if any."""

    send_key: str
    claimed_at: datetime
    state: State
    request_id: str | None
    code: str | None


@dataclass(frozen=True, slots=True)
class TraceRecord:
    """What a person did to the record: to *count* batches' recipients, recipients or sends, never to whom."""

    done_at: datetime
    done_by: str
    action: str
    about: str
    count: int
    reason: str
