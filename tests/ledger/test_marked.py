"""The marks beside a ledger: they say more than a record that is gone, and never less than one that is there."""

import pytest

from airflow_provider_responsys.errors import Fenced, StateLost
from airflow_provider_responsys.ledger.interface import Accepted, Wanted
from airflow_provider_responsys.ledger.marked import MarkedLedger
from airflow_provider_responsys.ledger.memory import MemoryLedger
from airflow_provider_responsys.ledger.tries import CLAIMED, began, may_have_claimed
from tests.support.places import IDENTITY, TaskStatePlace

ALICE = [b"alice    "]


class Task:
    """A task instance: its store, its XComs, and what Airflow does with both when a try starts."""

    def __init__(self, place: TaskStatePlace, *, remembers: bool = True) -> None:
        self.place = place
        self.remembers = remembers
        self.xcoms: list[str] = []
        self.try_number = 0
        self.max_tries = 3

    def start(self, *, again: bool = False, on_clear: str = "resume") -> MarkedLedger:
        """Return the ledger of the next try, or of the same one once more."""
        self.try_number += not again
        left = list(self.xcoms)
        self.xcoms.clear()
        claimed = may_have_claimed(try_number=self.try_number, max_tries=self.max_tries, retries=3, left=left)
        ledger = (
            self.place.open(self.try_number, max_tries=self.max_tries, may_have_claimed=claimed, on_clear=on_clear)  # type: ignore[arg-type]  # a test's own word
            if self.remembers
            else MemoryLedger(try_number=self.try_number, may_have_claimed=claimed)
        )
        return MarkedLedger(ledger, push=self.xcoms.append, try_number=self.try_number, may_have_claimed=claimed)

    def clear(self) -> None:
        """Do what a person's clear does."""
        self.max_tries = self.try_number + 3


@pytest.fixture
def task(task_state: TaskStatePlace) -> Task:
    """Give a task whose tries the task state store remembers."""
    return Task(task_state)


def test_a_try_is_marked_before_its_first_claim(task: Task) -> None:
    """A kill right after the claim leaves the mark."""
    ledger = task.start()
    ledger.begin(IDENTITY)
    at_first = list(task.xcoms)
    ledger.commit([], [])
    settled_only = list(task.xcoms)

    ledger.commit([], [Wanted(1, ALICE)])
    ledger.commit([Accepted(1, "4711")], [Wanted(2, [b"bob      "])])

    assert at_first == settled_only == [began(1)]
    assert task.xcoms == [began(1), CLAIMED]


def test_no_claim_without_its_mark(task: Task) -> None:
    """Airflow takes no XCom: the record alone might be lost."""
    ledger = MarkedLedger(
        task.place.open(1),
        push=lambda mark: task.xcoms.append(mark) if mark == began(1) else 1 / 0,
        try_number=1,
        may_have_claimed=False,
    )
    ledger.begin(IDENTITY)

    with pytest.raises(ZeroDivisionError):
        ledger.commit([], [Wanted(1, ALICE)])

    assert not [key for key in task.place.airflow.rows if "/log/" in key]


def test_a_record_and_its_xcoms_cleaned_before_a_clear_fail_closed(task: Task) -> None:
    """`[state_store] clear_on_success` and `airflow db clean --tables xcom`, then a person clears the task."""
    ledger = task.start()
    ledger.begin(IDENTITY)
    ledger.commit([], [Wanted(1, ALICE)])
    task.place.lose()
    task.xcoms.clear()
    task.clear()

    with pytest.raises(StateLost):
        task.start().begin(IDENTITY)
    with pytest.raises(StateLost):  # and again: the refusal left a mark
        task.start().begin(IDENTITY)
    with pytest.raises(StateLost):  # a retry is no person's decision
        task.start(on_clear="restart").begin(IDENTITY)
    task.clear()
    task.start(on_clear="restart").begin(IDENTITY)


