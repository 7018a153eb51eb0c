"""The waiting engine alone: what is polled when, and what an answer means."""

import itertools
import math
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from airflow_provider_responsys.errors import (
    LimitExceeded,
    LoginFailed,
    NoAnswer,
    Refused,
    ResponsysError,
    SendRefused,
)
from airflow_provider_responsys.protocol.pace import SCOUT
from airflow_provider_responsys.protocol.polling import (
    KEPT,
    PURGED,
    UNANSWERED,
    Failed,
    Finished,
    Gone,
    Outcome,
    Processing,
)
from airflow_provider_responsys.waiting.engine import NOT_BELIEVED, WaitEngine
from airflow_provider_responsys.waiting.schedule import TROUBLE_WAITS, paced
from airflow_provider_responsys.waiting.state import WaitState

INTERVAL = 60.0
NOW = datetime(2026, 11, 24, 8, 30, tzinfo=UTC)
INVALID = Failed("INVALID_REQUEST_ID")
NOT_FOUND = Refused("no such resource", code="RESOURCE_NOT_FOUND")


def engine(*ids: str, size: int = 1, **settings: Any) -> WaitEngine:
    """Return an engine that polls *ids*, *size* at once, at a limit that is none."""
    state = settings.pop("state", None) or WaitState.on(ids)
    defaults = {"pace": paced(60_000, 0.0), "poll_interval": INTERVAL, "ids_per_poll": size, "max_in_flight": 10}
    return WaitEngine(state, **{**defaults, "first_at": 0.0, "now": NOW, **settings})


def answers(waiting: WaitEngine, **outcomes: Outcome | ResponsysError) -> list[list[str]]:
    """Let everything that is due be answered with *outcomes*, by request; return the polls that left."""
    now = waiting.next_at
    polls = waiting.take(now)
    for ids in polls:
        found = {name: outcomes[name] for name in ids}
        error = next((outcome for outcome in found.values() if isinstance(outcome, ResponsysError)), None)
        if error:
            waiting.failed(ids, error, now, now)
        else:
            waiting.answered(found, now, now)  # type: ignore[arg-type]  # no error is among them
    return polls


def test_each_request_is_polled_until_it_has_ended() -> None:
    """At the interval, and never again after that."""
    waiting = engine("a", "b")

    first = answers(waiting, a=Finished(3), b=Processing())
    then = waiting.next_at
    second = answers(waiting, b=Finished(2))

    assert (first, second) == ([["a"], ["b"]], [["b"]])
    assert then == pytest.approx(INTERVAL, abs=0.1)
    assert waiting.ended
    assert waiting.state.results.recipients_succeeded == 5


def test_an_answer_counts_once() -> None:
    """Two polls of one request may be answered, where the first one was given up: the second adds nothing."""
    waiting = engine("a")
    waiting.take(0.0)

    first = waiting.answered({"a": Finished(3)}, 0.0, 1.0)
    second = waiting.answered({"a": Finished(3)}, 0.0, 1.0)

    assert (first.found.recipients_succeeded, second.found.recipients_succeeded) == (3, 0)
    assert waiting.state.results.finished == 1


def test_no_more_is_in_flight_than_allowed() -> None:
    """And nothing leaves until an answer has come."""
    waiting = engine("a", "b", "c", max_in_flight=2)

    polls = waiting.take(0.0)

    assert polls == [["a"], ["b"]]
    assert waiting.next_at == math.inf


@pytest.mark.parametrize("outcome", [Gone(PURGED), INVALID])
def test_results_that_are_said_to_be_gone_too_early_are_asked_for_again(outcome: Outcome) -> None:
    """A server that takes over from another one may say so: it is believed after about an hour, at growing distance."""
    waiting = engine("a")
    left: list[float] = []

    while not waiting.ended:
        left.append(waiting.next_at)
        answers(waiting, a=outcome)

    distances = [later - earlier for earlier, later in itertools.pairwise(left)]
    assert distances == pytest.approx([times * INTERVAL for times in NOT_BELIEVED], abs=0.1)
    assert waiting.state.results.failed + waiting.state.results.unknown == 1


