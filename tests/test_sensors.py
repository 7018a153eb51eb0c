import json
import logging
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import (
    DAG,
    AirflowFailException,
    AirflowSensorTimeout,
    AirflowSkipException,
    TaskDeferred,
    task,
)

from airflow_provider_responsys import sensors
from airflow_provider_responsys.errors import InvalidSettings, RequestsFailed
from airflow_provider_responsys.hooks import USUAL_LIMIT, ResponsysHook
from airflow_provider_responsys.protocol import pace
from airflow_provider_responsys.protocol.polling import Outcome
from airflow_provider_responsys.protocol.results import Results
from airflow_provider_responsys.protocol.wire import Authorize, Conversation, Pause
from airflow_provider_responsys.sandbox import Fault, Sandbox
from airflow_provider_responsys.sensors import FEW_POLLS, PushRequestSensor, after
from airflow_provider_responsys.triggers import PushRequestTrigger
from airflow_provider_responsys.waiting import engine
from airflow_provider_responsys.waiting.asked import Asked
from airflow_provider_responsys.waiting.event import Event, Status, unpack
from airflow_provider_responsys.waiting.state import WaitState

CONNECTION = "AIRFLOW_CONN_RESPONSYS_DEFAULT"
CAMPAIGN = "Summer_Push"

MODES: dict[str, dict[str, Any]] = {
    "deferrable": {},
    "poke": {"deferrable": False},
    "reschedule": {"deferrable": False, "mode": "reschedule"},
}

Runner = Callable[[Any], Any]


@pytest.fixture
def sandbox(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sandbox]:
    """Give a Responsys that finishes requests at once, and a sensor that is impatient."""
    monkeypatch.setattr(PushRequestSensor, "first_delay", 0.0)
    monkeypatch.setattr(engine, "NOT_BELIEVED", ())
    with Sandbox(processing_time=0.0) as running:
        connect(monkeypatch, running)
        yield running


def connect(monkeypatch: pytest.MonkeyPatch, sandbox: Sandbox, **extra: Any) -> None:
    """Let the connection `responsys_default` lead to *sandbox*."""
    extra = {"poll_requests_per_minute": 60_000, **extra}
    monkeypatch.setenv(CONNECTION, json.dumps(sandbox.connection(**extra)))


def pushed(*batches: list[str]) -> list[str]:
    """Push each of *batches*, lists of customer ids, and return the request ids."""
    with ResponsysHook() as hook:
        return [hook.trigger_push(CAMPAIGN, [{"customer_id": name} for name in batch]) for batch in batches]


def sensor(request_ids: Any, **settings: Any) -> PushRequestSensor:
    """Return an impatient sensor."""
    return PushRequestSensor(**{"task_id": "wait", "request_ids": request_ids, "poke_interval": 0.05, **settings})


def deferred(waiting: PushRequestSensor) -> TaskDeferred:
    """Return how *waiting* defers."""
    with pytest.raises(TaskDeferred) as deferral:
        waiting.execute({})
    found: TaskDeferred = deferral.value
    return found


def event(**counts: Any) -> dict[str, Any]:
    """Return the payload of a trigger that has finished with *counts*."""
    return Event(Status.FINISHED, Results(**counts)).to_payload()


