"""What is planted in a task's or trigger's process: a kill, or a halt, at a point that has a name.

Nothing of it is in the package: functions of ours, of Airflow and of the
transport are wrapped in the process that runs the task, and nowhere else.
"""

import functools
import json
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Self

TRIES = 14
ENVIRONMENT = "RESPONSYS_FAULTS_TOLD"
LEDGER = "ledger"
"""The connection of the SQL ledger."""

HALT_AT_MOST = 60.0  # seconds
SOON = 0.015
"""Seconds within which a write to a store is in the middle of it."""


@dataclass(frozen=True, slots=True)
class Plant:
    """What happens when *point* is reached for the *nth* time.

    The process is killed, with its supervisor (*host*) or without. Or there is
    an *event*: the process says so in ``<meet>.at``, which is a path that the
    conductor draws, and goes on when there is a ``<meet>.go``.
    """

    point: str
    nth: int = 1
    host: bool = False
    event: str = ""
    meet: str = ""


@dataclass(frozen=True, slots=True)
class Told:
    """What a task's process is told about the run it is part of."""

    people: Sequence[int] = ()
    shards: Sequence[Sequence[int]] = ()
    """Whom each of the mapped tasks is for."""
    in_flight: int = 1
    ledger: str | None = None
    on_clear: str = "resume"
    execution_timeout: float | None = None
    max_in_doubt: int | None = None
    """Recipients; none: the operator's default."""
    patience: float = 60.0
    """Seconds until the sensor gives up."""
    plants: Sequence[Plant] = ()
    trace: str = ""
    """Where it leaves a mark when it dies of its own hand."""
    done: str = ""
    """Where it leaves a mark when ``execute`` has come to its end."""
    quick: bool = True
    """Whether the waits that have nothing to do with faults are shortened."""

    def to_environment(self) -> dict[str, str]:
        """Return this as an environment variable."""
        return {ENVIRONMENT: json.dumps(asdict(self))}

    @classmethod
    def from_text(cls, text: str) -> Self:
        """Return what `to_environment` wrote."""
        told = json.loads(text)
        plants = told.pop("plants")
        return cls(**told, plants=[Plant(**plant) for plant in plants])


def told() -> Told:
    """Return what this process was told; a scheduler is told nothing."""
    text = os.environ.get(ENVIRONMENT)
    return Told.from_text(text) if text else Told()


def plant(told: Told) -> None:
    """Plant what this process was told."""
    if told.quick and os.environ.get(ENVIRONMENT):
        _shorten_waits()
    if told.done:
        _mark_ends(Path(told.done))
    for planted in told.plants:
        POINTS[planted.point](Trap(planted, told.trace))


@dataclass(slots=True)
class Trap:
    """Counts how often its point is reached, and strikes once."""

    plant: Plant
    trace: str
    reached: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def due(self) -> bool:
        """Return whether this is the time."""
        with self.lock:
            self.reached += 1
            return self.reached == self.plant.nth

    def spring(self) -> None:
        """Strike, if this is the time."""
        if self.due():
            self.strike()

    def strike(self) -> None:
        """Kill this process, or halt it."""
        if not self.plant.meet:
            self.kill()
        Path(f"{self.plant.meet}.at").touch()
        deadline = time.monotonic() + HALT_AT_MOST
        while not Path(f"{self.plant.meet}.go").exists() and time.monotonic() < deadline:
            time.sleep(0.005)

    def strike_soon(self) -> None:
        """Strike from another thread while this one goes on."""
        if self.due():
            timer = threading.Timer(random.uniform(0, SOON), self.strike)  # noqa: S311 -- not a secret
            timer.daemon = True
            timer.start()

    def kill(self) -> None:
        """Kill this process as nobody can handle it."""
        Path(self.trace).touch()
        if self.plant.host:
            os.kill(os.getppid(), signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)


# Where a function is wrapped


def _wrap(owner: Any, name: str, wrapper: Callable[..., Any]) -> None:
    """Let *wrapper* be called with the function *name* of *owner* before its arguments."""
    real = getattr(owner, name)
    setattr(owner, name, functools.wraps(real)(functools.partial(wrapper, real)))


def _method(owner: type, name: str, wrapper: Callable[..., Any]) -> None:
    """Do the same with a method."""
    real = getattr(owner, name)

    @functools.wraps(real)
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
        return wrapper(functools.partial(real, self), *args, **kwargs)

    setattr(owner, name, wrapped)


def _ledgers() -> Sequence[type]:
    from airflow_provider_responsys.ledger.sql import SqlLedger  # noqa: PLC0415 -- only tasks that run need it
    from airflow_provider_responsys.ledger.task_state import TaskStateLedger  # noqa: PLC0415 -- the same

    return TaskStateLedger, SqlLedger


