"""Bugs, each in place of a part of the provider, to show that the simulation finds them."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from airflow_provider_responsys.errors import InDoubt, NoAnswer, NotAccepted, NotSent, ResponsysError
from airflow_provider_responsys.ledger.interface import Accepted, Claim, Earlier, Settlement, Wanted
from airflow_provider_responsys.sending.engine import Action, Post
from airflow_provider_responsys.sending.run import Run
from tests.simulation.attempt import Turnwise
from tests.simulation.stores import Record, SqlModel
from tests.simulation.world import REAL, Parts


class SettlesBeforeTheAnswer(Turnwise):
    """Takes a request that has left for one that was accepted."""

    def decide(self, now: float) -> Action:
        action = super().decide(now)
        if isinstance(action, Post):
            self.answers.extend(Accepted(number, "soon") for number in action.numbers)
        return action

    def accepted(self, number: int, request_id: str, now: float, correlation_id: str = "") -> None:
        super().accepted(number, request_id, now, correlation_id)
        self.answers.pop()


class ClaimsLater(Record):
    """Writes each claim with the next commit: one write less for each batch."""

    def commit(
        self, settled: Sequence[Settlement], wanted: Sequence[Wanted], upcoming: Sequence[Sequence[bytes]] = ()
    ) -> list[Claim]:
        late: Sequence[Wanted] = getattr(self, "late", ())
        self.late = wanted
        known = {want.number for want in late} | set(self._places)
        super().commit([], late)
        super().commit([answer for answer in settled if answer.number in known], [])
        return [Claim(want.number) for want in wanted]


class ClaimsLaterInSql(SqlModel):
    """The same in a database."""

    late: Sequence[Wanted] = ()

    def commit(
        self, settled: Sequence[Settlement], wanted: Sequence[Wanted], upcoming: Sequence[Sequence[bytes]] = ()
    ) -> list[Claim]:
        late, self.late = self.late, wanted
        super().commit([], late)
        super().commit([answer for answer in settled if answer.number in self._open], [])
        return [Claim(want.number) for want in wanted]


def takes_a_reset_for_not_sent(error: ResponsysError) -> ResponsysError:
    """Treat a connection that broke as one that was never made."""
    return NotSent(str(error)) if isinstance(error, NoAnswer) else error


class CountsDoubtAsNotSent(Run):
    """Reports what is in doubt as not sent."""

    def _failed(self, number: int, error: ResponsysError, now: float) -> None:
        size = len(self._claimed[number])
        super()._failed(number, error, now)
        if isinstance(error, InDoubt) and not isinstance(error, NotAccepted) and self.report.doubts:
            self.report.doubts.pop()
            self.report.not_sent += size


class SendsDoubtsAgain(Record):
    """Resumes with everybody who is not known to be accepted."""

    def earlier(self) -> Iterable[Earlier]:  # type: ignore[override]  # the real one is an iterator
        return (batch for batch in super().earlier() if batch.request_id)


class SendsDoubtsAgainInSql(SqlModel):
    """The same in a database: their claims are taken over."""

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


PLANTED: dict[str, Parts] = {
    "settle before the answer": replace(REAL, engine=SettlesBeforeTheAnswer),
    "claim after the request": replace(REAL, record=ClaimsLater, sql=ClaimsLaterInSql),
    "retry of a reset": replace(REAL, transport=takes_a_reset_for_not_sent),
    "doubt counted as not sent": replace(REAL, run=CountsDoubtAsNotSent),
    "a resumed claim re-sent": replace(REAL, record=SendsDoubtsAgain, sql=SendsDoubtsAgainInSql),
    "whoever begins last goes on": replace(REAL, sql=BelievesWhoBeginsLast),
}