@pytest.mark.parametrize("mode", MODES)
def test_all_modes_end_alike(mode: str, sandbox: Sandbox, run_dag: Runner) -> None:
    """Success, failure, timeout, soft_fail, and the counts that stay readable: the same however it waits."""
    sandbox.plan(Fault("push", "expired", nth=3), Fault("push", "purged", nth=4), Fault("push", "endless", nth=5))
    good, bad, expired, purged, endless = pushed(
        ["C1", "NODEVICE-1"], ["C2", "UNDELIVERABLE-1"], ["C3"], ["C4"], ["C5"]
    )
    sensors: dict[str, dict[str, Any]] = {
        "good": {"request_ids": [good]},
        "none": {"request_ids": []},
        "tolerated": {"request_ids": [good, bad], "max_failed": 1},
        "tolerated_part": {"request_ids": [good, bad], "max_failed": 0.25},
        "failing": {"request_ids": [good, bad]},
        "soft_failing": {"request_ids": [good, bad], "soft_fail": True},
        "lost": {"request_ids": [good, expired, purged], "max_failed": 100},
        "late": {"request_ids": [good, endless], "timeout": 0.2},
        "soft_late": {"request_ids": [good, endless], "timeout": 0.2, "soft_fail": True},
        "nothing": {"request_ids": None},
    }
    with DAG(f"parity_{mode}", schedule=None, default_args={"retries": 1, "retry_delay": timedelta(0)}) as dag:
        for task_id, settings in sensors.items():
            PushRequestSensor(task_id=task_id, **{"poke_interval": 0.05, **MODES[mode], **settings})

    run = run_dag(dag)

    ended = {ti.task_id: ti for ti in run.get_task_instances()}
    assert {task_id: str(ended[task_id].state) for task_id in sensors} == {
        "good": "success",
        "none": "success",
        "tolerated": "success",
        "tolerated_part": "success",
        "failing": "failed",
        "soft_failing": "skipped",
        "lost": "failed",
        "late": "failed",
        "soft_late": "skipped",
        "nothing": "failed",
    }
    assert {task_id: ended[task_id].try_number for task_id in sensors} == dict.fromkeys(sensors, 1)
    assert {task_id: ended[task_id].xcom_pull(task_ids=task_id) for task_id in sensors} == {
        "good": counts(finished=1, succeeded=1, NO_RECIPIENT_FOUND=1),
        "none": counts(),
        **dict.fromkeys(
            ["tolerated", "tolerated_part", "failing", "soft_failing"],
            counts(finished=2, succeeded=2, NO_RECIPIENT_FOUND=1, RECIPIENT_STATUS_UNDELIVERABLE=1),
        ),
        "lost": counts(finished=1, failed=1, gone=1, succeeded=1, unknown=None, NO_RECIPIENT_FOUND=1),
        **dict.fromkeys(
            ["late", "soft_late"], counts(finished=1, pending=1, succeeded=1, unknown=None, NO_RECIPIENT_FOUND=1)
        ),
        "nothing": None,
    }


def counts(
    *,
    finished: int = 0,
    failed: int = 0,
    gone: int = 0,
    pending: int = 0,
    succeeded: int = 0,
    unknown: int | None = 0,
    **errors: int,
) -> dict[str, Any]:
    """Return what a sensor returns."""
    total = finished + failed + gone + pending
    return {
        "requests": {"total": total, "finished": finished, "failed": failed, "unknown": gone, "pending": pending},
        "recipients": {"succeeded": succeeded, "failed": sum(errors.values()), "unknown": unknown},
        "errors": errors,
    }


@pytest.mark.parametrize("mode", MODES)
def test_it_waits(mode: str, sandbox: Sandbox, run_dag: Runner) -> None:
    """A push that takes its time, with an outage in between, is waited for."""
    sandbox.change(processing_time=0.3)
    ids = pushed(["C1"], ["C2"])
    sandbox.plan(Fault("poll", "lost", nth=[1, 2]))
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr("airflow_provider_responsys.waiting.schedule.TROUBLE_WAITS", (0.05,))
        with DAG(f"waits_{mode}", schedule=None) as dag:
            sensor(ids, **MODES[mode])

        run = run_dag(dag)

    assert run.state == "success"
    assert run.get_task_instance("wait").xcom_pull(task_ids="wait")["recipients"]["succeeded"] == 2


def test_the_outputs_of_a_mapped_push(sandbox: Sandbox, run_dag: Runner) -> None:
    """The nested lists of a mapped push, and its whole outputs, are read as they come out of Airflow."""
    first, second = pushed(["C1", "C2"], ["C3"])
    with DAG("mapped", schedule=None) as dag:

        @task
        def push(request_id: str, accepted: int) -> dict[str, Any]:
            return {"request_ids": [request_id], "recipients": {"accepted": accepted}}

        @task
        def only_ids(request_id: str) -> list[str]:
            return [request_id]

        whole = push.expand_kwargs([{"request_id": first, "accepted": 2}, {"request_id": second, "accepted": 1}])
        sensor(whole, task_id="whole")
        sensor(only_ids.expand(request_id=[first, second]), task_id="ids")

    run = run_dag(dag)

    assert run.state == "success"
    assert run.get_task_instance("whole").xcom_pull(task_ids="whole") == counts(finished=2, succeeded=3)
    assert run.get_task_instance("ids").xcom_pull(task_ids="ids") == counts(finished=2, succeeded=3)


