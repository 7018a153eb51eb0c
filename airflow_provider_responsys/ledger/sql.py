"""The ledger in a SQL database: one record across tries, tasks and runs.

A recipient is claimed by a unique row per send key and fingerprint, so two
tries, tasks or shards that run at once can't both win one. Claims are inserted
in the order of their fingerprints, in a transaction that takes nothing back:
two of them can't wait for each other in a circle. In MySQL, which locks more than
it writes, they could: there, one of a send waits for the other.
"""

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from secrets import randbits
from typing import Any, TypeAlias

from sqlalchemy import Select, bindparam, delete, func, insert, select, update
from sqlalchemy.engine import Connection, CursorResult, Engine

from airflow_provider_responsys.errors import Fenced, LedgerFailed, SettingsChanged, StateLost
from airflow_provider_responsys.ledger.interface import Accepted, Claim, Earlier, Holder, Settlement, Source, Wanted
from airflow_provider_responsys.ledger.sql_schema import (
    MYSQL,
    ClaimRow,
    Database,
    batches,
    claims,
    digest,
    sends,
    tries,
)
from airflow_provider_responsys.ledger.tries import OnClear, changes

READ_BATCHES = 100
"""Batches whose claims are in memory at a time when they are read back."""

LOOK_UP = 500  # fingerprints asked for at a time: SQLite took 999 parameters for long

Found: TypeAlias = Any
"""A row of a query: SQLAlchemy 2.0 and 2.1 type it differently."""

Claimed: TypeAlias = dict[int, tuple[int, dict[int, Holder]]]
"""The row of each batch, by its number, and who in it was lost, by index."""

RESTARTED = (
    'The task was cleared and on_clear is "restart": what its earlier tries claimed is forgotten, and everybody whom '
    "no other task has claimed will be pushed, again where they were pushed before."
)

REPLACED = "Another try of this task has begun, so this one claims nobody any more"

log = logging.getLogger(__name__)


