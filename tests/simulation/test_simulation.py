"""The rules of a send, in every schedule of small campaigns and in some of larger ones."""

from collections.abc import Iterator
from dataclasses import replace

import pytest

from airflow_provider_responsys.sending.engine import Delivery
from tests.simulation.campaign import Setup, Strike
from tests.simulation.choices import Choices
from tests.simulation.planted import FOCUS, PLANTED, REPLICA, Planted
from tests.simulation.search import SMALL, breaks, by_chance, everyone, play, quiet, simplest

PAIR = ((1, 2),)
FEW = "batch refused", "answer lost"

SQL = replace(SMALL, sql=True, sources=PAIR, faults=1)

ONE = ((1,),)

CALM = replace(SMALL, sources=ONE, answers=(), reads_fail=False)
"""One batch, and no trouble but what happens to the stores, or from outside."""

SEGMENTS = replace(FOCUS, late=1)

RESTARTED = replace(CALM, sql=True, faults=3, on_clear="restart", strikes=(Strike.KILL, Strike.CLEAR, Strike.PUT_BACK))

PUT_BACK_AS_IT_BEGINS = [*[0] * 23, 1, *[0] * 22, 1, 0, 0, 1, 1]
"""The first try succeeds, a person clears the task, the second one is killed, and the third one looks at the tables.

They are put back to the first try then, before the transaction in which the third one begins.
"""

REPLAYS: dict[str, tuple[str, Setup, list[int]]] = {
    "settle before the answer": ("accepted means pushed", SMALL, []),
    "claim after the request": ("no claim missing", SMALL, []),
    "retry of a reset": ("at most once", SQL, [*[0] * 14, 2]),
    "doubt counted as not sent": ("nobody forgotten", SQL, [*[0] * 14, 2]),
    "a resumed claim re-sent": ("no claim missing", SMALL, [*[0] * 6, 2]),
    "whoever begins last goes on": ("the newest goes on", SQL, [2, 1]),
    "a segment written over": ("no claim missing", SEGMENTS, [0, 0, 7]),
    "a put-back ledger trusted": ("at most once", REPLICA, [*[0] * 11, 1]),
    "a look that is no longer true": ("at most once", RESTARTED, PUT_BACK_AS_IT_BEGINS),
    "a post before the commit's mark": ("at most once", REPLICA, [*[0] * 11, 6, 1]),
}
"""The schedules that the planted bugs were found by, shrunk: the rule that breaks, and the decisions.

Both bugs of the answers show when an answer is lost, the next one when the first try is killed, then one when it is
taken for dead before it begins. A segment shows what it lost when the first write of a try that was killed is done
after the next try. A ledger that was put back is trusted where it is put back beside a try that goes on posting.
"""


@pytest.fixture(autouse=True)
def silent() -> Iterator[None]:
    """Leave out what the provider logs."""
    with quiet():
        yield


def test_random_schedules_break_no_rule() -> None:
    """Retries, clears, zombies, kills, lost answers and failing stores, in thousands of orders."""
    assert by_chance(range(2_500)) is None


@pytest.mark.parametrize(
    "setup",
    [
        pytest.param(replace(SMALL, sources=PAIR, faults=1), id="task state store"),
        pytest.param(
            replace(SMALL, sources=PAIR, faults=1, answers=FEW, strikes=(), source_changes=True), id="another source"
        ),
        pytest.param(
            replace(SMALL, sources=PAIR, faults=1, strikes=(), delivery=Delivery.AT_LEAST_ONCE), id="at least once"
        ),
        pytest.param(
            replace(SMALL, sources=ONE, faults=1, answers=FEW, retries=0, on_clear="restart", strikes=(Strike.CLEAR,)),
            id="restart",
        ),
        pytest.param(replace(SMALL, sql=True, sources=PAIR, faults=1), id="SQL"),
        pytest.param(replace(SMALL, sql=True, sources=((1, 2), (2,)), faults=0), id="two tasks"),
        pytest.param(replace(CALM, sources=PAIR, faults=1, late=1, strikes=()), id="late writes"),
        pytest.param(
            replace(CALM, sources=PAIR, faults=1, outside=True, strikes=(Strike.ZOMBIE, Strike.CLEAR)),
            id="values kept outside",
        ),
        pytest.param(replace(CALM, sources=PAIR, retries=0, strikes=(Strike.AGAIN,)), id="a second start"),
        pytest.param(replace(CALM, strikes=(Strike.KILL, Strike.MARKS, Strike.LOST)), id="housekeeping"),
        pytest.param(replace(CALM, sql=True, strikes=(Strike.KILL, Strike.PUT_BACK)), id="a database put back"),
        pytest.param(
            replace(SMALL, sources=((1, 2, 3, 4),), faults=0, brown_out=0.5, max_in_doubt=1, strikes=()),
            id="a brown-out",
        ),
    ],
)
def test_every_schedule_of_a_small_campaign_breaks_no_rule(setup: Setup) -> None:
    """Nothing is left to chance: each thing that can happen, at each place."""
    count, states = everyone(setup)

    assert count > 10
    assert states > 10


@pytest.mark.parametrize("planted", [pytest.param(planted, id=name) for name, planted in PLANTED.items()])
def test_a_planted_bug_is_found_and_its_schedule_is_short(planted: Planted) -> None:
    """A simulation that finds nothing where there is something is worth nothing."""
    found = simplest(range(8_000), planted.parts, planted.setup)

    assert found is not None
    assert sum(map(bool, found.script)) <= 6
    assert len(found.story) <= 12
    assert breaks(found.script, planted.setup, planted.parts) == found.rule
    assert breaks(found.script, planted.setup) is None


@pytest.mark.parametrize("name", REPLAYS)
def test_a_schedule_is_replayed_from_its_decisions(name: str) -> None:
    """A short trace is enough to see a bug again, and to see that it is gone."""
    rule, setup, script = REPLAYS[name]

    assert breaks(script, setup, PLANTED[name].parts) == rule
    assert breaks(script, setup) is None


def test_without_a_fault_everybody_is_pushed_in_one_try() -> None:
    """The plain case, told."""
    world = play(Choices(), SMALL, tells=True)

    assert [line.split(maxsplit=1)[1] for line in world.story] == [
        "task1 try 1 starts with [1, 2, 3]",
        "task1 try 1, batch 1: accepted",
        "task1 try 1, batch 2: accepted",
        "task1 try 1, batch 3: accepted",
        "task1 try 1: success",
    ]
