"""The waiting engine in a world where everything goes wrong; and the world itself, with engines that are broken."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from airflow_provider_responsys.errors import Refused, ResponsysError
from airflow_provider_responsys.protocol.polling import Failed
from airflow_provider_responsys.waiting import engine
from airflow_provider_responsys.waiting.engine import Counted, WaitEngine
from airflow_provider_responsys.waiting.state import WaitState
from tests.waiting.world import Broken, play

SEEDS = 1_500
SEARCHED = 1_500


@pytest.fixture(autouse=True)
def put_back() -> Iterator[None]:
    """Let nothing of the world's settings stay."""
    before = engine.NOT_BELIEVED
    yield
    engine.NOT_BELIEVED = before


def test_the_rules_hold() -> None:
    """Each request ends counted once and as it was answered, nothing is polled after its end, and each wait ends."""
    play_all(SEEDS)


def play_all(seeds: int) -> None:
    """Play so many schedules; raise `Broken`, with the seed, at the first that breaks a rule."""
    for seed in range(seeds):
        try:
            play(seed)
        except Broken as broken:
            raise Broken(f"seed {seed}: {broken}") from broken


def _takes_in_what_is_closed(waiting: WaitEngine, outcomes: Any, now: float) -> Counted:
    found = waiting.state.count(outcomes)
    waiting.schedule.put_back([name for name in outcomes if name in waiting.state.open], now + waiting._poll_interval)
    return Counted(found, {name: outcome for name, outcome in outcomes.items() if name not in waiting.state.open})


def _drops_a_poll_in_trouble(waiting: WaitEngine, ids: Any, error: ResponsysError, sent: float, now: float) -> None:
    waiting.patience.trouble(now, 0.0)


REAL_FAILED = WaitEngine.failed


def _refuses_all_of_a_poll(waiting: WaitEngine, ids: Any, error: ResponsysError, sent: float, now: float) -> Counted:
    if isinstance(error, Refused) and len(ids) > 1:
        waiting.in_flight -= 1
        return waiting._counted({name: Failed("POISONED") for name in ids}, now)
    return REAL_FAILED(waiting, ids, error, sent, now)


def _polls_what_the_ledger_knew(waiting: WaitEngine, now: float) -> list[str]:
    return waiting.schedule.take(now, waiting._ids_per_poll)


def _forgets_a_poll_in_flight(waiting: WaitEngine) -> bool:
    return not waiting.schedule


def _never_quiet(waiting: WaitEngine) -> float:
    if not waiting.schedule or waiting.in_flight >= waiting._max_in_flight:
        return math.inf
    return -math.inf


def _keeps_the_counts_of_the_ledger_out(state: WaitState, records: Any) -> None:
    for request_id in list(state.open):
        if records.outcome_of(request_id):
            del state.open[request_id]


PLANTED: dict[str, tuple[type, str, Callable[..., Any]]] = {
    "an answer for what the ledger has told of is written": (WaitEngine, "_counted", _takes_in_what_is_closed),
    "a poll in trouble is dropped": (WaitEngine, "_ride_out", _drops_a_poll_in_trouble),
    "a refusal is of all requests of its poll": (WaitEngine, "failed", _refuses_all_of_a_poll),
    "what the ledger knew to have ended is polled": (WaitEngine, "_take", _polls_what_the_ledger_knew),
    "a wait ends with a poll in flight": (WaitEngine, "ended", property(_forgets_a_poll_in_flight)),  # type: ignore[dict-item]  # a property
    "what is said too early is believed": (WaitEngine, "_wait_before_believing", lambda *_: None),
    "what the ledger knew is not counted": (WaitState, "learn", _keeps_the_counts_of_the_ledger_out),
}


@pytest.mark.parametrize("planted", PLANTED)
def test_a_planted_bug_is_found(planted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A world in which a broken engine passes shows nothing."""
    kind, name, broken = PLANTED[planted]
    monkeypatch.setattr(kind, name, broken)

    with pytest.raises(Broken):
        play_all(SEARCHED)
