"""Bugs, each in place of a part of the provider, to show that the simulation finds them."""

from dataclasses import dataclass, replace

from airflow_provider_responsys.sending.engine import Delivery
from tests.simulation.campaign import Setup, Strike
from tests.simulation.parts import REAL, Parts
from tests.simulation.planted_record import (
    ClaimsLater,
    ForgetsReleases,
    ReadsTheNewestTry,
    RestartsEachTry,
    ReusesKeys,
    SendsDoubtsAgain,
    SettlesAnother,
    WinsWhatItCouldNotWrite,
)
from tests.simulation.planted_sender import (
    CountsDoubtAsNotSent,
    DrawsAnotherId,
    DropsInRun,
    ForgivesDoubts,
    MarksTheNextClaim,
    ReleasesATakenDoubt,
    SettlesBeforeTheAnswer,
    takes_a_missing_mark_for_none,
    takes_a_reset_for_not_sent,
)
from tests.simulation.planted_sql import (
    BelievesItsClear,
    BelievesWhoBeginsLast,
    ClaimsLaterInSql,
    CountsOnWhatWasPutBack,
    KeepsClaimsOnRestart,
    LeavesAGap,
    LooksOnce,
    LosesTheWholeClaim,
    MarksLater,
    RestartsEachTryInSql,
    SendsDoubtsAgainInSql,
    TrustsWhatWasPutBack,
)
from tests.simulation.segments import SegmentLedger


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
