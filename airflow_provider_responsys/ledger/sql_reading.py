"""What all readers of the SQL ledger's tables share: the state of a batch, when its answer can't come any more."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.engine import Connection
from sqlalchemy.sql import ColumnElement

from airflow_provider_responsys.ledger.sql_tables import NOT_SENT, batches, claims, sends, task_instances, tries
from airflow_provider_responsys.ledger.sql_values import Resolution, SendRecord, State

LOOK_UP = 500  # ids that one statement names: SQLite took 999 parameters for long


def in_pieces(ids: Sequence[int]) -> Iterator[Sequence[int]]:
    """Yield *ids*, as many at a time as one statement takes."""
    for start in range(0, len(ids), LOOK_UP):
        yield ids[start : start + LOOK_UP]


def state_of(row: Any) -> State:
    """Return the state of the batch, or of the group of batches, in *row*."""
    if row.forgotten_at and row.resolved_as == NOT_SENT:
        return State.NOT_SENT
    if row.forgotten_at:
        return State.MOVED if row.moved and not row.size else State.FORGOTTEN
    if row.request_error:
        return State.FAILED
    if row.outcome_at:
        return State.FINISHED
    return State.ACCEPTED if row.settled_at else State.IN_DOUBT


def by_state(of: "ColumnElement[Any]") -> Any:
    """Return a query for the recipients and requests of each *of*, a column of `batches`, by what `state_of` reads."""
    known: tuple[ColumnElement[Any], ...] = (
        of,
        batches.c.forgotten_at.is_not(None).label("forgotten_at"),
        batches.c.resolved_as,
        batches.c.settled_at.is_not(None).label("settled_at"),
        batches.c.outcome_at.is_not(None).label("outcome_at"),
        batches.c.request_error,
    )
    sums = (
        func.sum(batches.c.size).label("size"),
        func.max(batches.c.moved).label("moved"),
        func.count(batches.c.request_id).label("requests"),
        func.max(batches.c.claimed_at).label("claimed_at"),
    )
    return select(*known, *sums).group_by(*known)


def send_records(connection: Connection, *which: "ColumnElement[bool]") -> list[SendRecord]:
    """Return the sends that *which* selects, newest first."""
    query = select(sends).where(*which).order_by(sends.c.created_at.desc(), sends.c.id.desc())
    ids = select(sends.c.id).where(*which)
    found = connection.execute(query).all()
    of_tries = select(tries.c.send_id, func.count()).where(tries.c.send_id.in_(ids)).group_by(tries.c.send_id)
    begun = {send_id: int(count) for send_id, count in connection.execute(of_tries)}
    sizes: dict[int, Counter[State]] = {}
    for row in connection.execute(by_state(batches.c.send_id).where(batches.c.send_id.in_(ids))):
        sizes.setdefault(row.send_id, Counter())[state_of(row)] += int(row.size)
    return [
        SendRecord(
            send_key=row.send_key,
            account=row.account,
            campaign_name=campaign_of(row.identity),
            created_at=row.created_at,
            tries=begun.get(row.id, 0),
            recipients=dict(+sizes.get(row.id, Counter())),
        )
        for row in found
    ]


def campaign_of(identity: str) -> str:
    """Return the campaign in the settings that are stored with a send."""
    return str(json.loads(identity).get("campaign_name", ""))


def in_order() -> tuple["ColumnElement[Any]", ...]:
    """Return what `batch_rows` are sorted by, the oldest first."""
    return tries.c.began_at, tries.c.task_instance_id, tries.c.start, batches.c.number


def batch_rows() -> Any:
    """Return a query for whole batches, with their sends, tries and task instances."""
    of_try = (tries.c.try_number, tries.c.last_write_at, tries.c.answer_within, tries.c.ended_at)
    return (
        select(batches, *of_try, sends.c.send_key, task_instances.c.name.label("task_instance"))
        .join(tries, tries.c.id == batches.c.try_id)
        .join(task_instances, task_instances.c.id == tries.c.task_instance_id)
        .join(sends, sends.c.id == batches.c.send_id)
    )


def resolution_of(row: Any) -> Resolution | None:
    """Return how a person resolved the batch in *row*, None if no one did."""
    if not row.resolved_at:
        return None
    return Resolution(row.resolved_as, row.resolved_by, row.resolved_at, row.resolve_reason)


def last_answer_at(claimed_at: datetime, last_write_at: datetime, answer_within: float) -> datetime:
    """Return when the last answer can come to what was claimed until *claimed_at*; its try may still send it, too."""
    return max(claimed_at, last_write_at) + timedelta(seconds=answer_within)


def claims_of(connection: Connection, fingerprint: bytes) -> list[Any]:
    """Return the claims of one recipient, with their whole batches, newest first.

    Told the sends, the database finds them by the primary key.
    """
    found = [
        row
        for ids in in_pieces(connection.execute(select(sends.c.id)).scalars().all())
        for row in connection.execute(
            batch_rows()
            .add_columns(claims.c.position, sends.c.identity)
            .join(claims, claims.c.batch_id == batches.c.id)
            .where(claims.c.fingerprint == fingerprint, claims.c.send_id.in_(ids))
        )
    ]
    return sorted(found, key=lambda row: row.claimed_at, reverse=True)


def place_in_request(connection: Connection, claim: Any) -> int:
    """Return the position of *claim* in its request: it counts those whom the batch won."""
    ahead = select(func.count()).where(claims.c.batch_id == claim.id, claims.c.position < claim.position)
    return int(connection.execute(ahead).scalar_one())


def failure_of(claim: Any, place: int) -> str | None:
    """Return the code with which the recipient at *place* failed, None if it did not, or that is not known."""
    failed = json.loads(claim.failed or "{}")
    return next((code for code, positions in failed.items() if place in positions), None)
