"""A run whose push failed never looks like a success, however the push failed."""

import json
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import DAG, task_group

from airflow_provider_responsys.operators import TriggerPushOperator
from airflow_provider_responsys.sandbox import Fault, Sandbox
from airflow_provider_responsys.sensors import PushRequestSensor

Runner = Callable[[Any], Any]

MODES: dict[str, dict[str, Any]] = {"deferrable": {}, "poke": {"deferrable": False}}


@pytest.fixture
def sandbox(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sandbox]:
    """Give a Responsys that finishes requests at once, and a sensor that is impatient."""
    monkeypatch.setattr(PushRequestSensor, "first_delay", 0.0)
    with Sandbox(processing_time=0.0) as running:
        connection = running.connection(poll_requests_per_minute=60_000)
        monkeypatch.setenv("AIRFLOW_CONN_RESPONSYS_DEFAULT", json.dumps(connection))
        yield running


class Silent(TriggerPushOperator):
    """A push that leaves no output, as one that is killed does."""

    def execute(self, context: Any) -> dict[str, Any]:
        """Send nothing, and say nothing."""
        raise RuntimeError("killed")


class Dies(TriggerPushOperator):
    """A push whose second shard dies without an output."""

    def execute(self, context: Any) -> dict[str, Any]:
        """Send, or die."""
        if context["ti"].map_index == 1:
            raise RuntimeError("killed")
        return super().execute(context)


def people(count: int) -> list[dict[str, str]]:
    """Return as many rows."""
    return [{"customer_id": f"C{number}"} for number in range(count)]


def defaults(**changes: Any) -> dict[str, Any]:
    """Return a push's arguments."""
    return {
        "task_id": "push",
        "campaign_name": "Summer_Push",
        "recipients": people(601),
        "requests_per_minute": 60_000,
        "max_in_flight": 1,
        "retries": 0,
        **changes,
    }


def waiting(request_ids: Any, **settings: Any) -> PushRequestSensor:
    """Return a wait that runs however its push ended."""
    arguments = {"task_id": "wait", "poke_interval": 0.05, "timeout": 20, "trigger_rule": "all_done", **settings}
    return PushRequestSensor(request_ids=request_ids, **arguments)


def states(run: Any) -> dict[str, str]:
    """Return the states of the run's tasks."""
    return {ti.task_id: str(ti.state) for ti in run.get_task_instances()}


@pytest.mark.parametrize("mode", MODES)
def test_a_push_that_failed_fails_its_wait_when_all_is_counted(
    mode: str, sandbox: Sandbox, run_dag: Runner, caplog: pytest.LogCaptureFixture
) -> None:
    """With the push's own sentence, in counts; the results stay readable."""
    sandbox.plan(Fault("push", "lost", when="after", nth=2), Fault("push", "CAMPAIGN_NOT_FOUND", nth=3))
    with DAG(f"honest_{mode}", schedule=None) as dag:
        push = TriggerPushOperator(**defaults())
        push >> waiting(push.output, **MODES[mode])

    run = run_dag(dag)

    waited = run.get_task_instance("wait").xcom_pull(task_ids="wait")
    problem = run.get_task_instance("push").xcom_pull(task_ids="push", key="problem")
    assert states(run) == {"push": "failed", "wait": "failed"}
    assert run.state == "failed"
    assert problem.startswith("200 of 601 accepted, 200 rejected, 200 in doubt, 1 not sent")
    assert waited["recipients"]["succeeded"] == 200


def test_it_can_be_turned_off(sandbox: Sandbox, run_dag: Runner) -> None:
    """Then the wait is about the results alone."""
    sandbox.plan(Fault("push", "lost", when="after", nth=2))
    with DAG("honest_off", schedule=None) as dag:
        push = TriggerPushOperator(**defaults())
        push >> waiting(push.output, fail_with_push=False)

    assert states(run_dag(dag)) == {"push": "failed", "wait": "success"}


@pytest.mark.parametrize("which", ["output", "ids"])
def test_a_push_whose_doubts_are_accepted_is_no_problem(which: str, sandbox: Sandbox, run_dag: Runner) -> None:
    """on_in_doubt="continue" says that the push did not fail."""
    sandbox.plan(Fault("push", "lost", when="after", nth=2))
    with DAG(f"honest_{which}", schedule=None) as dag:
        push = TriggerPushOperator(**defaults(on_in_doubt="continue"))
        push >> waiting(push.output if which == "output" else push.output["request_ids"])  # type: ignore[index]  # it can

    assert states(run_dag(dag)) == {"push": "success", "wait": "success"}