@pytest.mark.parametrize("accepted", [1, 3])
def test_more_or_fewer_results_than_recipients_fail(accepted: int, sandbox: Sandbox) -> None:
    """Which of them is whose can't be told."""
    [request_id] = pushed(["C1", "C2"])
    waiting = sensor({"request_ids": [request_id], "recipients": {"accepted": accepted}}, deferrable=False)

    with pytest.raises(AirflowFailException, match=f"2 results for {accepted} recipients"):
        waiting.execute({})


@pytest.mark.parametrize("mode", MODES)
def test_one_short_and_one_long_request_are_noticed(mode: str, sandbox: Sandbox, run_dag: Runner) -> None:
    """Their sum is right, and neither of them is: the push's output says how many each request has."""
    sandbox.plan(Fault("push", "row_missing", nth=1), Fault("push", "row_too_many", nth=2))
    ids = pushed(["C1", "C2"], ["C3", "C4"], ["C5"])
    output = {"request_ids": ids, "request_sizes": [[2, 2], [1, 1]], "recipients": {"accepted": 5}}
    sandbox.plan(Fault("poll", "lost", nth=1))
    with DAG(f"sizes_{mode}", schedule=None) as dag:
        sensor(output, **MODES[mode])

    run = run_dag(dag)

    assert run.state == "failed"
    assert run.get_task_instance("wait").xcom_pull(task_ids="wait") == counts(finished=3, succeeded=1, unknown=4)


def test_what_a_person_resolved_by_hand_has_no_results(sandbox: Sandbox) -> None:
    """It counts as accepted, and has no request: the sizes of the requests tell."""
    ids = pushed(["C1", "C2"])
    output = {"request_ids": ids, "request_sizes": [[2, 1]], "recipients": {"accepted": 202}}

    assert sensor(output, deferrable=False).execute({})["recipients"] == {"succeeded": 2, "failed": 0, "unknown": 200}


@pytest.mark.parametrize(
    ("value", "ids", "accepted"),
    [
        ([], (), 0),
        (["a", "b", "a"], ("a", "b"), None),
        ([["a"], [], ["b", "c"]], ("a", "b", "c"), None),
        (("a",), ("a",), None),
        ({"request_ids": ["a"], "recipients": {"accepted": 3}}, ("a",), 3),
        ({"request_ids": [], "dry_run": True, "recipients": {"accepted": 0}}, (), 0),
        ({"request_ids": ["a"]}, ("a",), None),
        ({"request_ids": ["a"], "recipients": {"accepted": "many"}}, ("a",), None),
        (
            [
                {"request_ids": ["a"], "recipients": {"accepted": 3}},
                {"request_ids": ["b"], "recipients": {"accepted": 4}},
            ],
            ("a", "b"),
            7,
        ),
        ([{"request_ids": ["a"], "recipients": {"accepted": 3}}, ["b"]], ("a", "b"), None),
        (iter([["a"]]), ("a",), None),
    ],
)
def test_what_a_push_leaves_is_read(value: Any, ids: tuple[str, ...], accepted: int | None) -> None:
    """Lists, the lists of a mapped push, and whole outputs, which also say how many were accepted."""
    assert Asked.of(value) == Asked(ids, accepted)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "the push left no request ids"),
        ([["a"], None], "the push left no request ids"),
        ({"request_ids": None}, "the push left no request ids"),
        ("['a', 'b']", "a template in quotes renders to a text"),
        (b"a", "is a text"),
        (7, "holds a int"),
        ([["a"], {"request_ids": ["b"]}, 7], "holds a int"),
        ([7], "holds a int"),
        ({"requests": []}, "not the output of a push"),
        ({"request_ids": "abc"}, "not a list"),
        ([""], "no request id"),
        (["has a space"], "no request id"),
        ({"request_ids": [None]}, "no request id"),
        ({"request_ids": ["a"], "request_sizes": [[200, 2]]}, "request_sizes"),
        ({"request_ids": ["a"], "request_sizes": "many"}, "request_sizes"),
    ],
)
def test_what_no_push_leaves_is_refused(value: Any, words: str) -> None:
    """A wrong input is named, with what to do; a text is never taken apart."""
    with pytest.raises(InvalidSettings, match=words):
        Asked.of(value)


