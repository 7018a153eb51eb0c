import json
from typing import Any

import pytest

from airflow_provider_responsys.errors import InvalidAnswer
from airflow_provider_responsys.protocol.naming import MAX_CODES, UNNAMED
from airflow_provider_responsys.protocol.polling import Failed, Finished, Gone, Processing, Unclear
from airflow_provider_responsys.protocol.results import Results


def some() -> Results:
    """Return the sum of one request of each kind."""
    results = Results(6)
    results.add(Finished(10, {"NO_RECIPIENT_FOUND": (1, 2), "USER_BLOCKED": (5,)}), 10)
    results.add(Finished(200))
    results.add(Failed("CAMPAIGN_IS_INVALID", "why"), 200)
    results.add(Gone(), 3)
    return results


def test_outcomes_are_summed_up() -> None:
    """In the words that the sensor returns; nobody is named."""
    results = some()

    assert results.summary() == {
        "requests": {"total": 6, "finished": 2, "failed": 1, "unknown": 1, "pending": 2},
        "recipients": {"succeeded": 207, "failed": 3, "unknown": 203},
        "errors": {"NO_RECIPIENT_FOUND": 2, "USER_BLOCKED": 1},
    }
    assert results.request_errors == {"CAMPAIGN_IS_INVALID": 1, "RESPONSE_PURGED": 1}


@pytest.mark.parametrize(
    ("outcome", "ended"),
    [(Finished(1), True), (Failed("X"), True), (Gone(), True), (Processing(), False), (Unclear("X"), False)],
)
def test_what_has_not_ended_is_pending(outcome: Any, ended: bool) -> None:
    """An unknown status is no end."""
    results = Results(1)

    assert results.add(outcome) is ended
    assert results.pending == (0 if ended else 1)


def test_only_so_many_codes_are_counted_apart() -> None:
    """An event is stored, and each code is a series of a metric: what is beyond the bound has no name."""
    results = Results(401)
    words = [f"NO_{chr(65 + n // 26 % 26)}{chr(65 + n % 26)}" for n in range(200)]

    for word in words:
        results.add(Finished(2, {word: (0, 1)}))
        results.add(Failed(word))
    results.add(Finished(1, {"NO_RECIPIENT_FOUND": (0,)}))

    for errors, each in ((results.errors, 2), (results.request_errors, 1)):
        assert {word: errors[word] for word in words[:MAX_CODES]} == dict.fromkeys(words[:MAX_CODES], each)
        assert errors[UNNAMED] == each * (200 - MAX_CODES)
    assert results.errors["NO_RECIPIENT_FOUND"] == 1
    assert len(results.errors) == MAX_CODES + 2
    assert Results.from_event(results.to_event()) == results


@pytest.mark.parametrize("rows", [9, 11])
def test_a_row_count_that_differs_is_reported(rows: int) -> None:
    """Rows have no name but their position: whose they are is not guessed."""
    results = Results(1)

    results.add(Finished(rows, {"NO_RECIPIENT_FOUND": (0,)}), 10)

    assert results.finished == 1
    assert (results.recipients_succeeded, results.recipients_failed, results.recipients_unknown) == (0, 0, 10)
    assert results.request_errors == {"ROW_COUNT_DIFFERS": 1}


def test_results_cross_a_process() -> None:
    """What one side writes the other reads, as JSON."""
    results = some()

    assert Results.from_event(json.loads(json.dumps(results.to_event()))) == results
    assert Results.from_event(Results().to_event()) == Results()


def changed(member: str, **counts: Any) -> dict[str, Any]:
    """Return an event of which one member is off."""
    event = some().to_event()
    return event | {member: event[member] | counts}


@pytest.mark.parametrize(
    "event",
    [
        None,
        [],
        "{}",
        {},
        some().summary(),
        some().to_event() | {"requests": [1]},
        some().to_event() | {"recipients": {"succeeded": 1}},
        changed("requests", total=7),
        changed("requests", total=1, pending=-3),
        changed("requests", more=1),
        changed("recipients", failed=4),
        changed("recipients", unknown=-1),
        changed("recipients", unknown=1.0),
        changed("recipients", unknown=True),
        changed("errors", NO_RECIPIENT_FOUND="2"),
        changed("errors", **{"somebody@example.com": 0}),
        changed("errors", JaneDoe1975=0),
        changed("request_errors", RESPONSE_PURGED=None),
    ],
)
def test_an_event_is_checked_before_it_is_believed(event: Any) -> None:
    """It has crossed a process and a database."""
    with pytest.raises(InvalidAnswer, match="an event"):
        Results.from_event(event)
