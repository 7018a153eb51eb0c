"""What the task state ledger promises beyond the contract: few, small writes, and fences."""

from datetime import timedelta
from types import SimpleNamespace

import pytest

from airflow_provider_responsys.errors import Fenced, LedgerFailed, StateLost
from airflow_provider_responsys.ledger.interface import FINGERPRINT_BYTES, Accepted, Released, Settlement, Wanted
from airflow_provider_responsys.ledger.task_state import TaskStateLedger
from tests.ledger.conftest import IDENTITY, Refusal, TaskStatePlace


def people(number: int, count: int = 200) -> list[bytes]:
    """Return *count* fingerprints that only batch *number* has."""
    return [(number * 1000 + one).to_bytes(FINGERPRINT_BYTES, "big") for one in range(count)]


def batches(*numbers: int, count: int = 200) -> list[Wanted]:
    """Return batches *numbers*."""
    return [Wanted(number, people(number, count)) for number in numbers]


def accepted(*numbers: int) -> list[Settlement]:
    """Return an answer to each of *numbers*."""
    return [Accepted(number, str(10**10 + number)) for number in numbers]


def begun(place: TaskStatePlace, try_number: int = 1) -> TaskStateLedger:
    """Return a ledger after its first act, with the store's calls counted from here."""
    ledger = place.open(try_number)
    ledger.begin(IDENTITY)
    place.airflow.calls.clear()
    return ledger


def writes(place: TaskStatePlace) -> list[str]:
    """Return the keys written since the last look, without the prefix."""
    keys = [key.split("/")[-1] for name, key in place.airflow.calls if name == "set"]
    place.airflow.calls.clear()
    return keys


def test_one_call_is_one_write(task_state: TaskStatePlace) -> None:
    """A write takes 13 ms, whatever is in it."""
    ledger = begun(task_state)

    ledger.commit([], batches(1, 2, 3))
    claimed = writes(task_state)
    ledger.commit(accepted(1, 2), batches(4, 5))
    both = writes(task_state)
    ledger.commit([], [])

    assert claimed == ["00000"]
    assert both == ["00000"]
    assert writes(task_state) == []


def test_a_segment_has_25_batches_however_small(task_state: TaskStatePlace) -> None:
    """Each settlement rewrites the whole of it."""
    begun(task_state).commit([], batches(*range(1, 60), count=1))

    assert sorted(str(value).count(";") + 1 for key, value in task_state.airflow.rows.items() if "meta" not in key) == [
        9,
        25,
        25,
    ]


def test_a_settlement_rewrites_the_segment_of_its_claim(task_state: TaskStatePlace) -> None:
    """An answer may come when later segments are open: one write more, before that of the claim it makes room for."""
    ledger = begun(task_state)
    ledger.commit([], batches(*range(1, 26)))
    ledger.commit(accepted(*range(1, 25)), batches(26))
    writes(task_state)

    ledger.commit(accepted(25), batches(27))

    assert writes(task_state) == ["00000", "00001"]


def test_nothing_is_kept_in_memory_that_is_settled(task_state: TaskStatePlace) -> None:
    """A million fingerprints would take 12 MB."""
    ledger = begun(task_state)
    for number in range(1, 500):
        ledger.commit(accepted(number - 1) if number > 1 else [], batches(number))

    assert len(ledger._segments) <= 2
    assert len(ledger._places) <= 50


def test_values_stay_under_airflows_limit(task_state: TaskStatePlace) -> None:
    """Past 65,535 bytes Airflow warns at each write, and a million recipients have 16 MB."""
    ledger = begun(task_state)
    for start in range(1, 5001, 50):
        numbers = range(start, start + 50)
        ledger.commit([], batches(*numbers))
        ledger.commit([Accepted(number, f"{10**23 + number}") for number in numbers], [])

    rows = task_state.airflow.rows
    segments = [value for key, value in rows.items() if not key.endswith("meta")]
    assert all(isinstance(value, str) and value.isascii() and len(value) <= 65_000 for value in segments)
    assert len(segments) == 200
    assert sum(len(str(value)) for value in rows.values()) < 16_000_000
    assert max(str(value).count(";") + 1 for value in segments) == 25