def test_the_sends_of_a_mapped_push() -> None:
    """Each push says of which send it is, where it says anything else; most share one."""
    whole = [{"request_ids": [name], "send_key": key} for name, key in (("a", "x"), ("b", "y"), ("c", "x"))]

    assert Asked.of([*whole, ["d"]]).send_keys == ("x", "y")


def test_an_unknown_number_is_never_shown_as_known() -> None:
    """How many recipients are unknown is a number only where all are accounted for."""
    results = Results(total=2, finished=1, recipients_succeeded=5)

    def unknown(accepted: int | None, results: Results) -> int | None:
        found: int | None = WaitState(results, accepted=accepted).summary()["recipients"]["unknown"]
        return found

    assert unknown(None, results) is None
    assert unknown(12, results) == 7
    assert unknown(4, results) is None  # more results than recipients: something is wrong with that number
    assert unknown(None, Results(total=2, finished=2, recipients_succeeded=5)) == 0
    assert unknown(6, Results(total=2, finished=2, recipients_succeeded=5)) == 1


def test_the_number_of_recipients_may_come_from_the_ledger() -> None:
    """What the ledger counted stands in where the push does not say how many it sent to."""
    told = Event(Status.TIMEOUT, Results(total=2, finished=1, recipients_succeeded=5), recipients=9).to_payload()
    waiting = sensor(["a", "b"])

    with pytest.raises(AirflowSensorTimeout):
        waiting.execute_complete({}, told)

    assert waiting._state is not None
    assert waiting._state.summary()["recipients"]["unknown"] == 4


def test_results_that_are_not_as_many_as_recipients_fail_it() -> None:
    """Rows have no name but their position: nobody's outcome is known."""
    told = event(total=2, finished=2, recipients_unknown=3, request_errors={"ROW_COUNT_DIFFERS": 1})

    with pytest.raises(AirflowFailException, match=r"^1 of 2 requests have more or fewer results than recipients"):
        sensor(["a", "b"], max_failed=100).execute_complete({}, told)


def test_nothing_is_deferred_when_all_is_there(sandbox: Sandbox) -> None:
    """A push that is done already needs no trigger."""
    found = sensor(pushed(["C1"], ["C2"])).execute({})

    assert found == counts(finished=2, succeeded=2)


def test_only_what_is_open_is_deferred(sandbox: Sandbox) -> None:
    """The counts of what is finished travel along; the ids are packed; nobody is in it."""
    done = pushed(["C-person-1", "NODEVICE-person"])
    sandbox.change(processing_time=1000.0)
    open_ids = pushed(["C-person-2"], ["C-person-3"])
    before = time.time()
    waiting = sensor(done + open_ids, timeout=600, poke_interval=30)
    waiting.first_delay = 11.0

    deferral = deferred(waiting)

    assert isinstance(deferral.trigger, PushRequestTrigger)
    _, arguments = deferral.trigger.serialize()
    assert unpack(arguments["packed_ids"]) == open_ids
    assert Results.from_event(arguments["results"]).summary() == counts(
        finished=1, pending=2, succeeded=1, NO_RECIPIENT_FOUND=1
    )
    assert before + 600 <= arguments["deadline"] <= time.time() + 600
    assert (arguments["poll_interval"], arguments["first_delay"]) == (30, 11.0)
    assert deferral.method_name == "execute_complete"
    assert deferral.timeout is not None
    assert deferral.timeout.total_seconds() > 600
    assert "person" not in json.dumps(arguments)
    assert "password" not in json.dumps(arguments)


