from itertools import islice

import pytest

from airflow_provider_responsys.waiting.schedule import TROUBLE_WAITS, Patience, Schedule, paced, troubles


def test_oldest_due_first() -> None:
    """Whoever has waited longest is asked about next; none before it is due."""
    schedule = Schedule(["a", "b", "c"], due=10.0)

    early = schedule.take(9.0, most=5)
    first = schedule.take(10.0, most=2)
    schedule.put_back(first, due=20.0)
    second = schedule.take(30.0, most=5)

    assert (early, first, second) == ([], ["a", "b"], ["c", "a", "b"])
    assert len(schedule) == 0


def test_a_question_with_room_takes_along_what_is_due_soon() -> None:
    """Two questions about ever fewer requests become one, and one that has no room takes nobody along."""
    schedule = Schedule(["a", "b"], due=10.0)
    schedule.put_back(["c", "d"], due=11.0)
    schedule.put_back(["e"], due=13.0)

    taken = [schedule.take(10.0, most=3, early=2.0), schedule.take(10.5, most=3, early=2.0)]

    assert taken == [["a", "b", "c"], []]
    assert schedule.take(11.0, most=3, early=2.0) == ["d", "e"]


def test_further_troubles_in_a_row_are_waited_out_for_longer() -> None:
    """An outage is asked about less and less; what was asked before it began says nothing new."""
    patience = Patience()
    waits = []
    now = 0.0
    for _ in range(4):
        patience.trouble(now, wait=0.0)
        patience.trouble(now + 1.0, wait=0.0)
        waits.append(patience.quiet_until - now)
        now = patience.quiet_until

    assert waits == [*TROUBLE_WAITS, TROUBLE_WAITS[-1]]
    assert patience.troubles == 8


def test_an_answer_ends_the_row() -> None:
    """The next trouble is the first of another outage."""
    patience = Patience()
    patience.trouble(0.0, wait=0.0)
    patience.answered()

    patience.trouble(100.0, wait=0.0)

    assert patience.quiet_until == 100.0 + TROUBLE_WAITS[0]


def test_responsys_may_ask_for_more() -> None:
    """What it says counts, also when it says so later."""
    patience = Patience()
    patience.trouble(0.0, wait=60.0)
    first = patience.quiet_until
    patience.trouble(10.0, wait=70.0)

    assert (first, patience.quiet_until) == (60.0, 80.0)


def test_the_waits_never_end() -> None:
    """A database may be away for a night."""
    assert list(islice(troubles(), 5)) == [*TROUBLE_WAITS, TROUBLE_WAITS[-1], TROUBLE_WAITS[-1]]


@pytest.mark.parametrize(("limit", "together"), [(1000, 17), (200, 4), (60, 1), (7, 1)])
def test_questions_that_leave_together_keep_to_the_limit(limit: int, together: int) -> None:
    """Whatever sixty seconds are looked at, both ends included, and however late one is woken once."""
    pace = paced(limit, now=0.0)
    left: list[float] = []
    now = 0.0
    while now < 600.0:
        slots = pace.slots(now)
        for _ in range(slots):
            pace.take(now)
            left.append(now)
        assert slots == together
        now = pace.due if len(left) != 10 * together else pace.due + 3.0

    assert max(sum(at <= other <= at + 60.0 for other in left) for at in set(left)) <= limit
    assert len(left) >= 0.95 * limit * 10