def test_ids_alone_do_not_hide_that_their_push_failed(sandbox: Sandbox, run_dag: Runner) -> None:
    """Airflow knows the state of what is directly upstream."""
    sandbox.plan(Fault("push", "lost", when="after", nth=2))
    with DAG("honest_ids", schedule=None) as dag:
        push = TriggerPushOperator(**defaults())
        push >> waiting(push.output["request_ids"])  # type: ignore[index]  # XComArg can be indexed

    assert states(run_dag(dag)) == {"push": "failed", "wait": "failed"}


def test_a_mapped_push_that_left_no_output_fails_the_wait(sandbox: Sandbox, run_dag: Runner) -> None:
    """Of three shards one died: the results of the others are counted, then the wait fails."""
    arguments = defaults()
    del arguments["recipients"]
    with DAG("honest_mapped", schedule=None) as dag:
        shards = [[{"customer_id": f"S{shard}-{number}"} for number in range(5)] for shard in range(3)]
        push = Dies.partial(**arguments).expand(recipients=shards)
        push >> waiting(push.output)

    run = run_dag(dag)

    waited = run.get_task_instance("wait").xcom_pull(task_ids="wait")
    assert states(run)["wait"] == "failed"
    assert waited["recipients"]["succeeded"] == 10


def test_a_push_that_sent_nothing_fails_the_wait(sandbox: Sandbox, run_dag: Runner) -> None:
    """There is nothing to wait for, and no success to claim."""
    sandbox.change(campaigns=("Other",))
    with DAG("honest_nothing", schedule=None, default_args={"retry_delay": timedelta(0)}) as dag:
        push = TriggerPushOperator(**defaults())
        push >> waiting(push.output)

    run = run_dag(dag)

    assert states(run) == {"push": "failed", "wait": "failed"}
    assert run.get_task_instance("wait").xcom_pull(task_ids="wait")["requests"]["total"] == 0


def test_a_push_without_any_output_fails_the_wait(sandbox: Sandbox, run_dag: Runner) -> None:
    """Also where the wait was given an empty list of another task."""
    with DAG("honest_silent", schedule=None) as dag:
        push = Silent(**defaults())
        push >> waiting([])

    assert states(run_dag(dag)) == {"push": "failed", "wait": "failed"}


def test_a_mapped_wait_is_about_its_own_push(sandbox: Sandbox, run_dag: Runner) -> None:
    """Of three waits, the one whose push failed fails."""
    sandbox.plan(Fault("push", "lost", when="after", nth=2))
    arguments = defaults()
    del arguments["recipients"]
    with DAG("honest_mapped_wait", schedule=None) as dag:
        shards = [[{"customer_id": f"S{shard}-{number}"} for number in range(5)] for shard in range(3)]
        push = TriggerPushOperator.partial(**arguments).expand(recipients=shards)
        wait = PushRequestSensor.partial(task_id="wait", poke_interval=0.05, timeout=20, trigger_rule="all_done")
        push >> wait.expand(request_ids=push.output)

    run = run_dag(dag)

    ended = sorted(str(ti.state) for ti in run.get_task_instances() if ti.task_id == "wait")
    assert ended == ["failed", "success", "success"]


def test_a_push_that_died_fails_its_mapped_wait(sandbox: Sandbox, run_dag: Runner) -> None:
    """Of three shards one died without an output: the waits are of two, and the run is no success."""
    arguments = defaults()
    del arguments["recipients"]
    with DAG("honest_mapped_silent", schedule=None) as dag:
        shards = [[{"customer_id": f"S{shard}-{number}"} for number in range(5)] for shard in range(3)]
        push = Dies.partial(**arguments).expand(recipients=shards)
        wait = PushRequestSensor.partial(task_id="wait", poke_interval=0.05, timeout=20, trigger_rule="all_done")
        push >> wait.expand(request_ids=push.output)

    run = run_dag(dag)

    assert str(run.state) == "failed"
    assert "failed" in [str(ti.state) for ti in run.get_task_instances() if ti.task_id == "wait"]


@pytest.mark.parametrize("which", ["output", "ids"])
def test_in_a_mapped_task_group_each_wait_sees_its_own_push(which: str, sandbox: Sandbox, run_dag: Runner) -> None:
    """Of three groups one push died without an output, or left an answer in doubt: the wait beside it fails alone."""
    if which == "ids":
        sandbox.plan(Fault("push", "lost", when="after", nth=2))
    arguments = defaults()
    del arguments["recipients"]
    with DAG(f"honest_group_{which}", schedule=None) as dag:

        @task_group
        def shard(rows: Any) -> None:
            push = (Dies if which == "output" else TriggerPushOperator)(recipients=rows, **arguments)
            output: Any = push.output
            push >> waiting(output if which == "output" else output["request_ids"])

        shard.expand(rows=[[{"customer_id": f"S{number}-{row}"} for row in range(5)] for number in range(3)])

    run = run_dag(dag)

    ended = sorted(str(ti.state) for ti in run.get_task_instances() if ti.task_id == "shard.wait")
    assert ended == ["failed", "success", "success"]
