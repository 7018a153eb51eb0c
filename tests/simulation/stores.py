"""What outlives a try: Airflow's task state store, under the real ledger."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import TYPE_CHECKING, Protocol

from airflow_provider_responsys.errors import LedgerFailed
from airflow_provider_responsys.ledger.fingerprint import KEY_BYTES, fingerprinter
from airflow_provider_responsys.ledger.interface import Earlier, Ledger
from airflow_provider_responsys.ledger.state_store import Store as Rows
from airflow_provider_responsys.ledger.task_state import TaskStateLedger

if TYPE_CHECKING:
    from tests.simulation.airflow import Task
    from tests.simulation.attempt import Attempt
    from tests.simulation.world import World

EPOCH = datetime(2026, 11, 23, tzinfo=UTC)
"""Where the simulated clock shows 0."""

IDENTITY = {"campaign_name": "Autumn", "list_type": "PROFILE", "match_on": ""}


class Store(Protocol):
    """One kind of store, and what is in it."""

    def open(self, attempt: "Attempt") -> Ledger:
        """Return the ledger as *attempt* gets it; its predecessors may still be alive."""

    def read(self, task: "Task") -> list[Earlier] | None:
        """Return what another try of *task* would find now, None where it would close."""


class Refusal(Exception):
    """An answer of Airflow's API server, as `StateStore` recognizes it."""

    def __init__(self, status: int) -> None:
        super().__init__(f"API_SERVER_ERROR {status}")
        self.error = SimpleNamespace(detail={"status_code": status})


@dataclass(frozen=True, slots=True)
class Late:
    """A write that the API server has let in, and will do later, or never."""

    task: str
    key: str
    value: str | None


@dataclass(slots=True)
class Kept:
    """What Airflow holds of one task: the rows, and, where values are kept outside, what the rows refer to."""

    rows: dict[str, str] = field(default_factory=dict)
    outside: dict[str, str] = field(default_factory=dict)

    def get(self, key: str, *, outside: bool) -> str | None:
        """Return the value of *key*."""
        if not outside or key not in self.rows:
            return self.rows.get(key)
        return self.outside.get(key)


class Accessor:
    """The view that one task instance id has of its store."""

    def __init__(self, states: "TaskStates", attempt: "Attempt") -> None:
        self.attempt = attempt
        self._kept = states.kept.setdefault(attempt.task.name, Kept())
        self._states = states

    def get(self, key: str) -> object:
        """Answer a replaced id like an unknown key, as Airflow does."""
        world = self._states.world
        world.between(self.attempt)
        if world.setup.reads_fail and world.fault(2):
            raise Refusal(500)
        return self._kept.get(key, outside=world.setup.outside) if self.current else None

    def set(self, key: str, value: str, *, retention: timedelta | None = None) -> None:
        """Write, unless something happens."""
        world = self._states.world
        world.between(self.attempt)
        world.write(
            self.attempt,
            lambda: self._set(key, value),
            Refusal(500),
            OSError("no answer"),
            late=lambda: self._states.delay(self.attempt, key, value),
        )

    def delete(self, key: str) -> None:
        """Remove, unless something happens."""
        world = self._states.world
        world.between(self.attempt)
        world.write(
            self.attempt,
            lambda: self._delete(key),
            Refusal(500),
            OSError("no answer"),
            late=lambda: self._states.delay(self.attempt, key, None),
        )

    @property
    def current(self) -> bool:
        """Whether no other try of the task has begun; a second start of this one has its id."""
        newest = self.attempt.task.current
        return newest is not None and newest.number == self.attempt.number

    def _set(self, key: str, value: str) -> None:
        # The worker writes the content, under a path that names no try; only then the API server looks at the id.
        if self._states.world.setup.outside:
            self._kept.outside[key] = value
        if not self.current:
            raise Refusal(404)
        self._kept.rows[key] = "" if self._states.world.setup.outside else value

    def _delete(self, key: str) -> None:
        if not self.current:
            raise Refusal(404)
        self._kept.rows.pop(key, None)
        self._kept.outside.pop(key, None)


class Record(TaskStateLedger):
    """The real ledger; only its key is no longer drawn by chance."""

    made = 0

    def _new_key(self) -> bytes:
        self.made += 1
        return f"{self._try_number:02d}{self.made:02d}".encode() * (KEY_BYTES // 4)


class Copied:
    """A store in which nothing goes wrong, with a copy of what another holds."""

    def __init__(self, values: Mapping[str, str]) -> None:
        self._values = dict(values)

    def get(self, key: str) -> object:
        """Return what is there."""
        return self._values.get(key)

    def set(self, key: str, value: str, *, retention: timedelta | None = None) -> None:
        """Write."""
        self._values[key] = value

    def delete(self, key: str) -> None:
        """Remove."""
        self._values.pop(key, None)


class TaskStates:
    """Airflow's task state store."""

    def __init__(self, world: "World", ledger: Callable[..., Ledger] = Record) -> None:
        self.world = world
        self.kept: dict[str, Kept] = {}
        self.late: list[Late] = []
        self.may_delay = world.setup.late
        self._ledger = ledger

    def open(self, attempt: "Attempt") -> Ledger:
        """Return the real ledger on this store."""
        return self._made(Accessor(self, attempt), attempt, attempt.number, may_have_claimed=attempt.may_have_claimed)

    def read(self, task: "Task") -> list[Earlier] | None:
        """Return what another try would find: the real ledger's own reader says, on a copy."""
        kept = self.kept.setdefault(task.name, Kept())
        found = ((key, kept.get(key, outside=self.world.setup.outside)) for key in kept.rows)
        copied = Copied({key: value for key, value in found if value is not None})
        last = task.attempts[-1]
        reader = self._made(copied, last, last.number + 1, may_have_claimed=False)
        try:
            reader.begin(IDENTITY)
            return list(reader.earlier())
        except LedgerFailed:
            return None

    def lose(self, task: "Task") -> None:
        """Forget all of *task*, and what is on its way: housekeeping is for what is old."""
        self.late = [late for late in self.late if late.task != task.name]
        kept = self.kept.setdefault(task.name, Kept())
        kept.rows.clear()
        kept.outside.clear()

    def delay(self, attempt: "Attempt", key: str, value: str | None) -> None:
        """Keep a copy of a write, to be done later."""
        self.may_delay -= 1
        self.late.append(Late(attempt.task.name, key, value))

    def land(self, place: int) -> Late:
        """Do a late write: its try was looked at when it came in, and may have been replaced since."""
        late = self.late.pop(place)
        kept = self.kept[late.task]
        if late.value is None:
            kept.rows.pop(late.key, None)
            kept.outside.pop(late.key, None)
        elif self.world.setup.outside:
            kept.outside[late.key] = late.value
            kept.rows[late.key] = ""
        else:
            kept.rows[late.key] = late.value
        return late

    def _made(self, rows: Rows, attempt: "Attempt", try_number: int, *, may_have_claimed: bool) -> Ledger:
        return self._ledger(
            rows,
            try_number=try_number,
            max_tries=attempt.max_tries,
            retries=self.world.setup.retries,
            on_clear=self.world.setup.on_clear,
            may_have_claimed=may_have_claimed,
            prefix=attempt.task.name,
            now=self.world.moment,
        )


def fingerprints(recipients: Iterable[int], key: bytes, known: dict[tuple[bytes, int], bytes]) -> list[bytes]:
    """Return what the ledger knows *recipients* as; *known* saves time."""
    function = fingerprinter(key)
    found = []
    for recipient in recipients:
        place = key, recipient
        if place not in known:
            known[place] = function(str(recipient))
        found.append(known[place])
    return found