def test_long_request_ids_take_fewer_batches_a_segment(task_state: TaskStatePlace) -> None:
    """Room for an answer is kept from the claim on."""
    ledger = begun(task_state)

    ledger.commit([], batches(*range(1, 51), count=210))
    ledger.commit([Accepted(number, "x" * 150) for number in range(1, 51)], [])

    assert max(len(str(value)) for value in task_state.airflow.rows.values()) <= 65_000
    assert len(task_state.airflow.rows) == 4


def test_rows_never_expire(task_state: TaskStatePlace) -> None:
    """A clear may come months later."""
    begun(task_state).commit([], batches(1))

    assert task_state.airflow.retentions == {timedelta.max}


def test_keys_are_ascii_under_one_prefix(task_state: TaskStatePlace) -> None:
    """Airflow's client trips over others under `dag.test`."""
    begun(task_state).commit([], batches(1))

    assert all(key.isascii() and key.startswith("responsys/") for key in task_state.airflow.rows)


def test_reading_back_holds_one_segment(task_state: TaskStatePlace) -> None:
    """A retry of a million recipients needs no more memory than its first try."""
    ledger = begun(task_state)
    ledger.commit([], batches(*range(1, 101)))
    second = begun(task_state, 2)

    earlier = second.earlier()
    first = [next(earlier) for _ in range(26)]

    assert len(first) == 26
    assert [name for name, _ in task_state.airflow.calls] == ["get", "get"]


def test_a_replaced_try_is_fenced_for_good(task_state: TaskStatePlace) -> None:
    """Its writes are refused, and it asks no more."""
    zombie = begun(task_state)
    zombie.commit([], batches(1))
    begun(task_state, 2)

    for _ in range(2):
        with pytest.raises(Fenced, match="another try"):
            zombie.commit(accepted(1), batches(2))

    assert len(task_state.airflow.calls) == 1


def test_a_replaced_try_that_begins_late_is_fenced(task_state: TaskStatePlace) -> None:
    """It reads nothing, but its first write is refused."""
    late = task_state.open(1)
    task_state.open(2, may_have_claimed=False).begin(IDENTITY)

    with pytest.raises(Fenced):
        late.begin(IDENTITY)


def test_dag_test_reports_a_refusal_in_its_own_way(task_state: TaskStatePlace) -> None:
    """There, the client's error comes through as it is."""
    ledger = begun(task_state)
    gone = RuntimeError("Not Found")
    gone.response = SimpleNamespace(status_code=404)  # type: ignore[attr-defined]  # as httpx does
    task_state.airflow.failures = {1: gone}

    with pytest.raises(Fenced):
        ledger.commit([], batches(1))


@pytest.mark.parametrize("status", [409, 422, 500, 503])
def test_another_refusal_is_an_outage(task_state: TaskStatePlace, status: int) -> None:
    """It may pass: the same ledger goes on afterwards."""
    ledger = begun(task_state)
    task_state.airflow.failures = {1: Refusal(status)}

    with pytest.raises(LedgerFailed) as raised:
        ledger.commit([], batches(1))

    assert not isinstance(raised.value, Fenced)
    assert ledger.commit([], batches(2))


@pytest.mark.parametrize("interruption", [KeyboardInterrupt(), TimeoutError("no answer")])
def test_an_interrupted_call_ends_the_ledger(task_state: TaskStatePlace, interruption: BaseException) -> None:
    """The next call could take the late answer for its own, and claim what was never written."""
    ledger = begun(task_state)
    task_state.airflow.failures = {1: interruption}
    with pytest.raises(LedgerFailed if isinstance(interruption, Exception) else type(interruption)):
        ledger.commit([], batches(1))

    with pytest.raises(LedgerFailed, match=type(interruption).__name__):
        ledger.commit([], batches(2))

    assert len(task_state.airflow.calls) == 1