def _before(action: str) -> Callable[[Trap], None]:
    return lambda trap: _around_commits(trap, action, before=True)


def _after(action: str) -> Callable[[Trap], None]:
    return lambda trap: _around_commits(trap, action, before=False)


def _during(action: str) -> Callable[[Trap], None]:
    return lambda trap: _around_commits(trap, action, before=True, strike=trap.strike_soon)


def _around_commits(trap: Trap, action: str, *, before: bool, strike: Callable[[], None] | None = None) -> None:
    """Strike beside the ledger's commits that claim ("intent") or that settle ("answer")."""
    strike = strike or trap.spring

    def commit(real: Callable[..., Any], settled: Sequence[Any], wanted: Sequence[Any], *rest: Any) -> Any:
        concerned = wanted if action == "intent" else settled
        if concerned and before:
            strike()
        done = real(settled, wanted, *rest)
        if concerned and not before:
            strike()
        return done

    def push(real: Callable[..., Any], *args: Any) -> Any:
        if action == "intent":
            strike()
        done = real(*args)
        if action == "answer":
            strike()
        return done

    for ledger in _ledgers():
        _method(ledger, "commit", commit)
    _naive(push)


def _naive(wrapper: Callable[..., Any]) -> None:
    """Wrap the naive operator's push: it has no ledger whose commits could be wrapped."""
    from airflow_provider_responsys.hooks import ResponsysHook  # noqa: PLC0415 -- only tasks that run need it

    _method(ResponsysHook, "trigger_push", wrapper)


def _begin(trap: Trap, *, before: bool) -> None:
    def begin(real: Callable[..., Any], *args: Any) -> Any:
        if before:
            trap.spring()
        key = real(*args)
        if not before:
            trap.spring()
        return key

    for ledger in _ledgers():
        _method(ledger, "begin", begin)


def _connect(trap: Trap, *, push: bool) -> None:
    """Strike when a connection stands on which nothing was sent yet: of a push, or of the login before it."""
    from airflow_provider_responsys.transport.connections import POOLS  # noqa: PLC0415 -- only tasks that run need it

    here = threading.local()

    def request(real: Callable[..., Any], method: str, url: str, *args: Any, **kwargs: Any) -> Any:
        here.url = url
        return real(method, url, *args, **kwargs)

    def new_conn(real: Callable[..., Any]) -> Any:
        connection = real()
        if here.url.endswith("/push") is push:
            trap.spring()
        return connection

    _method(POOLS["http"].ConnectionCls, "request", request)
    _method(POOLS["http"].ConnectionCls, "_new_conn", new_conn)


def _send_half(trap: Trap) -> None:
    _around_bodies(trap, half=True)


def _send_whole(trap: Trap) -> None:
    _around_bodies(trap, half=False)