def test_the_trigger_starts_late() -> None:
    """Airflow's scheduler may mark a task failed that resumes right after it deferred."""
    assert PushRequestSensor.first_delay >= 10


@pytest.mark.parametrize(("api", "polls"), [("haAsyncApi", 5), ("asyncApi", 1)])
def test_a_worker_does_not_sweep_thousands(
    api: str, polls: int, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of many requests it asks about a handful, to see that the connection works, and defers."""
    connect(monkeypatch, sandbox, api=api)
    sandbox.change(processing_time=1000.0)
    ids = pushed(*([f"C{number}"] for number in range(30)))

    deferral = deferred(sensor(ids))

    assert sandbox.counts["poll"] == polls
    assert isinstance(deferral.trigger, PushRequestTrigger)
    assert len(unpack(deferral.trigger.packed_ids)) == 30


def test_a_look_keeps_to_the_limit() -> None:
    """A question that is too early is put off by the driver."""

    def question() -> Conversation[dict[str, Outcome]]:
        yield Authorize()
        return {}

    early, due = after(2.0, question()), after(0.0, question())

    assert (next(early), next(early)) == (Pause(2.0), Authorize())
    assert next(due) == Authorize()


def test_a_long_look_keeps_to_the_accounts_own_limit(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a setting it is read once for the whole wait."""
    connect(monkeypatch, sandbox, poll_requests_per_minute=None)
    sandbox.change(poll_limit=60_000, processing_time=1000.0)
    waiting = sensor(pushed(*([f"C{number}"] for number in range(FEW_POLLS + 1))), **MODES["poke"])

    looks = [bool(waiting.poke({})) for _ in range(2)]

    assert looks == [False, False]
    assert sandbox.counts["poll"] == 2 * (FEW_POLLS + 1)
    assert sandbox.counts["ratelimit"] == 1
    assert waiting._engine is not None
    assert waiting._engine.pace.limit == 60_000


def test_a_short_look_is_within_every_limit(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few questions need no question about the limit."""
    connect(monkeypatch, sandbox, poll_requests_per_minute=None)

    assert sensor(pushed(["C1"], ["C2"]), **MODES["poke"]).poke({})
    assert sandbox.counts["ratelimit"] == 0


@pytest.mark.parametrize(
    ("changes", "reads"),
    [
        ({"ratelimit": "off"}, 1),
        ({"ratelimit": "refused"}, 1),
        ({"ratelimit_rows": ()}, 1),
        ({"failed_over": True}, 2),
        ({"ratelimit_limit": 0}, 2),
    ],
)
def test_a_limit_that_is_not_told_ends_no_look(
    changes: dict[str, Any], reads: int, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A guess serves; what may be told later is asked for again by the next look."""
    monkeypatch.setattr(sensors, "FEW_POLLS", 1)
    connect(monkeypatch, sandbox, poll_requests_per_minute=None)
    sandbox.change(processing_time=1000.0)
    ids = pushed(["C1"], ["C2"])
    sandbox.change(**changes)
    waiting = sensor(ids, **MODES["poke"])

    looks = [bool(waiting.poke({})) for _ in range(2)]

    assert looks == [False, False]
    assert sandbox.counts["poll"] == 4
    assert sandbox.counts["ratelimit"] == reads
    assert waiting._engine is not None
    assert waiting._engine.pace.limit == USUAL_LIMIT


def test_a_limit_that_is_run_into_is_remembered_from_look_to_look(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A refusal ends a look; the next one begins with a single question, and goes on when that is answered."""
    monkeypatch.setattr(pace, "SCOUT", 0.05)
    ids = pushed(["C1"], ["C2"], ["C3"])
    sandbox.plan(Fault("poll", "API_LIMIT_EXCEEDED", nth=[2, 3]))
    waiting = sensor(ids, **MODES["poke"])

    looks = [bool(waiting.poke({})) for _ in range(3)]

    assert looks == [False, False, True]
    assert sandbox.counts["poll"] == 3 + 2
    assert waiting._engine is not None
    pace_now: Any = waiting._engine.pace
    assert pace_now.turned > pace_now.last_refused > pace_now.began


def test_trouble_does_not_keep_it_from_deferring(sandbox: Sandbox) -> None:
    """An outage at the first look is the trigger's to ride out."""
    ids = pushed(["C1"], ["C2"])
    sandbox.plan(Fault("poll", "lost", nth=1))

    deferral = deferred(sensor(ids))

    assert isinstance(deferral.trigger, PushRequestTrigger)
    assert unpack(deferral.trigger.packed_ids) == ids


def test_more_ids_than_a_trigger_holds(sandbox: Sandbox) -> None:
    """It refuses before it asks or defers, and says what to do."""
    ids = [f"{number:032x}{hash((number, 'salt')) & (2**64 - 1):016x}" for number in range(9000)]

    with pytest.raises(AirflowFailException, match="split them over several sensors"):
        sensor(ids).execute({})

    assert sandbox.requests_seen == []


def test_a_rescheduled_look_stops_at_the_first_open_request(sandbox: Sandbox) -> None:
    """It remembers nothing between looks, and one open request among many says that it must wait on."""
    ids = pushed(*([f"C{number}"] for number in range(3)))
    sandbox.change(processing_time=1000.0)
    ids += pushed(*([f"D{number}"] for number in range(20)))
    waiting = sensor(ids, **MODES["reschedule"])

    done = waiting.poke({})

    assert not done
    assert sandbox.counts["poll"] == 4


def test_a_poking_sensor_asks_again_about_open_requests_only(sandbox: Sandbox) -> None:
    """Each finished request is read once."""
    ids = pushed(["C1"], ["C2"])
    sandbox.change(processing_time=1000.0)
    ids += pushed(["C3"])
    waiting = sensor(ids, **MODES["poke"])

    looks = [bool(waiting.poke({})) for _ in range(3)]

    assert looks == [False, False, False]
    assert sandbox.counts["poll"] == 3 + 1 + 1


def test_a_refused_login_fails_at_once(sandbox: Sandbox) -> None:
    """A wrong password will not become right, and five lock the account: no retry."""
    sandbox.change(password="changed")

    with pytest.raises(AirflowFailException, match="login or password is wrong"):
        sensor(["UGpC"]).execute({})

    assert sandbox.counts["login"] == 1


def test_a_refused_login_fails_in_every_mode(sandbox: Sandbox) -> None:
    """A look that can never succeed ends a poking sensor, too."""
    sandbox.change(password="changed")

    with pytest.raises(AirflowFailException, match="login or password is wrong"):
        sensor(["UGpC"], **MODES["poke"]).execute({})


def test_the_reason_names_counts_and_codes(sandbox: Sandbox) -> None:
    """The message says how many, of how many, and why; never who."""
    sandbox.plan(Fault("push", "purged", nth=2))
    ids = pushed(["C1", "UNDELIVERABLE-person"], ["C2"])

    with pytest.raises(AirflowFailException) as failure:
        sensor(ids).execute({})

    assert str(failure.value) == (
        "1 of 2 requests ended without results (RESPONSE_PURGED: 1); "
        "1 of 2 recipients failed (RECIPIENT_STATUS_UNDELIVERABLE: 1), 0 are tolerated"
    )
    assert isinstance(failure.value.__cause__, RequestsFailed)


def test_the_timeout_names_what_is_pending(sandbox: Sandbox) -> None:
    """In a worker and from a trigger, the same sentence."""
    sandbox.change(processing_time=1000.0)
    ids = pushed(["C1"])
    told = Event(Status.TIMEOUT, Results(total=1)).to_payload()

    with pytest.raises(AirflowSensorTimeout) as here:
        sensor(ids, timeout=0.01, deferrable=False).execute({})
    with pytest.raises(AirflowSensorTimeout) as from_trigger:
        sensor(ids, timeout=0.01).execute_complete({}, told)

    assert str(here.value) == str(from_trigger.value)
    assert "1 of 1 requests have no results" in str(here.value)


def test_a_time_out_is_told_where_upstream_states_cannot_be_read(mocker: Any) -> None:
    """Otherwise Airflow would retry a wait whose time is over, and nothing would say that it timed out."""
    waiting = sensor(["UGpC"])
    mocker.patch.object(waiting, "_failed_pushes", side_effect=ConnectionError("metadata API away"))
    told = Event(Status.TIMEOUT, Results(total=1)).to_payload()

    with pytest.raises(AirflowSensorTimeout, match=r"^1 of 1 requests have no results after"):
        waiting.execute_complete({}, told)


@pytest.mark.parametrize(
    ("payload", "words"),
    [
        (None, "the trigger's event is NoneType"),
        ({"status": "finished"}, "has no message"),
        (event(total=2, finished=2), "tells of 2 requests, and 1 were asked for"),
        (Event(Status.ERROR, Results(total=1), "the account is suspended").to_payload(), "the account is suspended"),
    ],
)
def test_an_event_is_checked_before_it_is_believed(payload: Any, words: str) -> None:
    """What is not about these requests does not end well, in one sentence."""
    with pytest.raises(AirflowFailException, match=words):
        sensor(["a"]).execute_complete({}, payload)


@pytest.mark.parametrize("status", [Status.ERROR, Status.TIMEOUT])
@pytest.mark.parametrize("setting", ["soft_fail", "never_fail"])
def test_a_soft_end(status: Status, setting: str) -> None:
    """Whoever asked for it gets a skipped task, from a trigger too."""
    payload = Event(status, Results(total=1), "why").to_payload()

    with pytest.raises(AirflowSkipException):
        sensor(["a"], **{setting: True}).execute_complete({}, payload)


def test_a_soft_end_keeps_its_reason(sandbox: Sandbox) -> None:
    """A sensor that is skipped because somebody failed does not say that it took too long."""
    ids = pushed(["UNDELIVERABLE-1"])

    with pytest.raises(AirflowSkipException, match=r"^1 of 1 recipients failed"):
        sensor(ids, soft_fail=True, deferrable=False).execute({})


@pytest.mark.parametrize(
    ("max_failed", "passes"), [(0, False), (2, False), (3, True), (0.02, False), (0.03, True), (0.9, True)]
)
def test_how_many_may_fail(max_failed: float, *, passes: bool) -> None:
    """A count, or below one a part of the known outcomes; expected errors are no failures."""
    payload = event(
        total=1,
        finished=1,
        recipients_succeeded=90,
        recipients_failed=10,
        errors={"NO_RECIPIENT_FOUND": 7, "USER_BLOCKED": 3},
    )
    waiting = sensor(["a"], max_failed=max_failed)

    if passes:
        assert waiting.execute_complete({}, payload)["recipients"]["failed"] == 10
    else:
        with pytest.raises(AirflowFailException, match="3 of 100 recipients failed"):
            waiting.execute_complete({}, payload)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"timeout": timedelta(hours=25)}, "timeout is 1 day, 1:00:00"),
        ({"expected_errors": "NO_RECIPIENT_FOUND"}, "give a list"),
        ({"max_failed": -1}, "max_failed"),
        ({"max_failed": True}, "max_failed"),
    ],
)
def test_wrong_settings_are_refused_when_the_dag_is_read(settings: dict[str, Any], words: str) -> None:
    """What can never be right is told before anything runs."""
    with pytest.raises(InvalidSettings, match=words):
        sensor(["a"], **settings)


def test_it_defers_for_a_day_unless_told_otherwise() -> None:
    """Results are purged after 24 hours; Airflow's own default is a week."""
    waiting = PushRequestSensor(task_id="wait", request_ids=[])

    assert waiting.deferrable
    assert (waiting.timeout, waiting.poke_interval) == (24 * 3600, 60)
    assert waiting.template_fields == ("request_ids", "responsys_conn_id", "results_path")


def test_nothing_secret_is_logged(sandbox: Sandbox, caplog: pytest.LogCaptureFixture) -> None:
    """No recipient and no password in the worker's log, at any level."""
    caplog.set_level(logging.DEBUG)

    sensor(pushed(["C-secret-person", "NODEVICE-secret-person"])).execute({})

    assert "secret-person" not in caplog.text
    assert "sandbox-password" not in caplog.text
