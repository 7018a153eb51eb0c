"""All that decides how a schedule can go on, as one value, so that an exploration goes on from it once.

Times are seconds from now: two schedules that differ in when they began are one.
"""

from collections import deque
from collections.abc import Hashable
from typing import TYPE_CHECKING, cast

from airflow_provider_responsys.ledger.state_store import StateStore
from airflow_provider_responsys.protocol.pace import Pace
from airflow_provider_responsys.sending.engine import Engine
from airflow_provider_responsys.sending.outcome import Resumed
from airflow_provider_responsys.sending.run import Run
from tests.simulation.sql_tables import SqlStore, Tables

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
        tuple((task.max_tries, tuple(sorted(task.marks)), task.generation, task.lost) for task in world.tasks),
        tuple(_attempt(attempt, now) for task in world.tasks for attempt in task.attempts),
        tuple(world.live.index(attempt) for task in world.tasks for attempt in task.attempts if attempt in world.live),
        tuple(sorted((who, tuple(sorted(each.name for each in pushers))) for who, pushers in truth.pushed.items())),
        tuple(sorted((recipient, attempt.name, batch) for recipient, (attempt, batch) in truth.maybe.items())),
        _store(world),
    )


def _attempt(attempt: "Attempt", now: float) -> Hashable:
    ended = (
        *(attempt.name, attempt.phase, attempt.outcome, attempt.asked, attempt.lost, attempt.halted),
        *(attempt.ledger_failed, attempt.alone, attempt.overtaken, attempt.left),
        tuple((number, noted.fingerprints, noted.request_id) for number, noted in attempt.noted.items()),
        tuple(sorted(attempt.moving)),
    )
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
        attempt.ledger and _ledger_of(attempt),
        attempt.resumed and _resumed(attempt.resumed),
    )


def _ledger_of(attempt: "Attempt") -> Hashable:
    if attempt.world.suspended:  # perhaps in the middle of a step
        return _ledger(attempt.ledger)
    if attempt.ledger_state is None:
        attempt.ledger_state = _ledger(attempt.ledger)
    return attempt.ledger_state


def _resumed(resumed: Resumed) -> Hashable:
    return resumed.accepted, resumed.in_doubt, resumed.vanished, len(resumed.repeats)


def _engine(engine: Engine, now: float) -> Hashable:
    return (
        tuple((number, _from(at, now)) for number, at in engine.flight.items()),
        tuple((_from(at, now), number) for at, number in engine.again),
        type(engine.stopped),
        *(_from(getattr(engine, name), now) for name in ("give_up", "troubled_since")),
        *(max(_from(getattr(engine, name), now) or 0.0, 0.0) for name in ("hold", "probe_at")),
        _from(engine.clear_at, now) if engine.flight else None,
        engine.latency and round(engine.latency, 3),
        _pace(engine.pace, now),
        _from(engine.limits.deadline, now),
        *(_value(getattr(engine, name)) for name in _others(type(engine))),
    )


def _others(kind: type[Engine]) -> tuple[str, ...]:
    """Return the members of an engine that are no times."""
    if kind not in MEMBERS:
        MEMBERS[kind] = tuple(name for name in kind.__dataclass_fields__ if name not in TIMES)
    return MEMBERS[kind]


TIMES = frozenset(
    ("flight", "again", "stopped", "give_up", "troubled_since", "hold", "probe_at", "clear_at", "latency", "pace")
) | {"limits"}

MEMBERS: dict[type, tuple[str, ...]] = {}
"""The members of each type whose values decide: looked up once."""


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
    ahead = getattr(queue, "_ahead", ())
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
        tuple(due.batch.bodies for due in ahead) or _next(queue),
        tuple((due.batch.bodies, due.doubt and due.doubt.label) for due in queue._again),
        tuple(sorted(run._inherited)),
        bool(queue),
    )


def _next(queue: object) -> Hashable:
    following = getattr(queue, "_next", None)
    return following and following.bodies


def _ledger(ledger: object) -> Hashable:
    """Return what a ledger remembers, whatever it is: all but the store, the clock and the world."""
    return type(ledger).__name__, tuple([_value(value) for name, value in vars(ledger).items() if name not in LEFT_OUT])


LEFT_OUT = frozenset(("_world", "_attempt", "_prefix", "_retries", "_on_clear", "_people"))
"""What a ledger holds, and does not remember; what is the same for all of a task; what it only need not read again."""

PLAIN = frozenset((type(None), str, int, float, bytes, bool))
"""Types of values that are compared as they are."""


def _value(value: object) -> Hashable:
    """Return *value* as something that can be compared."""
    kind = type(value)
    if kind in PLAIN:
        return value
    if isinstance(value, dict):
        return tuple([(_value(key), _value(each)) for key, each in value.items()])
    if kind in (list, tuple, deque):
        return tuple(map(_value, cast("list[object]", value)))
    if kind in (set, frozenset):
        return tuple(sorted(map(_value, cast("set[object]", value)), key=repr))
    return _object(value)


def _object(value: object) -> Hashable:
    if isinstance(value, StateStore):
        return type(value.refused).__name__
    if callable(value) or isinstance(value, SqlStore):
        return None
    if hasattr(value, "__dict__"):
        return _ledger(value)
    try:
        hash(value)
    except TypeError:
        return tuple([_value(getattr(value, name)) for name in _slots(type(value))])
    return value


def _slots(kind: type) -> tuple[str, ...]:
    if kind not in MEMBERS:
        MEMBERS[kind] = tuple(name for each in kind.__mro__ for name in getattr(each, "__slots__", ()))
    return MEMBERS[kind]


def _store(world: "World") -> Hashable:
    states, sql = world.states, world.sql
    kept = tuple((task, tuple(kept.rows.items()), tuple(kept.outside.items())) for task, kept in states.kept.items())
    tables = sql and (_tables(sql.tables), tuple(map(_tables, sql.before)))
    return kept, tuple(states.late), states.may_delay, tables, world.put_backs, tuple(sorted(world.truth.unclaimed))


def _tables(tables: Tables) -> Hashable:
    return (
        tuple(sorted(tables.claims.items())),
        tuple(tables.batches.values()),
        tuple(tables.tries.items()),
        tuple(tables.counters.items()),
    )


def _from(time: float | None, now: float) -> float | None:
    return None if time is None else round(time - now, 3)
