"""Bugs of a ledger in Airflow's task state store."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

from airflow_provider_responsys.errors import LedgerFailed
from airflow_provider_responsys.ledger.interface import (
    Accepted,
    Claim,
    Earlier,
    Released,
    Settlement,
    Wanted,
)
from tests.simulation.parts import REAL
from tests.simulation.stores import Record

Upcoming = Sequence[Sequence[bytes]]


class Around:
    """The real ledger, for a bug at its interface."""

    durable = True
    looks_ahead = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._ledger: Any = REAL.record(*args, **kwargs)

        self.resumes = False

    def begin(self, identity: Mapping[str, str]) -> bytes:
        key = cast("bytes", self._ledger.begin(identity))
        self.resumes = self._ledger.resumes
        return key

    def compare(self, source: object) -> None:
        self._ledger.compare(source)

    def earlier(self) -> Iterable[Earlier]:
        return cast("Iterable[Earlier]", self._ledger.earlier())

    def commit(self, settled: Sequence[Settlement], wanted: Sequence[Wanted], upcoming: Upcoming = ()) -> list[Claim]:
        return cast("list[Claim]", self._ledger.commit(settled, wanted, upcoming))

    def name_answer(self, number: int, correlation_id: str) -> None:
        """Do nothing: no person looks doubts up here."""

    def close(self) -> None:
        self._ledger.close()


class ClaimsLater(Around):
    """Writes each claim with the next commit: one write less for each batch."""

    def commit(self, settled: Sequence[Settlement], wanted: Sequence[Wanted], upcoming: Upcoming = ()) -> list[Claim]:
        late: Sequence[Wanted] = getattr(self, "late", ())
        known: set[int] = getattr(self, "known", set())
        self.late = wanted
        self.known = known | {want.number for want in late}
        super().commit([], late)
        super().commit([answer for answer in settled if answer.number in self.known], [])
        return [Claim(want.number) for want in wanted]


class SendsDoubtsAgain(Around):
    """Resumes with all who are not known to be accepted."""

    def earlier(self) -> Iterable[Earlier]:
        return (batch for batch in super().earlier() if batch.request_id)


class WinsWhatItCouldNotWrite(Around):
    """Takes a claim whose write failed for one that was written."""

    def commit(self, settled: Sequence[Settlement], wanted: Sequence[Wanted], upcoming: Upcoming = ()) -> list[Claim]:
        try:
            return super().commit(settled, wanted, upcoming)
        except LedgerFailed:
            return [Claim(want.number) for want in wanted]


class ReadsTheNewestTry(Around):
    """Reads back what the newest try wrote, and takes it for all."""

    def earlier(self) -> Iterable[Earlier]:
        found = list(super().earlier())
        return [batch for batch in found if batch.label.split(",")[0] == found[-1].label.split(",")[0]]


class SettlesAnother(Around):
    """Gives the request ids of one commit to its batches in another order."""

    def commit(self, settled: Sequence[Settlement], wanted: Sequence[Wanted], upcoming: Upcoming = ()) -> list[Claim]:
        ids = [answer.request_id for answer in settled if isinstance(answer, Accepted)]
        turned = iter(ids[1:] + ids[:1])
        wrong = [Accepted(each.number, next(turned)) if isinstance(each, Accepted) else each for each in settled]
        return super().commit(wrong, wanted, upcoming)


class ForgetsReleases(Around):
    """Writes no release: the claims stay."""

    def commit(self, settled: Sequence[Settlement], wanted: Sequence[Wanted], upcoming: Upcoming = ()) -> list[Claim]:
        return super().commit([each for each in settled if not isinstance(each, Released)], wanted, upcoming)


class ReusesKeys(Record):
    """Lets the second start of a try write under the keys of the first one."""

    def begin(self, identity: Mapping[str, str]) -> bytes:
        key = super().begin(identity)
        this = cast("Any", self)
        this._where = this._where._replace(start=0)
        return key


class RestartsEachTry(Record):
    """Takes each try after a clear for the one that the clear made."""

    @property
    def _is_of_a_clear(self) -> bool:
        return self._max_tries != self._retries
