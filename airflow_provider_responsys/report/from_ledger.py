"""Reports of what the SQL ledger holds: nothing here makes or changes a table or a row."""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.sql import ColumnElement

from airflow_provider_responsys.errors import LedgerFailed
from airflow_provider_responsys.ledger.sql_reading import (
    batch_rows,
    by_state,
    campaign_of,
    claims_of,
    failure_of,
    in_order,
    in_pieces,
    place_in_request,
    send_records,
    state_of,
)
from airflow_provider_responsys.ledger.sql_schema import Database
from airflow_provider_responsys.ledger.sql_tables import batches, digest, sends, task_instances, tries
from airflow_provider_responsys.ledger.sql_values import SendRecord, State
from airflow_provider_responsys.report import pushes
from airflow_provider_responsys.report.batches import (
    FAILED,
    SUCCEEDED,
    PositionOutcome,
    accepted_over_time,
    batch_report,
    in_doubt_first,
    outcomes,
    positions,
)
from airflow_provider_responsys.report.model import (
    BatchReport,
    PersonInSend,
    PushReport,
    PushState,
    PushSummary,
    PushTask,
)
from airflow_provider_responsys.report.pushes import Push, Row, count, grouped, state_of_push, summary, task_of

NO_LEDGER = "There is no ledger in this database: no task has used it yet"

AT_A_TIME = 100
"""Batches whose outcomes are in memory at a time."""


