"""The values of a report. They hold counts, codes, ids and times, and never a recipient."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum


class PushState(StrEnum):
    """How far a push is, as its record tells."""

    RUNNING = "running"
    """A try began and has not ended, or an answer may still come."""
    IN_DOUBT = "in doubt"
    """It has ended, and recipients may or may not have been pushed."""
    ENDED = "ended"
    """It has ended, and each claimed recipient's request was answered or resolved."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PushTask:
    """One task of one DAG run; with *map_index* None, all map indexes of it together."""

    dag_id: str
    task_id: str
    run_id: str
    map_index: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Buckets:
    """Recipients by their outcome, as far as the record knows them.

    *read* is None where only Airflow knows (XCom ``recipients``), and the parts that no ledger keeps are then 0.
    *in_flight* are claimed, and their answers may still come; a push that has ended has none.
    """

    read: int | None = None
    accepted: int = 0
    rejected: int = 0
    in_doubt: int = 0
    in_flight: int = 0
    not_sent: int = 0
    withheld: int = 0
    duplicate: int = 0
    invalid: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class PushSummary:
    """One push in a list: what was sent, by which task, when, and how many recipients are in which bucket."""

    task: PushTask
    campaign_name: str
    account: str
    send_key: str
    state: PushState
    began_at: datetime
    ended_at: datetime | None
    """None also where its last try was killed."""
    tries: int
    """The tries of the task instance; of a mapped task, the most that one map index had."""
    requests: int
    buckets: Buckets


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeCount:
    """How many recipients have an outcome: its *code*, what it *means*, and whether it is *normal* for a push."""

    code: str
    count: int
    meaning: str
    normal: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcomes:
    """What Responsys said about recipients of accepted requests; *unknown* were not counted yet, or never will be."""

    succeeded: int = 0
    failed: int = 0
    unknown: int = 0
    by_code: Sequence[CodeCount] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchReport:
    """One batch: its id (the request's ``X-Request-Id``), its recipients, and what is known of its request."""

    batch_id: int
    send_key: str
    task_instance: str
    """Its name in the ledger: DAG, task, run and map index."""
    map_index: int
    try_number: int
    number: int
    """Of the batch, in its try."""
    size: int
    state: str
    """As `airflow responsys show` names it."""
    claimed_at: datetime
    settled_at: datetime | None = None
    request_id: str | None = None
    correlation_id: str | None = None
    polls: int = 0
    """Of the process that read its outcome: those of a wait that was restarted before are not counted."""
    outcome_at: datetime | None = None
    kept_until: datetime | None = None
    """Until when Responsys answers polls for it, as documented."""
    succeeded: int | None = None
    failed: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """Positions in the request, from 0, by code."""
    request_error: str | None = None
    resolved: str | None = None
    """Who resolved its doubt as what, when and why; or None."""
    awaited: bool = False
    """Whether it is in doubt only until its answer comes, which it still may."""
    settle_command: str | None = None
    """What a person types to resolve it, where it is in doubt and no answer will come."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """Requests and recipients accepted until a moment."""

    at: datetime
    requests: int
    recipients: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PushReport:
    """All that is known of one push."""

    summary: PushSummary
    outcomes: Outcomes
    batches: Sequence[BatchReport] = ()
    """A page of them, those in doubt first."""
    batch_count: int = 0
    accepted_over_time: Sequence[Point] = ()
    """At most a hundred points."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PersonInSend:
    """One send in which one recipient is recorded, and how."""

    task: PushTask
    campaign_name: str
    send_key: str
    claimed_at: datetime
    bucket: str
    """``accepted`` or ``in doubt``."""
    request_id: str | None = None
    position: int | None = None
    outcome: str | None = None
    """``succeeded``, ``failed``, or None where it is not known."""
    code: str | None = None