class SqlLedger:
    """The record of *send_key* on *engine*, seen from one try of *owner*.

    *owner* names the task instance: DAG, task, run and map index. *instance_id*
    is what Airflow calls this try of it, a UUID of version 7, which is greater for
    a try that was made later; without one, whoever begins last is the newest.
    *max_tries*, *retries*, *on_clear* and *may_have_claimed* are those of
    `TaskStateLedger`.
    An earlier try that is still alive gets *answer_within* seconds after each
    of its claims to settle it, before that is taken for a doubt.
    The engine is the ledger's own: it is set up, and disposed of, here.
    """

    durable = True
    resumes = False

    def __init__(
        self,
        engine: Engine,
        *,
        send_key: str,
        owner: str,
        try_number: int,
        max_tries: int,
        retries: int,
        instance_id: str = "",
        on_clear: OnClear = "resume",
        may_have_claimed: bool | None = None,
        answer_within: float = 0.0,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self._database = Database(engine)
        self._send_key = send_key
        self._owner = owner
        self._owner_hash = digest(owner)
        self._try_number = try_number
        self._max_tries = max_tries
        self._retries = retries
        self._instance_id = instance_id
        self._on_clear = on_clear
        self._may_have_claimed = try_number > 1 if may_have_claimed is None else may_have_claimed
        self._patience = timedelta(seconds=answer_within)
        self._now = now
        self._sleep = sleep
        self._identity = ""
        self._send_id = 0
        self._try_id = 0
        self._open: dict[int, int] = {}
        """The row of each batch whose answer is not recorded yet, by its number."""

    def begin(self, identity: Mapping[str, str]) -> bytes:
        """Record that this try began, after deciding what becomes of what earlier ones left."""
        now = self._now()
        key = self._database.prepare(now)
        self._identity = json.dumps(dict(identity), sort_keys=True)
        self._send_id, self._try_id = self._database.attempt(lambda connection: self._begin(connection, now))
        return key

    def compare(self, source: Source) -> None:
        """Do nothing: a recipient is claimed once under a send key, whichever shard it is in."""

    def earlier(self) -> Iterator[Earlier]:
        """Yield the earlier tries' batches, a hundred in memory at a time."""
        self._await_answers()
        with self._database.transaction() as connection:
            heads = connection.execute(self._earlier_batches()).all()
        for start in range(0, len(heads), READ_BATCHES):
            yield from self._with_claims(heads[start : start + READ_BATCHES])

    def commit(
        self,
        settled: Sequence[Settlement],
        wanted: Sequence[Wanted],
        upcoming: Sequence[Sequence[bytes]] = (),  # noqa: ARG002 -- the interface's; nothing is written in advance
    ) -> list[Claim]:
        """Record *settled*, and claim *wanted* of those whom nobody else has claimed."""
        if not self._try_id:
            raise LedgerFailed("`begin` comes first")
        now = self._now()
        # A call that ended with `Fenced` recorded its settlements: they come again.
        settled = [answer for answer in settled if answer.number in self._open]
        accepted = [answer for answer in settled if isinstance(answer, Accepted)]
        released = [self._open[answer.number] for answer in settled if not isinstance(answer, Accepted)]
        if released:
            # By itself: a transaction that gives up and takes could wait for one that waits for it.
            self._database.attempt(lambda connection: self._release(connection, released))
        doubts = [want for want in wanted if want.doubt]
        # The same goes for what moves from one batch to another.
        moved = self._database.attempt(lambda connection: self._take_over(connection, doubts, now)) if doubts else {}
        others = [] if moved is None else [want for want in wanted if want.number not in moved]
        claimed = self._database.attempt(lambda connection: self._record(connection, accepted, others, now))
        for answer in settled:
            self._open.pop(answer.number, None)
        if moved is None or claimed is None:
            raise Fenced(REPLACED)
        found = {**moved, **claimed}
        self._open.update({number: row for number, (row, _) in found.items()})
        return [Claim(want.number, found[want.number][1]) for want in wanted]

    def close(self) -> None:
        """Close the connections."""
        self._database.dispose()

    # What begin decides

    def _begin(self, connection: Connection, now: datetime) -> tuple[int, int]:
        """Return the ids of the send, and of this try."""
        send = self._send(connection, now)
        last = connection.execute(
            select(tries.c.max_tries, tries.c.try_number, tries.c.instance_id)
            .where(tries.c.owner_hash == self._owner_hash)
            .order_by(tries.c.id.desc())
            .limit(1)
        ).first()
        if last is None:
            self._check_first()
        elif self._is_late(last):
            raise Fenced(REPLACED)
        elif last.max_tries != self._max_tries:
            self._resume_or_restart(connection, now)
        self._check_settings(connection, send)
        mine = (
            select(batches.c.id)
            .join(tries, tries.c.id == batches.c.try_id)
            .where(tries.c.owner_hash == self._owner_hash, batches.c.forgotten_at.is_(None))
        )
        self.resumes = connection.execute(mine.limit(1)).first() is not None
        began = insert(tries).values(
            send_id=send.id,
            owner_hash=self._owner_hash,
            owner=self._owner,
            try_number=self._try_number,
            max_tries=self._max_tries,
            instance_id=self._instance_id,
            began_at=now,
        )
        return send.id, _new_id(connection.execute(began))

    def _send(self, connection: Connection, now: datetime) -> Found:
        """Return the row of this send, locked against everybody's commits."""
        send_hash = digest(self._send_key)
        find = select(sends.c.id, sends.c.identity).where(sends.c.send_hash == send_hash).with_for_update()
        if not connection.execute(find).first():
            connection.execute(
                insert(sends).values(
                    send_hash=send_hash, send_key=self._send_key, identity=self._identity, created_at=now
                )
            )
        return connection.execute(find).one()

    def _is_late(self, last: Found) -> bool:
        """Tell whether this try was taken for dead before it began, and *last* is of a later one.

        A DAG run that was deleted and made anew counts its tries from 1 again, under
        the same name: their ids are later nevertheless. Those are as right as the
        clocks of Airflow's hosts, so a higher number is believed.
        """
        return bool(self._instance_id < last.instance_id and self._try_number <= last.try_number)

    def _check_first(self) -> None:
        """Raise unless this task may be without a record."""
        # A file can stay behind on another worker without any fault; from try 3 on, a missing mark proves nothing then.
        from_elsewhere = self._database.dialect == "sqlite" and self._try_number > 2  # noqa: PLR2004 -- see `may_have_claimed`
        if not self._may_have_claimed and not from_elsewhere:
            return
        if self._on_clear == "restart" and self._max_tries != self._retries:
            log.warning(RESTARTED)
            return
        raise StateLost(
            f"This is try {self._try_number}, and the ledger has no record of the earlier ones"
            + (", as if it were on another worker's disk" if self._database.dialect == "sqlite" else "")
            + ", so nothing is sent: who was pushed can't be told. Point ledger_conn_id to the database that the "
            'earlier tries used; or, if everybody may be pushed again, set on_clear="restart" and clear the task.'
        )

    def _resume_or_restart(self, connection: Connection, now: datetime) -> None:
        """Do what *on_clear* says after a person's clear."""
        if self._on_clear == "resume":
            log.info("The task was cleared; it goes on where it stopped, and pushes nobody again.")
            return
        log.warning(RESTARTED)
        mine = select(tries.c.id).where(tries.c.owner_hash == self._owner_hash)
        given_up = select(batches.c.id).where(batches.c.try_id.in_(mine), batches.c.forgotten_at.is_(None))
        connection.execute(delete(claims).where(claims.c.batch_id.in_(given_up)))
        connection.execute(
            update(batches).where(batches.c.try_id.in_(mine), batches.c.forgotten_at.is_(None)).values(forgotten_at=now)
        )

    def _check_settings(self, connection: Connection, send: Found) -> None:
        """Raise where somebody is claimed under other settings, or by this task under another send key."""
        elsewhere = connection.execute(
            select(sends.c.send_key)
            .join(batches, batches.c.send_id == sends.c.id)
            .join(tries, tries.c.id == batches.c.try_id)
            .where(tries.c.owner_hash == self._owner_hash, sends.c.id != send.id, batches.c.forgotten_at.is_(None))
        ).first()
        if elsewhere:
            raise SettingsChanged(changes({"send_key": elsewhere.send_key}, {"send_key": self._send_key}))
        if send.identity == self._identity:
            return
        if connection.execute(select(claims.c.batch_id).where(claims.c.send_id == send.id).limit(1)).first():
            raise SettingsChanged(
                f"Send key {self._send_key!r}: {changes(json.loads(send.identity), json.loads(self._identity))} "
                "One send key serves one campaign: another campaign needs another send_key."
            )
        connection.execute(update(sends).where(sends.c.id == send.id).values(identity=self._identity))

    # What earlier tries left

    def _earlier_batches(self) -> Select[Any]:
        return (
            select(
                batches.c.id,
                batches.c.number,
                batches.c.claimed_at,
                batches.c.settled_at,
                batches.c.request_id,
                tries.c.try_number,
            )
            .join(tries, tries.c.id == batches.c.try_id)
            .where(tries.c.owner_hash == self._owner_hash, tries.c.id < self._try_id, batches.c.forgotten_at.is_(None))
            .order_by(tries.c.id, batches.c.number)
        )

    def _await_answers(self) -> None:
        """Wait while an earlier try may still hear from Responsys."""
        waiting = False
        # Another worker's clock may be ahead of this one's.
        at_most = self._now() + self._patience
        while True:
            with self._database.transaction() as connection:
                claimed_at = connection.execute(
                    select(func.max(batches.c.claimed_at))
                    .join(tries, tries.c.id == batches.c.try_id)
                    .where(
                        tries.c.owner_hash == self._owner_hash,
                        tries.c.id < self._try_id,
                        batches.c.settled_at.is_(None),
                        batches.c.forgotten_at.is_(None),
                    )
                ).scalar_one()
            if not claimed_at:
                return
            left = (min(claimed_at + self._patience, at_most) - self._now()).total_seconds()
            if left <= 0:
                return
            if not waiting:
                log.info("An earlier try may still be waiting for an answer: looking again for %.0f s", left)
                waiting = True
            self._sleep(min(left, 1.0))

    def _with_claims(self, heads: Sequence[Found]) -> Iterator[Earlier]:
        """Yield the batches of *heads* with whom they are for."""
        fingerprints: dict[int, list[bytes]] = {head.id: [] for head in heads}
        with self._database.transaction() as connection:
            rows = connection.execute(
                select(claims.c.batch_id, claims.c.fingerprint)
                .where(claims.c.batch_id.in_(list(fingerprints)))
                .order_by(claims.c.batch_id, claims.c.position)
            ).all()
        for batch_id, fingerprint in rows:
            fingerprints[batch_id].append(bytes(fingerprint))
        for head in heads:
            yield Earlier(
                fingerprints=fingerprints[head.id],
                # Settled by hand, it is accepted, and there is nothing to poll.
                request_id=head.request_id or "" if head.settled_at else None,
                since=head.claimed_at,
                label=f"try {head.try_number}, batch {head.number}",
                place=head.id,
                try_number=head.try_number,
            )

    # What commit decides

    def _record(
        self, connection: Connection, accepted: Sequence[Accepted], wanted: Sequence[Wanted], now: datetime
    ) -> Claimed | None:
        """Settle, then claim. None: this try was replaced."""
        if accepted:
            _settle(connection, [(self._open[answer.number], answer.request_id) for answer in accepted], now)
        if not wanted:
            return {}
        if not self._is_current(connection):
            return None
        rows = {want.number: randbits(62) for want in wanted}
        lost = self._claim(connection, wanted, rows)
        claimed = [
            self._batch(want, rows[want.number], len(want.fingerprints) - len(lost[want.number]), now)
            for want in wanted
            if len(want.fingerprints) > len(lost[want.number])
        ]
        if claimed:
            connection.execute(insert(batches), claimed)
        return {number: (row, lost[number]) for number, row in rows.items()}

    def _batch(self, want: Wanted, row: int, size: int, now: datetime) -> dict[str, Any]:
        return {
            "id": row,
            "send_id": self._send_id,
            "try_id": self._try_id,
            "number": want.number,
            "size": size,
            "claimed_at": now,
        }

    def _take_over(self, connection: Connection, wanted: Sequence[Wanted], now: datetime) -> Claimed | None:
        """Move *wanted* out of their doubts into batches of this try. None: this try was replaced.

        What was settled by hand meanwhile is not moved.
        """
        if not self._is_current(connection):
            return None
        taken: Claimed = {}
        for want in wanted:
            doubt_id = want.doubt and want.doubt.place
            doubt = batches.c.id == doubt_id
            doubtful = select(batches.c.size).where(doubt, batches.c.settled_at.is_(None))
            size = connection.execute(doubtful.with_for_update()).scalar()
            if size is None:
                continue
            row = randbits(62)
            theirs = (claims.c.batch_id == doubt_id, claims.c.fingerprint.in_(want.fingerprints))
            connection.execute(update(claims).where(*theirs).values(batch_id=row))
            moved = connection.execute(select(claims.c.fingerprint).where(claims.c.batch_id == row)).scalars()
            won = frozenset(map(bytes, moved))
            if won:
                connection.execute(insert(batches).values(self._batch(want, row, len(won), now)))
            rest = size - len(won)
            connection.execute(update(batches).where(doubt).values(size=rest) if rest else delete(batches).where(doubt))
            # Whoever was erased by hand may have been pushed, too.
            lost = {place: Holder.IN_DOUBT for place, one in enumerate(want.fingerprints) if one not in won}
            taken[want.number] = row, lost
        return taken

    def _is_current(self, connection: Connection) -> bool:
        """Tell whether no other try of this task began; keep it so until the transaction ends."""
        send = self._lock_send(connection)
        if send is None:
            raise StateLost("The record of this send was pruned from the ledger while it ran, so nobody is claimed")
        if send.identity != self._identity:
            raise SettingsChanged(
                f"Send key {self._send_key!r}: {changes(json.loads(self._identity), json.loads(send.identity))}"
            )
        newest = select(func.max(tries.c.id)).where(tries.c.owner_hash == self._owner_hash)
        return bool(connection.execute(newest).scalar_one() == self._try_id)

    def _lock_send(self, connection: Connection) -> Found:
        """Return the row of this send, kept as it is until the transaction ends; None if it was pruned."""
        mine = select(sends.c.identity).where(sends.c.id == self._send_id)
        return connection.execute(mine.with_for_update(read=self._database.dialect not in MYSQL)).first()

    def _release(self, connection: Connection, rows: Sequence[int]) -> None:
        """Give the claims of *rows* back."""
        if self._database.dialect in MYSQL:
            self._lock_send(connection)
        connection.execute(delete(claims).where(claims.c.batch_id.in_(rows)))
        connection.execute(delete(batches).where(batches.c.id.in_(rows)))

    def _claim(
        self, connection: Connection, wanted: Sequence[Wanted], rows: Mapping[int, int]
    ) -> dict[int, dict[int, Holder]]:
        """Insert the claims, in the order of their fingerprints; return who was lost, by batch and index."""
        claiming = sorted(
            ClaimRow(fingerprint, rows[want.number], index)
            for want in wanted
            for index, fingerprint in enumerate(want.fingerprints)
        )
        lost: dict[int, dict[int, Holder]] = {want.number: {} for want in wanted}
        if self._database.insert_claims(connection, self._send_id, claiming) == len(claiming):
            return lost
        numbers = {row: number for number, row in rows.items()}
        mine = select(claims.c.batch_id, claims.c.position).where(claims.c.batch_id.in_(list(numbers)))
        won = {tuple(row) for row in connection.execute(mine)}
        missed = [row for row in claiming if (row.batch_id, row.position) not in won]
        holders = self._holders(connection, [row.fingerprint for row in missed])
        for row in missed:
            # Whoever held it and has just given it up was alive a moment ago: it is not ours to be sure.
            lost[numbers[row.batch_id]][row.position] = holders.get(row.fingerprint, Holder.IN_DOUBT)
        return lost

    def _holders(self, connection: Connection, fingerprints: Sequence[bytes]) -> dict[bytes, Holder]:
        """Return who holds each of *fingerprints*."""
        holders: dict[bytes, Holder] = {}
        for start in range(0, len(fingerprints), LOOK_UP):
            found = connection.execute(
                select(claims.c.fingerprint, batches.c.settled_at, batches.c.try_id, tries.c.owner_hash)
                .join(batches, batches.c.id == claims.c.batch_id, isouter=True)
                .join(tries, tries.c.id == batches.c.try_id, isouter=True)
                .where(
                    claims.c.send_id == self._send_id,
                    claims.c.fingerprint.in_(fingerprints[start : start + LOOK_UP]),
                )
            )
            holders.update({bytes(row.fingerprint): self._holder(row) for row in found})
        return holders

    def _holder(self, row: Found) -> Holder:
        """Name the holder: a batch of this same try is another one, too."""
        if row.owner_hash != self._owner_hash or row.try_id == self._try_id:
            return Holder.OTHER
        return Holder.ACCEPTED if row.settled_at else Holder.IN_DOUBT


def _settle(connection: Connection, answers: Sequence[tuple[int, str]], now: datetime) -> None:
    """Record the request id of each batch, in the order of the rows."""
    statement = (
        update(batches)
        .where(batches.c.id == bindparam("row"))
        .values(settled_at=bindparam("at"), request_id=bindparam("answer"))
    )
    connection.execute(statement, [{"row": row, "at": now, "answer": answer} for row, answer in sorted(answers)])


def _new_id(result: CursorResult[Any]) -> int:
    (new,) = result.inserted_primary_key or (0,)
    return int(new)
