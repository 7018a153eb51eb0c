"""What one try writes into the SQL ledger, inside of transactions that `SqlLedger` opens.

Rows are locked in one order: the send, the task instance, batches, then claims by their fingerprints.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import bindparam, delete, insert, select, update
from sqlalchemy.engine import Connection

from airflow_provider_responsys.errors import Fenced, LedgerFailed, SettingsChanged, StateLost
from airflow_provider_responsys.ledger.interface import Accepted, Holder, Wanted
from airflow_provider_responsys.ledger.sql_begin import REPLACED, WHAT_TO_DO, Begun, Found
from airflow_provider_responsys.ledger.sql_schema import KEY_LOST, ClaimRow, Database
from airflow_provider_responsys.ledger.sql_tables import (
    CORRELATION_ID,
    MYSQL,
    NOT_SENT,
    batches,
    claims,
    sends,
    task_instances,
    tries,
)
from airflow_provider_responsys.ledger.tries import changes

LOOK_UP = 500  # fingerprints asked for at a time: SQLite took 999 parameters for long

GONE = (
    "The record of this send is gone from the ledger: it was pruned while the try ran, or the database was put back "
    "to an older state"
)

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Written:
    """What a transaction did: whether it raised the count of claims, whom it claimed, and what is wrong."""

    raised: bool = False
    lost: dict[int, dict[int, Holder]] = field(default_factory=dict)
    """Who could not be claimed, by index, for the number of each batch that was claimed."""
    moved: set[int] = field(default_factory=set)
    """The numbers of the batches into which recipients moved out of a doubt."""
    problem: LedgerFailed | None = None


class Writer:
    """What the try *begun* writes; *identity* is its settings, and *key_id* names its fingerprint key."""

    def __init__(self, database: Database, begun: Begun, *, identity: str, key_id: str) -> None:
        self._database = database
        self.begun = begun
        self._identity = identity
        self._key_id = key_id

    def count(self, connection: Connection) -> int | None:
        """Return the count of claims, after whatever transaction may still raise it; None if it is not this try's."""
        mine = select(task_instances.c.claim_count).where(*self._mine()).with_for_update()
        return connection.execute(mine).scalar()

    def record(
        self,
        connection: Connection,
        accepted: Mapping[int, Accepted],
        wanted: Sequence[Wanted],
        *,
        count: int,
        now: datetime,
    ) -> Written:
        """Settle *accepted*, by the ids of their batches, and claim *wanted* if this try may."""
        written = self._raise_count(connection, count) if wanted else Written()
        if accepted and (missing := self._settle(connection, accepted, now)):
            written.problem = self._why_missing(connection, missing)
        if wanted and not written.problem:
            written.lost = self._claim(connection, wanted, now)
        connection.execute(update(tries).where(tries.c.id == self.begun.try_id).values(last_write_at=now))
        return written

    def take_over(self, connection: Connection, wanted: Sequence[Wanted], *, count: int, now: datetime) -> Written:
        """Move *wanted* out of their doubts into batches of this try, unless they are no doubts any more."""
        written = self._raise_count(connection, count)
        if not written.problem:
            for want in wanted:
                lost = self._move(connection, want, now)
                if lost is not None:
                    written.lost[want.number] = lost
                    if len(lost) < len(want.fingerprints):
                        written.moved.add(want.number)
        return written

    def moved(self, connection: Connection, wanted: Sequence[Wanted]) -> set[int]:
        """Return which of *wanted* took recipients over, after whatever transaction may still do so."""
        self.count(connection)
        there = select(batches.c.id).where(batches.c.id.in_([want.batch_id for want in wanted]))
        found = set(connection.execute(there).scalars())
        return {want.number for want in wanted if want.batch_id in found}

    def release(self, connection: Connection, ids: Sequence[int]) -> None:
        """Give the claims of the batches *ids* up."""
        if self._database.dialect in MYSQL:
            self._lock_send(connection)
        connection.execute(delete(claims).where(claims.c.batch_id.in_(ids)))
        connection.execute(delete(batches).where(batches.c.id.in_(ids)))

    def end(self, connection: Connection, now: datetime) -> None:
        """Record that the try ended: no answer to it will come any more."""
        mine = (tries.c.id == self.begun.try_id, tries.c.ended_at.is_(None))
        connection.execute(update(tries).where(*mine).values(ended_at=now))

    # Whether this try may claim

    def _mine(self) -> tuple[Any, ...]:
        """Return what selects the task instance's row while this try is its current one."""
        return (
            task_instances.c.id == self.begun.task_instance_id,
            task_instances.c.current_try_id == self.begun.try_id,
        )

    def _raise_count(self, connection: Connection, count: int) -> Written:
        """Raise the count of claims from *count*; keep other tries of this task out until the transaction ends."""
        if problem := self._send_problem(self._lock_send(connection)):
            return Written(problem=problem)
        raised = update(task_instances).where(*self._mine(), task_instances.c.claim_count == count)
        if connection.execute(raised.values(claim_count=count + 1)).rowcount:
            return Written(raised=True)
        return Written(problem=self._why_not_current(connection))

    def _lock_send(self, connection: Connection) -> Found:
        """Return the row of this send, kept as it is until the transaction ends; None if it is gone."""
        mine = select(sends.c.send_key, sends.c.identity, sends.c.fingerprint_key_id).where(
            sends.c.id == self.begun.send_id
        )
        return connection.execute(mine.with_for_update(read=self._database.dialect not in MYSQL)).first()

    def _send_problem(self, send: Found) -> LedgerFailed | None:
        """Return what is wrong with *send*, if anything."""
        if send is None:
            return StateLost(f"{GONE}, so no recipient is claimed. {WHAT_TO_DO}")
        if send.fingerprint_key_id != self._key_id:
            return StateLost(KEY_LOST)
        if send.identity != self._identity:
            return SettingsChanged(
                f"Send key {send.send_key!r}: {changes(json.loads(self._identity), json.loads(send.identity))}"
            )
        return None

    def _why_not_current(self, connection: Connection) -> LedgerFailed:
        """Return why the count could not be raised: the try was replaced, or its record is an older one."""
        current = select(task_instances.c.current_try_id).where(task_instances.c.id == self.begun.task_instance_id)
        if self._is_known(connection) and connection.execute(current).scalar() != self.begun.try_id:
            return Fenced(REPLACED)
        return StateLost(
            "The ledger's database was put back to an older state while this try ran: it lacks claims of this task "
            f"that were there. No other recipient is claimed, and what is lost can't be told. {WHAT_TO_DO}"
        )

    def _is_known(self, connection: Connection) -> bool:
        """Return whether the tables still have this try."""
        return connection.execute(select(tries.c.id).where(tries.c.id == self.begun.try_id)).first() is not None

    # Answers

    def name_answer(self, connection: Connection, batch_id: int, correlation_id: str) -> None:
        """Keep the id of the answer that left a batch in doubt."""
        doubtful = update(batches).where(batches.c.id == batch_id, batches.c.settled_at.is_(None))
        connection.execute(doubtful.values(correlation_id=correlation_id[:CORRELATION_ID]))

    def _settle(self, connection: Connection, accepted: Mapping[int, Accepted], now: datetime) -> list[int]:
        """Record the answers, in the order of the rows; return the batches that have none."""
        answers = [
            {
                "row": row,
                "at": now,
                "request": answer.request_id,
                "correlation": answer.correlation_id[:CORRELATION_ID] or None,
            }
            for row, answer in sorted(accepted.items())
        ]
        statement = (
            update(batches)
            .where(batches.c.id == bindparam("row"))
            .values(
                settled_at=bindparam("at"), request_id=bindparam("request"), correlation_id=bindparam("correlation")
            )
        )
        counting = statement.where(batches.c.forgotten_at.is_(None))
        if connection.execute(counting, answers).rowcount == len(answers):
            return []
        # A driver may count otherwise, or rows are missing, or their claims were given up: what was accepted is
        # recorded all the same.
        columns = (batches.c.id, batches.c.forgotten_at, batches.c.resolved_as, batches.c.resolved_by)
        found = connection.execute(select(*columns).where(batches.c.id.in_(list(accepted)))).all()
        given_up = {row.id: row for row in found if row.forgotten_at}
        if given_up:
            connection.execute(statement, [answer for answer in answers if answer["row"] in given_up])
        for row in given_up.values():
            if row.resolved_as == NOT_SENT:
                log.error(
                    "Batch %d was resolved as not sent by %s, and Responsys accepted it as request %s: recipients who "
                    "were claimed again since then are pushed twice",
                    row.id,
                    row.resolved_by,
                    accepted[row.id].request_id,
                )
        return sorted(set(accepted) - {row.id for row in found})

    def _why_missing(self, connection: Connection, missing: Sequence[int]) -> LedgerFailed:
        """Return what to say of answers whose batches are not in the tables."""
        names = f"the answers to {len(missing)} of its batches can't be recorded ({', '.join(map(str, missing))})"
        if not self._is_known(connection):
            return StateLost(f"{GONE}: {names}. {WHAT_TO_DO}")
        return LedgerFailed(f"The ledger lacks batches that this try claimed: {names}")

    # Claims

    def _batch(self, want: Wanted, size: int, now: datetime) -> dict[str, Any]:
        return {
            "id": want.batch_id,
            "send_id": self.begun.send_id,
            "try_id": self.begun.try_id,
            "number": want.number,
            "size": size,
            "claimed_at": now,
        }

    def _move(self, connection: Connection, want: Wanted, now: datetime) -> dict[int, Holder] | None:
        """Move *want* out of its doubt; return who could not be. None: it was settled, or resolved, meanwhile."""
        doubt = batches.c.id == (want.doubt and want.doubt.place)
        open_doubt = select(batches.c.size).where(
            doubt, batches.c.settled_at.is_(None), batches.c.forgotten_at.is_(None)
        )
        size = connection.execute(open_doubt.with_for_update()).scalar()
        if size is None:
            return None
        theirs = (claims.c.batch_id == (want.doubt and want.doubt.place), claims.c.fingerprint.in_(want.fingerprints))
        connection.execute(update(claims).where(*theirs).values(batch_id=want.batch_id))
        moved = connection.execute(select(claims.c.fingerprint).where(claims.c.batch_id == want.batch_id)).scalars()
        won = frozenset(map(bytes, moved))
        if won:
            connection.execute(insert(batches).values(self._batch(want, len(won), now)))
        rest = size - len(won)
        left: dict[str, Any] = {"size": rest, "moved": batches.c.moved + len(won)}
        connection.execute(update(batches).where(doubt).values(left if rest else {**left, "forgotten_at": now}))
        # Recipients who were erased by hand may have been pushed, too.
        return {place: Holder.IN_DOUBT for place, one in enumerate(want.fingerprints) if one not in won}

    def _claim(self, connection: Connection, wanted: Sequence[Wanted], now: datetime) -> dict[int, dict[int, Holder]]:
        """Claim *wanted*; return who was lost, by batch and index."""
        lost = self._insert(connection, wanted)
        claimed = [
            self._batch(want, len(want.fingerprints) - len(lost[want.number]), now)
            for want in wanted
            if len(want.fingerprints) > len(lost[want.number])
        ]
        if claimed:
            connection.execute(insert(batches), claimed)
        return lost

    def _insert(self, connection: Connection, wanted: Sequence[Wanted]) -> dict[int, dict[int, Holder]]:
        """Insert the claims, in the order of their fingerprints; return who was lost, by batch and index."""
        claiming = sorted(
            ClaimRow(fingerprint, want.batch_id, index)
            for want in wanted
            for index, fingerprint in enumerate(want.fingerprints)
        )
        lost: dict[int, dict[int, Holder]] = {want.number: {} for want in wanted}
        if self._database.insert_claims(connection, self.begun.send_id, claiming) == len(claiming):
            return lost
        numbers = {want.batch_id: want.number for want in wanted}
        mine = select(claims.c.batch_id, claims.c.position).where(claims.c.batch_id.in_(list(numbers)))
        won = {tuple(row) for row in connection.execute(mine)}
        missed = [row for row in claiming if (row.batch_id, row.position) not in won]
        holders = self._holders(connection, [row.fingerprint for row in missed])
        for row in missed:
            # The holder released it between our insert and this look-up: treat it as in doubt.
            lost[numbers[row.batch_id]][row.position] = holders.get(row.fingerprint, Holder.IN_DOUBT)
        return lost

    def _holders(self, connection: Connection, fingerprints: Sequence[bytes]) -> dict[bytes, Holder]:
        """Return who holds each of *fingerprints*."""
        holders: dict[bytes, Holder] = {}
        for start in range(0, len(fingerprints), LOOK_UP):
            found = connection.execute(
                select(claims.c.fingerprint, batches.c.settled_at, batches.c.try_id, tries.c.task_instance_id)
                .join(batches, batches.c.id == claims.c.batch_id, isouter=True)
                .join(tries, tries.c.id == batches.c.try_id, isouter=True)
                .where(
                    claims.c.send_id == self.begun.send_id,
                    claims.c.fingerprint.in_(fingerprints[start : start + LOOK_UP]),
                )
            )
            holders.update({bytes(row.fingerprint): self._holder(row) for row in found})
        return holders

    def _holder(self, row: Found) -> Holder:
        """Name the holder: a batch of this same try is another one, too."""
        if row.task_instance_id != self.begun.task_instance_id or row.try_id == self.begun.try_id:
            return Holder.OTHER
        return Holder.ACCEPTED if row.settled_at else Holder.IN_DOUBT