def test_an_interrupted_beginning_ends_the_ledger(task_state: TaskStatePlace) -> None:
    """The same, before there is anything to claim."""
    ledger = task_state.open(1)
    task_state.airflow.failures = {1: TimeoutError("no answer")}
    with pytest.raises(LedgerFailed):
        ledger.begin(IDENTITY)

    with pytest.raises(LedgerFailed, match="TimeoutError"):
        ledger.begin(IDENTITY)


@pytest.mark.parametrize("turn", [1, 2, 3, 4])
def test_a_failure_between_two_writes_of_a_call(task_state: TaskStatePlace, turn: int) -> None:
    """The claims of the failed call are dropped; the answers are recorded at the next."""
    ledger = begun(task_state)
    ledger.commit([], batches(*range(1, 25)))
    task_state.airflow.failures = {turn: Refusal(500)}
    answers = [*accepted(*range(2, 25)), Released(1)]

    with pytest.raises(LedgerFailed):
        ledger.commit(answers, batches(*range(31, 90)))
    ledger.commit(answers, batches(*range(91, 94)))
    found = {batch.label: batch.request_id for batch in begun(task_state, 2).earlier()}

    assert {label for label, request_id in found.items() if request_id} == {f"try 1, batch {n}" for n in range(2, 25)}
    assert {label for label, request_id in found.items() if not request_id} == {
        "try 1, batch 91",
        "try 1, batch 92",
        "try 1, batch 93",
    }


@pytest.mark.parametrize("turn", [1, 2, 3, 4])
def test_a_failure_between_two_writes_of_a_call_leaves_doubts_in_doubt(task_state: TaskStatePlace, turn: int) -> None:
    """Whoever is to be sent to again is in the record before the write and after it: only claims may be dropped."""
    begun(task_state).commit([], batches(*range(1, 26), count=10))
    ledger = begun(task_state, 2)
    doubts = list(ledger.earlier())
    ledger.commit([], [Wanted(1, people(1, 10), doubts[0])])
    task_state.airflow.failures = {turn: Refusal(500)}

    with pytest.raises(LedgerFailed):
        ledger.commit([], [Wanted(2, people(2, 10), doubts[1]), *batches(*range(31, 90), count=10)])
    ledger.commit(accepted(1), [])
    found = {one: batch.request_id for batch in begun(task_state, 3).earlier() for one in batch.fingerprints}

    assert found.keys() >= {one for number in range(1, 26) for one in people(number, 10)}
    assert [one for one, answer in found.items() if answer] == people(1, 10)


def test_a_replaced_try_is_fenced_where_it_reads(task_state: TaskStatePlace) -> None:
    """Airflow answers it as if the record were gone: it is its successor's."""
    begun(task_state).commit([], batches(1))
    second = begun(task_state, 2)
    begun(task_state, 3)

    with pytest.raises(Fenced):
        list(second.earlier())


def test_a_gap_in_the_record_fails_closed(task_state: TaskStatePlace) -> None:
    """A clean-up by age takes the oldest first: what is left is not everything."""
    ledger = begun(task_state)
    for number in range(1, 101):
        ledger.commit([], batches(number))
    rows = task_state.airflow.rows
    del rows[next(key for key in rows if key.endswith("/00000"))]

    with pytest.raises(StateLost, match="restart"):
        list(begun(task_state, 2).earlier())


def test_a_missing_end_of_the_record_fails_closed(task_state: TaskStatePlace) -> None:
    """Segments are counted as they are opened."""
    ledger = begun(task_state)
    for number in range(1, 101):
        ledger.commit([], batches(number))
    rows = task_state.airflow.rows
    for index in (2, 3):
        del rows[next(key for key in rows if key.endswith(f"/0000{index}"))]

    with pytest.raises(StateLost):
        list(begun(task_state, 2).earlier())


