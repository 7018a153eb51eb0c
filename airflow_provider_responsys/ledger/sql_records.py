"""The SQL ledger for those who do not send: the poller, and people.

Succeeded means handed to Responsys' personalization queue, not delivered.
"""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from secrets import token_bytes
from typing import Any

from sqlalchemy import delete, func, select, update
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.sql import ColumnElement

from airflow_provider_responsys.errors import LedgerFailed
from airflow_provider_responsys.ledger.interface import FINGERPRINT_BYTES
from airflow_provider_responsys.ledger.sql_schema import Database, batches, claims, digest, sends, tries


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
    FORGOTTEN = "forgotten"
    """A restart gave its claims up, whatever became of it."""


@dataclass(frozen=True, slots=True)
class BatchRecord:
    """One batch. *batch_id* is what `Records.settle_by_hand` takes."""

    batch_id: int
    owner: str
    try_number: int
    number: int
    size: int
    state: State
    claimed_at: datetime
    settled_at: datetime | None
    request_id: str | None
    outcome_at: datetime | None
    succeeded: int
    failed: Mapping[str, int]
    """How many recipients by error code."""
    request_error: str | None


@dataclass(frozen=True, slots=True)
class SendRecord:
    """One send, and how many recipients of it are in which state."""

    send_key: str
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


