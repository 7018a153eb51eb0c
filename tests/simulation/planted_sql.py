"""Bugs of the SQL ledger, each in place of a part of its model."""

from collections.abc import Iterable, Sequence

from airflow_provider_responsys.ledger.interface import (
    Accepted,
    Claim,
    Earlier,
    Settlement,
    Wanted,
)
from tests.simulation.sql_model import Claimed, SqlModel
from tests.simulation.sql_tables import Known, Row

Upcoming = Sequence[Sequence[bytes]]


class ClaimsLaterInSql(SqlModel):
    """Writes each claim with the next commit: one write less for each batch."""

    late: Sequence[Wanted] = ()

    def commit(self, settled: Sequence[Settlement], wanted: Sequence[Wanted], upcoming: Upcoming = ()) -> list[Claim]:
        late, self.late = self.late, wanted
        super().commit([], late)
        super().commit([answer for answer in settled if answer.number in self._open], [])
        return [Claim(want.number) for want in wanted]


class SendsDoubtsAgainInSql(SqlModel):
    """Resumes with all who are not known to be accepted: their claims are taken over."""

    def earlier(self) -> Iterable[Earlier]:
        found = list(super().earlier())
        for batch in found:
            if batch.request_id is None:
                for fingerprint in batch.fingerprints:
                    self._tables.claims.pop(fingerprint, None)
        return [batch for batch in found if batch.request_id]


class BelievesWhoBeginsLast(SqlModel):
    """Takes a try that begins after its successor for the newest."""

    def _check_late(self, newest: int) -> None:
        del newest


class KeepsClaimsOnRestart(SqlModel):
    """Forgets the batches on a restart, and not whom they claimed."""

    def _give_up(self, row: Row) -> None:
        if row.begun == self._begun:
            super()._give_up(row)


class TrustsWhatWasPutBack(SqlModel):
    """Takes the tables for whole, whatever the marks say."""

    def _ahead(self, counter: int) -> int:
        return counter

    def _raise_counter(self, by: int = 1) -> None:
        self._counter = self._tables.counters.get(self._task, 0) + by
        self._tables.counters[self._task] = self._counter


class CountsOnWhatWasPutBack(SqlModel):
    """Looks at the marks as it begins, and not again: raises the count that it finds."""

    def _raise_counter(self, by: int = 1) -> None:
        self._counter = self._tables.counters.get(self._task, 0) + by
        self._tables.counters[self._task] = self._counter


class MarksLater(SqlModel):
    """Writes the mark of a commit with the next one: the requests are out by then."""

    def commit(self, settled: Sequence[Settlement], wanted: Sequence[Wanted], upcoming: Upcoming = ()) -> list[Claim]:
        super()._mark()
        return super().commit(settled, wanted, upcoming)

    def _mark(self) -> None:
        """Write nothing yet."""


class LeavesAGap(SqlModel):
    """Begins without the marks that an earlier try did not come to write."""

    def _complete(self) -> None:
        """Write nothing."""


class BelievesItsClear(SqlModel):
    """Tells a clear by the tables alone: those that were put back lack that it was seen."""

    def _newest_start(self, seen: Known | None) -> tuple[int, int | None]:
        return super()._newest_start(seen)[0], seen.max_tries if seen else None


class LooksOnce(SqlModel):
    """Tells a clear by the tables as they are in the transaction, after a look that may no longer be true."""

    def _newest_start(self, seen: Known | None) -> tuple[int, int | None]:
        start, max_tries = super()._newest_start(seen)
        return start, None if seen and seen.start == start else max_tries

    def _is_as_seen(self, seen: Known | None) -> bool:
        del seen
        return True

    def _begin(self, start: int, max_tries: int | None) -> bool:
        found = self._look()
        return super()._begin(start, found.max_tries if found and max_tries is None else max_tries)


class RestartsEachTryInSql(SqlModel):
    """Takes each try after a clear for the one that the clear made, whatever the newest try was begun with."""

    def _is_cleared(self, max_tries: int | None) -> bool:
        del max_tries
        return super()._is_cleared(self._world.setup.retries)


class LosesTheWholeClaim(SqlModel):
    """Takes a batch of which another task holds one recipient for won."""

    def _record(self, accepted: Sequence[Accepted], wanted: Sequence[Wanted]) -> Claimed:
        claimed = super()._record(accepted, wanted)
        return claimed and [(batch, Claim(claim.number)) for batch, claim in claimed]
