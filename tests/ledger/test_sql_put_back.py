"""A database that is put back: it lacks the newest claims, and looks whole."""

from collections.abc import Callable
from typing import Any

import pytest
from pytest_mock import MockerFixture

from airflow_provider_responsys.errors import Fenced, LedgerFailed, StateLost
from airflow_provider_responsys.ledger.commit_marks import Point
from airflow_provider_responsys.ledger.interface import FINGERPRINT_BYTES, Accepted, Claim, Holder, Released, Wanted
from airflow_provider_responsys.ledger.sql import SqlLedger
from airflow_provider_responsys.ledger.sql_tables import batches, claims, task_instances, tries
from tests.support.places import IDENTITY, Refusal, SqlPlace


def people(first: int, count: int = 3) -> list[bytes]:
    """Return the fingerprints of *count* people, numbered from *first*."""
    return [number.to_bytes(FINGERPRINT_BYTES, "big") for number in range(first, first + count)]


def begun(ledger: SqlLedger) -> SqlLedger:
    """Return *ledger* after its first act."""
    ledger.begin(IDENTITY)
    return ledger


def send(ledger: SqlLedger, *numbers: int) -> None:
    """Claim one batch for each of *numbers*, in a commit of its own, and settle it with the next."""
    settled: list[Accepted] = []
    for number in numbers:
        ledger.commit(settled, [Wanted(number, people(number * 10))])
        settled = [Accepted(number, f"id-{number}")]
    ledger.commit(settled, [])


def clean(database: SqlPlace) -> None:
    """Let Airflow remove the task's state, as a clear does from Airflow 3.4 on."""
    database.airflow().rows.clear()


@pytest.mark.parametrize("lost", [1, 2, 5])
def test_a_database_that_was_put_back_between_tries_closes_the_send(database: SqlPlace, lost: int) -> None:
    """Whom the lost commits were for can't be told: nobody is pushed, and nothing is changed."""
    first = begun(database.open(1))
    send(first, 1, 2)
    before = database.snapshot()
    send(first, *range(3, 3 + lost))
    database.put_back(before)

    with pytest.raises(StateLost, match=rf"put back .* knows 2 commits .* knows {2 + lost}\. .*on_clear") as raised:
        begun(database.open(2))
    with pytest.raises(StateLost):
        begun(database.open(3))

    assert "nothing is sent" in str(raised.value)
    assert database.snapshot() == before


def test_a_database_that_lost_only_answers_is_no_loss_of_claims(database: SqlPlace) -> None:
    """What was accepted is in doubt again: that is the truth as it stands."""
    first = begun(database.open(1))
    first.commit([], [Wanted(1, people(0))])
    before = database.snapshot()
    first.commit([Accepted(1, "4711")], [])
    database.put_back(before)

    [batch] = begun(database.open(2)).earlier()

    assert batch.request_id is None


def test_a_record_that_is_gone_closes_the_send(database: SqlPlace) -> None:
    """Whatever the XCom marks say: the state store knows of a claim."""
    first = begun(database.open(1))
    before_all = {table: [] for table in (claims, batches, tries, task_instances)}  # type: ignore[var-annotated]  # empty
    send(first, 1)
    database.put_back(before_all)

    with pytest.raises(StateLost, match=r"put back .* or lost its record: it knows 0 commits"):
        begun(database.open(2, may_have_claimed=False))


def test_a_beginning_that_is_gone_is_no_loss(database: SqlPlace) -> None:
    """A try that certainly claimed nothing stands in nobody's way."""
    first = begun(database.open(1))
    send(first, 1)
    before = database.snapshot()
    begun(database.open(2))
    database.put_back(before)

    third = begun(database.open(3))

    assert third.commit([], [Wanted(1, people(90))]) == [Claim(1)]
    assert {row["start"] for row in database.rows(tries)} == {1, 3}


def test_a_task_whose_state_was_cleaned_is_watched_from_then_on(database: SqlPlace) -> None:
    """The marks of its earlier commits are gone: the beginning tells how many there were."""
    first = begun(database.open(1))
    send(first, 1)
    before = database.snapshot()
    send(first, 2, 3, 4, 5)
    clean(database)
    second = begun(database.open(2, max_tries=4))
    send(second, 6)
    database.put_back(before)

    with pytest.raises(StateLost, match=r"knows 1 commits .* knows 6"):
        begun(database.open(3, max_tries=4))


