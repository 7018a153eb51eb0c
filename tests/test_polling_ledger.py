"""Sensor and trigger with a SQL ledger: outcomes are written while polling, and nothing is asked twice."""

import asyncio
import itertools
import json
import logging
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from airflow.providers.common.compat.sdk import (
    DAG,
    AirflowException,
    AirflowFailException,
    AirflowNotFoundException,
    TaskDeferred,
)
from sqlalchemy import event
from sqlalchemy.engine import Engine
from sqlalchemy.exc import OperationalError, ProgrammingError
from sqlalchemy.pool import QueuePool

from airflow_provider_responsys import sensors, triggers
from airflow_provider_responsys.errors import InvalidAnswer
from airflow_provider_responsys.hooks import ResponsysHook
from airflow_provider_responsys.ledger.interface import FINGERPRINT_BYTES, Accepted, Wanted
from airflow_provider_responsys.ledger.sql import SqlLedger
from airflow_provider_responsys.ledger.sql_records import Records
from airflow_provider_responsys.ledger.sql_values import BatchRecord, State
from airflow_provider_responsys.ledgers import ledger_engine
from airflow_provider_responsys.operators import TriggerPushOperator
from airflow_provider_responsys.protocol.polling import poll
from airflow_provider_responsys.sandbox import Fault, Sandbox
from airflow_provider_responsys.sensors import PushRequestSensor
from airflow_provider_responsys.triggers import PushRequestTrigger
from airflow_provider_responsys.waiting import engine, recorder, schedule
from airflow_provider_responsys.waiting.event import Event, Status, unpack

CAMPAIGN = "Summer_Push"
SEND = "autumn"
NUMBERS = itertools.count(1)

MODES: dict[str, dict[str, Any]] = {
    "deferrable": {},
    "poke": {"deferrable": False},
    "reschedule": {"deferrable": False, "mode": "reschedule"},
}

Runner = Callable[[Any], Any]


@pytest.fixture
def sandbox(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sandbox]:
    """Give a Responsys that finishes requests at once, and those who wait without patience."""
    monkeypatch.setattr(PushRequestSensor, "first_delay", 0.0)
    # Airflow's own loggers write past pytest's; these do not.
    monkeypatch.setattr(PushRequestSensor, "log", logging.getLogger("tests.sensor"))
    monkeypatch.setattr(PushRequestTrigger, "log", logging.getLogger("tests.trigger"))
    monkeypatch.setattr(schedule, "TROUBLE_WAITS", (0.01,))
    monkeypatch.setattr(engine, "NOT_BELIEVED", ())
    monkeypatch.setattr(recorder, "LAST_WAITS", (0.01, 0.01))
    with Sandbox(processing_time=0.0) as running:
        connection = running.connection(poll_requests_per_minute=60_000)
        monkeypatch.setenv("AIRFLOW_CONN_RESPONSYS_DEFAULT", json.dumps(connection))
        yield running


@pytest.fixture
def sqlite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Give the id of a connection to a SQLite ledger."""
    monkeypatch.setenv("AIRFLOW_CONN_LEDGER", json.dumps({"conn_type": "sqlite", "host": str(tmp_path / "ledger.db")}))
    return "ledger"


class Switch:
    """Lets the database of the pollers fail, and sees from which threads it is asked."""

    def __init__(self) -> None:
        self.down = False
        self.writes_down = False
        self.threads: set[int] = set()
        self.engines: list[Engine] = []

    def engine(self, ledger_conn_id: str) -> Engine:
        """Return an engine that obeys."""
        engine = ledger_engine(ledger_conn_id)
        self.engines.append(engine)
        event.listen(engine, "before_cursor_execute", self._before)
        return engine

    def _before(self, connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        self.threads.add(threading.get_ident())
        if self.down or (self.writes_down and statement.startswith("UPDATE")):
            raise OperationalError("a statement with a recipient in it", {}, OSError("server closed the connection"))


@pytest.fixture
def no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no ids fit into a trigger: the ledger tells it which requests it waits for."""
    monkeypatch.setattr(sensors, "MAX_PACKED", 0)


@pytest.fixture
def switch(monkeypatch: pytest.MonkeyPatch) -> Switch:
    """Give what the pollers' database fails by."""
    switch = Switch()
    monkeypatch.setattr(triggers, "ledger_engine", switch.engine)
    monkeypatch.setattr(sensors, "ledger_engine", switch.engine)
    return switch


def sent(*batches: list[str], task_instance: str = "dag/push/run/-1", send_key: str = SEND) -> dict[str, Any]:
    """Push each of *batches*, lists of customer ids, as *task_instance*, and return what the push returns."""
    wanted = [
        Wanted(number, [next(NUMBERS).to_bytes(FINGERPRINT_BYTES, "big") for _ in batch])
        for number, batch in enumerate(batches, 1)
    ]
    with ResponsysHook() as hook:
        ids = [hook.trigger_push(CAMPAIGN, [{"customer_id": name} for name in batch]) for batch in batches]
    record(wanted, ids, task_instance, send_key)
    return result(ids, sum(map(len, batches)), send_key)


