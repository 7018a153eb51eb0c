"""How a try begins in the SQL ledger: what becomes of what earlier tries left."""

import json
import logging
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from secrets import randbits
from typing import Any, NamedTuple, TypeAlias

from sqlalchemy import delete, insert, select, update
from sqlalchemy.engine import Connection, CursorResult

from airflow_provider_responsys.errors import Fenced, LedgerFailed, SettingsChanged, StateLost
from airflow_provider_responsys.ledger.commit_marks import CommitMarks, Point
from airflow_provider_responsys.ledger.sql_schema import ATTEMPTS, KEY_LOST, MUCH, Database
from airflow_provider_responsys.ledger.sql_tables import batches, claims, digest, sends, task_instances, tries
from airflow_provider_responsys.ledger.tries import OnClear, changes, is_of_a_clear

Found: TypeAlias = Any
"""A row of a query: SQLAlchemy 2.0 and 2.1 type it differently."""

RESTARTED = (
    'The task was cleared and on_clear is "restart": the claims of its earlier tries are forgotten, and all recipients '
    "whom no other task has claimed are pushed, again where they were pushed before."
)

REPLACED = "Another try of this task has begun, so this one claims no recipient any more"

WHAT_TO_DO = (
    'Restore the newer state of the database; or, if all recipients may be pushed again, set on_clear="restart" and '
    "clear the task."
)

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Try:
    """One try of a task instance, as `SqlLedger` takes it."""

    send_key: str
    task_instance: str
    try_number: int
    max_tries: int
    retries: int
    instance_id: str
    on_clear: OnClear
    may_have_claimed: bool
    answer_within: float


@dataclass(frozen=True, slots=True)
class Begun:
    """The rows of a try that began, how far its task instance is, and whether earlier claims of it count."""

    send_id: int
    task_instance_id: int
    try_id: int
    point: Point
    resumes: bool


