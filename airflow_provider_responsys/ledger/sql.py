"""The ledger in a SQL database: one record across tries, tasks and runs.

A recipient is claimed by a unique row per send key and fingerprint, so two
tries, tasks or shards that run at once can't both win one. Claims are inserted
in the order of their fingerprints, in a transaction that takes nothing back:
two of them can't wait for each other in a circle. In MySQL, which locks more than
it writes, they could: there, one of a send waits for the other.

Each transaction that claims raises a counter in the row of its task instance, which
says, too, which try may claim. The counter is told outside of the database before a
request leaves (`commit_marks`): so a database that was put back is recognised.
"""

import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.sql import ColumnElement, Select

from airflow_provider_responsys.errors import LedgerFailed
from airflow_provider_responsys.ledger.commit_marks import CommitMarks
from airflow_provider_responsys.ledger.fingerprint import key_id
from airflow_provider_responsys.ledger.interface import Accepted, Claim, Earlier, Settlement, Source, Wanted
from airflow_provider_responsys.ledger.sql_begin import Beginning, Begun, Found, Try
from airflow_provider_responsys.ledger.sql_claims import Writer, Written
from airflow_provider_responsys.ledger.sql_schema import Database
from airflow_provider_responsys.ledger.sql_tables import batches, claims, digest, task_instances, tries
from airflow_provider_responsys.ledger.state_store import StateStore
from airflow_provider_responsys.ledger.tries import OnClear

READ_BATCHES = 100
"""Batches whose claims are in memory at a time when they are read back."""

log = logging.getLogger(__name__)