def record(wanted: list[Wanted], ids: list[str], task_instance: str = "dag/push/run/-1", send_key: str = SEND) -> None:
    """Write into the ledger that *wanted* were accepted as *ids*."""
    book = SqlLedger(
        ledger_engine("ledger"), send_key=send_key, task_instance=task_instance, try_number=1, max_tries=0, retries=0
    )
    book.begin({"campaign_name": CAMPAIGN})
    book.commit([], wanted)
    book.commit([Accepted(want.number, request_id) for want, request_id in zip(wanted, ids, strict=True)], [])
    book.close()


def result(ids: list[str], accepted: int, send_key: str = SEND) -> dict[str, Any]:
    """Return what a push returns."""
    return {"send_key": send_key, "request_ids": ids, "recipients": {"accepted": accepted}}


def recorded(send_key: str = SEND) -> list[BatchRecord]:
    """Return what the ledger knows of each batch."""
    records = Records(ledger_engine("ledger"))
    found = records.show(send_key)
    records.close()
    return found


def states(send_key: str = SEND) -> list[State]:
    """Return the state of each batch."""
    return [batch.state for batch in recorded(send_key)]


def sensor(request_ids: Any, **settings: Any) -> PushRequestSensor:
    """Return an impatient sensor that knows the ledger."""
    defaults = {"task_id": "wait", "poke_interval": 0.05, "timeout": 20.0, "ledger_conn_id": "ledger"}
    return PushRequestSensor(**{**defaults, "request_ids": request_ids, **settings})


def deferred(waiting: PushRequestSensor) -> PushRequestTrigger:
    """Return the trigger that *waiting* defers to, as Airflow stores it."""
    with pytest.raises(TaskDeferred) as deferral:
        waiting.execute({})
    _, arguments = deferral.value.trigger.serialize()
    return restarted(json.loads(json.dumps(arguments)))


def restarted(arguments: dict[str, Any], **changes: Any) -> PushRequestTrigger:
    """Return a trigger that begins from its stored *arguments*."""
    return PushRequestTrigger(**{**arguments, **changes})


def run(waiting: PushRequestTrigger) -> Event:
    """Run *waiting* as the triggerer does, and return its one event, which has crossed a process."""

    async def events() -> list[Any]:
        return [event.payload async for event in waiting.run()]

    (payload,) = asyncio.run(events())
    return Event.from_payload(json.loads(json.dumps(payload)))


def ended(scenario: Coroutine[Any, Any, Any]) -> Any:
    """Return the result of *scenario*; one that hangs fails."""

    async def bounded() -> Any:
        async with asyncio.timeout(20.0):
            return await scenario

    return asyncio.run(bounded())


def people(count: int) -> list[dict[str, str]]:
    """Return rows, some of whom have no device."""
    return [{"customer_id": f"{'NODEVICE-' if number % 100 == 0 else 'C'}{number}"} for number in range(count)]


@pytest.mark.parametrize("mode", MODES)
def test_a_push_and_its_wait_in_one_ledger(mode: str, sandbox: Sandbox, ledger: str, run_dag: Runner) -> None:
    """Each request's outcome is written as it becomes known, however the sensor waits; nothing else differs."""
    sandbox.change(processing_time=0.3)
    dag_id = f"ledger_{mode}_{next(NUMBERS)}"
    with DAG(dag_id, schedule=None, default_args={"ledger_conn_id": ledger}) as dag:
        push = TriggerPushOperator(
            task_id="push", campaign_name=CAMPAIGN, recipients=people(450), requests_per_minute=60_000
        )
        PushRequestSensor(task_id="wait", request_ids=push.output, poke_interval=0.05, **MODES[mode])

    ran = run_dag(dag)

    assert ran.state == "success"
    assert ran.get_task_instance("wait").xcom_pull(task_ids="wait") == {
        "requests": {"total": 3, "finished": 3, "failed": 0, "unknown": 0, "pending": 0},
        "recipients": {"succeeded": 445, "failed": 5, "unknown": 0},
        "errors": {"NO_RECIPIENT_FOUND": 5},
    }
    batches = recorded(f"{dag_id}/push/{ran.run_id}")
    assert [(batch.size, batch.succeeded, dict(batch.failed)) for batch in batches] == [
        (200, 198, {"NO_RECIPIENT_FOUND": 2}),
        (200, 198, {"NO_RECIPIENT_FOUND": 2}),
        (50, 49, {"NO_RECIPIENT_FOUND": 1}),
    ]