def test_a_database_that_is_put_back_under_a_running_try_stops_it(database: SqlPlace) -> None:
    """Nothing more is claimed: the counter is not what this try wrote last."""
    ledger = begun(database.open(1))
    send(ledger, 1)
    before = database.snapshot()
    send(ledger, 2)
    database.put_back(before)

    with pytest.raises(StateLost, match="put back to an older state while this try ran"):
        ledger.commit([], [Wanted(3, people(90))])

    assert database.rows(claims) == before[claims]
    with pytest.raises(StateLost):
        begun(database.open(2))


@pytest.mark.parametrize("has_store", [True, False])
def test_a_try_that_the_database_does_not_know_any_more_is_stopped(database: SqlPlace, has_store: bool) -> None:
    """It was put back to before its beginning; a running try needs no mark to see that."""
    database.has_store = has_store
    begun(database.open(1))
    before = database.snapshot()
    second = begun(database.open(2))
    send(second, 1)
    database.put_back(before)

    with pytest.raises(StateLost, match="put back"):
        second.commit([], [Wanted(2, people(90))])


def test_a_restart_opens_a_database_that_was_put_back(database: SqlPlace) -> None:
    """A person said that everybody may be pushed again; from then on it is watched as before."""
    first = begun(database.open(1))
    send(first, 1)
    before = database.snapshot()
    send(first, 2, 3, 4)
    database.put_back(before)

    restarted = begun(database.open(2, max_tries=4, on_clear="restart"))
    after = database.snapshot()
    send(restarted, 1, 2)

    retry = begun(database.open(3, max_tries=4, on_clear="restart"))
    assert [batch.request_id for batch in retry.earlier()] == ["id-1", "id-2"]
    database.put_back(after)
    with pytest.raises(StateLost, match=r"knows 4 commits .* knows 6"):
        begun(database.open(4, max_tries=4, on_clear="restart"))


def test_a_retry_after_a_restart_that_is_gone_is_no_restart(database: SqlPlace) -> None:
    """The tables know the clear no more: without the marks, the retry would look like one."""
    send(begun(database.open(1)), 1)
    before = database.snapshot()
    send(begun(database.open(2, max_tries=4, on_clear="restart")), 2)
    database.put_back(before)

    with pytest.raises(StateLost, match="put back"):
        begun(database.open(3, max_tries=4, on_clear="restart"))


def test_a_restart_does_not_push_whom_another_task_claimed(database: SqlPlace) -> None:
    """Its marks say nothing of other tasks: their claims are as the tables have them."""
    other = begun(database.open(task_instance="other"))
    other.commit([], [Wanted(1, people(0))])
    first = begun(database.open(1))
    before = database.snapshot()
    send(first, 2)
    database.put_back(before)

    restarted = begun(database.open(2, max_tries=4, on_clear="restart"))

    assert restarted.commit([], [Wanted(1, people(0, 4))]) == [Claim(1, dict.fromkeys(range(3), Holder.OTHER))]


def test_each_commit_that_claims_is_marked_before_it_returns(database: SqlPlace) -> None:
    """What is only settled needs no mark: a lost answer is a doubt."""
    ledger = begun(database.open(1))
    rows = database.airflow().rows
    marked = []

    for number in (1, 2):
        ledger.commit([], [Wanted(number, people(number * 10))])
        marked.append(sorted(key for key in rows if "committed" in key))
    ledger.commit([Accepted(1, "4711"), Released(2)], [])

    assert marked == [["responsys/committed/1"], ["responsys/committed/1", "responsys/committed/2"]]
    assert len([key for key in rows if "committed" in key]) == 2
    assert [row["claim_count"] for row in database.rows(task_instances)] == [2]


FAILURES = [Refusal(500), OSError("no answer"), Refusal(404)]


@pytest.mark.parametrize("failure", FAILURES, ids=["an answer", "no answer", "a replaced try"])
def test_without_its_mark_nothing_is_claimed(database: SqlPlace, failure: Exception) -> None:
    """Its claims are released at once, for its requests will not leave."""
    ledger = begun(database.open(1))
    send(ledger, 1)
    database.airflow().failures = {1: failure}

    with pytest.raises(LedgerFailed) as raised:
        ledger.commit([], [Wanted(2, people(90))])

    assert isinstance(raised.value, Fenced) == (failure is FAILURES[2])
    assert [row["request_id"] for row in database.rows(batches)] == ["id-1"]
    assert [batch.request_id for batch in begun(database.open(2)).earlier()] == ["id-1"]


