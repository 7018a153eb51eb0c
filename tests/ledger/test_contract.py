"""What every durable ledger promises, whatever it is kept in."""

import random
from collections import Counter
from datetime import timedelta

import pytest

from airflow_provider_responsys.errors import Fenced, LedgerFailed, SettingsChanged, StateLost
from airflow_provider_responsys.ledger.interface import (
    FINGERPRINT_BYTES,
    Accepted,
    Claim,
    Earlier,
    Ledger,
    Released,
    Settlement,
    Wanted,
)
from airflow_provider_responsys.ledger.tries import OnClear
from tests.support.places import IDENTITY, Place


def people(first: int, count: int = 3) -> list[bytes]:
    """Return the fingerprints of *count* people, numbered from *first*."""
    return [number.to_bytes(FINGERPRINT_BYTES, "big") for number in range(first, first + count)]


def begun(ledger: Ledger) -> Ledger:
    """Return *ledger* after its first act."""
    ledger.begin(IDENTITY)
    return ledger


def left(ledger: Ledger) -> dict[str, tuple[list[bytes], str | None]]:
    """Return what earlier tries left, by label."""
    return {batch.label: (sorted(batch.fingerprints), batch.request_id) for batch in ledger.earlier()}


def won(wanted: Wanted, claim: Claim) -> list[bytes]:
    """Return whom *claim* lets go out."""
    return [one for index, one in enumerate(wanted.fingerprints) if index not in claim.lost]


def test_says_that_it_is_durable(place: Place) -> None:
    """The operator tells from it whether a retry is safe."""
    assert place.open().durable


def test_a_first_try_finds_nothing_and_wins_everything(place: Place) -> None:
    """Nobody has been sent anything yet."""
    ledger = begun(place.open())

    claims = ledger.commit([], [Wanted(1, people(0)), Wanted(2, people(3))])

    assert left(ledger) == {}
    assert claims == [Claim(1), Claim(2)]


def test_a_later_try_fingerprints_with_the_same_key(place: Place) -> None:
    """Otherwise it would recognise nobody."""
    key = place.open(1).begin(IDENTITY)

    again = place.open(2).begin(IDENTITY)

    assert again == key
    assert len(key) >= 16


def test_a_claim_without_an_answer_is_in_doubt(place: Place) -> None:
    """A crash, a kill and a lost answer all leave that same record."""
    begun(place.open(1)).commit([], [Wanted(17, people(0))])

    [batch] = begun(place.open(2)).earlier()

    assert sorted(batch.fingerprints) == people(0)
    assert batch.request_id is None
    assert batch.since == place.now
    assert batch.label == "try 1, batch 17"


def test_an_accepted_batch_keeps_its_request_id(place: Place) -> None:
    """A retry reports it as accepted, and polls it."""
    first = begun(place.open(1))
    first.commit([], [Wanted(1, people(0)), Wanted(2, people(3))])
    first.commit([Accepted(2, "4711; ,é")], [])

    found = left(begun(place.open(2)))

    assert found == {"try 1, batch 1": (people(0), None), "try 1, batch 2": (people(3), "4711; ,é")}


def test_a_released_batch_is_forgotten(place: Place) -> None:
    """Nobody in it was pushed, so a retry sends to them."""
    first = begun(place.open(1))
    first.commit([], [Wanted(1, people(0)), Wanted(2, people(3))])
    first.commit([Released(1), Accepted(2, "4711")], [])

    second = begun(place.open(2))

    assert left(second) == {"try 1, batch 2": (people(3), "4711")}
    assert second.commit([], [Wanted(1, people(0))]) == [Claim(1)]


def test_a_released_batch_may_be_claimed_in_the_same_call(place: Place) -> None:
    """Settlements come before claims."""
    first = begun(place.open(1))
    first.commit([], [Wanted(1, people(0))])

    claims = first.commit([Released(1)], [Wanted(2, people(0))])

    assert claims == [Claim(2)]
    assert left(begun(place.open(2))) == {"try 1, batch 2": (people(0), None)}


