"""The tries of the ledger put together as pushes, and what is known of each: how far it is, who is in which bucket."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, TypeAlias

from airflow_provider_responsys.ledger.sql_reading import campaign_of, last_answer_at, state_of
from airflow_provider_responsys.ledger.sql_values import COUNT, State
from airflow_provider_responsys.report.model import Buckets, PushState, PushSummary, PushTask

QUIET = timedelta(minutes=15)
"""After so long without a write, a try that has not said that it ended is taken for killed. The longest wait that
Responsys asks of a sender, for its capacity, takes ten minutes."""

Row: TypeAlias = Any
"""A row of a query: SQLAlchemy 2.0 and 2.1 type it differently."""


def task_of(name: str) -> PushTask:
    """Return the task instance that the ledger calls *name*; the id of a run may hold slashes, the others can't.

    One that no operator named is a DAG by that name, which no one is allowed to read.
    """
    dag_id, _, rest = name.partition("/")
    task_id, _, rest = rest.partition("/")
    run_id, _, index = rest.rpartition("/")
    if not (dag_id and task_id and run_id and (index == "-1" or index.isdecimal())):
        return PushTask(dag_id=name, task_id="", run_id="")
    return PushTask(dag_id=dag_id, task_id=task_id, run_id=run_id, map_index=int(index))


@dataclass(frozen=True, slots=True)
class Push:
    """The *tries* of one task of one run, in the order of their beginnings."""

    task: PushTask
    tries: Sequence[Row]

    @property
    def began_at(self) -> datetime:
        """Return when its first try began."""
        return self.tries[0].began_at  # type: ignore[no-any-return]  # see Row

    @property
    def current(self) -> list[Row]:
        """Return the newest try of each map index."""
        newest: dict[int, Row] = {}
        for row in self.tries:
            if row.task_instance_id not in newest or newest[row.task_instance_id].start < row.start:
                newest[row.task_instance_id] = row
        return list(newest.values())

    @property
    def ended_at(self) -> datetime | None:
        """Return when its last try ended, None while one has not, or where one was killed."""
        ends = [row.ended_at for row in self.current]
        return None if None in ends else max(ends)


def grouped(rows: Iterable[Row]) -> list[Push]:
    """Return the pushes that the tries *rows* are of, all map indexes of a mapped task together."""
    found: dict[PushTask, list[Row]] = {}
    for row in rows:
        found.setdefault(replace(task_of(row.name), map_index=None), []).append(row)
    return [Push(task, in_order(tries)) for task, tries in found.items()]


def in_order(rows: Iterable[Row]) -> list[Row]:
    """Return the tries *rows* in the order of their beginnings."""
    return sorted(rows, key=lambda row: (row.began_at, row.start))


def is_awaited(of_try: Row, claimed_at: datetime, now: datetime) -> bool:
    """Return whether a try still waits for the answer to what it claimed until *claimed_at*."""
    return of_try.ended_at is None and now < last_answer_at(claimed_at, of_try.last_write_at, of_try.answer_within)


def count(push: Push, rows: Iterable[Row], now: datetime) -> tuple[Buckets, int]:
    """Return the buckets of *push* and the number of its requests. *rows* are its batches, or groups of them."""
    tries = {row.id: row for row in push.tries}
    accepted = in_doubt = in_flight = requests = 0
    for row in rows:
        state, size = state_of(row), int(row.size)
        if state not in COUNT:
            continue
        requests += int(row.requests)
        if state is not State.IN_DOUBT:
            accepted += size
        elif is_awaited(tries[row.try_id], row.claimed_at, now):
            in_flight += size
        else:
            in_doubt += size
    return Buckets(accepted=accepted, in_doubt=in_doubt, in_flight=in_flight), requests


def state_of_push(push: Push, buckets: Buckets, now: datetime) -> PushState:
    """Return how far *push* is."""
    if buckets.in_flight or any(_goes_on(row, now) for row in push.current):
        return PushState.RUNNING
    return PushState.IN_DOUBT if buckets.in_doubt else PushState.ENDED


def summary(push: Push, sends: dict[int, Row], rows: Iterable[Row], now: datetime) -> PushSummary:
    """Return the summary of *push*, whose batches, or groups of them, are *rows*; what it sent is of its newest try."""
    buckets, requests = count(push, rows, now)
    send = sends[push.tries[-1].send_id]
    return PushSummary(
        task=push.task,
        campaign_name=campaign_of(send.identity),
        account=send.account,
        send_key=send.send_key,
        state=state_of_push(push, buckets, now),
        began_at=push.began_at,
        ended_at=push.ended_at,
        tries=max(Counter(row.task_instance_id for row in push.tries).values()),
        requests=requests,
        buckets=buckets,
    )


def _goes_on(of_try: Row, now: datetime) -> bool:
    patience = max(QUIET, timedelta(seconds=of_try.answer_within))
    return of_try.ended_at is None and now < of_try.last_write_at + patience