class LedgerReports:
    """What people may know of the pushes in the ledger on *engine*, which is its own.

    Each call reads one state of the tables, and raises `LedgerFailed` where there is no ledger.
    """

    def __init__(self, engine: Engine, *, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._database = Database(engine)
        self._now = now
        self._key: bytes | None = None

    def close(self) -> None:
        """Close the connections. Harmless to repeat, and what is asked later opens others."""
        self._database.dispose()

    def fingerprint_key(self) -> bytes:
        """Return what recipients are fingerprinted with."""
        if self._key is None:
            self._key = self._database.fingerprint_key()
        if self._key is None:
            raise LedgerFailed(NO_LEDGER)
        return self._key

    def pushes(
        self,
        *,
        dag_ids: Collection[str] | None,
        campaign: str | None = None,
        state: PushState | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        offset: int = 0,
        limit: int = 50,
    ) -> tuple[list[PushSummary], int]:
        """Return a page of the pushes of *dag_ids*, or of all, and how many there are: in doubt first, then newest.

        *campaign* is looked for in the campaigns' names, in any case; *since* and *until* bound when a push began.
        """
        self.fingerprint_key()
        now = self._now()
        with self._database.reading() as connection:
            found = grouped(_tries(connection))
            if dag_ids is not None:
                allowed = frozenset(dag_ids)
                found = [push for push in found if push.task.dag_id in allowed]
            if campaign:
                its_sends = _sends_of(connection, campaign)
                found = [push for push in found if push.tries[-1].send_id in its_sends]
            found = [push for push in found if (not since or push.began_at >= since)]
            found = [push for push in found if (not until or push.began_at < until)]
            page, total = _page(found, _doubts(connection), now, state)
            shown = page[offset : offset + limit]
            return _summaries(connection, shown, now), total

    def push(self, task: PushTask, *, offset: int = 0, limit: int = 50) -> PushReport | None:
        """Return all that is known of the push of *task*, with a page of its batches; None if it is not there."""
        self.fingerprint_key()
        now = self._now()
        with self._database.reading() as connection:
            push = _find(connection, task)
            if push is None:
                return None
            rows = _light(connection, push)
            ids = in_doubt_first(rows, push.tries)
            return PushReport(
                summary=summary(push, _sends_by_id(connection, [push.tries[-1].send_id]), rows, now),
                outcomes=outcomes(rows),
                batches=_batches(connection, ids[offset : offset + limit], now),
                batch_count=len(ids),
                accepted_over_time=accepted_over_time(rows),
            )

    def outcomes_by_position(self, task: PushTask) -> Iterator[PositionOutcome]:
        """Yield what Responsys said of each recipient of the accepted requests of *task*, oldest request first."""
        self.fingerprint_key()
        counting = (batches.c.request_id.is_not(None), batches.c.forgotten_at.is_(None))
        with self._database.reading() as connection:
            push = _find(connection, task)
            ids = [row.id for row in _of_tries(connection, select(batches.c.id), push, *counting)] if push else []
        for start in range(0, len(ids), AT_A_TIME):
            query = batch_rows().where(batches.c.id.in_(ids[start : start + AT_A_TIME])).order_by(*in_order())
            with self._database.reading() as connection:
                rows = connection.execute(query).all()
            for row in rows:
                yield from positions(row)

    def person(self, fingerprint: bytes) -> list[PersonInSend]:
        """Return the sends in which one recipient is recorded, newest first."""
        self.fingerprint_key()
        with self._database.reading() as connection:
            return [_person(connection, claim) for claim in claims_of(connection, fingerprint)]

    def sends(self) -> list[SendRecord]:
        """Return every send, newest first."""
        self.fingerprint_key()
        with self._database.reading() as connection:
            return send_records(connection)

    def batches_of(self, send_key: str) -> list[BatchReport]:
        """Return every batch of *send_key*, those in doubt first, then the oldest."""
        self.fingerprint_key()
        now = self._now()
        query = batch_rows().where(sends.c.send_hash == digest(send_key)).order_by(*in_order())
        with self._database.reading() as connection:
            found = [batch_report(row, now) for row in connection.execute(query)]
        return sorted(found, key=lambda batch: batch.state != State.IN_DOUBT)


def _tries(connection: Connection, *which: "ColumnElement[bool]") -> list[Row]:
    """Return the tries that *which* selects, with the names of their task instances."""
    columns = (
        tries.c.id,
        tries.c.send_id,
        tries.c.task_instance_id,
        tries.c.start,
        tries.c.began_at,
        tries.c.last_write_at,
        tries.c.ended_at,
        tries.c.answer_within,
        task_instances.c.name,
    )
    query = select(*columns).join(task_instances, task_instances.c.id == tries.c.task_instance_id).where(*which)
    return list(connection.execute(query))


def _find(connection: Connection, task: PushTask) -> Push | None:
    """Return the push of *task*, None if it is not there."""
    name = f"{task.dag_id}/{task.task_id}/{task.run_id}/"
    if task.map_index is None:
        # Some databases take no notice of case here.
        its_own: ColumnElement[bool] = task_instances.c.name.startswith(name, autoescape=True)
    else:
        its_own = task_instances.c.name_hash == digest(f"{name}{task.map_index}")
    found = [row for row in _tries(connection, its_own) if _is_of(task_of(row.name), task)]
    return Push(task, pushes.in_order(found)) if found else None


def _is_of(found: PushTask, task: PushTask) -> bool:
    """Return whether the task instance *found* belongs to *task*."""
    return task in (found, replace(found, map_index=None))


def _sends_of(connection: Connection, campaign: str) -> set[int]:
    """Return the sends whose campaign's name holds *campaign*, in any case."""
    rows = connection.execute(select(sends.c.id, sends.c.identity))
    return {row.id for row in rows if campaign.casefold() in campaign_of(row.identity).casefold()}


def _sends_by_id(connection: Connection, ids: Collection[int]) -> dict[int, Row]:
    columns = (sends.c.id, sends.c.send_key, sends.c.account, sends.c.identity)
    found: dict[int, Row] = {}
    for piece in in_pieces(sorted(ids)):
        found.update({row.id: row for row in connection.execute(select(*columns).where(sends.c.id.in_(piece)))})
    return found


def _doubts(connection: Connection) -> dict[int, list[Row]]:
    """Return what each try of the ledger left without an answer."""
    query = by_state(batches.c.try_id).where(batches.c.settled_at.is_(None), batches.c.forgotten_at.is_(None))
    return _by_try(connection.execute(query))


def _by_try(rows: Any) -> dict[int, list[Row]]:
    found: dict[int, list[Row]] = {}
    for row in rows:
        found.setdefault(row.try_id, []).append(row)
    return found


def _page(
    found: Sequence[Push], doubts: dict[int, list[Row]], now: datetime, state: PushState | None
) -> tuple[list[Push], int]:
    """Return those of *found* that are in *state*, in the order of a list, and how many they are."""
    states: list[tuple[PushState, Push]] = []
    for push in found:
        left = [row for of_try in push.tries for row in doubts.get(of_try.id, ())]
        states.append((state_of_push(push, count(push, left, now)[0], now), push))
    chosen = [one for one in states if state in (None, one[0])]
    chosen.sort(key=lambda one: one[1].began_at, reverse=True)
    chosen.sort(key=lambda one: one[0] is not PushState.IN_DOUBT)
    return [push for _, push in chosen], len(chosen)


def _summaries(connection: Connection, page: Sequence[Push], now: datetime) -> list[PushSummary]:
    ids = [of_try.id for push in page for of_try in push.tries]
    rows: dict[int, list[Row]] = {}
    for piece in in_pieces(ids):
        rows.update(_by_try(connection.execute(by_state(batches.c.try_id).where(batches.c.try_id.in_(piece)))))
    its_sends = _sends_by_id(connection, {push.tries[-1].send_id for push in page})
    return [
        summary(push, its_sends, [row for of_try in push.tries for row in rows.get(of_try.id, ())], now)
        for push in page
    ]


def _of_tries(connection: Connection, query: Any, push: Push, *which: "ColumnElement[bool]") -> list[Row]:
    """Return what *query* finds of the batches of *push*, try by try."""
    found: list[Row] = []
    for piece in in_pieces([of_try.id for of_try in push.tries]):
        found.extend(connection.execute(query.where(batches.c.try_id.in_(piece), *which)))
    return found


def _light(connection: Connection, push: Push) -> list[Row]:
    """Return of each batch of *push* what its numbers need."""
    columns = (
        batches.c.id,
        batches.c.try_id,
        batches.c.number,
        batches.c.size,
        batches.c.moved,
        batches.c.claimed_at,
        batches.c.settled_at,
        batches.c.forgotten_at,
        batches.c.resolved_as,
        batches.c.outcome_at,
        batches.c.succeeded,
        batches.c.failed,
        batches.c.request_error,
        batches.c.request_id.is_not(None).label("requests"),
    )
    return _of_tries(connection, select(*columns), push)


def _batches(connection: Connection, ids: Sequence[int], now: datetime) -> list[BatchReport]:
    """Return the batches *ids*, in their order."""
    rows = {
        row.id: row
        for piece in in_pieces(ids)
        for row in connection.execute(batch_rows().where(batches.c.id.in_(piece)))
    }
    return [batch_report(rows[batch_id], now) for batch_id in ids]


def _person(connection: Connection, claim: Row) -> PersonInSend:
    place = place_in_request(connection, claim)
    finished = state_of(claim) is State.FINISHED
    code = failure_of(claim, place)
    return PersonInSend(
        task=task_of(claim.task_instance),
        campaign_name=campaign_of(claim.identity),
        send_key=claim.send_key,
        claimed_at=claim.claimed_at,
        bucket="accepted" if claim.settled_at else "in doubt",
        request_id=claim.request_id,
        position=place if claim.request_id else None,
        outcome=(FAILED if code else SUCCEEDED) if finished else None,
        code=code or claim.request_error,
    )