class SqlLedger:
    """The record of *send_key* on *engine*, seen from one try of *task_instance*.

    *task_instance* is the name of the task instance: DAG, task, run and map index.
    *instance_id* is what Airflow calls this try of it, a UUID of version 7, which is
    greater for a try that was made later; without one, whichever begins last is the
    newest. *max_tries*, *retries*, *on_clear* and *may_have_claimed* are those of
    `TaskStateLedger`.
    An earlier try that is still alive gets *answer_within* seconds after each
    of its claims to settle it, before that is taken for a doubt.
    *store* is Airflow's task state store, where there is one: it tells of a database
    that was put back.
    The engine is the ledger's own: it is set up, and disposed of, here.
    """

    durable = True
    resumes = False
    looks_ahead = False

    def __init__(
        self,
        engine: Engine,
        *,
        send_key: str,
        task_instance: str,
        try_number: int,
        max_tries: int,
        retries: int,
        instance_id: str = "",
        on_clear: OnClear = "resume",
        may_have_claimed: bool | None = None,
        answer_within: float = 0.0,
        store: StateStore | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self._database = Database(engine)
        self._mine = Try(
            send_key=send_key,
            task_instance=task_instance,
            try_number=try_number,
            max_tries=max_tries,
            retries=retries,
            instance_id=instance_id,
            on_clear=on_clear,
            may_have_claimed=try_number > 1 if may_have_claimed is None else may_have_claimed,
            answer_within=answer_within,
        )
        self._marks = CommitMarks(store) if store else None
        self._now = now
        self._sleep = sleep
        self._writer: Writer | None = None
        self._ending: Writer | None = None
        """The same, until the end is written."""
        self._count = 0
        """Of the transactions that claimed, over all tries, as this try knows."""
        self._uncertain = False
        """Whether a transaction ended without saying whether it raised the count."""
        self._marked = 0
        """The count that the marks tell."""
        self._open: dict[int, int] = {}
        """The id of each batch whose answer is not recorded yet, by its number."""
        self._unsent: set[int] = set()
        """Batches that may be claimed, and whose requests will not leave: their commit failed."""
        self._moved: set[int] = set()
        """The numbers of the batches into which recipients in doubt moved during this commit."""

    def begin(self, identity: Mapping[str, str]) -> bytes:
        """Record that this try began, after deciding what becomes of what earlier ones left."""
        now = self._now()
        key = self._database.prepare(now)
        text, name = json.dumps(dict(identity), sort_keys=True), key_id(key)
        begun = Beginning(self._database, self._mine, identity=text, key_id=name, marks=self._marks, now=now).run()
        self._count = self._marked = begun.point.count
        self.resumes = begun.resumes
        self._writer = self._ending = Writer(self._database, begun, identity=text, key_id=name)
        return key

    def compare(self, source: Source) -> None:
        """Do nothing: a recipient is claimed once under a send key, whichever shard it is in."""

    def earlier(self) -> Iterator[Earlier]:
        """Yield the earlier tries' batches, a hundred in memory at a time.

        After a `begin` that raised, those that stand in the tables.
        """
        begun = self._writer.begun if self._writer else None
        if begun:
            self._await_answers(begun)
        with self._database.transaction() as connection:
            heads = connection.execute(_earlier_batches(begun or self._mine.task_instance)).all()
        for start in range(0, len(heads), READ_BATCHES):
            yield from self._with_claims(heads[start : start + READ_BATCHES])

    def commit(
        self,
        settled: Sequence[Settlement],
        wanted: Sequence[Wanted],
        upcoming: Sequence[Sequence[bytes]] = (),  # noqa: ARG002 -- the interface's; nothing is written in advance
    ) -> list[Claim]:
        """Record *settled*, and claim *wanted* of those whom no other task or try has claimed.

        What failed may be given again: an answer that is recorded twice changes nothing.
        """
        self._moved.clear()
        try:
            return self._commit(settled, wanted)
        except LedgerFailed as failure:
            failure.moved = self._where_moved([want for want in wanted if want.doubt])
            raise

    def _commit(self, settled: Sequence[Settlement], wanted: Sequence[Wanted]) -> list[Claim]:
        """Do what `commit` does, in up to three transactions."""
        writer, now = self._began(), self._now()
        accepted = {self._open[answer.number]: answer for answer in settled if isinstance(answer, Accepted)}
        self._release([self._open[answer.number] for answer in settled if not isinstance(answer, Accepted)])
        doubts = [want for want in wanted if want.doubt]
        # By itself, as what is released: a transaction that gives up and takes could wait for one that waits for it.
        moved = self._claim(doubts, lambda one: writer.take_over(one, doubts, count=self._count, now=now), ())
        others = [] if moved.problem else [want for want in wanted if want.number not in moved.lost]
        written = self._claim(
            others,
            lambda one: writer.record(one, accepted, others, count=self._count, now=now),
            [want.batch_id for want in others],
            settles=True,
        )
        if problem := moved.problem or written.problem:
            raise problem
        for answer in settled:
            self._open.pop(answer.number, None)
        self._open.update({want.number: want.batch_id for want in wanted})
        lost = {**moved.lost, **written.lost}
        return [Claim(want.number, lost[want.number]) for want in wanted]

    def name_answer(self, number: int, correlation_id: str) -> None:
        """Keep it in the batch's row, beside its `X-Request-Id`."""
        writer, batch_id = self._began(), self._open[number]
        self._database.attempt(lambda connection: writer.name_answer(connection, batch_id, correlation_id))

    def close(self) -> None:
        """Record when the try ended, where that can be done, and close the connections. Harmless to repeat."""
        writer, self._ending = self._ending, None
        if writer:
            # People see it, and nothing that is sent depends on it.
            with suppress(LedgerFailed), self._database.transaction() as connection:
                writer.end(connection, self._now())
        self._database.dispose()

    def _began(self) -> Writer:
        if self._writer is None:
            raise LedgerFailed("`begin` comes first")
        return self._writer

    # What earlier tries left

    def _await_answers(self, begun: Begun) -> None:
        """Wait while an earlier try may still hear from Responsys."""
        waiting = False
        began = self._now()
        while True:
            with self._database.transaction() as connection:
                claimed = connection.execute(_open_batches(begun)).all()
            # Another worker's clock may be ahead of this one's.
            ends = [min(row.claimed_at, began) + self._patience(row) for row in claimed]
            left = (max(ends) - self._now()).total_seconds() if ends else 0.0
            if left <= 0:
                return
            if not waiting:
                log.info("An earlier try may still be waiting for an answer: looking again for %.0f s", left)
                waiting = True
            self._sleep(min(left, 1.0))

    def _patience(self, row: Found) -> timedelta:
        """Return how long the try of *row* may wait for an answer, which this one may do differently."""
        return timedelta(seconds=max(self._mine.answer_within, row.answer_within))

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
                # Resolved by hand, it is accepted, and there is nothing to poll.
                request_id=head.request_id or "" if head.settled_at else None,
                since=head.claimed_at,
                label=_label(head.try_number, head.number),
                place=head.id,
                try_number=head.try_number,
                batch_id=head.id,
            )

    # What a commit writes

    def _release(self, released: Sequence[int]) -> None:
        """Give up the claims of the batches *released*, and of those whose commit failed."""
        writer, ids = self._began(), sorted({*released, *self._unsent})
        if ids:
            self._database.attempt(lambda connection: writer.release(connection, ids))
            self._unsent.clear()

    def _claim(
        self,
        wanted: Sequence[Wanted],
        work: Callable[[Connection], Written],
        new: Iterable[int],
        *,
        settles: bool = False,
    ) -> Written:
        """Do *work*, which claims *wanted*, and mark that it is done. *new* are batches to release if that fails."""
        if not wanted:
            return self._database.attempt(work) if settles else Written()
        self._catch_up()
        self._uncertain = True
        self._unsent.update(new)
        written = self._database.attempt(work)
        self._uncertain = False
        self._count += written.raised
        self._moved |= written.moved
        try:
            self._mark()
        except LedgerFailed:
            with suppress(LedgerFailed):  # then the next commit does it
                self._release(())
            raise
        self._unsent.difference_update(new)
        return written

    def _where_moved(self, doubts: Sequence[Wanted]) -> dict[int, Earlier]:
        """Return where the recipients of *doubts* are that moved before the commit failed, as the next try finds them.

        A move that ended without an answer is looked up. If that fails, too, it counts as not done.
        """
        if doubts and self._uncertain and not self._moved:
            with suppress(LedgerFailed):
                self._moved = self._database.attempt(lambda one: self._began().moved(one, doubts))
        number = self._mine.try_number
        return {
            want.number: replace(
                want.doubt,
                label=_label(number, want.number),
                place=want.batch_id,
                batch_id=want.batch_id,
                try_number=number,
            )
            for want in doubts
            if want.doubt and want.number in self._moved
        }

    def _catch_up(self) -> None:
        """Learn the count after a transaction that ended without an answer; write the mark that is missing."""
        if self._uncertain and self._database.attempt(self._began().count) == self._count + 1:
            self._count += 1
        self._uncertain = False
        self._mark()

    def _mark(self) -> None:
        """Tell the count outside of the database."""
        if self._marks and self._marked < self._count:
            self._marks.committed(self._count)
        self._marked = self._count