def doubts(ledger: Ledger) -> dict[str, Earlier]:
    """Return what earlier tries left in doubt, by label."""
    return {batch.label: batch for batch in ledger.earlier() if batch.request_id is None}


def test_who_is_in_doubt_moves_into_the_batch_that_goes_out_again(place: Place) -> None:
    """At least once: at each moment one batch says that they may have been pushed."""
    first = begun(place.open(1))
    first.commit([], [Wanted(1, people(0)), Wanted(2, people(3)), Wanted(3, people(6))])
    first.commit([Accepted(2, "id-2")], [])
    second = begun(place.open(2))
    doubt = doubts(second)["try 1, batch 1"]

    claims = second.commit([], [Wanted(1, people(0), doubt), Wanted(2, people(9))])

    assert claims == [Claim(1), Claim(2)]
    assert left(begun(place.open(3))) == {
        "try 1, batch 2": (people(3), "id-2"),
        "try 1, batch 3": (people(6), None),
        "try 2, batch 1": (people(0), None),
        "try 2, batch 2": (people(9), None),
    }


def test_a_repetition_that_is_accepted_ends_the_doubt(place: Place) -> None:
    """It is a batch like others then, with the request id to poll."""
    begun(place.open(1)).commit([], [Wanted(1, people(0)), Wanted(2, people(3))])
    second = begun(place.open(2))
    found = doubts(second)
    second.commit([], [Wanted(1, people(3), found["try 1, batch 2"])])

    second.commit([Accepted(1, "id-1")], [Wanted(2, people(0), found["try 1, batch 1"])])
    second.commit([Accepted(2, "id-2")], [Wanted(3, people(6))])

    assert left(begun(place.open(3))) == {
        "try 2, batch 1": (people(3), "id-1"),
        "try 2, batch 2": (people(0), "id-2"),
        "try 2, batch 3": (people(6), None),
    }


def test_whoever_is_not_sent_to_again_stays_in_doubt(place: Place) -> None:
    """Those who are no longer in the source: a doubt may be taken apart, also in one call."""
    begun(place.open(1)).commit([], [Wanted(1, people(0, 9))])
    second = begun(place.open(2))
    doubt = doubts(second)["try 1, batch 1"]

    claims = second.commit([], [Wanted(1, people(2, 2), doubt), Wanted(2, people(7, 1), doubt)])
    second.commit([Accepted(1, "id-1")], [])

    assert claims == [Claim(1), Claim(2)]
    assert left(begun(place.open(3))) == {
        "try 1, batch 1": ([*people(0, 2), *people(4, 3), *people(8, 1)], None),
        "try 2, batch 1": (people(2, 2), "id-1"),
        "try 2, batch 2": (people(7, 1), None),
    }


def test_what_was_sent_again_may_be_sent_again_by_the_next_try(place: Place) -> None:
    """Its answer was lost, too: the doubt is of the try that sent it last."""
    begun(place.open(1)).commit([], [Wanted(1, people(0))])
    second = begun(place.open(2))
    second.commit([], [Wanted(5, people(0), doubts(second)["try 1, batch 1"])])
    third = begun(place.open(3))

    third.commit([], [Wanted(1, people(0), doubts(third)["try 2, batch 5"])])
    third.commit([Accepted(1, "id-1")], [])

    assert left(begun(place.open(4))) == {"try 3, batch 1": (people(0), "id-1")}


def test_a_try_that_was_replaced_takes_nothing_over(place: Place) -> None:
    """Its successor may be sending to them at this moment."""
    begun(place.open(1)).commit([], [Wanted(1, people(0))])
    second = begun(place.open(2))
    doubt = doubts(second)["try 1, batch 1"]
    third = begun(place.open(3))

    with pytest.raises(Fenced):
        second.commit([], [Wanted(1, people(0), doubt)])

    assert left(third) == {"try 1, batch 1": (people(0), None)}


