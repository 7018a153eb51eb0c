"""Bugs, each in place of a part of the provider, to show that the simulation finds them."""

from collections.abc import Callable, Collection, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from airflow_provider_responsys.errors import InDoubt, LedgerFailed, NoAnswer, NotAccepted, NotSent, ResponsysError
from airflow_provider_responsys.ledger.interface import (
    Accepted,
    Claim,
    Earlier,
    Released,
    Settlement,
    Wanted,
    new_batch_id,
)
from airflow_provider_responsys.ledger.marked import MarkedLedger
from airflow_provider_responsys.ledger.tries import CLAIMED
from airflow_provider_responsys.recipients.spool import Batch
from airflow_provider_responsys.sending.engine import Action, Delivery, Post
from airflow_provider_responsys.sending.queue import Due, Queue
from airflow_provider_responsys.sending.run import Run
from tests.simulation.attempt import Turnwise
from tests.simulation.campaign import Setup, Strike
from tests.simulation.segments import SegmentLedger
from tests.simulation.sql_model import Claimed, Known, Row, SqlModel
from tests.simulation.stores import Record
from tests.simulation.world import REAL, Parts

Upcoming = Sequence[Sequence[bytes]]


class Around:
    """The real ledger, for a bug at its interface."""

    durable = True

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


# The sender


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


class ReleasesATakenDoubt(Turnwise):
    """Releases a batch whose newest request was refused, whether an earlier one may have been accepted or not."""

    def _not_accepted(self, number: int, error: NotAccepted, posted: float, now: float) -> Any:
        self.tries.pop(number, None)
        return super()._not_accepted(number, error, posted, now)


class ForgivesDoubts(Turnwise):
    """Starts the budget of doubts anew with each acceptance."""

    def accepted(self, number: int, request_id: str, now: float, correlation_id: str = "") -> None:
        super().accepted(number, request_id, now, correlation_id)
        self.budget.lost.clear()
        self.budget.found = 0


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


class DrawsAnotherId(Run):
    """Draws the id of a request when it is posted."""

    def _loop(self, pool: Any) -> None:
        super()._loop(cast("Any", Redrawing(pool)))


class Redrawing:
    def __init__(self, pool: Any) -> None:
        self._pool = pool

    def submit(self, work: Callable[..., None], *args: Any) -> None:
        self._pool.submit(work, *((args[0], new_batch_id(), *args[2:]) if args else ()))


class DropsWhatItTook(Queue):
    """Takes batches one by one, and forgets those that it has when the spool fails."""

    def __init__(self, source: Generator[Batch], repeats: Iterable[Due]) -> None:
        super().__init__(_nothing(), repeats)
        self._rest = source
        self._following = self._look()

    def _look(self) -> Due | None:
        batch = next(self._rest, None)
        return None if batch is None else Due(batch)

    def __bool__(self) -> bool:
        return bool(self._again) or self._following is not None

    def take(self, most: int) -> list[Due]:
        taken: list[Due] = []
        while len(taken) < most and self:
            if self._again:
                taken.append(self._again.popleft())
            elif self._following is not None:
                taken.append(self._following)
                self._following = self._look()
        self.taken += sum(len(due.batch) for due in taken)
        return taken


class DropsInRun(Run):
    """The same, where the sender uses it."""

    def __init__(self, engine: Any, source: Generator[Batch], total: int, **kwargs: Any) -> None:
        super().__init__(engine, _nothing(), total, **kwargs)
        self._queue = DropsWhatItTook(source, kwargs["repeats"])


def _nothing() -> Generator[Batch]:
    yield from ()


# Marks


def takes_a_missing_mark_for_none(*, left: Collection[str], **_: object) -> bool:
    """Believe that no earlier try began where there is no mark."""
    return bool(left)


class MarksTheNextClaim(MarkedLedger):
    """Marks a try as one that may have claimed before its second claim: the first may be out by then."""

    claimed = False

    def commit(self, settled: Sequence[Settlement], wanted: Sequence[Wanted], upcoming: Upcoming = ()) -> list[Claim]:
        if wanted and self.claimed:
            self._mark(CLAIMED)
        self.claimed = self.claimed or bool(wanted)
        return self._ledger.commit(settled, wanted, upcoming)


# The ledgers


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


class ClaimsLaterInSql(SqlModel):
    """The same in a database."""

    late: Sequence[Wanted] = ()

    def commit(self, settled: Sequence[Settlement], wanted: Sequence[Wanted], upcoming: Upcoming = ()) -> list[Claim]:
        late, self.late = self.late, wanted
        super().commit([], late)
        super().commit([answer for answer in settled if answer.number in self._open], [])
        return [Claim(want.number) for want in wanted]


class SendsDoubtsAgain(Around):
    """Resumes with everybody who is not known to be accepted."""

    def earlier(self) -> Iterable[Earlier]:
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


# The database


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


@dataclass(frozen=True, slots=True)
class Planted:
    """A bug, and a campaign in which it shows soon; without one, any."""

    parts: Parts
    setup: Setup | None = None


