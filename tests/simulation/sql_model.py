"""A model of the SQL ledger: statement for statement, each transaction in one step."""

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import replace
from typing import cast

from airflow_provider_responsys.errors import Fenced, LedgerFailed
from airflow_provider_responsys.ledger.interface import Accepted, Claim, Earlier, Holder, Settlement, Wanted
from tests.simulation.sql_beginning import SqlBeginning
from tests.simulation.sql_tables import BatchId, Row, to_earlier

ANSWER_WITHIN = 70.0  # as the operator has it: the read timeout and its margin

Claimed = list[tuple[BatchId, Claim]] | None
"""What came of some claims, None for a try that was replaced."""


class SqlModel(SqlBeginning):
    """What `SqlLedger` does."""

    def compare(self, source: object) -> None:
        """Do nothing: this is no part of what it is for."""

    def earlier(self) -> Iterable[Earlier]:
        """Wait for what earlier tries may still hear, then return what they hold."""
        self._await_answers()
        if self._world.setup.reads_fail and self._world.fault(2):
            raise LedgerFailed("the database is down")
        return [to_earlier(row) for row in self._of_earlier_tries()]

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

    # What earlier tries left

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

    def _result(self, what: Hashable, work: "Callable[[], Claimed]") -> Claimed:
        """Return what *work* returns, in a transaction."""
        results: list[Claimed] = []
        self._in_transaction(what, lambda: results.append(work()))
        return results[-1]


def _what(want: Wanted) -> Hashable:
    return want.number, tuple(want.fingerprints)