def _around_bodies(trap: Trap, *, half: bool) -> None:
    """Strike when the body of a push has been sent, or half of it."""
    from airflow_provider_responsys.transport.connections import POOLS  # noqa: PLC0415 -- only tasks that run need it

    def send(real: Callable[..., Any], data: Any) -> None:
        if not (isinstance(data, bytes) and data[:1] == b"{" and trap.due()):
            real(data)
            return
        real(data[: len(data) // 2] if half else data)
        trap.strike()
        if half:
            real(data[len(data) // 2 :])

    _method(POOLS["http"].ConnectionCls, "send", send)


def _read_half(trap: Trap) -> None:
    from airflow_provider_responsys.transport import sync  # noqa: PLC0415 -- only tasks that run need it

    def read(real: Callable[..., Any], answer: Any, request: Any) -> Any:
        if request.path.endswith("/push") and trap.due():
            answer.raw.read(4)
            trap.strike()
        return real(answer, request)

    _wrap(sync, "_read", read)


def _transaction(trap: Trap) -> None:
    """Strike when a transaction of the SQL ledger has written, and is not committed yet."""
    from sqlalchemy import event  # noqa: PLC0415 -- only tasks that run need it
    from sqlalchemy.engine import Engine  # noqa: PLC0415 -- the same

    written = threading.local()

    def execute(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        written.ledger = getattr(written, "ledger", False) or (
            "responsys_" in statement and statement.lstrip()[:6].upper() in ("INSERT", "UPDATE", "DELETE")
        )

    def commit(_connection: Any) -> None:
        if getattr(written, "ledger", False):
            written.ledger = False
            trap.spring()

    event.listen(Engine, "after_cursor_execute", execute)
    event.listen(Engine, "commit", commit)


def _xcom(trap: Trap) -> None:
    from airflow.sdk.execution_time import task_runner  # noqa: PLC0415 -- only tasks that run have it

    from airflow_provider_responsys.ledger.tries import BEGAN, CLAIMED  # noqa: PLC0415 -- the same

    def push(real: Callable[..., Any], ti: Any, key: str, value: Any, **kwargs: Any) -> None:
        if not key.startswith((BEGAN, CLAIMED)):
            trap.spring()
        real(ti, key, value, **kwargs)

    _wrap(task_runner, "_xcom_push", push)


def _defer(trap: Trap) -> None:
    from airflow_provider_responsys.sensors import PushRequestSensor  # noqa: PLC0415 -- only tasks that run need it

    def defer(real: Callable[..., Any], **kwargs: Any) -> None:
        trap.spring()
        real(**kwargs)

    _method(PushRequestSensor, "defer", defer)


def _deferred(trap: Trap) -> None:
    from airflow.sdk.execution_time.comms import CommsDecoder, DeferTask  # noqa: PLC0415 -- only tasks that run need it

    def send(real: Callable[..., Any], msg: Any) -> Any:
        answer = real(msg)
        if isinstance(msg, DeferTask):
            trap.spring()
        return answer

    _method(CommsDecoder, "send", send)


def _complete(trap: Trap) -> None:
    from airflow_provider_responsys.sensors import PushRequestSensor  # noqa: PLC0415 -- only tasks that run need it

    def complete(real: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        trap.spring()
        return real(*args, **kwargs)

    _method(PushRequestSensor, "execute_complete", complete)


def _sweep(trap: Trap) -> None:
    from airflow_provider_responsys.waiting.state import WaitState  # noqa: PLC0415 -- only tasks that run need it

    def count(real: Callable[..., Any], *args: Any) -> Any:
        found = real(*args)
        trap.spring()
        return found

    _method(WaitState, "count", count)


def _now(trap: Trap) -> None:
    """Strike at once: in a trigger's process before its first question."""
    trap.spring()


def _by_hand(_trap: Trap) -> None:
    """Leave it to whoever runs the trigger: when it has its event, and nobody knows of it."""


def begun(done: Path) -> Path:
    """Return the mark that ``execute`` has begun, beside that of its end."""
    return done.with_name(f"begun-{done.name}")


def _mark_ends(done: Path) -> None:
    """Leave a mark when the operator's ``execute`` begins, and when it ends, however it does."""
    from airflow_provider_responsys.operators import TriggerPushOperator  # noqa: PLC0415 -- only tasks that run need it

    def execute(real: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        begun(done).touch()
        try:
            return real(*args, **kwargs)
        finally:
            done.touch()

    _method(TriggerPushOperator, "execute", execute)


def _shorten_waits() -> None:
    """Let a run take seconds: no fault needs the long ones."""
    from airflow_provider_responsys import operators  # noqa: PLC0415 -- only tasks that run need it
    from airflow_provider_responsys.waiting import schedule  # noqa: PLC0415 -- only tasks that run need it

    _shorten(operators, "ANSWER_MARGIN", 1.0)
    _shorten(schedule, "TROUBLE_WAITS", (0.2, 0.5, 1.0))


def _shorten(module: ModuleType, name: str, value: object) -> None:
    """Set *name* in *module*, where it must be."""
    getattr(module, name)
    setattr(module, name, value)


PUSH_POINTS: dict[str, Callable[[Trap], None]] = {
    "before the record of the try": functools.partial(_begin, before=True),
    "after the record of the try": functools.partial(_begin, before=False),
    "before the intent": _before("intent"),
    "during the intent": _during("intent"),
    "after the intent": _after("intent"),
    "during connect": functools.partial(_connect, push=True),
    "body half sent": _send_half,
    "body sent": _send_whole,
    "answer half read": _read_half,
    "before the acceptance write": _before("answer"),
    "during the acceptance write": _during("answer"),
    "between batches": _after("answer"),
    "before XCom": _xcom,
    "during the login's connect": functools.partial(_connect, push=False),
}
LEDGER_POINTS: dict[str, Callable[[Trap], None]] = {"in a transaction of the ledger": _transaction}
"""Those of a SQL ledger alone."""

NAIVE_POINTS = tuple(point for point in PUSH_POINTS if "record" not in point)
"""It has no record."""

WAIT_POINTS: dict[str, Callable[[Trap], None]] = {
    "before deferring": _defer,
    "after deferring": _deferred,
    "mid-sweep": _sweep,
    "in execute_complete": _complete,
    "before the sensor's XCom": _xcom,
}
TRIGGER_POINTS: dict[str, Callable[[Trap], None]] = {
    "trigger before its first question": _now,
    "trigger mid-sweep": _sweep,
    "trigger with its event": _by_hand,
}
POINTS = PUSH_POINTS | LEDGER_POINTS | WAIT_POINTS | TRIGGER_POINTS
