"""A model of the SQL ledger: statement for statement, each transaction in one step."""

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, NoReturn, Self, cast

from airflow_provider_responsys.errors import Fenced, LedgerFailed, StateLost
from airflow_provider_responsys.ledger.fingerprint import KEY_BYTES
from airflow_provider_responsys.ledger.interface import Accepted, Claim, Earlier, Holder, Settlement, Wanted
from airflow_provider_responsys.ledger.sql_schema import ATTEMPTS
from airflow_provider_responsys.ledger.state_store import StateStore
from airflow_provider_responsys.ledger.tries import is_of_a_clear
from tests.simulation.stores import EPOCH, Accessor

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.simulation.attempt import Attempt
    from tests.simulation.world import Task, World

ANSWER_WITHIN = 70.0  # as the operator has it: the read timeout and its margin

REMEMBERED = 4
"""States of the tables that they may be put back to."""

BatchId = tuple[str, int]
"""The name of the try, and the batch's number in it: like an id drawn at random, never used again."""


Claimed = list[tuple[BatchId, Claim]] | None
"""What came of some claims, None for a try that was replaced."""


@dataclass(frozen=True, slots=True)
class Row:
    """A batch."""

    id: BatchId
    task: str
    begun: int
    """Which of the tries that began it belongs to, across tasks."""
    try_number: int
    fingerprints: tuple[bytes, ...]
    claimed_at: float
    request_id: str | None = None
    forgotten: bool = False

    @property
    def number(self) -> int:
        """Its number in its try."""
        return self.id[1]


@dataclass(frozen=True, slots=True)
class Begun:
    """A try that began."""

    id: int
    start: int
    try_number: int
    max_tries: int


@dataclass(frozen=True, slots=True)
class Known:
    """A task in the tables, as a try sees it that is about to begin: its newest try, and how often it claimed."""

    start: int
    try_number: int
    max_tries: int
    counter: int

    def is_still(self, found: "Known | None") -> bool:
        """Tell whether *found*, at a later look, is of the same try. It may have claimed meanwhile."""
        return found is not None and found.counter >= self.counter and replace(found, counter=self.counter) == self


@dataclass(slots=True)
class Tables:
    """The tables: which batch has claimed a recipient, the batches, the tries, and how often each task claimed."""

    claims: dict[bytes, BatchId] = field(default_factory=dict)
    batches: dict[BatchId, Row] = field(default_factory=dict)
    tries: dict[str, tuple[Begun, ...]] = field(default_factory=dict)
    counters: dict[str, int] = field(default_factory=dict)
    """How many transactions of each task claimed. A restart does not start it anew."""

    def copy(self) -> Self:
        """Return a copy: rows are never changed, but replaced."""
        return replace(
            self,
            claims=dict(self.claims),
            batches=dict(self.batches),
            tries=dict(self.tries),
            counters=dict(self.counters),
        )


class SqlStore:
    """A database that every task writes to, under one send key."""

    def __init__(self, world: "World", ledger: "type[SqlModel] | None" = None) -> None:
        self.world = world
        self.tables = Tables()
        self.before: list[Tables] = []
        """The tables as they were before each of the last transactions, the oldest first."""
        self._ledger = ledger or SqlModel
        self._made = 0

    def new_id(self) -> int:
        """Return the id of a try that begins: none has it again, not even after the tables were put back."""
        self._made += 1
        return self._made

    def open(self, attempt: "Attempt") -> "SqlModel":
        """Return the model of the SQL ledger on these tables, with its marks in Airflow's store."""
        return self._ledger(self.world, self, attempt, StateStore(Accessor(self.world.states, attempt)))

    def read(self, task: "Task") -> list[Earlier]:
        """Return what the tables have of *task*."""
        return [_earlier(row) for row in self.tables.batches.values() if row.task == task.name and not row.forgotten]

    def remember(self) -> None:
        """Keep the tables as they are, before a transaction: they may be put back, to one of the last or the first."""
        if self.world.may_put_back:
            self.before.append(self.tables.copy())
            if len(self.before) > REMEMBERED:
                del self.before[1]

    def undo(self) -> None:
        """Take the transaction back that has just been done."""
        if self.world.may_put_back:
            self.tables = self.before.pop()

    def put_back(self, place: int) -> Tables:
        """Go back to *place* of `before`; return the tables as they were."""
        lost = self.tables
        self.tables = self.before[place]
        del self.before[place:]
        return lost


