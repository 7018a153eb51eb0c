"""What outlives a try: Airflow's task state store under the real ledger, and a model of the SQL ledger."""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import TYPE_CHECKING, Protocol, cast

from airflow_provider_responsys.errors import Fenced, LedgerFailed, StateLost
from airflow_provider_responsys.ledger.fingerprint import KEY_BYTES, fingerprinter
from airflow_provider_responsys.ledger.interface import Accepted, Claim, Earlier, Holder, Ledger, Settlement, Wanted
from airflow_provider_responsys.ledger.task_record import Meta, pack, read_meta, read_segment
from airflow_provider_responsys.ledger.task_state import TaskStateLedger

if TYPE_CHECKING:
    from tests.simulation.attempt import Attempt
    from tests.simulation.world import World

EPOCH = datetime(2026, 11, 23, tzinfo=UTC)
"""Where the simulated clock shows 0."""

ANSWER_WITHIN = 70.0  # as the operator has it: the read timeout and its margin


@dataclass(slots=True)
class Held:
    """A batch as the store has it on disk."""

    fingerprints: Sequence[bytes]
    settled: bool


class Store(Protocol):
    """One kind of store, and what is in it."""

    def open(self, attempt: "Attempt") -> Ledger:
        """Return the ledger as *attempt* gets it; its predecessors may still be alive."""

    def held(self, attempt: "Attempt") -> Mapping[int, Held]:
        """Return what *attempt* holds on disk, by the number of the batch."""


class Refusal(Exception):
    """An answer of Airflow's API server, as `TaskStateLedger` recognizes it."""

    def __init__(self, status: int) -> None:
        super().__init__(f"API_SERVER_ERROR {status}")
        self.error = SimpleNamespace(detail={"status_code": status})


class Accessor:
    """The view that one task instance id has of its store."""

    def __init__(self, states: "TaskStates", attempt: "Attempt") -> None:
        self.attempt = attempt
        self.rows = states.rows.setdefault(attempt.task.name, {})
        self._states = states

    def get(self, key: str) -> object:
        """Answer a replaced id like an unknown key, as Airflow does."""
        if self._states.world.fault(2):
            raise Refusal(500)
        return self.rows.get(key) if self.current else None

    def set(self, key: str, value: str, *, retention: timedelta | None = None) -> None:
        """Write, unless something happens."""
        self._states.world.write(self.attempt, lambda: self._set(key, value), Refusal(500), OSError("no answer"))

    def delete(self, key: str) -> None:
        """Remove, unless something happens."""
        self._states.world.write(self.attempt, lambda: self._set(key, None), Refusal(500), OSError("no answer"))

    @property
    def current(self) -> bool:
        """Whether no other try of the task has begun."""
        return self.attempt.task.current is self.attempt

    def _set(self, key: str, value: str | None) -> None:
        if not self.current:
            raise Refusal(404)
        if value is None:
            self.rows.pop(key, None)
        else:
            self.rows[key] = value
        self._states.wrote(self.attempt, key, value)


