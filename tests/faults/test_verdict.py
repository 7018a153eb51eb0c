"""What is said of a run."""

import pytest

from tests.faults.scenario import STORES
from tests.faults.scenarios import GROUPS, scenario
from tests.faults.verdict import BATCH, Line, Verdict, judge_naive, judge_push, judge_wait, lost_answers, table

NOBODY = {"accepted": 0, "rejected": 0, "in_doubt": 0, "not_sent": 0, "withheld": 0, "duplicate": 0, "invalid": 0}


def report(**buckets: int) -> dict[str, int]:
    """Return an operator's report."""
    return {**NOBODY, **buckets}


def judged(times: list[int], told: dict[str, int] | None, *, interruptions: int = 0, people: int = 500) -> Verdict:
    """Return what is said of *people* who were pushed so many *times*."""
    return judge_push(people, times, told, bound=interruptions * BATCH)


@pytest.mark.parametrize(
    ("times", "told", "interruptions"),
    [
        ([1] * 500, report(read=500, accepted=500), 0),
        ([1] * 500, report(read=500, accepted=300, in_doubt=200), 1),
        ([1] * 300, report(read=500, accepted=300, in_doubt=200), 1),
        ([1] * 300, report(read=500, accepted=300, rejected=200), 0),
        ([], None, 0),
    ],
)
def test_a_true_report_holds(times: list[int], told: dict[str, int] | None, interruptions: int) -> None:
    """Who is in doubt may have been pushed, or not."""
    assert judged(times, told, interruptions=interruptions).holds


@pytest.mark.parametrize(
    ("times", "told", "interruptions"),
    [
        ([1] * 499 + [2], report(read=500, accepted=500), 0),  # twice
        ([1] * 500, report(read=500, accepted=499), 0),  # in no bucket
        ([1] * 400, report(read=400, accepted=400), 0),  # not even read
        ([1] * 500, report(read=500, accepted=300, rejected=200), 0),  # pushed, and called rejected
        ([1] * 300, report(read=500, accepted=500), 0),  # called accepted, and never pushed
        ([1] * 300, None, 0),  # pushed, and nothing said
        ([1] * 500, report(read=500, accepted=300, in_doubt=200), 0),  # more in doubt than anything explains
        ([1] * 300, report(read=500, accepted=300, not_sent=200), 0),  # given up
    ],
)
def test_an_untrue_report_does_not(times: list[int], told: dict[str, int] | None, interruptions: int) -> None:
    """Each way in which a promise can be broken is seen."""
    assert not judged(times, told, interruptions=interruptions).holds


def test_faults_that_queue_nothing_lose_no_answer() -> None:
    """Only what leaves a doubt behind may explain one."""
    assert lost_answers({"lost": 2, "SERVICE_UNAVAILABLE": 3, "endless": 1, "UNRECOVERABLE_EXCEPTION": 1}) == 3


def test_the_sensor_must_account_for_every_request() -> None:
    """Its counts add up to what it was asked about."""
    good = {
        "requests": {"total": 2, "finished": 1, "failed": 1, "unknown": 0, "pending": 0},
        "recipients": {"succeeded": 190, "failed": 10, "unknown": 200},
    }

    assert not judge_wait(["1", "2"], 400, good)
    assert judge_wait(["1", "2", "3"], 400, good)
    assert judge_wait(["1", "2"], 300, good)
    assert judge_wait(["1", "2"], 400, None)


def test_the_baseline_is_judged_by_what_the_sandbox_counted() -> None:
    """It reports nothing of its own."""
    assert judge_naive(5, [1, 2, 1]) == Verdict(duplicates=1, forgotten=2)


def test_a_scenario_follows_from_its_name() -> None:
    """So that a run that failed can be repeated."""
    for group, (_, stores) in GROUPS.items():
        assert scenario(group, stores[0], 17) == scenario(group, stores[0], 17)
        assert len({scenario(group, stores[0], seed).what for seed in range(30)}) > 4


def test_every_store_sees_the_same_faults() -> None:
    """The columns of the table are comparable."""
    drawn = {scenario("random kills", store, 5).kills["push", 1] for store in STORES}

    assert len(drawn) == 1


def test_the_table_sums_runs_up() -> None:
    """A line for each group and store."""
    line = Line()
    line.add(Verdict(in_doubt=200, bound=1_000))
    line.add(Verdict(duplicates=1))

    *_, last = table([("kill points", "SQL", line)]).splitlines()

    assert last.split()[-6:] == ["2", "1", "0", "200", "1,000", "1"]