def test_a_doubt_of_many_batches_is_taken_over_batch_by_batch(place: Place) -> None:
    """A worker that is killed leaves as many as were in flight, and more than the store keeps in one place."""
    first = begun(place.open(1))
    first.commit([], [Wanted(number, people(200 * number, 200)) for number in range(64)])
    second = begun(place.open(2))

    for number, doubt in enumerate(list(doubts(second).values()), 1):
        settled = [Accepted(number - 1, f"id-{number - 1}")] if number > 1 else []
        second.commit(settled, [Wanted(number, doubt.fingerprints[:-1], doubt)])

    found = left(begun(place.open(3)))
    assert sum(len(fingerprints) for fingerprints, _ in found.values()) == 64 * 200
    assert sum(len(fingerprints) for fingerprints, answer in found.values() if answer) == 63 * 199
    assert sorted(one for fingerprints, _ in found.values() for one in fingerprints) == sorted(people(0, 64 * 200))


def test_every_try_before_counts(place: Place) -> None:
    """What try 1 sent is still sent on try 3."""
    begun(place.open(1)).commit([], [Wanted(1, people(0))])
    begun(place.open(2)).commit([], [Wanted(1, people(3))])

    found = left(begun(place.open(3)))

    assert found == {"try 1, batch 1": (people(0), None), "try 2, batch 1": (people(3), None)}


def test_its_own_batches_are_not_earlier(place: Place) -> None:
    """They are this try's to report."""
    begun(place.open(1)).commit([], [Wanted(1, people(0))])
    second = begun(place.open(2))
    second.commit([], [Wanted(1, people(3))])

    assert left(second) == {"try 1, batch 1": (people(0), None)}


def test_an_empty_commit_is_harmless(place: Place) -> None:
    """Nothing to record, nothing recorded."""
    ledger = begun(place.open(1))

    assert ledger.commit([], []) == []
    assert left(begun(place.open(2))) == {}


def test_closing_twice_is_harmless(place: Place) -> None:
    """`close` is called wherever a try may end."""
    ledger = begun(place.open())

    ledger.close()
    ledger.close()


def test_nothing_is_claimed_before_a_try_began(place: Place) -> None:
    """A claim without its settings could be compared with nothing."""
    with pytest.raises(LedgerFailed, match="begin"):
        place.open().commit([], [Wanted(1, people(0))])


@pytest.mark.parametrize("changed", [{"campaign_name": "Winter"}, {"list_type": "PUSH"}, {"match_on": "riid"}])
def test_other_settings_fail_closed(place: Place, changed: dict[str, str]) -> None:
    """A recipient's fingerprint depends on them: nobody would be recognised."""
    begun(place.open(1)).commit([], [Wanted(1, people(0))])

    with pytest.raises(SettingsChanged, match=next(iter(changed))):
        place.open(2).begin({**IDENTITY, **changed})

    assert left(begun(place.open(3))) == {"try 1, batch 1": (people(0), None)}


def test_other_settings_are_fine_while_nobody_is_claimed(place: Place) -> None:
    """A campaign that was misspelt, and refused, can be corrected."""
    first = begun(place.open(1))
    first.commit([], [Wanted(1, people(0))])
    first.commit([Released(1)], [])
    corrected = {**IDENTITY, "campaign_name": "Winter"}

    second = place.open(2)
    second.begin(corrected)
    second.commit([], [Wanted(1, people(0))])

    with pytest.raises(SettingsChanged):
        place.open(3).begin(IDENTITY)
    place.open(4).begin(corrected)


def test_lost_state_fails_closed(place: Place) -> None:
    """Nobody can tell any more who was pushed."""
    begun(place.open(1)).commit([], [Wanted(1, people(0))])
    place.lose()

    with pytest.raises(StateLost, match="nothing is sent"):
        begun(place.open(2))


def test_a_try_that_died_before_execute_lost_nothing(place: Place) -> None:
    """It left no record because it did nothing."""
    second = begun(place.open(2, may_have_claimed=False))

    assert second.commit([], [Wanted(1, people(0))]) == [Claim(1)]
    assert left(begun(place.open(3))) == {"try 2, batch 1": (people(0), None)}