FOCUS = Setup(
    sources=((1, 2, 3),), faults=3, calm=0.8, source_changes=False, answers=(), per_minute=60, reads_fail=False
)
"""Three batches, one after the other, and not much that may happen to them."""

CLEANED = replace(FOCUS, strikes=(Strike.KILL, Strike.CLEAR, Strike.MARKS, Strike.LOST))

REPLICA = replace(FOCUS, sql=True, retries=2, calm=0.7, strikes=(Strike.KILL, Strike.CLEAR, Strike.PUT_BACK))

RESTARTED = replace(FOCUS, sql=True, on_clear="restart", strikes=(Strike.KILL, Strike.CLEAR))

LOOKED = replace(
    RESTARTED,
    retries=2,
    calm=0.99,
    spared=0.7,
    steady=0.95,
    strikes=(Strike.KILL, Strike.CLEAR, Strike.PUT_BACK),
)
"""A clear, a kill and a put-back, each at its place: no failing write may use a fault up before."""

TWICE = replace(
    FOCUS, answers=("batch refused", "answer lost"), delivery=Delivery.AT_LEAST_ONCE, strikes=(Strike.KILL,)
)

PLANTED: dict[str, Planted] = {
    "settle before the answer": Planted(replace(REAL, engine=SettlesBeforeTheAnswer)),
    "claim after the request": Planted(replace(REAL, record=ClaimsLater, sql=ClaimsLaterInSql)),
    "retry of a reset": Planted(replace(REAL, transport=takes_a_reset_for_not_sent)),
    "doubt counted as not sent": Planted(replace(REAL, run=CountsDoubtAsNotSent)),
    "a resumed claim re-sent": Planted(replace(REAL, record=SendsDoubtsAgain, sql=SendsDoubtsAgainInSql)),
    "whoever begins last goes on": Planted(
        replace(REAL, sql=BelievesWhoBeginsLast), replace(FOCUS, sql=True, strikes=(Strike.ZOMBIE,))
    ),
    "a segment written over": Planted(replace(REAL, record=SegmentLedger), replace(FOCUS, late=1)),
    "a segment kept outside": Planted(
        replace(REAL, record=SegmentLedger),
        replace(FOCUS, outside=True, strikes=(Strike.ZOMBIE, Strike.CLEAR)),
    ),
    "a missing mark is none": Planted(replace(REAL, may_have_claimed=takes_a_missing_mark_for_none), CLEANED),
    "a mark with the next claim": Planted(replace(REAL, marked=MarksTheNextClaim), CLEANED),
    "a failed write won": Planted(replace(REAL, record=WinsWhatItCouldNotWrite)),
    "the newest try alone": Planted(replace(REAL, record=ReadsTheNewestTry)),
    "another's request id": Planted(replace(REAL, record=SettlesAnother)),
    "a release forgotten": Planted(replace(REAL, record=ForgetsReleases)),
    "a taken doubt released": Planted(replace(REAL, engine=ReleasesATakenDoubt), TWICE),
    "another id than claimed": Planted(replace(REAL, run=DrawsAnotherId)),
    "batches dropped by a failing spool": Planted(
        replace(REAL, run=DropsInRun),
        replace(TWICE, sources=(tuple(range(1, 9)),), spool_fails=True, per_minute=600_000, max_in_flight=2),
    ),
    "claims kept on restart": Planted(replace(REAL, sql=KeepsClaimsOnRestart), RESTARTED),
    "a restart with each try": Planted(replace(REAL, sql=RestartsEachTryInSql), RESTARTED),
    "a look that is no longer true": Planted(replace(REAL, sql=LooksOnce), LOOKED),
    "a put-back ledger trusted": Planted(replace(REAL, sql=TrustsWhatWasPutBack), REPLICA),
    "a put-back ledger trusted while it runs": Planted(replace(REAL, sql=CountsOnWhatWasPutBack), REPLICA),
    "a post before the commit's mark": Planted(replace(REAL, sql=MarksLater), REPLICA),
    "a gap in the marks": Planted(replace(REAL, sql=LeavesAGap), REPLICA),
    "a clear told by what was put back": Planted(
        replace(REAL, sql=BelievesItsClear), replace(REPLICA, on_clear="restart")
    ),
    "a lost record restarted twice": Planted(
        replace(REAL, record=RestartsEachTry),
        replace(FOCUS, on_clear="restart", strikes=(Strike.KILL, Strike.CLEAR, Strike.LOST)),
    ),
    "another task's recipient won": Planted(replace(REAL, sql=LosesTheWholeClaim)),
    "keys of the first start": Planted(
        replace(REAL, record=ReusesKeys), replace(FOCUS, strikes=(Strike.KILL, Strike.AGAIN))
    ),
    "an acceptance forgives doubts": Planted(
        replace(REAL, engine=ForgivesDoubts),
        replace(FOCUS, sources=(tuple(range(1, 13)),), brown_out=0.5, max_in_doubt=2, max_in_flight=1),
    ),
}
"""Each with the parts that it replaces."""
