"""What the task state ledger promises beyond the contract: few, small writes, and fences."""

import itertools
import random
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from datetime import timedelta
from functools import partial
from types import SimpleNamespace

import pytest

from airflow_provider_responsys.errors import Fenced, LedgerFailed, SettingsChanged, StateLost
from airflow_provider_responsys.ledger.interface import FINGERPRINT_BYTES, Accepted, Released, Settlement, Wanted
from airflow_provider_responsys.ledger.task_record import MAX_COMMITS, NEVER, Start, pack
from airflow_provider_responsys.ledger.task_state import TaskStateLedger
from tests.support.places import IDENTITY, Refusal, TaskStatePlace


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


def test_rows_never_expire(task_state: TaskStatePlace) -> None:
    """A clear may come months later."""
    begun(task_state).commit([], batches(1))

    assert task_state.airflow.retentions == {timedelta.max}


def test_keys_are_ascii_under_one_prefix(task_state: TaskStatePlace) -> None:
    """Airflow's client trips over others under `dag.test`."""
    begun(task_state).commit([], batches(1))

    assert all(key.isascii() and key.startswith("responsys/") for key in task_state.airflow.rows)


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
    begun(task_state).commit([], batches(*range(1, 60)))
    second = begun(task_state, 2)
    begun(task_state, 3)

    with pytest.raises(Fenced):
        list(second.earlier())


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
    assert "all recipients are pushed" in caplog.text


