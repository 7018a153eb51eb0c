"""A wait has one deadline, in every mode and over the sensor's tries, and keeps what it learned where it can."""

import json
import logging
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import DAG, AirflowSensorTimeout, TaskDeferred

from airflow_provider_responsys import sensors
from airflow_provider_responsys.hooks import ResponsysHook
from airflow_provider_responsys.sandbox import Fault, Sandbox
from airflow_provider_responsys.sensors import PushRequestSensor
from airflow_provider_responsys.waiting import engine, memory
from airflow_provider_responsys.waiting.memory import KEY

Runner = Callable[[Any], Any]
RESCHEDULE: dict[str, Any] = {"deferrable": False, "mode": "reschedule"}


@pytest.fixture
def sandbox(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sandbox]:
    """Give a Responsys that finishes requests at once, and a sensor that is impatient."""
    monkeypatch.setattr(PushRequestSensor, "first_delay", 0.0)
    monkeypatch.setattr(PushRequestSensor, "log", logging.getLogger("tests.sensor"))
    monkeypatch.setattr(engine, "NOT_BELIEVED", ())
    with Sandbox(processing_time=0.0) as running:
        connection = running.connection(poll_requests_per_minute=60_000)
        monkeypatch.setenv("AIRFLOW_CONN_RESPONSYS_DEFAULT", json.dumps(connection))
        yield running


class Store:
    """Airflow's task state store, for one task instance."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.broken = False

    def get(self, key: str) -> Any:
        """Return the value of *key*."""
        if self.broken:
            raise ConnectionError("away")
        return self.values.get(key)

    def set(self, key: str, value: Any) -> None:
        """Keep *value*."""
        if self.broken:
            raise ConnectionError("away")
        self.values[key] = value


def context(store: Store | None, max_tries: int = 2, first: datetime | None = None) -> Any:
    """Return a task's context, with as much as the sensor uses."""
    ti = SimpleNamespace(
        max_tries=max_tries, map_index=-1, get_first_reschedule_date=lambda _: first, xcom_push=lambda **_: None
    )
    return {"task_state_store": store, "ti": ti} if store else {"ti": ti}


def pushed(*batches: list[str]) -> list[str]:
    """Push each of *batches*, lists of customer ids, and return the request ids."""
    with ResponsysHook() as hook:
        return [hook.trigger_push("Summer_Push", [{"customer_id": name} for name in batch]) for batch in batches]


def sensor(ids: Any, **settings: Any) -> PushRequestSensor:
    """Return an impatient sensor."""
    arguments = {"task_id": "wait", "poke_interval": 0.05, "timeout": 60, **settings}
    with DAG("deadline", schedule=None):
        return PushRequestSensor(request_ids=ids, **arguments)


@pytest.mark.parametrize("mode", [{"deferrable": False}, RESCHEDULE], ids=["poke", "reschedule"])
def test_the_timeout_is_no_later_than_it_says(mode: dict[str, Any], sandbox: Sandbox, run_dag: Runner) -> None:
    """A look comes at the deadline, however long the interval is; the run takes seconds, and no minute."""
    sandbox.change(processing_time=1000.0)
    with DAG(f"deadline_{len(mode)}", schedule=None) as dag:
        PushRequestSensor(task_id="wait", request_ids=pushed(["C1"]), timeout=2, poke_interval=60, **mode)
    began = time.monotonic()

    run = run_dag(dag)

    assert run.state == "failed"
    assert time.monotonic() - began < 45


def test_a_retry_goes_on_with_the_same_deadline(sandbox: Sandbox) -> None:
    """Where Airflow keeps something for it."""
    sandbox.change(processing_time=1000.0)
    ids, store, deadlines = pushed(["C1"]), Store(), []

    for _ in range(2):
        with pytest.raises(TaskDeferred) as deferral:
            sensor(ids).execute(context(store))
        deadlines.append(deferral.value.trigger.serialize()[1]["deadline"])

    assert deadlines[0] == deadlines[1]


@pytest.mark.parametrize("change", ["clear", "other ids", "no store"])
def test_a_clear_begins_anew(change: str, sandbox: Sandbox) -> None:
    """As do other requests, and a retry for which nothing is kept."""
    sandbox.change(processing_time=1000.0)
    ids, store = pushed(["C1"], ["C2"]), Store()
    first, second = sensor(ids), sensor(ids[:1] if change == "other ids" else ids)

    first._begin(context(store))
    second._begin(context(None if change == "no store" else store, max_tries=4 if change == "clear" else 2))

    assert second._kept.deadline > first._kept.deadline


def test_a_retry_after_the_deadline_looks_once_and_times_out(sandbox: Sandbox) -> None:
    """It may find that all is there by now."""
    ids, store = pushed(["C1"]), Store()
    sandbox.change(processing_time=1000.0)
    late = pushed(["C2"])
    sensor(ids + late, timeout=0)._begin(context(store))

    with pytest.raises(AirflowSensorTimeout):
        sensor(ids + late).execute(context(store))
    sandbox.clock.advance(1000.0)
    found = sensor(ids + late).execute(context(store))

    assert found["recipients"]["succeeded"] == 2


@pytest.mark.parametrize("kept", [True, False])
def test_reschedule_makes_progress_where_it_can_keep_something(
    kept: bool, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One poll in five tells nothing: a look goes on where the last one ended, or, without a memory, never ends."""
    monkeypatch.setattr(sensors, "FEW_POLLS", 5)
    ids = pushed(*([f"C{number}"] for number in range(40)))
    sandbox.plan(Fault("poll", "unknown_status", nth=list(range(5, 2_000, 5))))
    store, looks, done = Store() if kept else None, 0, False

    while not done and looks < 30:
        waiting = sensor(ids, **RESCHEDULE)
        done = bool(waiting.poke(context(store)))
        waiting._close()
        looks += 1

    assert done == kept
    assert not kept or sandbox.counts["polled ids"] <= 40 + 40 // 4 + 5


def test_a_memory_that_fails_costs_a_new_beginning_only(sandbox: Sandbox, caplog: pytest.LogCaptureFixture) -> None:
    """It is told once, and the wait goes on."""
    store = Store()
    store.broken = True

    found = sensor(pushed(["C1"]), deferrable=False).poke(context(store))

    assert found
    assert caplog.text.count("Airflow's task state store can't be used (ConnectionError)") == 1


@pytest.mark.parametrize("value", ["nonsense", "[]", '{"of": 3}', '{"deadline": 1}', 7])
def test_a_value_of_another_writer_is_no_memory(value: Any, sandbox: Sandbox) -> None:
    """The wait begins anew."""
    store = Store()
    store.values[KEY] = value

    assert sensor(pushed(["C1"]), deferrable=False).poke(context(store))


def test_many_ids_are_not_kept(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Airflow warns of large values at each write; the deadline is kept all the same."""
    monkeypatch.setattr(memory, "MAX_PACKED", 10)
    sandbox.change(processing_time=1000.0)
    store = Store()
    waiting = sensor(pushed(["C1"], ["C2"]), **RESCHEDULE)

    assert not waiting.poke(context(store))

    assert "2 request ids are too many" in caplog.text
    assert set(json.loads(store.values[KEY])) == {"of", "began", "deadline"}


def test_without_a_store_a_rescheduled_wait_ends_by_its_first_reschedule(sandbox: Sandbox) -> None:
    """Airflow knows when that was."""
    sandbox.change(processing_time=1000.0)
    first = datetime.now(UTC) - timedelta(seconds=61)

    with pytest.raises(AirflowSensorTimeout):
        sensor(pushed(["C1"]), **RESCHEDULE).poke(context(None, first=first))