class Record(TaskStateLedger):
    """The real ledger; only its key and its generation are no longer drawn by chance."""

    made = 0

    def _new(self, identity: Mapping[str, str]) -> Meta:
        self.made += 1
        name = f"{self._try_number:02d}{self.made:02d}"
        return replace(super()._new(identity), generation=name, key=pack(name.encode() * (KEY_BYTES // 4)))


class TaskStates:
    """Airflow's task state store."""

    def __init__(self, world: "World", ledger: type[Record] = Record) -> None:
        self.world = world
        self.rows: dict[str, dict[str, str]] = {}
        self._ledger = ledger
        self._held: dict[str, dict[int, dict[int, Held]]] = {}
        """What the segments of each task hold, by try and batch."""
        self._segments: dict[str, dict[int, list[tuple[int, int]]]] = {}
        """The try and number of each batch in each segment of each task."""

    def open(self, attempt: "Attempt") -> TaskStateLedger:
        """Return the real ledger on this store."""
        task = attempt.task
        return self._ledger(
            Accessor(self, attempt),
            try_number=attempt.number,
            max_tries=attempt.max_tries,
            retries=self.world.setup.retries,
            on_clear=self.world.setup.on_clear,
            may_have_claimed=attempt.may_have_claimed,
            prefix=task.name,
            now=self.world.moment,
        )

    def held(self, attempt: "Attempt") -> Mapping[int, Held]:
        """Return what the task's segments have of *attempt*."""
        return self._held.get(attempt.task.name, {}).get(attempt.number, {})

    def wrote(self, attempt: "Attempt", key: str, value: str | None) -> None:
        """Read again what *attempt* wrote: the rules look at nothing else."""
        held = self._held.setdefault(attempt.task.name, {})
        segments = self._segments.setdefault(attempt.task.name, {})
        if key.endswith("meta"):
            if value is not None and not read_meta(value).segments:
                held.clear()  # another generation, or none yet
                segments.clear()
        elif value is not None:
            index = int(key.rsplit("/", 1)[1])
            for number, batch in segments.get(index, ()):
                del held[number][batch]
            batches = list(read_segment(value))
            segments[index] = [(batch.try_number, batch.number) for batch in batches]
            for each in batches:
                mine = held.setdefault(each.try_number, {})
                mine[each.number] = Held(each.fingerprints, settled=bool(each.request_id))


@dataclass(slots=True)
class Row:
    """A batch in the model of the SQL ledger."""

    attempt: "Attempt"
    number: int
    fingerprints: list[bytes]
    claimed_at: float
    request_id: str | None = None
    forgotten: bool = False


@dataclass(slots=True)
class Tables:
    """The model's tables: whoever has claimed a recipient, and the batches of each try."""

    claims: dict[bytes, Row] = field(default_factory=dict)
    batches: list[Row] = field(default_factory=list)
    tries: dict[str, list[int]] = field(default_factory=dict)
    """The number of each try that began, by task."""
    max_tries: dict[str, int] = field(default_factory=dict)


class SqlStore:
    """A database that every task writes to, under one send key."""

    def __init__(self, world: "World", ledger: "type[SqlModel] | None" = None) -> None:
        self.world = world
        self.tables = Tables()
        self._ledger = ledger or SqlModel

    def open(self, attempt: "Attempt") -> "SqlModel":
        """Return the model of the SQL ledger on these tables."""
        return self._ledger(self.world, self.tables, attempt)

    def held(self, attempt: "Attempt") -> Mapping[int, Held]:
        """Return what the tables have of *attempt*."""
        return {
            row.number: Held(row.fingerprints, row.request_id is not None)
            for row in self.tables.batches
            if row.attempt is attempt and not row.forgotten
        }


class SqlModel:
    """What `SqlLedger` does, statement for statement, each transaction in one step."""

    durable = True
    resumes = False

    def __init__(self, world: "World", tables: Tables, attempt: "Attempt") -> None:
        self._world = world
        self._tables = tables
        self._attempt = attempt
        self._task = attempt.task.name
        self._open: dict[int, Row] = {}

    def begin(self, identity: Mapping[str, str]) -> bytes:
        """Record that this try began, or refuse where a record is missing."""
        self._in_transaction("begin", self._begin)
        return b"one key for all of the send"[:KEY_BYTES]

    def earlier(self) -> Iterable[Earlier]:
        """Wait for what earlier tries may still hear, then return what they hold."""
        self._await_answers()
        if self._world.fault(2):
            raise LedgerFailed("the database is down")
        return [
            Earlier(list(row.fingerprints), row.request_id, EPOCH, _label(row), place=row)
            for row in self._of_earlier_tries()
        ]

    def commit(
        self, settled: Sequence[Settlement], wanted: Sequence[Wanted], upcoming: Sequence[Sequence[bytes]] = ()
    ) -> list[Claim]:
        """Release by itself, take over by itself, then settle and claim in one transaction."""
        released = [self._open[answer.number] for answer in settled if not isinstance(answer, Accepted)]
        if released:
            self._in_transaction(("release", tuple(settled)), lambda: self._release(released))
        accepted = [answer for answer in settled if isinstance(answer, Accepted)]
        claimed: list[tuple[Row, Claim]] = []
        doubts = [want for want in wanted if want.doubt]
        if doubts:
            self._in_transaction(("take over", *map(_what, doubts)), lambda: claimed.extend(self._take_over(doubts)))
        # A try that was replaced claims nothing, and records what was accepted.
        others = [want for want in wanted if not want.doubt] if len(claimed) == len(doubts) else []
        self._in_transaction(
            ("record", tuple(settled), *map(_what, others)), lambda: claimed.extend(self._record(accepted, others))
        )
        for answer in settled:
            self._open.pop(answer.number, None)
        if len(claimed) < len(wanted):
            raise Fenced("another try has begun")
        self._open.update({row.number: row for row, _ in claimed})
        return sorted((claim for _, claim in claimed), key=lambda claim: claim.number)

    def close(self) -> None:
        """Do nothing: nothing is open."""

    def _begin(self) -> None:
        attempt, tables = self._attempt, self._tables
        last = tables.max_tries.get(self._task)
        self._check_late(tables.tries.get(self._task, [0])[-1])
        restart = self._world.setup.on_clear == "restart"
        if last is None:
            cleared = attempt.max_tries != self._world.setup.retries
            if attempt.may_have_claimed and not (cleared and restart):
                raise StateLost("no record of the earlier tries")
        elif last != attempt.max_tries and restart:
            for row in tables.batches:
                if row.attempt.task is attempt.task:
                    self._give_up(row)
                    row.forgotten = True
        self.resumes = bool(self._of_earlier_tries())
        tables.tries.setdefault(self._task, []).append(attempt.number)
        tables.max_tries[self._task] = attempt.max_tries

    def _check_late(self, newest: int) -> None:
        """Refuse a try that begins after its successor: of one run, the numbers are as good as the ids."""
        if newest > self._attempt.number:
            raise Fenced("a later try has begun")

    def _of_earlier_tries(self) -> list[Row]:
        return [
            row
            for row in self._tables.batches
            if row.attempt.task is self._attempt.task
            and row.attempt.number < self._attempt.number
            and not row.forgotten
        ]

    def _await_answers(self) -> None:
        while (left := self._still_out()) > 0:
            self._world.sleep(self._attempt, min(left, ANSWER_WITHIN))

    def _still_out(self) -> float:
        """Return for how many seconds an earlier try may yet learn an answer."""
        claimed = [row.claimed_at for row in self._of_earlier_tries() if row.request_id is None]
        return max(claimed) + ANSWER_WITHIN - self._world.now if claimed else 0.0

    def _record(self, accepted: Sequence[Accepted], wanted: Sequence[Wanted]) -> list[tuple[Row, Claim]]:
        for answer in accepted:
            self._open[answer.number].request_id = answer.request_id
        return [self._claim(want) for want in wanted] if self._is_current() else []

    def _is_current(self) -> bool:
        return self._tables.tries[self._task][-1] == self._attempt.number

    def _take_over(self, wanted: Sequence[Wanted]) -> list[tuple[Row, Claim]]:
        return [
            self._moved(want, cast("Row", want.doubt and want.doubt.place)) for want in wanted if self._is_current()
        ]

    def _moved(self, want: Wanted, doubt: Row) -> tuple[Row, Claim]:
        row = Row(self._attempt, want.number, list(want.fingerprints), self._world.now)
        doubt.fingerprints[:] = [one for one in doubt.fingerprints if one not in want.fingerprints]
        self._tables.claims.update(dict.fromkeys(want.fingerprints, row))
        self._tables.batches = [each for each in self._tables.batches if each is not doubt or doubt.fingerprints]
        self._tables.batches.append(row)
        return row, Claim(want.number)

    def _claim(self, want: Wanted) -> tuple[Row, Claim]:
        row = Row(self._attempt, want.number, [], self._world.now)
        lost: dict[int, Holder] = {}
        for index, fingerprint in enumerate(want.fingerprints):
            holder = self._tables.claims.setdefault(fingerprint, row)
            if holder is row and fingerprint not in row.fingerprints:
                row.fingerprints.append(fingerprint)
            else:
                lost[index] = self._holder(holder)
        if row.fingerprints:
            self._tables.batches.append(row)
        return row, Claim(want.number, lost)

    def _holder(self, row: Row) -> Holder:
        if row.attempt.task is not self._attempt.task or row.attempt is self._attempt:
            return Holder.OTHER
        return Holder.IN_DOUBT if row.request_id is None else Holder.ACCEPTED

    def _release(self, rows: Sequence[Row]) -> None:
        for row in rows:
            self._give_up(row)
        self._tables.batches = [row for row in self._tables.batches if not any(row is gone for gone in rows)]

    def _give_up(self, row: Row) -> None:
        for fingerprint in row.fingerprints:
            if self._tables.claims.get(fingerprint) is row:
                del self._tables.claims[fingerprint]

    def _in_transaction(self, what: Hashable, work: Callable[[], None]) -> None:
        """Do *work* at once, or not at all; others may come before it. *what* tells it from other work."""
        self._world.gap(self._attempt, what)
        failed = LedgerFailed("the database is down")
        self._world.write(self._attempt, work, failed, failed)
        self._world.checked(self._attempt)


def _label(row: Row) -> str:
    return f"try {row.attempt.number}, batch {row.number}"


def _what(want: Wanted) -> Hashable:
    return want.number, tuple(want.fingerprints)


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