def test_a_task_cleared_before_it_began_just_begins(
    task_state: TaskStatePlace, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is forgotten, so nothing is announced."""
    ledger = task_state.open(2, max_tries=4, may_have_claimed=False)

    ledger.begin(IDENTITY)

    assert caplog.text == ""


def written(place: TaskStatePlace) -> list[str]:
    """Return the keys written since the last look, without the prefix."""
    keys = [key.removeprefix("responsys/") for name, key in place.airflow.calls if name == "set"]
    place.airflow.calls.clear()
    return keys


def test_one_commit_is_one_write_beside_the_fingerprints(task_state: TaskStatePlace) -> None:
    """A write takes 13 ms, whatever is in it."""
    ledger = begun(task_state)

    ledger.commit([], batches(1, 2), [people(3)])
    first = written(task_state)
    ledger.commit(accepted(1), batches(3))
    second = written(task_state)
    ledger.commit([], [])

    assert first == ["people/1/0/0", "log/1/0/0"]
    assert second == ["log/1/0/1"]
    assert written(task_state) == []


def test_fingerprints_are_written_for_25_batches_before_any_of_them_is_claimed(task_state: TaskStatePlace) -> None:
    """Those that come next stand there already, and are no doubt as long as they are not claimed."""
    ledger = begun(task_state)
    ledger.commit([], batches(1), [people(number) for number in range(2, 40)])

    for number in range(2, 27):
        ledger.commit(accepted(number - 1), batches(number), [people(other) for other in range(number + 1, 40)])
    found = list(begun(task_state, 2).earlier())

    assert [key for key in task_state.airflow.rows if "/people/" in key] == [
        "responsys/people/1/0/0",
        "responsys/people/1/0/1",
    ]
    assert [batch.request_id is None for batch in found] == [False] * 25 + [True]


def test_a_batch_that_is_claimed_again_is_written_once(task_state: TaskStatePlace) -> None:
    """It was released, and its fingerprints still stand where they stood."""
    ledger = begun(task_state)
    ledger.commit([], batches(1, 2))
    written(task_state)

    ledger.commit([Released(1)], [Wanted(3, people(1))])

    assert written(task_state) == ["log/1/0/1"]
    assert [batch.label for batch in begun(task_state, 2).earlier()] == ["try 1, batch 2", "try 1, batch 3"]


def test_about_25_commits_are_summed_up(task_state: TaskStatePlace) -> None:
    """A retry reads the sums, and at most 25 commits one by one."""
    ledger = begun(task_state)
    for number in range(1, 101):
        ledger.commit(accepted(number - 1) if number > 1 else [], batches(number, count=1))
    second = task_state.open(2)
    task_state.airflow.calls.clear()

    second.begin(IDENTITY)

    kinds = [key.split("/")[1] for name, key in task_state.airflow.calls if name == "get"]
    assert (kinds.count("sum"), kinds.count("log")) == (5, 28)
    assert len(list(second.earlier())) == 100


def test_only_what_is_open_is_kept_in_memory(task_state: TaskStatePlace) -> None:
    """A million fingerprints would take 12 MB."""
    ledger = begun(task_state)
    for number in range(1, 500):
        ledger.commit(accepted(number - 1) if number > 1 else [], batches(number))

    assert sum(len(text) for text in ledger._written._texts) < 5_000
    assert len(ledger._written.places) <= 25
    assert len(ledger._written.claimed) == 1


def test_values_stay_under_airflows_limit(task_state: TaskStatePlace) -> None:
    """Past 65,535 bytes Airflow warns at each write, and a million recipients have 16 MB."""
    ledger = begun(task_state)
    for start in range(1, 5001, 50):
        numbers = range(start, start + 50)
        ledger.commit([], batches(*numbers))
        ledger.commit([Accepted(number, f"{10**23 + number}") for number in numbers], [])

    rows = task_state.airflow.rows
    assert all(isinstance(value, str) and value.isascii() and len(value) <= 65_000 for value in rows.values())
    assert sum("/people/" in key for key in rows) == 200
    assert sum(len(key) + len(str(value)) for key, value in rows.items()) < 16_000_000


def test_large_batches_and_long_ids_stay_under_the_limit(task_state: TaskStatePlace) -> None:
    """What does not fit any more goes into the next key."""
    ledger = begun(task_state)

    for number in range(0, 320, 64):
        wanted = batches(*range(number, number + 64), count=210)
        ledger.commit([], wanted)
        ledger.commit([Accepted(want.number, "x" * 500) for want in wanted], [])
    ledger.commit([], batches(1000))

    assert max(len(str(value)) for value in task_state.airflow.rows.values()) <= 80_000
    assert len(list(begun(task_state, 2).earlier())) == 321


def test_reading_back_holds_a_few_keys(task_state: TaskStatePlace) -> None:
    """A retry of a million recipients needs no more memory than its first try."""
    begun(task_state).commit([], batches(*range(1, 201)))
    second = begun(task_state, 2)

    found = sum(1 for _ in second.earlier())

    assert found == 200
    assert len(second._reader._people) == 4


# What is late, repeated, or missing


class Copies:
    """An accessor that keeps every write, and whether it was acknowledged."""

    def __init__(self, place: TaskStatePlace, chance: random.Random) -> None:
        self.place = place
        self.chance = chance
        self.writes: list[tuple[str, str, bool]] = []

    def write(self, real: Callable[[str, str], None], key: str, value: str) -> None:
        """Let some writes fail: done or not, later or at once, the ledger is told that they were not."""
        fate = self.chance.random()
        self.writes.append((key, value, fate >= 0.15))
        if fate < 0.15:
            if fate < 0.05:
                real(key, value)
            raise Refusal(500)
        real(key, value)


UNCERTAIN = ("released", "may be recorded")


def program(place: TaskStatePlace, copies: Copies) -> dict[bytes, str | None]:
    """Let several tries claim, settle and fail; return what was acknowledged: who is claimed, and as what."""
    chance, person, truth = copies.chance, 0, dict[bytes, str | None]()
    for try_number in range(1, 4):
        ledger = place.open(try_number, may_have_claimed=False)
        accessor = place.airflow.current
        assert accessor is not None
        accessor.set = partial(lambda real, key, value, retention: copies.write(real, key, value), accessor.set)  # type: ignore[method-assign]  # this one only
        try:
            ledger.begin(IDENTITY)
        except LedgerFailed:
            continue
        open_batches: dict[int, Wanted] = {}
        failures = 0
        for number in range(1, chance.randint(2, 80)):
            settled: list[Settlement] = [
                Released(one) if chance.random() < 0.2 else Accepted(one, f"id-{try_number}-{one}")
                for one in chance.sample(sorted(open_batches), min(len(open_batches), chance.randint(0, 3)))
            ]
            wanted = [Wanted(number, people(person, chance.randint(1, 3)))] if chance.random() < 0.8 else []
            person += 1
            try:
                ledger.commit(settled, wanted, [people(person + ahead, 1) for ahead in range(3)])
            except LedgerFailed:
                for answer in settled:  # it is true, recorded or not
                    truth.update(dict.fromkeys(open_batches[answer.number].fingerprints, "may be recorded"))
                failures += 1
                if failures == 2:  # a sender writes once more, and ends
                    break
                continue
            for answer in settled:
                for one in open_batches.pop(answer.number).fingerprints:
                    truth[one] = answer.request_id if isinstance(answer, Accepted) else "released"
            for want in wanted:
                open_batches[want.number] = want
                truth.update(dict.fromkeys(want.fingerprints, None))
    return truth


@pytest.mark.parametrize("seed", range(40))
def test_no_acknowledged_claim_is_missing_whatever_else_was_written(task_state: TaskStatePlace, seed: int) -> None:
    """Any subset that holds every acknowledged write, in any order and repeated, says the same or a doubt more."""
    chance = random.Random(seed)  # noqa: S311 -- a seeded schedule, no secret
    copies = Copies(task_state, chance)
    truth = program(task_state, copies)

    by_key: dict[str, set[str]] = {}
    for key, value, _ in copies.writes:
        if "/try/" not in key:
            by_key.setdefault(key, set()).add(value)
    some = [(key, value) for key, value, acknowledged in copies.writes if acknowledged or chance.random() < 0.5]
    again = [write for write in some if chance.random() < 0.5]
    chance.shuffle(again)
    last = {key: value for key, value, acknowledged in copies.writes if acknowledged}
    chance.shuffle(some)
    task_state.airflow.rows = {key: last.get(key, value) for key, value in [*some, *again]}
    reader = begun(task_state, 4)
    found = {one: batch.request_id for batch in reader.earlier() for one in batch.fingerprints}

    assert all(len(values) == 1 for values in by_key.values())
    assert {one for one, answer in truth.items() if answer not in UNCERTAIN} <= set(found)
    assert all(found[one] == answer for one, answer in truth.items() if answer not in (None, *UNCERTAIN))


def test_a_write_that_is_done_hours_late_erases_nothing(task_state: TaskStatePlace) -> None:
    """Airflow gave it up and repeated it; the first copy is done when the next try has claimed more."""
    ledger = begun(task_state)
    late: list[tuple[str, str]] = []
    accessor = task_state.airflow.current
    assert accessor is not None
    real = accessor.set

    def keep(key: str, value: str, *, retention: timedelta | None = None) -> None:
        late.append((key, value))
        real(key, value, retention=retention)

    accessor.set = keep  # type: ignore[method-assign]  # this one only
    for number in range(1, 60):
        ledger.commit(accepted(number - 1) if number > 1 else [], batches(number))
    begun(task_state, 2).commit([], batches(60))

    for key, value in late:
        task_state.airflow.rows[key] = value
    found = list(begun(task_state, 3).earlier())

    assert [batch.request_id is None for batch in found] == [False] * 58 + [True, True]


def test_a_late_beginning_changes_nothing_of_the_start_that_took_its_place(task_state: TaskStatePlace) -> None:
    """The first start's write came to nothing, so the second one, of the same try, has its keys."""
    first = task_state.open(1)
    task_state.airflow.failures = {2 + 1: TimeoutError("no answer")}
    with pytest.raises(LedgerFailed):
        first.begin(IDENTITY)
    lost = Start(pack(b"another key, 16b"), {"campaign_name": "Other"}, 3, NEVER).write()
    begun(task_state).commit([], batches(1))

    task_state.airflow.rows["responsys/try/1/0"] = lost
    second = task_state.open(2)
    key = second.begin(IDENTITY)

    assert key != b"another key, 16b"
    assert [batch.fingerprints for batch in second.earlier()] == [people(1)]


def test_a_second_start_of_a_try_goes_on_from_the_first(task_state: TaskStatePlace) -> None:
    """Airflow lets the same host and process number begin it again, under the same task instance id."""
    begun(task_state).commit([], batches(1))
    again = task_state.open(1, may_have_claimed=True)

    again.begin(IDENTITY)
    again.commit([], batches(2))

    assert [batch.fingerprints for batch in again.earlier()] == [people(1)]
    assert sorted(key for key in task_state.airflow.rows if "/log/" in key) == [
        "responsys/log/1/0/0",
        "responsys/log/1/1/0",
    ]
    assert [batch.fingerprints for batch in begun(task_state, 2).earlier()] == [people(1), people(2)]


def test_a_late_copy_brings_no_older_generation_back(task_state: TaskStatePlace) -> None:
    """A restart says from which start on claims count."""
    begun(task_state).commit([], batches(1, 2))
    before = dict(task_state.airflow.rows)
    restarted = task_state.open(2, max_tries=4, on_clear="restart")
    restarted.begin(IDENTITY)
    restarted.commit([], batches(3))

    task_state.airflow.rows.update(before)
    third = task_state.open(3, max_tries=4)
    third.begin(IDENTITY)

    assert [batch.fingerprints for batch in third.earlier()] == [people(3)]


@pytest.mark.parametrize("kind", ["try/1/0", "people/1/0/0", "sum/1/0/0", "log/1/0/52"])
def test_a_part_that_is_missing_fails_closed(task_state: TaskStatePlace, kind: str) -> None:
    """Housekeeping by age takes the oldest first, a person anything: what is left is not everything."""
    ledger = begun(task_state)
    for number in range(1, 61):
        ledger.commit([], batches(number))
    begun(task_state, 2)

    del task_state.airflow.rows[f"responsys/{kind}"]
    if kind.startswith("sum"):
        del task_state.airflow.rows["responsys/log/1/0/7"]

    with pytest.raises(StateLost, match="restart"):
        list(begun(task_state, 3).earlier())


def test_a_sum_that_is_missing_is_read_commit_by_commit(task_state: TaskStatePlace) -> None:
    """It says nothing that the commits did not say."""
    ledger = begun(task_state)
    for number in range(1, 30):
        ledger.commit([], batches(number))

    del task_state.airflow.rows["responsys/sum/1/0/0"]

    assert len(list(begun(task_state, 2).earlier())) == 29


def claim_until_summed_up(place: TaskStatePlace, *fates: str) -> set[bytes]:
    """Let a try claim, a batch a commit, until it has written as many sums as *fates*; return who is claimed.

    A fate is that of the first write of a sum: ``done``, or, as the ledger is told that
    it was not done, ``stored`` or ``refused``. Each but the last of these is repeated.
    """
    ledger, claimed = begun(place), set[bytes]()
    waiting = {f"responsys/sum/1/0/{number}": fate for number, fate in enumerate(fates)}
    accessor = place.airflow.current
    assert accessor is not None
    real = accessor.set

    def write(key: str, value: str, *, retention: timedelta | None = None) -> None:
        fate = waiting.pop(key, "done")
        if fate != "refused":
            real(key, value, retention=retention)
        if fate != "done":
            raise Refusal(500)

    accessor.set = write  # type: ignore[method-assign]  # this one only
    for number in itertools.count(1):
        with suppress(LedgerFailed):
            ledger.commit([], batches(number, count=1))
            claimed.update(people(number, 1))
        if not waiting:
            return claimed
    raise AssertionError


EVERY_FATE = list(itertools.product(("done", "stored", "refused"), repeat=3))


@pytest.mark.parametrize("fates", EVERY_FATE, ids="-".join)
def test_sums_have_no_gap(task_state: TaskStatePlace, fates: tuple[str, ...]) -> None:
    """Each is acknowledged before the next one is written, so no write that may be missing leaves one."""
    claimed = claim_until_summed_up(task_state, *fates)

    sums = sorted(key for key in task_state.airflow.rows if "/sum/" in key)
    found = {one for batch in begun(task_state, 2).earlier() for one in batch.fingerprints}

    assert sums == [f"responsys/sum/1/0/{number}" for number in range(len(sums))]
    assert len(sums) == 3 - (fates[-1] == "refused")
    assert found == claimed


EVERY_LOSS = [lost for count in range(1, 5) for lost in itertools.combinations(range(4), count)]


@pytest.mark.parametrize("lost", EVERY_LOSS, ids=str)
def test_sums_that_are_lost_take_no_claims_with_them(task_state: TaskStatePlace, lost: tuple[int, ...]) -> None:
    """While the commits stand, a gap closes the send, or is read commit by commit, however deep it is."""
    claimed = claim_until_summed_up(task_state, *["done"] * 4)

    for number in lost:
        del task_state.airflow.rows[f"responsys/sum/1/0/{number}"]
    if lost[0] < 3 and lost[0] + 1 not in lost:
        with pytest.raises(StateLost):
            begun(task_state, 2)
        return
    found = {one for batch in begun(task_state, 2).earlier() for one in batch.fingerprints}

    assert found == claimed


@pytest.mark.parametrize("number", range(3))
def test_a_sum_that_is_lost_with_its_commits_fails_closed(task_state: TaskStatePlace, number: int) -> None:
    """The next sum tells that there was one."""
    claim_until_summed_up(task_state, *["done"] * 4)

    del task_state.airflow.rows[f"responsys/sum/1/0/{number}"]
    for commit in range(number * MAX_COMMITS, (number + 1) * MAX_COMMITS):
        del task_state.airflow.rows[f"responsys/log/1/0/{commit}"]

    with pytest.raises(StateLost, match="restart"):
        begun(task_state, 2)


def test_a_restart_removes_the_fingerprints(task_state: TaskStatePlace) -> None:
    """And touches no keys of others."""
    task_state.airflow.rows["mine"] = "a user's"
    begun(task_state).commit([], batches(*range(1, 60)))

    task_state.open(2, max_tries=4, on_clear="restart").begin(IDENTITY)

    assert task_state.airflow.rows["mine"] == "a user's"
    assert not [key for key in task_state.airflow.rows if "/people/" in key]


def test_a_crash_while_a_restart_tidies_up_restarts_nothing_twice(task_state: TaskStatePlace) -> None:
    """One write decides; the rest is never read."""
    begun(task_state).commit([], batches(*range(1, 60)))
    second = task_state.open(2, max_tries=4, on_clear="restart")
    task_state.airflow.failures = {9: KeyboardInterrupt()}
    with pytest.raises(KeyboardInterrupt):
        second.begin(IDENTITY)

    third = task_state.open(3, max_tries=4, on_clear="restart")
    third.begin(IDENTITY)

    assert list(third.earlier()) == []


class Shard:
    """What a mapped task reads."""

    def __init__(self, *numbers: int) -> None:
        self.numbers = numbers

    def fingerprints(self) -> Iterable[list[bytes]]:
        """Yield three recipients for each number."""
        return [people(number, 3) for number in self.numbers]

    def strangers(self, known: Iterable[Sequence[bytes]]) -> int:
        """Count those who are not in *known*."""
        return len({one for batch in self.fingerprints() for one in batch} - {one for batch in known for one in batch})


def mapped(place: TaskStatePlace, try_number: int, shard: Shard) -> TaskStateLedger:
    """Return the ledger of a mapped task that has read *shard*."""
    ledger = place.open(try_number, by_position=True)
    ledger.begin(IDENTITY)
    ledger.compare(shard)
    return ledger


def test_a_mapped_task_that_gets_other_recipients_fails_closed(task_state: TaskStatePlace) -> None:
    """It has a position and no name: another position may have pushed them."""
    mapped(task_state, 1, Shard(*range(1, 31))).commit([], [Wanted(1, people(1, 3))])
    mapped(task_state, 2, Shard(*range(1, 20))).commit([], [Wanted(1, people(2, 3))])

    with pytest.raises(SettingsChanged, match=r"^6 recipients.*ledger_conn_id"):
        mapped(task_state, 3, Shard(*range(1, 33)))

    assert sum("/people/1/0" in key for key in task_state.airflow.rows) == 2


def test_a_mapped_task_that_claimed_nothing_may_read_anything(task_state: TaskStatePlace) -> None:
    """No recipient of the other list was pushed from this position."""
    mapped(task_state, 1, Shard(1, 2))

    mapped(task_state, 2, Shard(3, 4)).commit([], [Wanted(1, people(3, 3))])

    with pytest.raises(SettingsChanged):
        mapped(task_state, 3, Shard(1))


@pytest.mark.parametrize("value", ["{", '{"version": 2}', "[]", "7"])
def test_an_unreadable_record_fails_closed(task_state: TaskStatePlace, value: str) -> None:
    """Another program wrote there."""
    task_state.airflow.rows["responsys/try/1/0"] = value

    with pytest.raises(LedgerFailed, match="can't be read"):
        task_state.open(1).begin(IDENTITY)


def test_a_record_of_another_kind_fails_closed(task_state: TaskStatePlace) -> None:
    """The same, with a value that is no text."""
    task_state.airflow.rows["responsys/try/1/0"] = {"version": 1}

    with pytest.raises(LedgerFailed, match="this provider did not write"):
        task_state.open(1).begin(IDENTITY)


def test_a_record_of_another_version_fails_closed(task_state: TaskStatePlace) -> None:
    """A worker that was not upgraded must not guess, nor one that was."""
    begun(task_state)
    rows = task_state.airflow.rows
    rows["responsys/try/1/0"] = str(rows["responsys/try/1/0"]).replace('"version":2', '"version":3')

    with pytest.raises(LedgerFailed, match="version 3"):
        task_state.open(2).begin(IDENTITY)
    rows["responsys/meta"] = "{}"
    with pytest.raises(LedgerFailed, match="version 1"):
        task_state.open(2).begin(IDENTITY)


@pytest.mark.parametrize("kind", ["people", "log"])
@pytest.mark.parametrize("value", ["1,2,3", "", "1,2,3;x", "0,0,-1;c,1", "0,0,-1;c,a,b,c,d,e,f", "{}"])
def test_an_unreadable_part_fails_closed(task_state: TaskStatePlace, kind: str, value: str) -> None:
    """Half a record is none."""
    begun(task_state).commit([], batches(1))
    task_state.airflow.rows[f"responsys/{kind}/1/0/0"] = value

    with pytest.raises(LedgerFailed):
        list(begun(task_state, 2).earlier())
