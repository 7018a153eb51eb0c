"""What is said of a run."""

import pytest

from tests.faults.scenario import STORES
from tests.faults.scenarios import GROUPS, scenario
from tests.support.verdict import (
    BATCH,
    Line,
    Verdict,
    doubt_budget,
    judge_closed,
    judge_naive,
    judge_push,
    judge_wait,
    lost_answers,
    report_problem,
    table,
)

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


def test_a_send_that_may_stop_may_leave_recipients_not_sent() -> None:
    """And may not call anybody so who was pushed."""
    stopped = report(read=500, accepted=300, not_sent=200)

    assert judge_push(500, [1] * 300, stopped, bound=0, may_stop=True).holds
    assert not judge_push(500, [1] * 400, stopped, bound=0, may_stop=True).holds


def test_a_send_that_was_closed_leaves_a_report() -> None:
    """It can't know of everybody, but calls nobody accepted who was not pushed."""
    assert judge_closed([1] * 300, report(read=200, accepted=200)).holds
    assert not judge_closed([1] * 300, None).holds
    assert not judge_closed([1] * 300, report(read=400, accepted=400)).holds
    assert not judge_closed([1] * 300, report(read=300, accepted=200)).holds
    assert not judge_closed([1] * 299 + [2], report(read=200, accepted=200)).holds


@pytest.mark.parametrize(
    ("pushed", "told", "is_wrong"),
    [
        (0, None, False),
        (200, None, True),
        (200, report(read=500, accepted=200, not_sent=300), False),
        (200, report(read=500, in_doubt=200, not_sent=300), False),
        (400, report(read=500, accepted=200, not_sent=300), True),
        (200, report(read=500, accepted=200), True),
    ],
)
def test_each_try_leaves_a_true_report(pushed: int, told: dict[str, int] | None, is_wrong: bool) -> None:
    """Once somebody was pushed."""
    assert bool(report_problem(pushed, told)) is is_wrong


def test_the_budget_of_doubts_has_a_floor() -> None:
    """A large send's is a share; a small one's is what may be in flight."""
    assert doubt_budget(7_900, 2, silent=False) == 1_200
    assert doubt_budget(7_900, 2, silent=True) == 1_600
    assert doubt_budget(900, 2, silent=False) == 800


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
        for store in stores:
            assert scenario(group, store, 17) == scenario(group, store, 17)
            assert len({scenario(group, store, seed).what for seed in range(30)}) > 2


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
