"""What is said of a run, from what its sandbox counted and what its tasks left."""

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

from tests.faults.api import late_writes
from tests.faults.scenario import IN_AIRFLOW, IN_SQL, MAY_CLOSE, MAY_STOP, NAIVE
from tests.support.verdict import (
    BATCH,
    Verdict,
    doubt_budget,
    judge_closed,
    judge_naive,
    judge_push,
    judge_wait,
    lost_answers,
)

if TYPE_CHECKING:
    from tests.faults.conduct import Conductor


def judge(run: "Conductor") -> Verdict:
    """Say what came of *run*."""
    scenario = run.scenario
    times = run.pushes()
    if scenario.store == NAIVE:
        return judge_naive(scenario.people, times)
    verdict = _push(run, times)
    wrong = [*run.problems, *_what_else(run, times)]
    if scenario.dag == "push_and_wait" and not verdict.problem:
        wrong.append(_waited(run))
    return replace(verdict, problem="; ".join(filter(None, (verdict.problem, *wrong))))


def _push(run: "Conductor", times: list[int]) -> Verdict:
    """Say what came of the push."""
    scenario, report = run.scenario, run.report()
    failed = run.scheduler.failed(scenario.dag, run.run_id, "push")
    if scenario.ends == MAY_CLOSE and (failed or run.pushed_when_lost is not None):
        return judge_closed(times, report)
    if failed and not times and _marks_may_be_gone(run):
        return judge_closed(times, report)
    faults = run.faults_so_far()
    people = scenario.people
    if scenario.shards and report:
        people = report["read"]  # a recipient whom two shards have read is counted by both
    elif scenario.forgiven:
        people = max(people, len(times))
    return judge_push(
        people,
        times,
        report,
        bound=_bound(run, faults),
        expired=faults["expired"],
        may_stop=scenario.ends == MAY_STOP,
    )


def _marks_may_be_gone(run: "Conductor") -> bool:
    """Return whether it was closed after two kills, the second before the mark of the first try was pushed again."""
    return run.interruptions > 1 and "StateLost" in str(run.xcom("push", "problem"))


def _bound(run: "Conductor", faults: Counter[str]) -> int:
    """Return how many may be in doubt."""
    scenario = run.scenario
    lost = lost_answers(faults) if any(fault.on == "push" for fault in scenario.faults) else 0
    window = scenario.in_flight * BATCH
    # The worst that a late write may leave is a doubt that is none.
    bound = (run.interruptions + lost + len(scenario.late)) * window
    if not scenario.budget:
        return bound
    budget = doubt_budget(scenario.people, scenario.in_flight, silent=scenario.silent)
    return min(bound, budget + run.interruptions * window)


def _what_else(run: "Conductor", times: list[int]) -> list[str]:
    """Return what else must not be."""
    scenario, wrong = run.scenario, []
    if run.pushed_when_lost is not None and sum(times) != run.pushed_when_lost:
        wrong.append("sent on without its record")
    late = late_writes(run.url, run.run_id) if scenario.late else {}
    struck = late["late"] + late["held"] if late else run.interruptions
    # With a SQL ledger, few writes or none go to the task state store.
    if scenario.strikes and not struck and not (late and scenario.store in IN_SQL):
        wrong.append("its plant was never reached")
    if scenario.one_attempt and run.attempts["push"] > 1:
        wrong.append(f"it took {run.attempts['push']} attempts")
    refused = run.sandbox.ask("report")["refusals"].get("INVALID_USER_NAME_PASSWORD", 0)
    if refused > 1:
        wrong.append(f"{refused} logins with one wrong password")
    return wrong


def _waited(run: "Conductor") -> str:
    """Return what is wrong with what the sensor told, if anything."""
    scenario, report = run.scenario, run.report()
    if not report:
        return ""
    # The task state store does not tell the sensor how many recipients each request had.
    guessed = scenario.store in IN_AIRFLOW
    too_many = sum(fault.kind == "row_too_many" for fault in scenario.faults) if guessed else 0
    ids, told = run.xcom("push", "request_ids"), run.xcom("wait", "return_value")
    return judge_wait(ids, report["accepted"], told, too_many=too_many)
