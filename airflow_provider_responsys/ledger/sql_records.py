"""The SQL ledger for those who do not send: the poller, and people.

Succeeded means handed to Responsys' personalization queue, not delivered.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from secrets import token_bytes
from typing import Any

from sqlalchemy import delete, exists, insert, select, update
from sqlalchemy.engine import Connection, Engine

from airflow_provider_responsys.errors import LedgerFailed, NotInLedger
from airflow_provider_responsys.ledger.interface import FINGERPRINT_BYTES
from airflow_provider_responsys.ledger.sql_reading import (
    batch_rows,
    claims_of,
    failure_of,
    in_order,
    in_pieces,
    last_answer_at,
    place_in_request,
    resolution_of,
    send_records,
    state_of,
)
from airflow_provider_responsys.ledger.sql_schema import MUCH, Database
from airflow_provider_responsys.ledger.sql_tables import (
    NOT_SENT,
    PERSON,
    SENT,
    batches,
    claims,
    digest,
    sends,
    task_instances,
    traces,
    tries,
)
from airflow_provider_responsys.ledger.sql_values import (
    BatchRecord,
    PersonRecord,
    RequestOutcome,
    SendRecord,
    TraceRecord,
)

_OUTCOME = (batches.c.succeeded, batches.c.failed, batches.c.request_error)


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
        polls: int | None = None,
    ) -> None:
        """Record how *request_id* ended, in one write; harmless to repeat.

        *failed* are positions in the request by error code; *error* is the code
        of a request that ended without results. *polls* is how often it was asked for.
        """
        outcome = {
            "outcome_at": self._now(),
            "succeeded": succeeded,
            "failed": json.dumps({code: list(positions) for code, positions in (failed or {}).items()}),
            "request_error": error,
        } | ({} if polls is None else {"polls": polls})
        send = select(sends.c.id).where(sends.c.send_hash == digest(send_key)).scalar_subquery()
        written = update(batches).where(batches.c.request_id == request_id, batches.c.send_id == send).values(outcome)
        if self._database.attempt(lambda connection: connection.execute(written).rowcount) == 0:
            raise NotInLedger(f"The ledger has no request {request_id} of send key {send_key!r}")

    def outcomes(self, send_key: str) -> list[RequestOutcome]:
        """Return the outcomes recorded so far: a restarted poller goes on from them."""
        query = _of(send_key, select(batches.c.request_id, batches.c.size, *_OUTCOME)).where(
            batches.c.outcome_at.is_not(None)
        )
        with self._database.transaction() as connection:
            rows = connection.execute(query.order_by(batches.c.settled_at, batches.c.number)).all()
        return [_outcome(row) for row in rows]

    def requests(
        self, send_keys: Sequence[str], request_ids: Sequence[str]
    ) -> dict[str, tuple[int, RequestOutcome | None]]:
        """Return how many recipients each of *request_ids* has, and its outcome; those not of *send_keys* are left out.

        The outcome is None where none is recorded.
        """
        theirs = sends.c.send_hash.in_([digest(send_key) for send_key in send_keys])
        query = (
            select(batches.c.request_id, batches.c.size, *_OUTCOME, batches.c.outcome_at)
            .join(sends, sends.c.id == batches.c.send_id)
            .where(theirs, batches.c.request_id.in_(request_ids), batches.c.forgotten_at.is_(None))
        )
        with self._database.transaction() as connection:
            rows = connection.execute(query).all()
        return {row.request_id: (row.size, _outcome(row) if row.outcome_at else None) for row in rows}

    # For people

    def sends(self) -> list[SendRecord]:
        """Return every send, newest first."""
        with self._database.transaction() as connection:
            return send_records(connection)

    def send(self, send_key: str) -> SendRecord | None:
        """Return the send of *send_key*, None if there is none."""
        with self._database.transaction() as connection:
            return next(iter(send_records(connection, sends.c.send_hash == digest(send_key))), None)

    def show(self, send_key: str) -> list[BatchRecord]:
        """Return every batch of *send_key*, oldest first."""
        query = batch_rows().where(sends.c.send_hash == digest(send_key))
        with self._database.transaction() as connection:
            return [_batch(row) for row in connection.execute(query.order_by(*in_order())).all()]

    def batch(self, batch_id: int) -> BatchRecord | None:
        """Return one batch, None if it is not there."""
        with self._database.transaction() as connection:
            row = connection.execute(batch_rows().where(batches.c.id == batch_id)).first()
        return None if row is None else _batch(row)

    def settle_by_hand(self, batch_id: int, *, sent: bool, by: str, reason: str, force: bool = False) -> None:
        """Resolve a batch in doubt, as a person found out: it was *sent*, or its recipients may be claimed again.

        Refused while its try may still hear from Responsys, unless *force*.
        """
        now = self._now()
        doubtful = (batches.c.id == batch_id, batches.c.settled_at.is_(None), batches.c.forgotten_at.is_(None))
        resolved = {
            "settled_at" if sent else "forgotten_at": now,
            "resolved_at": now,
            "resolved_as": SENT if sent else NOT_SENT,
            "resolved_by": by[:PERSON],
            "resolve_reason": reason,
        }

        def settle(connection: Connection) -> None:
            row = connection.execute(_claimed_when().where(*doubtful)).first()
            if row and not force:
                _check_is_over(batch_id, row, now)
            if not row or connection.execute(update(batches).where(*doubtful).values(resolved)).rowcount == 0:
                raise LedgerFailed(f"The ledger has no batch {batch_id} in doubt: look it up again with `show`")
            if not sent:
                connection.execute(delete(claims).where(claims.c.batch_id == batch_id))
            about = f"batch {batch_id} as {resolved['resolved_as']}"
            _trace(connection, now, by=by, action="settle", about=about, count=row.size, reason=reason)

        self._database.attempt(settle)

    def person(self, fingerprint: bytes) -> list[PersonRecord]:
        """Return every push of one recipient, newest first."""
        with self._database.transaction() as connection:
            return [_person(connection, claim) for claim in claims_of(connection, fingerprint)]

    def forget(self, fingerprint: bytes, *, by: str, reason: str = "") -> int:
        """Erase one recipient from every send; return of how many. Counts and positions of the others stay."""
        now = self._now()

        def erase(connection: Connection) -> int:
            found = [
                send_id
                for ids in in_pieces(connection.execute(select(sends.c.id)).scalars().all())
                for send_id in connection.execute(_sends_to(fingerprint, ids)).scalars().all()
            ]
            for send_id in found:
                row = (claims.c.send_id == send_id, claims.c.fingerprint == fingerprint)
                connection.execute(update(claims).where(*row).values(fingerprint=token_bytes(FINGERPRINT_BYTES)))
            if found:
                _trace(connection, now, by=by, action="forget", about="one recipient", count=len(found), reason=reason)
            return len(found)

        return self._database.attempt(erase)

    def prune(self, before: datetime, *, by: str, reason: str = "") -> int:
        """Remove the sends in which nothing was begun or claimed since *before*; return how many.

        A later try of one fails closed, as after any loss of its record.
        """
        now = self._now()

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
                _remove(connection, send_id)
            if pruned:
                about = f"sends in which nothing was begun or claimed since {before:%F %T%z}"
                _trace(connection, now, by=by, action="prune", about=about, count=len(pruned), reason=reason)
            return len(pruned)

        return self._database.attempt(remove, seconds=MUCH)

    def traces(self) -> list[TraceRecord]:
        """Return what people did to the record, newest first."""
        columns = [column for column in traces.c if column is not traces.c.id]
        with self._database.transaction() as connection:
            rows = connection.execute(select(*columns).order_by(traces.c.id.desc())).all()
        return [TraceRecord(*row) for row in rows]


def _outcome(row: Any) -> RequestOutcome:
    """Return the outcome that *row* records."""
    return RequestOutcome(row.request_id, row.size, row.succeeded, json.loads(row.failed), row.request_error)


def _of(send_key: str, query: Any) -> Any:
    """Return *query* over the accepted requests of *send_key* that count."""
    return query.join(sends, sends.c.id == batches.c.send_id).where(
        sends.c.send_hash == digest(send_key), batches.c.request_id.is_not(None), batches.c.forgotten_at.is_(None)
    )


def _batch(row: Any) -> BatchRecord:
    return BatchRecord(
        batch_id=row.id,
        send_key=row.send_key,
        task_instance=row.task_instance,
        try_number=row.try_number,
        number=row.number,
        size=row.size,
        state=state_of(row),
        claimed_at=row.claimed_at,
        settled_at=row.settled_at,
        request_id=row.request_id,
        correlation_id=row.correlation_id,
        polls=row.polls,
        outcome_at=row.outcome_at,
        succeeded=row.succeeded or 0,
        failed={code: len(positions) for code, positions in json.loads(row.failed or "{}").items()},
        request_error=row.request_error,
        resolution=resolution_of(row),
    )


def _claimed_when() -> Any:
    """Return a query for what says whether the answers of batches may still come."""
    return select(batches.c.size, batches.c.claimed_at, tries.c.last_write_at, tries.c.answer_within).join(
        tries, tries.c.id == batches.c.try_id
    )


def _check_is_over(batch_id: int, row: Any, now: datetime) -> None:
    """Raise while the answer of a batch may still come, or its try may still send it."""
    until = last_answer_at(row.claimed_at, row.last_write_at, row.answer_within)
    if now < until:
        last = max(row.claimed_at, row.last_write_at)
        raise LedgerFailed(
            f"Batch {batch_id} may still be answered: its try wrote to the ledger at {last:%T} UTC, and an answer may "
            f"take {row.answer_within:.0f} s. Look again after {until:%T} UTC; --force resolves it now"
        )


def _trace(connection: Connection, now: datetime, *, by: str, action: str, about: str, count: int, reason: str) -> None:
    """Record what a person did."""
    done = {"done_by": by[:PERSON], "action": action, "about": about, "count": count, "reason": reason}
    connection.execute(insert(traces).values(done_at=now, **done))


def _remove(connection: Connection, send_id: int) -> None:
    """Remove a send with all that belongs to it, and the task instances that are left without a try."""
    begun = select(tries.c.task_instance_id).where(tries.c.send_id == send_id)
    theirs = select(task_instances.c.id).where(task_instances.c.id.in_(begun)).order_by(task_instances.c.id)
    ids = connection.execute(theirs.with_for_update()).scalars().all()
    for table in (claims, batches, tries):
        connection.execute(delete(table).where(table.c.send_id == send_id))
    connection.execute(delete(sends).where(sends.c.id == send_id))
    for piece in in_pieces(ids):
        without = ~exists().where(tries.c.task_instance_id == task_instances.c.id)
        connection.execute(delete(task_instances).where(task_instances.c.id.in_(piece), without))


def _sends_to(fingerprint: bytes, send_ids: Sequence[int]) -> Any:
    """Return a query for those of the sends that claimed one recipient."""
    return select(claims.c.send_id).where(claims.c.fingerprint == fingerprint, claims.c.send_id.in_(send_ids))


def _person(connection: Connection, claim: Any) -> PersonRecord:
    code = failure_of(claim, place_in_request(connection, claim)) or claim.request_error
    return PersonRecord(claim.send_key, claim.claimed_at, state_of(claim), claim.request_id, code)