def test_xcoms_cleaned_before_a_clear_fail_closed_where_nothing_else_remembers(task_state: TaskStatePlace) -> None:
    """Airflow 3.1 and 3.2: cleaning alone is enough."""
    task = Task(task_state, remembers=False)
    ledger = task.start()
    ledger.begin(IDENTITY)
    ledger.commit([], [Wanted(1, ALICE)])
    task.xcoms.clear()
    task.clear()

    with pytest.raises(StateLost):
        task.start().begin(IDENTITY)


@pytest.mark.parametrize("tries", [1, 2, 3])
def test_tries_that_certainly_claimed_nothing_stand_in_no_way(task_state: TaskStatePlace, tries: int) -> None:
    """They died of a provider that was not installed, after they began."""
    task = Task(task_state, remembers=False)
    for _ in range(tries):
        task.start().begin(IDENTITY)

    ledger = task.start()
    ledger.begin(IDENTITY)

    assert ledger.commit([], [Wanted(1, ALICE)])


def test_a_mark_that_comes_late_opens_no_closed_send(task_state: TaskStatePlace) -> None:
    """A copy of the first try's mark is stored after the second try has taken all marks, and died."""
    task = Task(task_state, remembers=False)
    ledger = task.start()
    ledger.begin(IDENTITY)
    late = list(task.xcoms)
    ledger.commit([], [Wanted(1, ALICE)])
    task.start()  # Airflow deletes the marks; the try dies before `execute`
    task.xcoms.extend(late)

    with pytest.raises(StateLost):
        task.start().begin(IDENTITY)


def test_each_try_leaves_a_mark_of_its_own(task_state: TaskStatePlace) -> None:
    """A mark that was found is pushed with the number of the try that found it: that of an older try proves nothing."""
    task = Task(task_state, remembers=False)
    task.start().begin(IDENTITY)
    first = list(task.xcoms)

    task.start().begin(IDENTITY)

    assert (first, task.xcoms) == ([began(1)], [began(2)])


def test_a_second_start_of_the_first_try_finds_the_mark(task: Task) -> None:
    """Airflow lets the same host and process number begin a try again; its record is gone."""
    ledger = task.start()
    ledger.begin(IDENTITY)
    ledger.commit([], [Wanted(1, ALICE)])
    task.place.lose()

    with pytest.raises(StateLost):
        task.start(again=True).begin(IDENTITY)


def test_a_record_that_is_found_is_marked_though_its_xcom_was_cleaned(task: Task) -> None:
    """If it is lost later, the next try must not take it for one that never was."""
    ledger = task.start()
    ledger.begin(IDENTITY)
    ledger.commit([], [Wanted(1, ALICE)])
    task.xcoms.clear()
    task.start().begin(IDENTITY)
    task.place.lose()

    with pytest.raises(StateLost):
        task.start().begin(IDENTITY)


def test_a_mark_that_was_found_is_pushed_before_anything_else(task: Task) -> None:
    """Airflow has deleted it: a try that dies at once leaves it to the next one."""
    ledger = task.start()
    ledger.begin(IDENTITY)
    ledger.commit([], [Wanted(1, ALICE)])
    second = task.start()
    task.place.break_down()

    with pytest.raises(Exception, match="500"):
        second.begin(IDENTITY)

    assert task.xcoms == [CLAIMED]


def test_a_replaced_try_leaves_at_most_a_mark(task: Task) -> None:
    """It takes nothing from its successor's: a mark that says more stands beside it."""
    late = task.start()
    ledger = task.start()
    ledger.begin(IDENTITY)
    ledger.commit([], [Wanted(1, ALICE)])

    with pytest.raises(Fenced):
        late.begin(IDENTITY)

    assert set(task.xcoms) == {began(1), began(2), CLAIMED}
    assert may_have_claimed(try_number=3, max_tries=3, retries=3, left=task.xcoms)