def test_results_that_are_there_after_all_are_counted() -> None:
    """Nothing of the answers before is."""
    waiting = engine("a")

    answers(waiting, a=Gone(PURGED))
    answers(waiting, a=Finished(4))

    assert waiting.state.results.summary()["requests"]["finished"] == 1
    assert not waiting.state.results.request_errors


@pytest.mark.parametrize(
    ("age", "waited", "polls"),
    [(KEPT - timedelta(minutes=1), 0.0, 7), (KEPT, 0.0, 1), (None, 0.0, 7), (None, 61 * INTERVAL, 1)],
)
def test_what_is_old_is_believed_at_once(age: timedelta | None, waited: float, polls: int) -> None:
    """Accepted a day ago, by the ledger; or waited for long enough by a task that was rescheduled since."""
    state = WaitState.on(["a"])
    state.accepted_at = {"a": NOW - age} if age else {}
    waiting = engine(state=state, waited=waited)

    left = 0
    while not waiting.ended:
        left += len(answers(waiting, a=Gone(PURGED)))

    assert left == polls


def test_a_refusal_is_of_one_request() -> None:
    """Which of several is found out one by one; the others are read."""
    refusal = Refused("no", code="SOMETHING_ELSE")
    waiting = engine("a", "b", "c", size=200)

    polls = answers(waiting, a=Processing(), b=refusal, c=Processing())
    one_by_one = answers(waiting, a=Finished(1), b=refusal, c=Finished(1))

    assert (polls, one_by_one) == ([["a", "b", "c"]], [["a"], ["b"], ["c"]])
    assert waiting.ended
    assert waiting.state.results.request_errors == {"SOMETHING_ELSE": 1}
    assert waiting.state.results.finished == 2


def test_a_request_that_is_not_found_among_others_has_failed() -> None:
    """Once another was answered, it is not the path that is wrong."""
    waiting = engine("a", "b")

    answers(waiting, a=NOT_FOUND, b=Processing())
    answers(waiting, a=NOT_FOUND, b=Finished(1))

    assert waiting.ended
    assert waiting.state.results.request_errors == {"RESOURCE_NOT_FOUND": 1}


def test_where_no_request_is_found_the_connection_is_wrong() -> None:
    """That ends the wait: the family of its path is another one."""
    waiting = engine("a", "b")
    waiting.take(0.0)
    waiting.failed(["a"], NOT_FOUND, 0.0, 0.0)

    with pytest.raises(Refused, match="no such resource"):
        waiting.failed(["b"], NOT_FOUND, 0.0, 0.0)


@pytest.mark.parametrize("error", [LoginFailed("locked"), SendRefused("off"), ResponsysError("what?")])
def test_what_no_poll_does_better_is_raised(error: ResponsysError) -> None:
    """It is of the account, and not of one request."""
    waiting = engine("a")
    waiting.take(0.0)

    with pytest.raises(type(error)):
        waiting.failed(["a"], error, 0.0, 0.0)


def test_a_request_that_was_not_answered_for_is_polled_alone() -> None:
    """A frame without its id is nobody's among many."""
    waiting = engine("a", "b", "c", size=200)

    answers(waiting, a=Finished(1), b=UNANSWERED, c=Processing())
    polls = answers(waiting, b=Finished(1), c=Finished(1))

    assert polls == [["b"], ["c"]]
    assert waiting.ended


def test_the_limit_is_scouted() -> None:
    """When it was run into, nothing leaves for a while; then one poll finds out whether it has passed."""
    waiting = engine("a", "b")
    waiting.take(0.0)

    waiting.failed(["a"], LimitExceeded("too many", wait=60.0), 0.0, 1.0)

    assert waiting.next_at == pytest.approx(1.0 + SCOUT, abs=0.1)
    assert waiting.take(1.0) == []


def test_trouble_stops_all_polls() -> None:
    """For longer after each further trouble in a row."""
    waiting = engine("a", "b")
    waiting.take(0.0, most=1)

    waiting.failed(["a"], NoAnswer("lost"), 0.0, 1.0)

    assert waiting.next_at == 1.0 + TROUBLE_WAITS[0]


def test_what_the_ledger_knew_to_have_ended_is_not_polled() -> None:
    """It may answer while the wait goes on."""
    waiting = engine("a", "b")

    del waiting.state.open["a"]

    assert waiting.take(0.0) == [["b"]]
