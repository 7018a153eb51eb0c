"""A model of how a try begins in the SQL ledger, and of the marks that tell of tables that were put back."""

from collections.abc import Callable, Hashable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, NoReturn

from airflow_provider_responsys.errors import Fenced, LedgerFailed, StateLost
from airflow_provider_responsys.ledger.fingerprint import KEY_BYTES
from airflow_provider_responsys.ledger.sql_schema import ATTEMPTS
from airflow_provider_responsys.ledger.state_store import StateStore
from airflow_provider_responsys.ledger.tries import is_of_a_clear
from tests.simulation.sql_tables import BatchId, Begun, Known, Row, SqlStore, Tables

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.simulation.attempt import Attempt
    from tests.simulation.world import World


def committed(counter: int) -> str:
    """Return the key of the mark that says that a task had claimed *counter* times."""
    return f"responsys/committed/{counter}"


def began(start: int) -> str:
    """Return the key of the mark that says that a task began for the *start*-th time, and with which `max_tries`."""
    return f"responsys/begun/{start}"


class SqlBeginning:
    """What `Beginning` does, and what each transaction needs.

    *marks* are in Airflow's task state store, None where there is none.
    """

    durable = True
    resumes = False
    looks_ahead = False

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

        Otherwise the next one would leave a gap behind, and no try looks beyond a gap.
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

    def _of_earlier_tries(self) -> list[Row]:
        return [
            row
            for row in self._tables.batches.values()
            if row.task == self._task and row.begun < self._begun and not row.forgotten
        ]

    def _give_up(self, row: Row) -> None:
        for fingerprint in row.fingerprints:
            if self._tables.claims.get(fingerprint) == row.id:
                del self._tables.claims[fingerprint]

    # Transactions

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