def test_a_try_that_began_and_claimed_nothing_left_a_record(place: Place) -> None:
    """So a retry after it is no lost state."""
    begun(place.open(1))

    assert left(begun(place.open(2))) == {}


def test_a_clear_goes_on_where_it_stopped(place: Place) -> None:
    """Unless told otherwise, nobody is pushed twice because a person clicked."""
    begun(place.open(1)).commit([], [Wanted(1, people(0))])

    assert left(begun(place.open(2, max_tries=4))) == {"try 1, batch 1": (people(0), None)}
    assert left(begun(place.open(3, max_tries=4, on_clear="restart"))) == {"try 1, batch 1": (people(0), None)}


def test_a_restart_forgets_once_per_clear(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    """The retry after a restart goes on from the restart; the next clear forgets again."""
    begun(place.open(1)).commit([], [Wanted(1, people(0))])

    second = begun(place.open(2, max_tries=4, on_clear="restart"))
    assert "pushed" in caplog.text
    assert left(second) == {}
    assert second.commit([], [Wanted(1, people(0))]) == [Claim(1)]
    second.commit([Accepted(1, "4711")], [])
    assert left(begun(place.open(3, max_tries=4, on_clear="restart"))) == {"try 2, batch 1": (people(0), "4711")}
    assert left(begun(place.open(4, max_tries=6, on_clear="restart"))) == {}


def test_a_restart_may_change_the_settings(place: Place) -> None:
    """What was claimed under the old ones is forgotten."""
    begun(place.open(1)).commit([], [Wanted(1, people(0))])
    changed = {**IDENTITY, "match_on": "riid"}

    place.open(2, max_tries=4, on_clear="restart").begin(changed)

    place.open(3, max_tries=4, on_clear="restart").begin(changed)


def test_a_retry_never_restarts(place: Place) -> None:
    """Only a person's clear changes max_tries."""
    begun(place.open(1, on_clear="restart")).commit([], [Wanted(1, people(0))])

    assert left(begun(place.open(2, on_clear="restart"))) == {"try 1, batch 1": (people(0), None)}


def test_state_lost_between_two_tries_is_no_clear(place: Place) -> None:
    """A restart is a person's decision."""
    begun(place.open(1, on_clear="restart"))
    place.lose()

    with pytest.raises(StateLost):
        begun(place.open(2, on_clear="restart"))


def test_a_store_that_fails_lets_nothing_go_out(place: Place) -> None:
    """When the call raises, none of its claims may be sent, and the next try finds at most a doubt."""
    ledger = begun(place.open(1))
    ledger.commit([], [Wanted(1, people(0))])
    place.break_down()

    with pytest.raises(LedgerFailed) as raised:
        ledger.commit([Accepted(1, "4711")], [Wanted(2, people(3))])
    place.mend()

    assert not isinstance(raised.value, Fenced | StateLost)
    assert left(begun(place.open(2))) == {"try 1, batch 1": (people(0), None)}


def test_what_a_failing_store_refused_may_be_recorded_later(place: Place) -> None:
    """An outage at the moment of the answer need not become a doubt."""
    ledger = begun(place.open(1))
    ledger.commit([], [Wanted(1, people(0)), Wanted(2, people(3))])
    answers: list[Settlement] = [Accepted(1, "4711"), Released(2)]
    place.break_down()
    with pytest.raises(LedgerFailed):
        ledger.commit(answers, [Wanted(3, people(6))])
    place.mend()

    ledger.commit(answers, [])

    assert left(begun(place.open(2))) == {"try 1, batch 1": (people(0), "4711")}


def test_a_store_that_is_down_fails_the_beginning(place: Place) -> None:
    """Nothing is sent that can't be recorded."""
    place.break_down()

    with pytest.raises(LedgerFailed):
        begun(place.open(1))


def test_two_live_tries_never_win_the_same_person(place: Place) -> None:
    """A zombie beside its retry is stopped, or loses."""
    zombie = begun(place.open(1))
    first = Wanted(1, people(0, 4))
    [claim] = zombie.commit([], [first])
    sent = Counter(won(first, claim))
    retry = begun(place.open(2))
    known = {one for batch in retry.earlier() for one in batch.fingerprints}

    second = Wanted(1, [one for one in people(0, 8) if one not in known])
    [claim] = retry.commit([], [second])
    sent.update(won(second, claim))
    third = Wanted(2, people(4, 8))
    try:
        [claim] = zombie.commit([], [third])
        sent.update(won(third, claim))
    except Fenced:
        pass

    assert set(people(0, 8)) <= set(sent)
    assert max(sent.values()) == 1


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("on_clear", ["resume", "restart"])
def test_a_try_that_begins_after_its_successor_is_refused(place: Place, number: int, on_clear: OnClear) -> None:
    """It was taken for dead on its way to `execute`; nothing about its successor changes, not even after a clear."""
    for before in range(1, number):
        begun(place.open(before))
    late = place.open(number, on_clear=on_clear)
    next_one = begun(place.open(number + 1, max_tries=5, on_clear=on_clear, may_have_claimed=number > 1))
    next_one.commit([], [Wanted(1, people(0))])
    successor = begun(place.open(number + 2, max_tries=5, on_clear=on_clear))
    [before_it] = successor.earlier()

    with pytest.raises(Fenced, match="nother try"):
        begun(late)
    with pytest.raises(LedgerFailed):
        late.commit([], [Wanted(1, people(0))])

    assert list(successor.earlier()) == [before_it]
    assert successor.commit([], [Wanted(1, people(3))]) == [Claim(1)]
    assert left(begun(place.open(number + 3, max_tries=5, on_clear=on_clear))) == {
        f"try {number + 1}, batch 1": (people(0), None),
        f"try {number + 2}, batch 1": (people(3), None),
    }


def test_many_batches_in_one_call(place: Place) -> None:
    """64 posts may wait for one write."""
    first = begun(place.open(1))
    wanted = [Wanted(number, people(number * 200, 200)) for number in range(1, 65)]

    first.commit([], wanted)
    first.commit([Accepted(number, str(10**10 + number)) for number in range(1, 64)], [])
    found = left(begun(place.open(2)))

    assert found["try 1, batch 64"] == (people(64 * 200, 200), None)
    assert found["try 1, batch 63"] == (people(63 * 200, 200), str(10**10 + 63))
    assert len(found) == 64


@pytest.mark.parametrize("seed", range(4))
def test_a_crash_between_any_two_calls(place: Place, seed: int) -> None:
    """Whatever happens, a later try finds what was claimed and not given back, and nothing else."""
    chance = random.Random(seed)  # noqa: S311 -- a seeded schedule, no secret
    record: dict[str, tuple[list[bytes], str | None]] = {}
    unsettled: dict[str, int] = {}
    try_number, person, number, found = 1, 0, 0, 0
    ledger = begun(place.open(1))
    for _ in range(60):
        if chance.random() < 0.15:
            try_number, unsettled = try_number + 1, {}
            place.now += timedelta(minutes=5)
            ledger = begun(place.open(try_number))
            assert left(ledger) == record
            found += len(record)
        answers: list[Settlement] = []
        for label in chance.sample(sorted(unsettled), chance.randint(0, len(unsettled))):
            settled = unsettled.pop(label)
            if chance.random() < 0.3:
                del record[label]
                answers.append(Released(settled))
            else:
                record[label] = (record[label][0], str(settled))
                answers.append(Accepted(settled, str(settled)))
        wanted: list[Wanted] = []
        for _ in range(chance.choice([0, 1, 1, 9])):
            number, size = number + 1, chance.choice([1, 1, 7, 200])
            wanted.append(Wanted(number, people(person, size)))
            person += size
            label = f"try {try_number}, batch {number}"
            record[label], unsettled[label] = (list(wanted[-1].fingerprints), None), number
        assert all(not claim.lost for claim in ledger.commit(answers, wanted))

    assert found
    assert left(begun(place.open(try_number + 1))) == record