def test_claims_without_a_mark_are_released_by_the_next_commit(database: SqlPlace, mocker: MockerFixture) -> None:
    """The database failed, too, at that moment."""
    ledger = begun(database.open(1))
    mocker.patch.object(ledger._marks, "committed", side_effect=LedgerFailed("the store is down"))
    release = mocker.patch.object(ledger._began(), "release", side_effect=LedgerFailed("the database is down"))
    with pytest.raises(LedgerFailed, match="the store is down"):
        ledger.commit([], [Wanted(1, people(0))])
    mocker.stop(release)
    left = len(database.rows(claims))

    ledger.commit([], [])

    assert (left, database.rows(claims), database.rows(batches)) == (3, [], [])


def test_a_mark_that_is_missing_is_written_before_the_next_claim(database: SqlPlace) -> None:
    """So there is no gap in them, behind which a loss could hide."""
    ledger = begun(database.open(1))
    airflow = database.airflow()
    airflow.failures = {1: Refusal(500)}
    with pytest.raises(LedgerFailed):
        ledger.commit([], [Wanted(1, people(0))])
    airflow.calls.clear()

    ledger.commit([], [Wanted(2, people(0))])

    assert airflow.calls == [("set", "responsys/committed/1"), ("set", "responsys/committed/2")]


def test_a_mark_that_is_missing_is_written_by_the_next_try(database: SqlPlace) -> None:
    """A try that died between its commit and its mark posted nothing."""
    first = begun(database.open(1))
    send(first, 1)
    before = database.snapshot()
    database.airflow().failures = {1: Refusal(500)}
    with pytest.raises(LedgerFailed):
        first.commit([], [Wanted(2, people(90))])

    send(begun(database.open(2)), 3)
    database.put_back(before)

    with pytest.raises(StateLost, match=r"knows 1 commits .* knows 3"):
        begun(database.open(3))


def test_a_late_copy_of_a_mark_changes_nothing(database: SqlPlace) -> None:
    """A write that got no answer is done hours later, when others have claimed."""
    first = begun(database.open(1))
    database.airflow().failures = {1: OSError("no answer")}
    with pytest.raises(LedgerFailed):
        first.commit([], [Wanted(1, people(0))])
    second = begun(database.open(2))
    second.commit([], [Wanted(1, people(0))])

    database.airflow().rows["responsys/committed/1"] = "1"

    second.commit([], [Wanted(2, people(10))])
    third = begun(database.open(3))
    assert len(list(third.earlier())) == 2
    assert third.commit([], [Wanted(1, people(20))]) == [Claim(1)]


@pytest.mark.parametrize("committed", [True, False])
def test_a_commit_whose_end_is_unknown_is_looked_up(database: SqlPlace, mocker: MockerFixture, committed: bool) -> None:
    """The connection broke at the COMMIT: it was done, or not, and the next commit goes on from either."""
    ledger = begun(database.open(1))
    attempt = ledger._database.attempt

    def break_at_the_end(work: Callable[[Any], Any]) -> Any:
        if committed:
            attempt(work)
        raise LedgerFailed("the connection broke")

    broken = mocker.patch.object(ledger._database, "attempt", side_effect=break_at_the_end)
    with pytest.raises(LedgerFailed, match="broke"):
        ledger.commit([], [Wanted(1, people(0))])
    mocker.stop(broken)

    assert ledger.commit([], [Wanted(2, people(0))]) == [Claim(2)]
    assert [row["number"] for row in database.rows(batches)] == [2]
    assert "responsys/committed/1" in database.airflow().rows
    assert ("responsys/committed/2" in database.airflow().rows) is committed


def test_what_was_in_doubt_stays_so_where_the_mark_fails(database: SqlPlace) -> None:
    """It moved into the batch that was to go out again, and may have been pushed before."""
    begun(database.open(1)).commit([], [Wanted(1, people(0))])
    second = begun(database.open(2))
    [doubt] = second.earlier()
    database.airflow().failures = {1: Refusal(500)}

    with pytest.raises(LedgerFailed):
        second.commit([], [Wanted(1, people(0), doubt)])

    [left] = begun(database.open(3)).earlier()
    assert (left.request_id, left.fingerprints) == (None, people(0))


def test_a_beginning_without_its_mark_fails(database: SqlPlace) -> None:
    """What it would claim could not be watched; the next try begins as if it had not been there."""
    database.airflow().failures = {3: Refusal(500)}  # after it asked for the beginning, and for the commit

    with pytest.raises(LedgerFailed):
        begun(database.open(1))

    second = begun(database.open(2))
    assert second.commit([], [Wanted(1, people(0))]) == [Claim(1)]
    assert {"responsys/begun/1", "responsys/begun/2"} <= set(database.airflow().rows)