class Records:
    """All sends of the ledger on *engine*, which is its own, as `SqlLedger`'s."""

    def __init__(self, engine: Engine, *, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._database = Database(engine)
        self._now = now

    def fingerprint_key(self) -> bytes:
        """Return what recipients are fingerprinted with; make the tables if there are none."""
        return self._database.prepare(self._now())

    def close(self) -> None:
        """Close the connections."""
        self._database.dispose()

    # For the poller

    def open_requests(self, send_key: str) -> list[str]:
        """Return the accepted requests of *send_key* whose outcome is not recorded, oldest first."""
        query = _of(send_key, select(batches.c.request_id)).where(batches.c.outcome_at.is_(None))
        with self._database.transaction() as connection:
            return list(connection.execute(query.order_by(batches.c.settled_at, batches.c.number)).scalars())

    def record_outcome(
        self,
        send_key: str,
        request_id: str,
        *,
        succeeded: int = 0,
        failed: Mapping[str, Sequence[int]] | None = None,
        error: str | None = None,
    ) -> None:
        """Record how *request_id* ended, in one write; harmless to repeat.

        *failed* are positions in the request by error code; *error* is the code
        of a request that ended without results.
        """
        outcome = {
            "outcome_at": self._now(),
            "succeeded": succeeded,
            "failed": json.dumps({code: list(positions) for code, positions in (failed or {}).items()}),
            "request_error": error,
        }
        send = select(sends.c.id).where(sends.c.send_hash == digest(send_key)).scalar_subquery()
        written = update(batches).where(batches.c.request_id == request_id, batches.c.send_id == send).values(outcome)
        if self._database.attempt(lambda connection: connection.execute(written).rowcount) == 0:
            raise LedgerFailed(f"The ledger has no request {request_id} of send key {send_key!r}")

    def outcomes(self, send_key: str) -> list[RequestOutcome]:
        """Return the outcomes recorded so far: a restarted poller goes on from them."""
        columns = (
            batches.c.request_id,
            batches.c.size,
            batches.c.succeeded,
            batches.c.failed,
            batches.c.request_error,
        )
        query = _of(send_key, select(*columns)).where(batches.c.outcome_at.is_not(None))
        with self._database.transaction() as connection:
            rows = connection.execute(query.order_by(batches.c.settled_at, batches.c.number)).all()
        return [
            RequestOutcome(row.request_id, row.size, row.succeeded, json.loads(row.failed), row.request_error)
            for row in rows
        ]

    # For people

    def sends(self) -> list[SendRecord]:
        """Return every send, newest first."""
        with self._database.transaction() as connection:
            found = connection.execute(select(sends).order_by(sends.c.created_at.desc(), sends.c.id.desc())).all()
            begun = _counts(connection, select(tries.c.send_id, func.count()).group_by(tries.c.send_id))
            sizes: dict[int, Counter[State]] = {}
            for row in connection.execute(_by_state()):
                sizes.setdefault(row.send_id, Counter())[_state(row)] += int(row.size)
        return [
            SendRecord(
                send_key=row.send_key,
                campaign_name=json.loads(row.identity).get("campaign_name", ""),
                created_at=row.created_at,
                tries=begun.get(row.id, 0),
                recipients=dict(sizes.get(row.id, {})),
            )
            for row in found
        ]

    def show(self, send_key: str) -> list[BatchRecord]:
        """Return every batch of *send_key*, oldest first."""
        query = (
            select(batches, tries.c.owner, tries.c.try_number)
            .join(tries, tries.c.id == batches.c.try_id)
            .join(sends, sends.c.id == batches.c.send_id)
            .where(sends.c.send_hash == digest(send_key))
            .order_by(tries.c.id, batches.c.number)
        )
        with self._database.transaction() as connection:
            rows = connection.execute(query).all()
        return [
            BatchRecord(
                batch_id=row.id,
                owner=row.owner,
                try_number=row.try_number,
                number=row.number,
                size=row.size,
                state=_state(row),
                claimed_at=row.claimed_at,
                settled_at=row.settled_at,
                request_id=row.request_id,
                outcome_at=row.outcome_at,
                succeeded=row.succeeded or 0,
                failed={code: len(positions) for code, positions in json.loads(row.failed or "{}").items()},
                request_error=row.request_error,
            )
            for row in rows
        ]

    def settle_by_hand(self, batch_id: int, *, sent: bool) -> None:
        """Settle a batch in doubt, as a person found out: it was *sent*, or its recipients may be claimed again."""
        doubtful = (batches.c.id == batch_id, batches.c.settled_at.is_(None), batches.c.forgotten_at.is_(None))
        settled = update(batches).where(*doubtful).values(settled_at=self._now())
        unsent = delete(batches).where(*doubtful)

        def settle(connection: Connection) -> None:
            if connection.execute(settled if sent else unsent).rowcount == 0:
                raise LedgerFailed(f"The ledger has no batch {batch_id} in doubt: look it up again with `show`")
            if not sent:
                connection.execute(delete(claims).where(claims.c.batch_id == batch_id))

        self._database.attempt(settle)

    def person(self, fingerprint: bytes) -> list[PersonRecord]:
        """Return every push of one recipient, newest first."""
        mine = (
            select(claims.c.batch_id, claims.c.position, sends.c.send_key, batches)
            .join(batches, batches.c.id == claims.c.batch_id)
            .join(sends, sends.c.id == claims.c.send_id)
            .where(claims.c.fingerprint == fingerprint)
            .order_by(batches.c.claimed_at.desc())
        )
        with self._database.transaction() as connection:
            return [_person(connection, row) for row in connection.execute(mine).all()]

    def forget(self, fingerprint: bytes) -> int:
        """Erase one recipient from every send; return of how many. Counts and positions of the others stay."""

        def erase(connection: Connection) -> int:
            found = (
                connection.execute(select(claims.c.send_id).where(claims.c.fingerprint == fingerprint)).scalars().all()
            )
            for send_id in found:
                row = (claims.c.send_id == send_id, claims.c.fingerprint == fingerprint)
                connection.execute(update(claims).where(*row).values(fingerprint=token_bytes(FINGERPRINT_BYTES)))
            return len(found)

        return self._database.attempt(erase)

    def prune(self, before: datetime) -> int:
        """Remove the sends in which nothing was begun or claimed since *before*; return how many.

        A later try of one fails closed, as after any loss of its record.
        """

        def remove(connection: Connection) -> int:
            # Locked before it is asked what is recent: a try that begins meanwhile counts.
            old = select(sends.c.id).where(sends.c.created_at < before).order_by(sends.c.id).with_for_update()
            candidates = connection.execute(old).scalars().all()
            recent = {
                *connection.execute(select(tries.c.send_id).where(tries.c.began_at >= before)).scalars(),
                *connection.execute(select(batches.c.send_id).where(batches.c.claimed_at >= before)).scalars(),
            }
            pruned = [send_id for send_id in candidates if send_id not in recent]
            for send_id in pruned:
                for table in (claims, batches, tries):
                    connection.execute(delete(table).where(table.c.send_id == send_id))
                connection.execute(delete(sends).where(sends.c.id == send_id))
            return len(pruned)

        return self._database.attempt(remove)


def _of(send_key: str, query: Any) -> Any:
    """Return *query* over the accepted requests of *send_key* that count."""
    return query.join(sends, sends.c.id == batches.c.send_id).where(
        sends.c.send_hash == digest(send_key), batches.c.request_id.is_not(None), batches.c.forgotten_at.is_(None)
    )


def _by_state() -> Any:
    """Return a query for the recipients of each send by what `_state` looks at."""
    known: tuple[ColumnElement[Any], ...] = (
        batches.c.send_id,
        batches.c.forgotten_at.is_not(None).label("forgotten_at"),
        batches.c.settled_at.is_not(None).label("settled_at"),
        batches.c.outcome_at.is_not(None).label("outcome_at"),
        batches.c.request_error,
    )
    return select(*known, func.sum(batches.c.size).label("size")).group_by(*known)


def _counts(connection: Connection, query: Any) -> dict[int, int]:
    return {key: int(count) for key, count in connection.execute(query)}


def _state(row: Any) -> State:
    if row.forgotten_at:
        return State.FORGOTTEN
    if row.request_error:
        return State.FAILED
    if row.outcome_at:
        return State.FINISHED
    return State.ACCEPTED if row.settled_at else State.IN_DOUBT


def _person(connection: Connection, row: Any) -> PersonRecord:
    """Find one recipient's outcome by its position among those whom its batch won."""
    ahead = select(func.count()).where(claims.c.batch_id == row.batch_id, claims.c.position < row.position)
    position = connection.execute(ahead).scalar_one()
    failed = json.loads(row.failed or "{}")
    code = next((code for code, positions in failed.items() if position in positions), None)
    return PersonRecord(row.send_key, row.claimed_at, _state(row), row.request_id, code or row.request_error)