class Known(NamedTuple):
    """A task instance in the tables, and its newest try."""

    task_instance_id: int
    claim_count: int
    start: int
    max_tries: int
    try_number: int
    instance_id: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do, after *newest*, which the tables or the marks know of."""

    newest: Point
    cleared: bool
    restart: bool
    says: str = ""
    """What a restart warns of."""


class Beginning:
    """The beginning of *mine* with *identity*, whose recipients the key named *key_id* fingerprints."""

    def __init__(
        self,
        database: Database,
        mine: Try,
        *,
        identity: str,
        key_id: str,
        marks: CommitMarks | None,
        now: datetime,
    ) -> None:
        self._database = database
        self._mine = mine
        self._identity = identity
        self._key_id = key_id
        self._marks = marks
        self._now = now

    def run(self) -> Begun:
        """Record that the try began, or raise why it may not."""
        for _ in range(ATTEMPTS):
            known = self._database.attempt(self._look)
            plan = self._decide(known)
            begin = partial(self._begin, known=known, plan=plan)
            begun = self._database.attempt(begin, seconds=MUCH if plan.restart else None)
            if begun:
                begun = self._keep_up(plan, begun)
                self._tell(plan, begun)
                return begun
        raise LedgerFailed("Other tries of this task begin at the same time: let one of them run, and try again")

    # Decisions

    def _decide(self, known: Known | None) -> Plan:
        """Return what to do after *known*."""
        if known and self._is_late(known):
            raise Fenced(REPLACED)
        point = Point(known.start, known.claim_count, known.max_tries) if known else Point(0, 0, None)
        newest = self._marks.newest(point) if self._marks else point
        cleared = self._mine.max_tries != (self._mine.retries if newest.max_tries is None else newest.max_tries)
        restart = self._mine.on_clear == "restart" and (self._is_of_a_clear if newest.max_tries is None else cleared)
        if newest.count > point.count and not restart:
            raise _put_back(point.count, newest.count)
        if known is None and not restart:
            self._check_first()
        return Plan(newest, cleared, restart)

    @property
    def _is_of_a_clear(self) -> bool:
        """Whether a person's clear made this try: where no record says what it was before, no later one restarts."""
        mine = self._mine
        return is_of_a_clear(try_number=mine.try_number, max_tries=mine.max_tries, retries=mine.retries)

    def _is_late(self, last: Known) -> bool:
        """Return whether this try was taken for dead before it began, and *last* is of a later one.

        A DAG run that was deleted and made anew counts its tries from 1 again, under
        the same name: their ids are later nevertheless. Those are as right as the
        clocks of Airflow's hosts, so a higher number is believed.
        """
        return self._mine.instance_id < last.instance_id and self._mine.try_number <= last.try_number

    def _may_lack_a_record(self) -> bool:
        """Return whether no earlier try can have left a record."""
        # A file can stay behind on another worker without any fault; from try 3 on, a missing mark proves nothing then.
        from_elsewhere = self._database.dialect == "sqlite" and self._mine.try_number > 2  # noqa: PLR2004 -- see `may_have_claimed`
        return not self._mine.may_have_claimed and not from_elsewhere

    def _check_first(self) -> None:
        """Raise unless this task may be without a record."""
        if self._may_lack_a_record():
            return
        raise StateLost(
            f"This is try {self._mine.try_number}, and the ledger has no record of the earlier ones"
            + (", as if it were on another worker's disk" if self._database.dialect == "sqlite" else "")
            + ", so nothing is sent: who was pushed can't be told. Point ledger_conn_id to the database that the "
            'earlier tries used; or, if all recipients may be pushed again, set on_clear="restart" and clear the task.'
        )

    def _keep_up(self, plan: Plan, begun: Begun) -> Begun:
        """Return *begun* as far as the marks say by now; raise `StateLost` where they are ahead of the tables.

        Until this try stood in the tables, an earlier start could claim, mark and post;
        a database that was put back since lacks that claim.
        """
        count = self._marks.newest(begun.point).count if self._marks else begun.point.count
        if count <= begun.point.count:
            return begun
        if not plan.restart:
            raise _put_back(begun.point.count, count)
        self._database.attempt(partial(self._count_on, begun=begun, count=count))
        return replace(begun, point=replace(begun.point, count=count))

    def _count_on(self, connection: Connection, begun: Begun, count: int) -> None:
        """Let the commits of this try be counted from *count*: no mark of an earlier start is taken for one of them."""
        mine = (task_instances.c.id == begun.task_instance_id, task_instances.c.current_try_id == begun.try_id)
        if connection.execute(update(task_instances).where(*mine).values(claim_count=count)).rowcount != 1:
            raise Fenced(REPLACED)

    def _tell(self, plan: Plan, begun: Begun) -> None:
        """Log what the try goes on from, and mark outside of the database that it began."""
        if plan.restart and (plan.newest.start or not self._may_lack_a_record()):
            log.warning(RESTARTED)
        elif plan.cleared and plan.newest.start:
            log.info("The task was cleared; it goes on where it stopped, and pushes no recipient again.")
        if self._marks:
            before = begun.point.start - 1
            self._marks.complete(Point(before, begun.point.count, plan.newest.max_tries))
            self._marks.begun(begun.point)

    # Statements

    def _look(self, connection: Connection) -> Known | None:
        """Return the task instance and its newest try, None if there is none."""
        row = connection.execute(
            select(
                task_instances.c.id,
                task_instances.c.claim_count,
                tries.c.start,
                tries.c.max_tries,
                tries.c.try_number,
                tries.c.instance_id,
            )
            .join(tries, tries.c.task_instance_id == task_instances.c.id)
            .where(task_instances.c.name_hash == digest(self._mine.task_instance))
            .order_by(tries.c.start.desc())
            .limit(1)
        ).first()
        return row and Known(*row)

    def _begin(self, connection: Connection, known: Known | None, plan: Plan) -> Begun | None:
        """Write that the try began. None: *known* is no longer true."""
        send = self._send(connection)
        if known:
            # A commit of an earlier try that goes on is awaited; the next one finds that it was replaced.
            mine = select(task_instances.c.id).where(task_instances.c.id == known.task_instance_id)
            connection.execute(mine.with_for_update())
        found = self._look(connection)
        if (found and found._replace(claim_count=0)) != (known and known._replace(claim_count=0)):
            return None
        if found and known and found.claim_count < known.claim_count:
            return None
        if found and plan.restart:
            self._forget(connection, found.task_instance_id)
        self._check_settings(connection, send, found)
        point = Point(
            start=plan.newest.start + 1,
            count=max(found.claim_count if found else 0, plan.newest.count),
            max_tries=self._mine.max_tries,
        )
        return self._write(connection, send.id, found, point)

    def _write(self, connection: Connection, send_id: int, found: Known | None, point: Point) -> Begun:
        """Insert the try, which is from now on the only one of its task instance that may claim."""
        try_id = randbits(62)
        counter = {"claim_count": point.count, "current_try_id": try_id}
        if found:
            task_instance_id, resumes = found.task_instance_id, self._has_claims(connection, found.task_instance_id)
            mine = update(task_instances).where(task_instances.c.id == task_instance_id)
            connection.execute(mine.values(counter))
        else:
            name = self._mine.task_instance
            new = {"name_hash": digest(name), "name": name, "created_at": self._now, **counter}
            task_instance_id, resumes = _new_id(connection.execute(insert(task_instances).values(new))), False
        connection.execute(
            insert(tries).values(
                id=try_id,
                send_id=send_id,
                task_instance_id=task_instance_id,
                start=point.start,
                try_number=self._mine.try_number,
                max_tries=self._mine.max_tries,
                instance_id=self._mine.instance_id,
                answer_within=self._mine.answer_within,
                began_at=self._now,
                last_write_at=self._now,
            )
        )
        return Begun(send_id, task_instance_id, try_id, point, resumes)

    def _send(self, connection: Connection) -> Found:
        """Return the row of this send, locked against every claim."""
        send_hash = digest(self._mine.send_key)
        columns = (sends.c.id, sends.c.identity, sends.c.fingerprint_key_id)
        find = select(*columns).where(sends.c.send_hash == send_hash).with_for_update()
        if not connection.execute(find).first():
            new = {"send_hash": send_hash, "send_key": self._mine.send_key, "created_at": self._now}
            connection.execute(insert(sends).values({**new, **self._settings()}))
        return connection.execute(find).one()

    def _settings(self) -> dict[str, str]:
        """Return what is stored of the settings that make a recipient's identity."""
        return {
            "account": json.loads(self._identity).get("account", ""),
            "identity": self._identity,
            "fingerprint_key_id": self._key_id,
        }

    def _has_claims(self, connection: Connection, task_instance_id: int) -> bool:
        """Return whether earlier tries of this task instance left claims that count."""
        mine = (
            select(batches.c.id)
            .join(tries, tries.c.id == batches.c.try_id)
            .where(tries.c.task_instance_id == task_instance_id, batches.c.forgotten_at.is_(None))
        )
        return connection.execute(mine.limit(1)).first() is not None

    def _forget(self, connection: Connection, task_instance_id: int) -> None:
        """Give up what earlier tries of this task instance claimed."""
        mine = select(tries.c.id).where(tries.c.task_instance_id == task_instance_id)
        counts = (batches.c.try_id.in_(mine), batches.c.forgotten_at.is_(None))
        given_up = select(batches.c.id).where(*counts)
        connection.execute(delete(claims).where(claims.c.batch_id.in_(given_up)))
        connection.execute(update(batches).where(*counts).values(forgotten_at=self._now))

    def _check_settings(self, connection: Connection, send: Found, found: Known | None) -> None:
        """Raise where recipients are claimed under other settings, or by this task under another send key."""
        if found:
            self._check_send_key(connection, send, found)
        if send.identity == self._identity and send.fingerprint_key_id == self._key_id:
            return
        if connection.execute(select(claims.c.batch_id).where(claims.c.send_id == send.id).limit(1)).first():
            if send.fingerprint_key_id != self._key_id:
                raise StateLost(KEY_LOST)
            raise SettingsChanged(
                f"Send key {self._mine.send_key!r}: {changes(json.loads(send.identity), json.loads(self._identity))} "
                "One send key serves one campaign on one account: another one needs another send_key."
            )
        connection.execute(update(sends).where(sends.c.id == send.id).values(self._settings()))

    def _check_send_key(self, connection: Connection, send: Found, found: Known) -> None:
        elsewhere = connection.execute(
            select(sends.c.send_key)
            .join(batches, batches.c.send_id == sends.c.id)
            .join(tries, tries.c.id == batches.c.try_id)
            .where(
                tries.c.task_instance_id == found.task_instance_id,
                sends.c.id != send.id,
                batches.c.forgotten_at.is_(None),
            )
        ).first()
        if elsewhere:
            raise SettingsChanged(changes({"send_key": elsewhere.send_key}, {"send_key": self._mine.send_key}))


def _put_back(known: int, marked: int) -> StateLost:
    """Return the error for tables that lack commits that the marks tell of."""
    return StateLost(
        f"The ledger's database was put back to an older state, or lost its record: it knows {known} commits of this "
        f"task's claims, and Airflow's task state knows {marked}. Which recipients the others pushed can't be told, so "
        f"nothing is sent. {WHAT_TO_DO}"
    )


def _new_id(result: "CursorResult[Any]") -> int:
    (new,) = result.inserted_primary_key or (0,)
    return int(new)
