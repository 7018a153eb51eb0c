"""All that decides how a schedule can go on, as one value, so that an exploration goes on from it once.

Times are seconds from now: two schedules that differ in when they began are one.
"""

from collections.abc import Hashable, Mapping
from typing import TYPE_CHECKING

from airflow_provider_responsys.ledger.marked import MarkedLedger
from airflow_provider_responsys.ledger.task_state import TaskStateLedger
from airflow_provider_responsys.protocol.pace import Pace
from airflow_provider_responsys.sending.engine import Engine
from airflow_provider_responsys.sending.outcome import Resumed
from airflow_provider_responsys.sending.run import Run
from tests.simulation.stores import Row, SqlModel, SqlStore, TaskStates

if TYPE_CHECKING:
    from tests.simulation.attempt import Attempt
    from tests.simulation.world import World


def state_of(world: "World") -> Hashable:
    """Return what decides how *world* can go on."""
    now = world.now
    truth = world.truth
    return (
        world.faults_left,
        world.moved,
        truth.troubles,
        tuple(what if not isinstance(what, float) else _from(what, now) for what in world.suspended),
        tuple((task.max_tries, task.mark, task.generation) for task in world.tasks),
        tuple(_attempt(attempt, now) for task in world.tasks for attempt in task.attempts),
        tuple(world.live.index(attempt) for task in world.tasks for attempt in task.attempts if attempt in world.live),
        tuple(sorted((who, tuple(sorted(each.name for each in pushers))) for who, pushers in truth.pushed.items())),
        tuple(sorted((recipient, attempt.name, batch) for recipient, (attempt, batch) in truth.maybe.items())),
        _store(world),
    )


def _attempt(attempt: "Attempt", now: float) -> Hashable:
    ended = attempt.phase, attempt.outcome, attempt.lost, attempt.halted, attempt.ledger_failed, attempt.alone
    if attempt.outcome is not None:
        return ended
    return (
        *ended,
        attempt.source,
        attempt.may_have_claimed,
        _from(attempt.until, now),
        tuple((flight.number, _from(flight.left_at, now)) for flight in attempt.flights),
        tuple(sorted(attempt.doubted)),
        tuple(attempt.posts.items()),
        attempt.inbox.qsize(),
        attempt.instants,
        attempt.engine and _engine(attempt.engine, now),
        attempt.run and _run(attempt.run),
        attempt.ledger and _ledger(attempt.ledger),
        attempt.resumed and _resumed(attempt.resumed),
    )


def _resumed(resumed: Resumed) -> Hashable:
    return resumed.accepted, resumed.in_doubt, resumed.vanished, len(resumed.repeats)


def _engine(engine: Engine, now: float) -> Hashable:
    return (
        engine.more,
        tuple(engine.ready),
        tuple((number, _from(at, now)) for number, at in engine.flight.items()),
        tuple((_from(at, now), number) for at, number in engine.again),
        tuple(engine.answers),
        tuple(engine.tries.items()),
        type(engine.stopped),
        _from(engine.give_up, now),
        max(_from(engine.hold, now) or 0.0, 0.0),
        engine.must_probe,
        engine.probing,
        max(_from(engine.probe_at, now) or 0.0, 0.0),
        _from(engine.clear_at, now) if engine.flight else None,
        engine.ledger_down,
        engine.last_write,
        engine.cautious,
        _from(engine.troubled_since, now),
        engine.troubles,
        engine.lost,
        engine.latency and round(engine.latency, 3),
        _pace(engine.pace, now),
        _from(engine.limits.deadline, now),
    )


def _pace(pace: Pace, now: float) -> Hashable:
    refused = pace.refused_since is not None
    return (
        max(_from(pace.due, now) or 0.0, 0.0),
        pace.rate,
        _from(pace.began, now),
        tuple(_from(sent, now) for sent in pace.held),
        (_from(pace.refused_since, now), _from(pace.last_refused, now), pace.wait) if refused else None,
        _from(pace.turned, now),
        (pace.rise, _from(pace.rise_at, now)) if pace.rate < pace.limit else None,
    )


def _run(run: Run) -> Hashable:
    report, queue = run.report, run._queue
    return (
        report.total,
        report.accepted,
        tuple(report.rejected.items()),
        tuple(report.held.items()),
        report.in_doubt,
        report.unwritten,
        tuple((number, batch.bodies) for number, batch in run._claimed.items()),
        repr(run._numbers),
        queue.taken,
        queue._next and queue._next.bodies,
        tuple((due.batch.bodies, due.doubt and due.doubt.label) for due in queue._again),
        tuple(sorted(run._inherited)),
    )


def _ledger(ledger: object) -> Hashable:
    if isinstance(ledger, MarkedLedger):
        return ledger._marked, _ledger(ledger._ledger)
    if isinstance(ledger, TaskStateLedger):
        return (
            type(ledger._store.refused),
            ledger._meta and ledger._meta.segments,
            ledger._first,
            ledger._next,
            tuple(ledger._places.items()),
            tuple(
                (index, tuple((number, batch.request_id) for number, batch in segment.items()))
                for index, segment in ledger._segments.items()
            ),
        )
    return tuple(ledger._open) if isinstance(ledger, SqlModel) else None


def _store(world: "World") -> Hashable:
    store = world.store
    if isinstance(store, TaskStates):
        return tuple((task, _rows(rows)) for task, rows in store.rows.items())
    assert isinstance(store, SqlStore)
    tables = store.tables
    return (
        tuple(sorted((fingerprint, _row(row)) for fingerprint, row in tables.claims.items())),
        tuple(sorted(map(_row, tables.batches))),
        tuple((task, tuple(numbers)) for task, numbers in tables.tries.items()),
        tuple(tables.max_tries.items()),
    )


def _rows(rows: Mapping[str, str]) -> Hashable:
    return tuple(rows.items())


def _row(row: Row) -> tuple[str, int, str, bool, float]:
    return row.attempt.name, row.number, row.request_id or "", row.forgotten, row.claimed_at


def _from(time: float | None, now: float) -> float | None:
    return None if time is None else round(time - now, 3)