def test_a_try_that_airflow_replaced_does_not_begin(database: SqlPlace) -> None:
    """To it, the marks look as if they were not there; its own mark is refused."""
    late = database.open(2, may_have_claimed=True)
    send(begun(database.open(1)), 1)
    database.open(3)

    with pytest.raises(Fenced):
        begun(late)


def test_a_try_that_begins_meanwhile_is_found(database: SqlPlace, mocker: MockerFixture) -> None:
    """Between the look at the tables and the write, the marks are asked: what was decided on is looked at again."""
    second, other = database.open(2, may_have_claimed=False), database.open(2, may_have_claimed=False, instance_id="0")
    third = database.open(3)
    rivals = iter([other, third])
    real = second._marks.newest if second._marks else None
    assert real

    def newest(known: Point) -> Point:
        for rival in rivals:
            rival._marks = None  # Airflow would refuse it
            begun(rival)
            break
        return real(known)

    mocker.patch.object(second._marks, "newest", side_effect=newest)

    with pytest.raises(Fenced):
        begun(second)

    assert sorted(row["try_number"] for row in database.rows(tries)) == [2, 3]


def test_a_database_that_is_put_back_under_a_beginning_closes_the_send(
    database: SqlPlace, mocker: MockerFixture
) -> None:
    """Between the look at the tables and the write."""
    first = begun(database.open(1))
    before = database.snapshot()
    send(first, 1)
    ledger = database.open(2)
    assert ledger._marks
    real = ledger._marks.newest

    def newest(known: Point) -> Point:
        database.put_back(before)
        return real(known)

    mocker.patch.object(ledger._marks, "newest", side_effect=newest)

    with pytest.raises(StateLost, match="put back"):
        begun(ledger)


def claimed_and_put_back(database: SqlPlace, old: SqlLedger, new: SqlLedger, mocker: MockerFixture) -> None:
    """Let *old* claim when *new* has read the marks, and the database lose that claim before *new* writes.

    Airflow may start one try twice under one id: its state store refuses the writes of neither.
    """
    before = database.snapshot()
    assert new._marks
    old._marks = new._marks
    real, first = new._marks.newest, iter([True])

    def newest(known: Point) -> Point:
        found = real(known)
        if next(first, False):
            send(old, 7)
            database.put_back(before)
        return found

    mocker.patch.object(new._marks, "newest", side_effect=newest)


def test_a_claim_that_is_marked_and_put_back_under_a_beginning_closes_the_send(
    database: SqlPlace, mocker: MockerFixture
) -> None:
    """The tables are as they were seen, and the marks are not: the earlier try has pushed since."""
    old = begun(database.open(1))
    send(old, 1)
    new = database.open(2)
    claimed_and_put_back(database, old, new, mocker)

    with pytest.raises(StateLost, match=r"put back .* knows 1 commits .* knows 2"):
        begun(new)
    with pytest.raises(StateLost, match="put back"):
        begun(database.open(3))


def test_a_restart_goes_on_from_a_claim_that_is_put_back_as_it_begins(
    database: SqlPlace, mocker: MockerFixture
) -> None:
    """It forgets claims anyway; its own commits count on from the marks, so that they are told from those before."""
    old = begun(database.open(1))
    send(old, 1)
    new = database.open(2, max_tries=4, on_clear="restart")
    claimed_and_put_back(database, old, new, mocker)

    begun(new)
    send(new, 8)

    counts = [row["claim_count"] for row in database.rows(task_instances)]
    assert counts == [3]
    [batch] = begun(database.open(3, max_tries=4, on_clear="restart")).earlier()
    assert batch.fingerprints == people(80)


def test_a_try_does_not_look_again_for_ever(database: SqlPlace, mocker: MockerFixture) -> None:
    """Where one after the other begins, none of them is the newest for long."""
    ledger = database.open(2, may_have_claimed=False)

    def newest(known: Point) -> Point:
        rival = database.open(2, may_have_claimed=False, instance_id="0")
        rival._marks = None  # Airflow would refuse it
        begun(rival)
        return known

    mocker.patch.object(ledger._marks, "newest", side_effect=newest)

    with pytest.raises(LedgerFailed, match="begin at the same time"):
        begun(ledger)