def test_a_crash_in_a_call_of_several_segments_loses_nothing(task_state: TaskStatePlace) -> None:
    """What was written is found, though the count of segments is older."""
    ledger = begun(task_state)
    task_state.airflow.failures = {4: KeyboardInterrupt()}
    with pytest.raises(KeyboardInterrupt):
        ledger.commit([], batches(*range(1, 101)))

    found = list(begun(task_state, 2).earlier())

    assert len(found) == 75


def test_a_clear_that_dropped_the_record_is_told_from_a_loss(task_state: TaskStatePlace) -> None:
    """Airflow 3.4 drops it on a clear; the way out depends on it."""
    begun(task_state).commit([], batches(1))
    task_state.lose()

    with pytest.raises(StateLost, match=r"was cleared.*3\.4.*restart"):
        task_state.open(2, max_tries=4).begin(IDENTITY)


def test_a_restart_does_without_the_record(task_state: TaskStatePlace, caplog: pytest.LogCaptureFixture) -> None:
    """It would forget it anyway, and says so."""
    begun(task_state).commit([], batches(1))
    task_state.lose()

    second = task_state.open(2, max_tries=4, on_clear="restart")
    second.begin(IDENTITY)

    assert list(second.earlier()) == []
    assert "everybody will be pushed" in caplog.text


def test_a_task_cleared_before_it_began_just_begins(
    task_state: TaskStatePlace, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is forgotten, so nothing is announced."""
    ledger = task_state.open(2, max_tries=4, may_have_claimed=False)

    ledger.begin(IDENTITY)

    assert caplog.text == ""


def test_a_restart_leaves_no_rubbish(task_state: TaskStatePlace) -> None:
    """And touches nobody else's keys."""
    task_state.airflow.rows["mine"] = "a user's"
    begun(task_state).commit([], batches(*range(1, 60)))

    task_state.open(2, max_tries=4, on_clear="restart").begin(IDENTITY)

    assert set(task_state.airflow.rows) == {"mine", "responsys/meta"}


def test_a_crash_while_a_restart_tidies_up_restarts_nothing_twice(task_state: TaskStatePlace) -> None:
    """One write decides; the rest is rubbish that nobody reads."""
    begun(task_state).commit([], batches(*range(1, 60)))
    second = task_state.open(2, max_tries=4, on_clear="restart")
    task_state.airflow.failures = {7: KeyboardInterrupt()}
    with pytest.raises(KeyboardInterrupt):
        second.begin(IDENTITY)

    third = task_state.open(3, max_tries=4, on_clear="restart")
    third.begin(IDENTITY)

    assert list(third.earlier()) == []


@pytest.mark.parametrize("value", ["{", '{"version": 1}', "[]", "7"])
def test_an_unreadable_record_fails_closed(task_state: TaskStatePlace, value: str) -> None:
    """Somebody else wrote there."""
    task_state.airflow.rows["responsys/meta"] = value

    with pytest.raises(LedgerFailed, match="can't be read"):
        task_state.open(1).begin(IDENTITY)


def test_a_record_of_another_kind_fails_closed(task_state: TaskStatePlace) -> None:
    """The same, with a value that is no text."""
    task_state.airflow.rows["responsys/meta"] = {"version": 1}

    with pytest.raises(LedgerFailed, match="this provider did not write"):
        task_state.open(1).begin(IDENTITY)


def test_a_record_of_a_newer_version_fails_closed(task_state: TaskStatePlace) -> None:
    """A worker that was not upgraded must not guess."""
    begun(task_state)
    rows = task_state.airflow.rows
    rows["responsys/meta"] = str(rows["responsys/meta"]).replace('"version":1', '"version":2')

    with pytest.raises(LedgerFailed, match="version 2"):
        task_state.open(2).begin(IDENTITY)


def test_an_unreadable_segment_fails_closed(task_state: TaskStatePlace) -> None:
    """Half a record is none."""
    begun(task_state).commit([], batches(1))
    rows = task_state.airflow.rows
    rows[next(key for key in rows if key.endswith("/00000"))] = "1,2,3"

    with pytest.raises(LedgerFailed, match="can't be read"):
        list(begun(task_state, 2).earlier())