def _label(try_number: int, number: int) -> str:
    """Return how a person finds batch *number* of a try."""
    return f"try {try_number}, batch {number}"


def _earlier_batches(before: Begun | str) -> "Select[Any]":
    """Return a query for the batches that count: of the tries *before* one, or of all of a task instance's."""
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
        .where(*_of_earlier(before))
        .order_by(tries.c.start, batches.c.number)
    )


def _open_batches(begun: Begun) -> "Select[Any]":
    """Return a query for when each try before *begun* claimed last what has no answer, and how long that may take."""
    return (
        select(tries.c.id, tries.c.answer_within, func.max(batches.c.claimed_at).label("claimed_at"))
        .join(tries, tries.c.id == batches.c.try_id)
        .where(*_of_earlier(begun), batches.c.settled_at.is_(None))
        .group_by(tries.c.id, tries.c.answer_within)
    )


def _of_earlier(before: Begun | str) -> "tuple[ColumnElement[bool], ...]":
    counts = batches.c.forgotten_at.is_(None)
    if isinstance(before, str):
        mine = select(task_instances.c.id).where(task_instances.c.name_hash == digest(before))
        return tries.c.task_instance_id == mine.scalar_subquery(), counts
    return tries.c.task_instance_id == before.task_instance_id, tries.c.start < before.point.start, counts
