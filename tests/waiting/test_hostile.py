"""Waiting where it is easy to go wrong: a ledger that comes late, waits that were idle, limits that are small."""

import json
import time
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import DAG, AirflowSensorTimeout

from airflow_provider_responsys.errors import Refused
from airflow_provider_responsys.protocol.polling import Finished, Outcome, Processing
from airflow_provider_responsys.protocol.results import Results
from airflow_provider_responsys.sandbox import Sandbox
from airflow_provider_responsys.sensors import PushRequestSensor
from airflow_provider_responsys.waiting.engine import WaitEngine
from airflow_provider_responsys.waiting.schedule import paced
from airflow_provider_responsys.waiting.state import WaitState
from airflow_provider_responsys.waiting.sweep import sweep
from airflow_provider_responsys.waiting.telling import Unobserved
from tests.support.waits import Account

NOW = datetime(2026, 11, 24, 8, 30, tzinfo=UTC)
INTERVAL = 60.0


class Known:
    """A ledger that knows the outcomes of some requests, of three recipients each."""

    def __init__(self, *ended: str) -> None:
        self.sizes = dict.fromkeys("abc", 3)
        self.accepted_at: dict[str, datetime] = {}
        self._ended = ended

    def knows(self, request_id: str) -> bool:
        """Every request is in it."""
        return request_id in self.sizes

    def outcome_of(self, request_id: str) -> Outcome | None:
        """Return what is recorded."""
        return Finished(3) if request_id in self._ended else None


def engine(state: WaitState, first_at: float = 0.0) -> WaitEngine:
    """Return an engine that has begun."""
    return WaitEngine(
        state,
        pace=paced(60_000, 0.0),
        poll_interval=INTERVAL,
        ids_per_poll=1,
        max_in_flight=1,
        first_at=first_at,
        now=NOW,
    )


@pytest.mark.parametrize("ended", ["a", "b", "ab"])
def test_a_ledger_that_is_read_between_two_looks(ended: str) -> None:
    """What it knows to have ended is not polled, and the look ends as any other."""
    state = WaitState.on(["a", "b"])
    waiting = engine(state, first_at=time.monotonic())
    polled: list[str] = []
    state.learn(Known(*ended))  # type: ignore[arg-type]  # as much of the records as a state uses

    def ask(ids: Any, _wait: float) -> dict[str, Outcome]:
        polled.extend(ids)
        return dict.fromkeys(ids, Finished(3))

    sweep(waiting, ask, log=None, observer=Unobserved(), record=lambda _: None)

    assert polled == [name for name in "ab" if name not in ended]
    assert state.results.finished == 2


def test_a_wait_ends_when_the_ledger_has_told_of_all() -> None:
    """However long a request would not be polled."""
    state = WaitState.on(["a", "b"])
    waiting = engine(state)
    for now, name in enumerate("ab", 1):
        assert waiting.take(now) == [[name]]
        waiting.answered({name: Processing()}, now, now)

    state.learn(Known("a", "b"))  # type: ignore[arg-type]  # as above

    assert state.results.pending == 0
    assert waiting.ended


def test_a_part_of_the_requests_is_not_all_of_them() -> None:
    """A trigger that was given what is open knows the recipients of those, and not of all."""
    state = WaitState(Results(total=2, finished=1, recipients_succeeded=5))
    state.resume(["b"])

    state.learn(Known())  # type: ignore[arg-type]  # as above

    assert state.recipients is None


def test_what_others_were_answered_before_a_restart_counts() -> None:
    """One request that is not found among finished ones is that request's outcome; the connection is right."""
    state = WaitState(Results(total=2, finished=1, recipients_succeeded=5))
    state.resume(["b"])
    waiting = engine(state)
    waiting.take(0.0)

    waiting.failed(["b"], Refused("no such resource", code="RESOURCE_NOT_FOUND"), 0.0, 0.0)

    assert waiting.ended
    assert state.results.request_errors == {"RESOURCE_NOT_FOUND": 1}


@pytest.mark.parametrize("limit", [6, 10, 20])
@pytest.mark.parametrize("waits", [2, 4])
def test_waits_share_a_small_limit(waits: int, limit: int) -> None:
    """Each gets as much as any other, also where a poll leaves every ten seconds."""
    account = Account(limit, [3_000] * waits)

    account.run(1_800.0)

    parts = account.per_wait(since=60.0)
    assert sum(parts) >= 0.95 * limit * 29
    assert max(parts) - min(parts) <= 3


def test_a_wait_that_was_idle_claims_nothing_for_it() -> None:
    """When its requests come due again, it gets its half, and the other one gets the other."""
    account = Account(200, [3_000])
    rare = WaitEngine(
        WaitState.on([f"rare/{number}" for number in range(600)]),
        pace=account.shared.join(),
        poll_interval=900.0,
        ids_per_poll=1,
        max_in_flight=40,
        first_at=900.0,
        now=NOW,
    )
    account.engines.append(rare)
    account.run(900.0)

    account.run(1_020.0)

    parts = account.per_wait(since=910.0)
    assert parts[0] >= 0.4 * sum(parts)


def test_a_wait_that_begins_later_claims_nothing_for_the_time_before() -> None:
    """Also where another wait, that has hardly anything to poll, has sent few polls by then."""
    account = Account(200, [3_000, 1])
    account.engines[1]._poll_interval = 60.0
    account.run(900.0)
    late = WaitEngine(
        WaitState.on([f"late/{number}" for number in range(3_000)]),
        pace=account.shared.join(),
        poll_interval=1.0,
        ids_per_poll=1,
        max_in_flight=40,
        first_at=910.0,
        now=NOW,
    )
    late.take(account.now)
    account.engines.append(late)
    account.run(910.0)

    account.run(1_100.0)

    parts = account.per_wait(since=920.0)
    assert parts[0] >= 0.4 * sum(parts)


def test_a_long_look_ends_at_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many requests there are, and however few polls a minute."""
    with Sandbox(processing_time=1_000.0) as sandbox, DAG("long_look", schedule=None):
        connection = sandbox.connection(poll_requests_per_minute=60)
        monkeypatch.setenv("AIRFLOW_CONN_RESPONSYS_DEFAULT", json.dumps(connection))
        ids = [f"{'a' * 8}-{number:027d}" for number in range(40)]
        waiting = PushRequestSensor(task_id="wait", request_ids=ids, timeout=1, poke_interval=1, deferrable=False)

        with pytest.raises(AirflowSensorTimeout, match="have no results"):
            waiting.poke({"ti": SimpleNamespace(max_tries=0, map_index=-1, xcom_push=lambda **_: None)})  # type: ignore[typeddict-item]  # as much as it uses

        assert sandbox.counts["polled ids"] < 20