def test_a_restarted_trigger_asks_only_for_what_is_open(sandbox: Sandbox, ledger: str) -> None:
    """A triggerer that dies takes nothing with it: what was read is not read again, and counted all the same."""
    done = [["C1", "C2"], ["NODEVICE-1", "C3"], ["C4"]]
    sandbox.plan(Fault("push", "purged", nth=3), Fault("push", "endless", nth=4))
    push = sent(*done, ["C5"])
    sandbox.plan(Fault("poll", "lost", nth=1))
    arguments = deferred(sensor(push)).serialize()[1]
    first = run(restarted(arguments, deadline=time.time() + 2.0))
    polled = sandbox.counts["polled ids"]
    sandbox.plan(Fault("poll", "purged", nth=1))

    second = run(restarted(arguments))

    assert first.status is Status.TIMEOUT
    assert (first.results.finished, first.results.unknown, first.results.pending) == (2, 1, 1)
    assert second.status is Status.FINISHED
    assert sandbox.counts["polled ids"] - polled == 1
    assert second.results.summary()["recipients"] == {"succeeded": 3, "failed": 1, "unknown": 2}
    assert second.results.errors == {"NO_RECIPIENT_FOUND": 1}
    assert second.results.request_errors == {"RESPONSE_PURGED": 2}
    assert second.recipients == 6


@pytest.mark.parametrize(("mode", "polls"), [("trigger", 2), ("poke", 3)])
def test_how_often_a_request_was_polled_is_recorded(sandbox: Sandbox, sqlite: str, mode: str, polls: int) -> None:
    """With its outcome, by the process that read it: a lost answer counts, the look before a trigger does not."""
    sandbox.plan(Fault("poll", "lost", nth=1))
    push = sent(["C1"], ["C2"])

    if mode == "trigger":
        run(deferred(sensor(push)))
    else:
        waiting = sensor(push, mode="poke")
        while not waiting.poke({}):
            time.sleep(0.01)

    assert sum(seen.endpoint == "poll" for seen in sandbox.requests_seen) == 3
    assert sum(batch.polls for batch in recorded()) == polls
    assert all(batch.polls for batch in recorded())


def test_a_trigger_that_finds_everything_recorded_asks_nothing(sandbox: Sandbox, ledger: str) -> None:
    """Another poller may have been faster, or a trigger was restarted at its very end."""
    push = sent(["C1"], ["C2"])
    sandbox.plan(Fault("poll", "lost", nth=1))
    arguments = deferred(sensor(push)).serialize()[1]
    first = run(restarted(arguments))
    asked = len(sandbox.requests_seen)

    second = run(restarted(arguments))

    assert second == first
    assert len(sandbox.requests_seen) == asked