def committed(counter: int) -> str:
    """Return the key of the mark that says that a task had claimed *counter* times."""
    return f"responsys/committed/{counter}"


def began(start: int) -> str:
    """Return the key of the mark that says that a task began for the *start*-th time, and with which `max_tries`."""
    return f"responsys/begun/{start}"


class SqlModel:
    """What `SqlLedger` does. *marks* are in Airflow's task state store, None where there is none."""

    durable = True
    resumes = False

    def __init__(self, world: "World", store: SqlStore, attempt: "Attempt", marks: StateStore | None = None) -> None:
        self._world = world
        self._store = store
        self._attempt = attempt
        self._task = attempt.task.name
        self._marks = marks
        self._begun = self._start = 0
        self._counter = 0
        """What this try believes its task's counter to be."""
        self._marked = 0
        self._open: dict[int, BatchId] = {}

    @property
    def _tables(self) -> Tables:
        return self._store.tables

    def begin(self, identity: "Mapping[str, str]") -> bytes:
        """Record that this try began, or refuse where a record is missing, or is behind its marks."""
        restarts = self._begin_as_seen()
        # After the transaction: a database that is put back from here on lacks the count that this try goes on from.
        ahead = self._ahead(self._counter)
        if ahead > self._counter:
            if not restarts:
                raise StateLost("the ledger is behind what this task had claimed: it was put back")
            self._in_transaction("catch up", lambda: self._raise_counter(ahead - self._counter))
        self._complete()
        return b"one key for all of the send"[:KEY_BYTES]

    def compare(self, source: object) -> None:
        """Do nothing: this is no part of what it is for."""

    def earlier(self) -> Iterable[Earlier]:
        """Wait for what earlier tries may still hear, then return what they hold."""
        self._await_answers()
        if self._world.setup.reads_fail and self._world.fault(2):
            raise LedgerFailed("the database is down")
        return [_earlier(row) for row in self._of_earlier_tries()]

    def commit(
        self, settled: Sequence[Settlement], wanted: Sequence[Wanted], upcoming: Sequence[Sequence[bytes]] = ()
    ) -> list[Claim]:
        """Release by itself, take over by itself, then settle and claim in one transaction; mark it before a post."""
        released = [self._open[answer.number] for answer in settled if not isinstance(answer, Accepted)]
        if released:
            self._in_transaction(("release", tuple(settled)), lambda: self._release(released))
        accepted = [answer for answer in settled if isinstance(answer, Accepted)]
        doubts = [want for want in wanted if want.doubt]
        moved: list[tuple[BatchId, Claim]] | None = []
        if doubts:
            moved = self._result(("take over", *map(_what, doubts)), lambda: self._take_over(doubts))
        # A try that was replaced claims nothing, and records what was accepted.
        there = {claim.number for _, claim in moved or ()}
        others = [] if moved is None else [want for want in wanted if want.number not in there]
        claimed = self._result(("record", tuple(settled), *map(_what, others)), lambda: self._record(accepted, others))
        if moved is None or claimed is None:
            raise Fenced("another try has begun")
        self._mark()  # where it fails, what was settled is settled once more
        for answer in settled:
            self._open.pop(answer.number, None)
        found = [*moved, *claimed]
        self._open.update({row[1]: row for row, _ in found})
        return sorted((claim for _, claim in found), key=lambda claim: claim.number)

    def name_answer(self, number: int, correlation_id: str) -> None:
        """Do nothing: no person looks doubts up here."""

    def close(self) -> None:
        """Do nothing: nothing is open."""

    # The marks

    def _ahead(self, counter: int) -> int:
        """Return how far the marks say that this task has come, at least *counter*."""
        while self._marks and self._marks.get(committed(counter + 1)) is not None:
            counter += 1
        return counter

    def _newest_start(self, seen: Known | None) -> tuple[int, int | None]:
        """Return the newest start that the marks or *seen* know of, and its `max_tries`: what a clear is told by."""
        start, max_tries = (seen.start, seen.max_tries) if seen else (0, None)
        while self._marks and (found := self._marks.get(began(start + 1))) is not None:
            start, max_tries = start + 1, int(found)
        return start, max_tries

    def _complete(self) -> None:
        """Write the marks that are missing: an earlier try claimed, and was killed or refused before it could mark it.

        Otherwise the next one would leave a gap behind, and nobody looks beyond a gap.
        """
        if self._marks:
            while self._marked and self._marks.get(committed(self._marked)) is None:
                self._marked -= 1
            self._mark()
            start = self._start
            while start and self._marks.get(began(start)) is None:
                self._marks.set(began(start), str(self._attempt.max_tries))
                start -= 1

    def _mark(self) -> None:
        """Tell outside of the database how far this task has come, after the commit and before the post."""
        if self._marks:
            for counter in range(self._marked + 1, self._counter + 1):
                self._marks.set(committed(counter), "")
        self._marked = self._counter

    def _raise_counter(self, by: int = 1) -> None:
        """Count this transaction; no other try may claim, so another number than this one's is that of other tables."""
        if self._tables.counters.get(self._task) != self._counter:
            self._lost()
        self._tables.counters[self._task] = self._counter + by
        self._counter += by

    def _lost(self) -> NoReturn:
        raise StateLost("the ledger was put back while this try ran")

    # Begin

    def _begin_as_seen(self) -> bool:
        """Look, ask the marks, and begin if the tables are still as seen; return whether earlier claims are forgotten.

        The marks are asked outside of the transaction, so others may begin, and the
        database may be put back, before it.
        """
        for _ in range(ATTEMPTS):
            seen = self._look()
            start, max_tries = self._newest_start(seen)
            begun: list[bool | None] = []
            self._in_transaction("begin", partial(self._try_to_begin, begun, seen, start, max_tries))
            if begun[-1] is not None:
                return begun[-1]
        raise LedgerFailed("other tries of this task begin at the same time")

    def _try_to_begin(self, begun: list[bool | None], seen: Known | None, start: int, max_tries: int | None) -> None:
        begun.append(self._begin(start, max_tries) if self._is_as_seen(seen) else None)

    def _look(self) -> Known | None:
        """Return what the tables know of this task."""
        tries = self._tables.tries.get(self._task)
        if not tries:
            return None
        last = tries[-1]
        return Known(last.start, last.try_number, last.max_tries, self._tables.counters[self._task])

    def _is_as_seen(self, seen: Known | None) -> bool:
        """Tell whether what was *seen* before the transaction is still true in it."""
        found = self._look()
        return found is None if seen is None else seen.is_still(found)

    def _begin(self, start: int, max_tries: int | None) -> bool:
        """Begin after *start*, whose try had *max_tries*; return whether what this task had claimed is forgotten."""
        attempt, tables = self._attempt, self._tables
        tries = tables.tries.get(self._task, ())
        self._check_late(tries[-1].try_number if tries else 0)
        restarts = self._world.setup.on_clear == "restart" and self._is_cleared(max_tries)
        if not tries:
            if attempt.may_have_claimed and not restarts:
                raise StateLost("no record of the earlier tries")
        elif restarts:
            self._forget()
        self._begun = self._store.new_id()
        self.resumes = bool(self._of_earlier_tries())
        self._start = start + 1
        tables.tries[self._task] = (*tries, Begun(self._begun, self._start, attempt.number, attempt.max_tries))
        self._counter = self._marked = tables.counters.setdefault(self._task, 0)
        return restarts

    def _forget(self) -> None:
        """Give up what the earlier tries of this task claimed."""
        for row in list(self._tables.batches.values()):
            if row.task == self._task and not row.forgotten:
                self._give_up(row)
                self._tables.batches[row.id] = replace(row, forgotten=True)

    def _is_cleared(self, max_tries: int | None) -> bool:
        """Return whether a person cleared the task since a try with *max_tries*; without a record, whether for this."""
        attempt, retries = self._attempt, self._world.setup.retries
        if max_tries is None:
            return is_of_a_clear(try_number=attempt.number, max_tries=attempt.max_tries, retries=retries)
        return attempt.max_tries != max_tries

    def _check_late(self, newest: int) -> None:
        """Refuse a try that begins after its successor: of one run, the numbers are as good as the ids."""
        if newest > self._attempt.number:
            raise Fenced("a later try has begun")

    # What earlier tries left

    def _of_earlier_tries(self) -> list[Row]:
        return [
            row
            for row in self._tables.batches.values()
            if row.task == self._task and row.begun < self._begun and not row.forgotten
        ]

    def _await_answers(self) -> None:
        while (left := self._still_out()) > 0:
            self._world.sleep(self._attempt, min(left, ANSWER_WITHIN))

    def _still_out(self) -> float:
        """Return for how many seconds an earlier try may yet learn an answer."""
        claimed = [row.claimed_at for row in self._of_earlier_tries() if row.request_id is None]
        return max(claimed) + ANSWER_WITHIN - self._world.now if claimed else 0.0

    # Commit

    def _record(self, accepted: Sequence[Accepted], wanted: Sequence[Wanted]) -> Claimed:
        for answer in accepted:
            self._settle(self._open[answer.number], answer.request_id)
        if not wanted:
            return []
        if not self._is_current():
            return None
        self._raise_counter()
        return [self._claim(want) for want in wanted]

    def _settle(self, batch: BatchId, request_id: str) -> None:
        row = self._tables.batches.get(batch)
        if row is None:
            raise LedgerFailed("a settlement changes no row: the ledger was put back")
        self._tables.batches[batch] = replace(row, request_id=request_id)

    def _is_current(self) -> bool:
        tries = self._tables.tries.get(self._task, ())
        if not tries:
            self._lost()
        return tries[-1].id == self._begun

    def _take_over(self, wanted: Sequence[Wanted]) -> Claimed:
        """Move *wanted* out of their doubts, but for what was settled meanwhile."""
        if not self._is_current():
            return None
        self._raise_counter()
        return [
            self._moved(want, doubt)
            for want in wanted
            if (doubt := self._tables.batches.get(cast("BatchId", want.doubt and want.doubt.place)))
            and doubt.request_id is None
        ]

    def _moved(self, want: Wanted, doubt: Row) -> tuple[BatchId, Claim]:
        tables = self._tables
        row = self._row(want, tuple(want.fingerprints))
        tables.claims.update(dict.fromkeys(want.fingerprints, row.id))
        left = tuple(one for one in doubt.fingerprints if one not in want.fingerprints)
        tables.batches[doubt.id] = replace(doubt, fingerprints=left)
        if not left:
            del tables.batches[doubt.id]
        tables.batches[row.id] = row
        return row.id, Claim(want.number)

    def _claim(self, want: Wanted) -> tuple[BatchId, Claim]:
        tables = self._tables
        name = self._row(want, ()).id
        won: list[bytes] = []
        lost: dict[int, Holder] = {}
        for index, fingerprint in enumerate(want.fingerprints):
            holder = tables.claims.setdefault(fingerprint, name)
            if holder == name and fingerprint not in won:
                won.append(fingerprint)
            else:
                lost[index] = self._holder(holder)
        if won:
            tables.batches[name] = self._row(want, tuple(won))
        return name, Claim(want.number, lost)

    def _row(self, want: Wanted, whom: tuple[bytes, ...]) -> Row:
        attempt = self._attempt
        name = attempt.name, want.number
        return Row(name, self._task, self._begun, attempt.number, whom, self._world.now)

    def _holder(self, batch: BatchId) -> Holder:
        row = self._tables.batches.get(batch)
        if row is None or row.task != self._task or row.begun == self._begun:
            return Holder.OTHER
        return Holder.IN_DOUBT if row.request_id is None else Holder.ACCEPTED

    def _release(self, batches: Sequence[BatchId]) -> None:
        for batch in batches:
            if row := self._tables.batches.pop(batch, None):
                self._give_up(row)

    def _give_up(self, row: Row) -> None:
        for fingerprint in row.fingerprints:
            if self._tables.claims.get(fingerprint) == row.id:
                del self._tables.claims[fingerprint]

    def _result(self, what: Hashable, work: "Callable[[], Claimed]") -> Claimed:
        """Return what *work* returns, in a transaction."""
        results: list[Claimed] = []
        self._in_transaction(what, lambda: results.append(work()))
        return results[-1]

    def _in_transaction(self, what: Hashable, work: Callable[[], None]) -> None:
        """Do *work* at once, or not at all; others may come before it. *what* tells it from other work."""
        self._world.gap(self._attempt, what)
        self._world.between(self._attempt)
        failed = LedgerFailed("the database is down")
        self._world.write(self._attempt, lambda: self._atomically(work), failed, failed)
        self._world.between(self._attempt)

    def _atomically(self, work: Callable[[], None]) -> None:
        """Do *work*, and undo it where it raises."""
        self._store.remember()
        try:
            work()
        except LedgerFailed:
            self._store.undo()
            raise


def _earlier(row: Row) -> Earlier:
    label = f"try {row.try_number}, batch {row.number}"
    return Earlier(list(row.fingerprints), row.request_id, EPOCH, label, place=row.id)


def _what(want: Wanted) -> Hashable:
    return want.number, tuple(want.fingerprints)
