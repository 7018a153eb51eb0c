"""Bugs of the sender, and of the marks that a try leaves."""

from collections.abc import Callable, Collection, Generator, Iterable, Sequence
from typing import Any, cast

from airflow_provider_responsys.errors import InDoubt, NoAnswer, NotAccepted, NotSent, ResponsysError
from airflow_provider_responsys.ledger.interface import (
    Accepted,
    Claim,
    Settlement,
    Wanted,
    new_batch_id,
)
from airflow_provider_responsys.ledger.marked import MarkedLedger
from airflow_provider_responsys.ledger.tries import CLAIMED
from airflow_provider_responsys.recipients.spool import Batch
from airflow_provider_responsys.sending.engine import Action, Post
from airflow_provider_responsys.sending.queue import Due, Queue
from airflow_provider_responsys.sending.run import Run
from tests.simulation.attempt import Turnwise

Upcoming = Sequence[Sequence[bytes]]


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