def test_each_rescheduled_look_asks_only_for_what_is_open(
    sandbox: Sandbox, ledger: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ledger is the memory that a rescheduled task lacks: it need not stop at the first open request."""
    monkeypatch.setattr(sensors, "FEW_POLLS", 0)
    push = sent(["C1"], ["NODEVICE-1"])
    sandbox.change(processing_time=1000.0)
    late = sent(["C2"], task_instance="dag/push/run/1")
    polled = []

    for _ in range(3):
        waiting = sensor([late, push], **MODES["reschedule"])
        assert not waiting.poke({})
        waiting._close()
        polled.append(sandbox.counts["polled ids"])

    assert polled == [3, 4, 5]
    assert waiting._state is not None
    assert waiting._state.results.summary()["requests"]["finished"] == 2


def test_a_look_writes_as_it_reads(sandbox: Sandbox, sqlite: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that is killed in the middle of a look loses one answer."""
    seen: list[list[State]] = []

    def noted(*arguments: Any, **options: Any) -> Any:
        seen.append(states())
        return poll(*arguments, **options)

    monkeypatch.setattr(sensors, "poll", noted)
    push = sent(["C1"], ["C2"])

    sensor(push).execute({})

    assert seen == [[State.ACCEPTED, State.ACCEPTED], [State.FINISHED, State.ACCEPTED]]


def test_arguments_stay_small(sandbox: Sandbox, sqlite: str) -> None:
    """Nine thousand requests are as few bytes as one: the ledger has the list."""
    ids = [f"{number:032x}{hash((number, 'salt')) & (2**64 - 1):016x}" for number in range(9_000)]
    record([Wanted(n, [n.to_bytes(FINGERPRINT_BYTES, "big")]) for n in range(9_000)], ids)
    sandbox.plan(Fault("poll", "lost", nth=1))

    arguments = deferred(sensor(result(ids, 9_000))).serialize()[1]

    assert len(json.dumps(arguments)) < 1_000
    assert arguments["packed_ids"] == ""
    assert arguments["send_keys"] == [SEND]
    assert unpack(arguments["packed_task_instances"]) == ["dag/push/run/-1"]


@pytest.mark.usefixtures("no_room")
def test_only_what_was_asked_for_counts(sandbox: Sandbox, ledger: str) -> None:
    """A send may have requests of other tasks, and get more of them while one waits."""
    theirs = sent(["C1"], ["C2"], task_instance="dag/other/run/-1")
    mine = sent(["C3"])
    sandbox.plan(Fault("poll", "lost", nth=1))
    trigger = deferred(sensor(mine))
    sent(["C4"], task_instance="dag/other/run/-1")

    found = run(trigger)

    assert trigger.packed_task_instances
    assert (found.results.total, found.results.recipients_succeeded) == (1, 1)
    assert sorted(states()) == sorted([State.ACCEPTED] * 3 + [State.FINISHED])
    assert len(theirs["request_ids"]) == 2


def test_a_part_of_a_tasks_requests(sandbox: Sandbox, sqlite: str) -> None:
    """Requests that no task's name singles out go into the trigger by their ids, and into the ledger all the same."""
    push = sent(["C1"], ["C2"], ["C3"])
    push["request_ids"] = push["request_ids"][1:]
    sandbox.plan(Fault("poll", "lost", nth=1))

    trigger = deferred(sensor(push))
    found = run(trigger)

    assert unpack(trigger.packed_ids) == push["request_ids"]
    assert found.results.recipients_succeeded == 2
    assert states() == [State.ACCEPTED, State.FINISHED, State.FINISHED]


def test_a_restart_with_ids_goes_on_from_the_ledger_too(sandbox: Sandbox, sqlite: str) -> None:
    """What was recorded since the task deferred is not asked about again."""
    push = sent(["C1"], ["C2"], ["C3"])
    push["request_ids"] = push["request_ids"][1:]
    sandbox.plan(Fault("poll", "lost", nth=1))
    arguments = deferred(sensor(push)).serialize()[1]
    first = run(restarted(arguments))
    polled = sandbox.counts["polled ids"]

    second = run(restarted(arguments))

    assert second == first
    assert sandbox.counts["polled ids"] == polled


@pytest.mark.parametrize("mode", ["deferrable", "poke"])
def test_requests_that_the_ledger_does_not_know(
    mode: str, sandbox: Sandbox, sqlite: str, caplog: pytest.LogCaptureFixture
) -> None:
    """What was pushed by hand is asked about and counted; only its record is missing, and that is said."""
    push = sent(["C1", "C2"])
    with ResponsysHook() as hook:
        push["request_ids"].append(hook.trigger_push(CAMPAIGN, [{"customer_id": "C3"}]))
    push["recipients"]["accepted"] = 3

    found = sensor(push, **MODES[mode]).execute({})

    assert found["recipients"] == {"succeeded": 3, "failed": 0, "unknown": 0}
    assert "does not know 1 of 2 requests" in caplog.text
    assert states() == [State.FINISHED]


def test_ids_alone_are_waited_for_without_the_ledger(
    sandbox: Sandbox, sqlite: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A list does not say of which send it is; who asked for the ledger is told so."""
    push = sent(["C1"])

    found = sensor(push["request_ids"]).execute({})

    assert found["requests"]["finished"] == 1
    assert states() == [State.ACCEPTED]
    assert "Outcomes are not recorded" in caplog.text


def test_the_ledger_may_be_configured_for_all(sandbox: Sandbox, sqlite: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """[responsys] ledger_conn_id serves every sensor that names none; the trigger is told which it is."""
    monkeypatch.setenv("AIRFLOW__RESPONSYS__LEDGER_CONN_ID", sqlite)
    push = sent(["C1"], ["C2"])
    sandbox.plan(Fault("poll", "lost", nth=2))

    trigger = deferred(sensor(push, ledger_conn_id=None))

    assert trigger.ledger_conn_id == "ledger"
    assert states() == [State.FINISHED, State.ACCEPTED]


@pytest.mark.parametrize("kind", ["row_missing", "row_too_many"])
@pytest.mark.parametrize("mode", ["deferrable", "poke"])
def test_results_that_are_not_as_many_as_recipients(kind: Any, mode: str, sandbox: Sandbox, sqlite: str) -> None:
    """The ledger knows how many there must be: nobody's outcome is guessed, and the task says so."""
    sandbox.plan(Fault("push", kind, nth=2))
    push = sent(["C1", "C2"], ["C3", "C4", "C5"])
    del push["recipients"]
    waiting = sensor(push, max_failed=100, **MODES[mode])

    with pytest.raises(AirflowFailException, match="1 of 2 requests have more or fewer results than recipients"):
        waiting.execute({})

    assert waiting._state is not None
    assert waiting._state.summary()["recipients"] == {"succeeded": 2, "failed": 0, "unknown": 3}
    assert [batch.request_error for batch in recorded()] == [None, "ROW_COUNT_DIFFERS"]


def test_a_count_that_differs_is_remembered(sandbox: Sandbox, sqlite: str) -> None:
    """Whoever goes on from the ledger says the same."""
    sandbox.plan(Fault("push", "row_missing", nth=1))
    push = sent(["C1", "C2"])
    with pytest.raises(AirflowFailException) as first:
        sensor(push).execute({})
    asked = len(sandbox.requests_seen)

    with pytest.raises(AirflowFailException) as second:
        sensor(push).execute({})

    assert str(first.value) == str(second.value)
    assert len(sandbox.requests_seen) == asked


def test_unknown_recipients_are_counted_by_the_ledger(sandbox: Sandbox, sqlite: str) -> None:
    """It knows how many each request was for, where the push does not say."""
    sandbox.plan(Fault("push", "purged", nth=2))
    push = sent(["C1"], ["C2", "C3"])
    del push["recipients"]
    waiting = sensor(push)

    with pytest.raises(AirflowFailException):
        waiting.execute({})

    assert waiting._state is not None
    assert waiting._state.summary()["recipients"] == {"succeeded": 1, "failed": 0, "unknown": 2}


def test_a_ledger_that_fails_while_polling_is_told_later(
    sandbox: Sandbox, sqlite: str, switch: Switch, caplog: pytest.LogCaptureFixture
) -> None:
    """Outcomes that could not be written are kept, and written when it answers again."""
    done = sent(["C1"], ["C2"])
    sandbox.change(processing_time=1000.0)
    late = sent(["C3"], task_instance="dag/push/run/1")
    switch.writes_down = True
    sandbox.plan(Fault("poll", "lost", nth=1))
    trigger = deferred(sensor([done, late]))

    def only_late_is_open() -> bool:
        asked = [unquote(seen.path) for seen in sandbox.requests_seen if seen.endpoint == "poll"]
        of_done = sum(request_id in path for path in asked for request_id in done["request_ids"])
        return of_done == 3 and late["request_ids"][0] in asked[-1]  # one of them was lost, and asked again

    async def scenario() -> Any:
        ending = asyncio.ensure_future(anext(aiter(trigger.run())))
        while "can't be reached" not in caplog.text or not only_late_is_open():  # noqa: ASYNC110 -- nothing tells
            await asyncio.sleep(0.01)
        switch.writes_down = False
        sandbox.plan(Fault("poll", "purged", nth=1))
        return (await ending).payload

    found = Event.from_payload(ended(scenario()))

    assert found.status is Status.FINISHED
    assert states() == [State.FINISHED, State.FINISHED, State.FAILED]


@pytest.mark.parametrize("mode", ["trigger", "poke"])
def test_a_ledger_that_stays_down_costs_its_record_only(
    mode: str, sandbox: Sandbox, sqlite: str, switch: Switch, caplog: pytest.LogCaptureFixture
) -> None:
    """The counts are what the task is for: it succeeds with them, and says what the ledger lacks."""
    push = sent(["C1"], ["C2"])
    switch.writes_down = True

    if mode == "trigger":
        sandbox.plan(Fault("poll", "lost", nth=1))
        succeeded = run(deferred(sensor(push))).results.recipients_succeeded
    else:
        succeeded = sensor(push, **MODES["poke"]).execute({})["recipients"]["succeeded"]

    assert succeeded == 2
    assert states() == [State.ACCEPTED, State.ACCEPTED]
    assert "2 request outcomes were not written to the ledger" in caplog.text
    assert "a statement with a recipient" not in caplog.text


@pytest.mark.usefixtures("no_room")
def test_a_trigger_waits_for_a_ledger_that_is_down(
    sandbox: Sandbox, sqlite: str, switch: Switch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where the ids did not fit, which requests are open is not known without it: it is read again until it answers."""
    push = sent(["C1"])
    sandbox.plan(Fault("poll", "lost", nth=1))
    trigger = deferred(sensor(push))
    switch.down = True

    async def scenario() -> Any:
        ending = asyncio.ensure_future(anext(aiter(trigger.run())))
        while "can't be read" not in caplog.text:  # noqa: ASYNC110 -- nothing tells
            await asyncio.sleep(0.01)
        switch.down = False
        return (await ending).payload

    found = Event.from_payload(ended(scenario()))

    assert found.status is Status.FINISHED
    assert found.results.recipients_succeeded == 1


@pytest.mark.usefixtures("no_room")
def test_a_ledger_that_stays_down_ends_the_trigger_for_a_retry(
    sandbox: Sandbox, sqlite: str, switch: Switch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without it nothing can be polled, and Responsys keeps results for a day only: Airflow tries the task again."""
    monkeypatch.setattr(triggers, "AWAY_FOR", 0.3)
    waiting = sensor(sent(["C1"]))
    sandbox.plan(Fault("poll", "lost", nth=1))
    arguments = deferred(waiting).serialize()[1]
    switch.down = True

    found = run(restarted(arguments))

    assert (found.status, found.results.pending) == (Status.RETRY, 1)
    with pytest.raises(AirflowException, match="The ledger's database failed") as failure:
        waiting.execute_complete({}, found.to_payload())
    assert not isinstance(failure.value, AirflowFailException)


def test_answers_are_read_whether_or_not_the_ledger_can_be(
    sandbox: Sandbox, sqlite: str, switch: Switch, caplog: pytest.LogCaptureFixture
) -> None:
    """Responsys keeps them for a day: they are polled meanwhile, and written when the ledger is back."""
    push = sent(["C1"], ["C2"])
    sandbox.change(processing_time=1000.0)
    late = sent(["C3"], task_instance="dag/push/run/1")
    sandbox.plan(Fault("poll", "lost", nth=1))
    trigger = deferred(sensor([push, late]))
    switch.down = True

    async def scenario() -> Any:
        ending = asyncio.ensure_future(anext(aiter(trigger.run())))
        while sandbox.counts["polled ids"] < 6:  # noqa: ASYNC110 -- nothing tells
            await asyncio.sleep(0.01)
        down = states() if not switch.down else caplog.text.count("can't be reached")
        switch.down = False
        while states().count(State.FINISHED) < 2:  # noqa: ASYNC110 -- nothing tells
            await asyncio.sleep(0.05)
        sandbox.clock.advance(1000.0)
        return down, (await ending).payload

    down, payload = ended(scenario())

    assert down
    assert Event.from_payload(payload).results.recipients_succeeded == 3
    assert states() == [State.FINISHED] * 3


def test_a_ledgers_connection_that_cannot_be_found_for_a_while(
    sandbox: Sandbox, sqlite: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That is what an outage of a secrets backend looks like: polls go on, and outcomes are written later."""
    sandbox.plan(Fault("poll", "lost", nth=1))
    trigger = deferred(sensor(sent(["C1"], ["C2"])))
    looks: list[str] = []

    def away(ledger_conn_id: str) -> Engine:
        looks.append(ledger_conn_id)
        if len(looks) < 3:
            raise AirflowNotFoundException("The conn_id `ledger` isn't defined")
        return ledger_engine(ledger_conn_id)

    monkeypatch.setattr(triggers, "ledger_engine", away)

    found = run(trigger)

    assert (found.status, found.results.recipients_succeeded) == (Status.FINISHED, 2)
    assert states() == [State.FINISHED] * 2


@pytest.mark.parametrize("mode", MODES)
def test_a_ledger_that_refuses_fails_the_wait_at_its_end(
    mode: str, sandbox: Sandbox, sqlite: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It is told at once, and the answers are read and counted all the same."""
    sandbox.change(processing_time=0.3)
    waiting = sensor(sent(["C1"], ["C2"]), **MODES[mode])
    if mode == "deferrable":
        sandbox.plan(Fault("poll", "lost", nth=1))
    engine = ledger_engine("ledger")
    with engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE responsys_batches RENAME TO somewhere_else")
    engine.dispose()

    if mode == "deferrable":
        found = run(deferred(waiting))
        assert (found.status, found.results.recipients_succeeded) == (Status.ERROR, 2)
        message = found.message
    else:
        time.sleep(0.3)
        with pytest.raises(AirflowFailException) as failure:
            waiting.poke({})
        message = str(failure.value)
        assert waiting._state is not None
        assert waiting._state.results.recipients_succeeded == 2

    assert "outcomes were not written to the ledger" in message
    assert "no such table" in message


class Denied(Exception):
    """PostgreSQL's refusal."""

    sqlstate = "42501"


def read_only(ledger_conn_id: str) -> Engine:
    """Return the engine of a role that may read, and not write."""

    def before(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith("UPDATE"):
            raise ProgrammingError("an update", {}, Denied("permission denied for table responsys_batches"))

    engine = ledger_engine(ledger_conn_id)
    event.listen(engine, "before_cursor_execute", before)
    return engine


def test_a_ledger_that_takes_no_outcomes_fails_the_wait_at_its_end(
    sandbox: Sandbox, sqlite: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that can't be read does: the role may read, and not write."""
    sandbox.plan(Fault("poll", "lost", nth=1))
    trigger = deferred(sensor(sent(["C1"], ["C2"])))

    monkeypatch.setattr(triggers, "ledger_engine", read_only)

    found = run(trigger)

    assert (found.status, found.results.recipients_succeeded) == (Status.ERROR, 2)


def test_a_worker_whose_ledger_takes_no_outcomes_fails_at_its_end(
    sandbox: Sandbox, sqlite: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the trigger does."""
    push = sent(["C1"], ["C2"])

    monkeypatch.setattr(sensors, "ledger_engine", read_only)

    waiting = sensor(push, **MODES["poke"])
    with pytest.raises(AirflowFailException, match="outcomes were not written to the ledger"):
        waiting.execute({})

    assert waiting._state is not None
    assert waiting._state.results.recipients_succeeded == 2


def test_a_sensor_whose_ledger_is_down_lets_the_trigger_go_on(sandbox: Sandbox, sqlite: str, switch: Switch) -> None:
    """The ids travel with the trigger, which reads the ledger itself."""
    push = sent(["C1"], ["C2"])
    switch.down = True
    sandbox.plan(Fault("poll", "lost", nth=1))
    trigger = deferred(sensor(push))
    switch.down = False

    found = run(trigger)

    assert unpack(trigger.packed_ids) == push["request_ids"]
    assert found.results.recipients_succeeded == 2
    assert states() == [State.FINISHED, State.FINISHED]


def test_too_many_ids_and_a_ledger_that_is_down(sandbox: Sandbox, sqlite: str, switch: Switch) -> None:
    """That may pass, so a retry is of use."""
    ids = [f"{number:032x}{hash((number, 'salt')) & (2**64 - 1):016x}" for number in range(9_000)]
    switch.down = True

    with pytest.raises(AirflowException, match="they would fit if the ledger could be read") as failure:
        sensor(result(ids, 9_000)).execute({})

    assert not isinstance(failure.value, AirflowFailException)


@pytest.mark.parametrize("mode", ["poke", "reschedule"])
def test_a_look_waits_for_a_ledger_that_is_down(mode: str, sandbox: Sandbox, sqlite: str, switch: Switch) -> None:
    """What is read meanwhile is written by the next look that finds it up again."""
    done = sent(["C1"])
    sandbox.change(processing_time=1000.0)
    waiting = sensor([done, sent(["C2"], task_instance="dag/push/run/1")], **MODES[mode])
    switch.down = True
    first = waiting.poke({})
    switch.down = False
    sandbox.clock.advance(1000.0)

    second = waiting.poke({})
    waiting._close()

    assert (bool(first), bool(second)) == (False, True)
    assert states() == [State.FINISHED, State.FINISHED]


@pytest.mark.usefixtures("no_room")
def test_another_ledger_than_the_sensors_is_noticed(
    sandbox: Sandbox, sqlite: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A SQLite file on another machine's disk is empty: that is no end of the wait."""
    push = sent(["C1"], ["C2"])
    sandbox.plan(Fault("poll", "lost", nth=1))
    trigger = deferred(sensor(push))
    elsewhere = {"conn_type": "sqlite", "host": str(tmp_path / "elsewhere.db")}
    monkeypatch.setenv("AIRFLOW_CONN_LEDGER", json.dumps(elsewhere))

    found = run(trigger)

    assert found.status is Status.ERROR
    assert "the ledger has 0 of the 2 requests to wait for" in found.message


def test_a_ledger_of_another_version_ends_it(sandbox: Sandbox, sqlite: str) -> None:
    """What will not pass is told at once, in the worker and in the triggerer."""
    push = sent(["C1"], ["C2"])
    sandbox.plan(Fault("poll", "lost", nth=1))
    trigger = deferred(sensor(push))
    engine = ledger_engine("ledger")
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE responsys_ledger SET version = 99")
    engine.dispose()

    found = run(trigger)

    assert found.status is Status.ERROR
    assert "version 99" in found.message
    with pytest.raises(AirflowFailException, match="version 99"):
        sensor(push).execute({})


def test_a_request_that_left_the_ledger_is_counted(
    sandbox: Sandbox, sqlite: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Who prunes the ledger while somebody waits loses records, not results."""
    waiting = sensor(sent(["C1"]), **MODES["poke"])
    sandbox.plan(Fault("poll", "lost", nth=1))
    assert not waiting.poke({})
    engine = ledger_engine("ledger")
    with engine.begin() as connection:
        connection.exec_driver_sql("DELETE FROM responsys_batches")
    engine.dispose()

    done = waiting.poke({})
    waiting._close()

    assert done
    assert "can't be written to the ledger" in caplog.text


@pytest.mark.usefixtures("no_room")
def test_what_a_restart_gave_up_does_not_count(sandbox: Sandbox, sqlite: str) -> None:
    """A push that was cleared with on_clear="restart" has requests that nobody waits for any more."""
    sent(["C1"])
    engine = ledger_engine("ledger")
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE responsys_batches SET forgotten_at = claimed_at")
    engine.dispose()
    push = sent(["C1"])
    sandbox.plan(Fault("poll", "lost", nth=1))

    trigger = deferred(sensor(push))

    assert trigger.packed_task_instances
    assert run(trigger).results.total == 1


def test_the_event_loop_never_asks_the_ledger(sandbox: Sandbox, ledger: str, switch: Switch) -> None:
    """R11 for databases: each statement runs in another thread, and the connections are closed at the end."""
    push = sent(["C1"], ["C2"])
    sandbox.plan(Fault("poll", "lost", nth=1))
    trigger = deferred(sensor(push))
    switch.threads.clear()

    run(trigger)

    assert switch.threads
    assert threading.get_ident() not in switch.threads
    # A file's connections are not pooled.
    assert not any(engine.pool.checkedin() for engine in switch.engines if isinstance(engine.pool, QueuePool))


@pytest.mark.parametrize("ledger", ["postgres"], indirect=True)
def test_no_connection_is_held_while_nothing_is_written(
    sandbox: Sandbox, ledger: str, switch: Switch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wait may last for a day, and a database has room for a hundred connections."""
    monkeypatch.setattr(recorder, "IDLE", 0.2)
    done = sent(["C1"])
    sandbox.change(processing_time=1000.0)
    push = [done, sent(["C2"], task_instance="dag/push/run/1")]
    sandbox.plan(Fault("poll", "lost", nth=1))
    trigger = deferred(sensor(push))
    seen: list[int] = []

    def held() -> int:
        return sum(engine.pool.checkedin() for engine in switch.engines[1:] if isinstance(engine.pool, QueuePool))

    async def scenario() -> Any:
        ending = asyncio.ensure_future(anext(aiter(trigger.run())))
        while State.FINISHED not in await asyncio.to_thread(states) or held():  # noqa: ASYNC110 -- nothing tells
            await asyncio.sleep(0.05)
        seen.append(held())
        sandbox.clock.advance(1000.0)
        return (await ending).payload

    found = Event.from_payload(ended(scenario()))

    assert seen == [0]
    assert found.results.recipients_succeeded == 2
    assert states() == [State.FINISHED] * 2


def test_a_stopped_trigger_leaves_the_ledger(sandbox: Sandbox, ledger: str, switch: Switch) -> None:
    """A triggerer that restarts cancels its triggers: no connection stays open; the next one goes on."""
    push = sent(["C1"])
    sandbox.change(processing_time=1000.0)
    push = [push, sent(["C2"], task_instance="dag/push/run/1")]  # type: ignore[assignment]  # the outputs of a mapped push
    sandbox.plan(Fault("poll", "lost", nth=1))
    arguments = deferred(sensor(push)).serialize()[1]

    async def stopped(waiting: PushRequestTrigger) -> int:
        ending = asyncio.ensure_future(anext(aiter(waiting.run())))
        while State.FINISHED not in await asyncio.to_thread(states):  # noqa: ASYNC110 -- nothing tells
            await asyncio.sleep(0.01)
        ending.cancel()
        await asyncio.gather(ending, return_exceptions=True)
        left = len(asyncio.all_tasks())
        await waiting.cleanup()
        return left

    left = ended(stopped(restarted(arguments)))
    polled = sandbox.counts["polled ids"]
    sandbox.plan(Fault("poll", "purged", nth=1))
    found = run(restarted(arguments))

    assert left == 1  # the one that counts
    assert sandbox.counts["polled ids"] == polled + 1
    assert (found.results.finished, found.results.unknown) == (1, 1)


def test_nothing_personal_is_stored_or_told(sandbox: Sandbox, sqlite: str, caplog: pytest.LogCaptureFixture) -> None:
    """The ledger has positions and codes; arguments, events and logs have counts."""
    caplog.set_level(logging.DEBUG)
    push = sent(["C-secret-person", "NODEVICE-secret-person"])
    sandbox.plan(Fault("poll", "lost", nth=1))
    trigger = deferred(sensor(push))

    found = run(trigger)

    records = Records(ledger_engine("ledger"))
    outcomes = records.outcomes(SEND)
    records.close()
    assert [outcome.failed for outcome in outcomes] == [{"NO_RECIPIENT_FOUND": [1]}]
    told = caplog.text + json.dumps(found.to_payload()) + json.dumps(trigger.serialize()) + repr(outcomes)
    assert "secret-person" not in told
    assert "sandbox-password" not in told


@pytest.mark.usefixtures("no_room")
def test_task_instances_that_can_not_be_are_an_event(sandbox: Sandbox, sqlite: str) -> None:
    """What crosses a process is checked; the task's next try makes the arguments anew."""
    push = sent(["C1"])
    sandbox.plan(Fault("poll", "lost", nth=1))
    arguments = deferred(sensor(push)).serialize()[1]

    found = run(restarted(arguments, packed_task_instances="nonsense"))

    assert found.status is Status.RETRY
    with pytest.raises(InvalidAnswer):
        unpack("nonsense")
