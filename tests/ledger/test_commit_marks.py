"""How far a task instance was, as Airflow's task state store tells it."""

import pytest

from airflow_provider_responsys.errors import LedgerFailed
from airflow_provider_responsys.ledger.commit_marks import CommitMarks, Point
from airflow_provider_responsys.ledger.state_store import StateStore
from tests.support.places import Airflow

NOWHERE = Point(0, 0, None)


@pytest.fixture
def airflow() -> Airflow:
    """Give a store."""
    return Airflow()


@pytest.fixture
def marks(airflow: Airflow) -> CommitMarks:
    """Give the marks in it."""
    return CommitMarks(StateStore(airflow.accessor()))


def test_an_empty_store_knows_no_more_than_the_tables(marks: CommitMarks) -> None:
    """A first try, or one after the state was cleaned."""
    assert marks.newest(NOWHERE) == NOWHERE
    assert marks.newest(Point(2, 17, 3)) == Point(2, 17, 3)


@pytest.mark.parametrize("last", [1, 2, 3, 4, 7, 8, 9, 1_000])
@pytest.mark.parametrize("known", [0, 5])
def test_the_last_commit_is_found(airflow: Airflow, marks: CommitMarks, known: int, last: int) -> None:
    """Whatever their number, in few calls."""
    for count in range(known + 1, known + last + 1):
        marks.committed(count)
    airflow.calls.clear()

    newest = marks.newest(Point(1, known, 3))

    assert newest == Point(1, known + last, 3)
    assert len(airflow.calls) <= 25


def test_the_last_beginning_is_found(marks: CommitMarks) -> None:
    """With the count and the max_tries of that try."""
    marks.begun(Point(1, 0, 3))
    marks.begun(Point(2, 6, 3))
    marks.begun(Point(3, 9, 5))
    marks.committed(10)

    assert marks.newest(Point(1, 2, 3)) == Point(3, 10, 5)


def test_commits_after_a_gap_are_told_by_the_beginning(marks: CommitMarks) -> None:
    """The state was cleaned before the second try, which claimed twice."""
    marks.complete(Point(1, 500, 3))
    marks.begun(Point(2, 500, 3))
    marks.committed(501)
    marks.committed(502)

    assert marks.newest(Point(1, 400, 3)) == Point(2, 502, 3)


def test_what_is_there_is_not_written_again(airflow: Airflow, marks: CommitMarks) -> None:
    """A try that follows another one asks twice, and writes nothing."""
    marks.begun(Point(1, 0, 3))
    marks.committed(1)
    airflow.calls.clear()

    marks.complete(Point(1, 1, 3))

    assert [name for name, _ in airflow.calls] == ["get", "get"]


def test_missing_marks_are_written(airflow: Airflow, marks: CommitMarks) -> None:
    """Of the last commit, and of every beginning since the last that is marked."""
    marks.begun(Point(1, 0, 3))

    marks.complete(Point(3, 7, 4))

    assert airflow.rows == {
        "responsys/begun/1": "0/3",
        "responsys/begun/2": "7/4",
        "responsys/begun/3": "7/4",
        "responsys/committed/7": "7",
    }


def test_a_strange_value_fails_closed(airflow: Airflow, marks: CommitMarks) -> None:
    """It may stand for any number of claims."""
    airflow.rows["responsys/begun/1"] = "many"

    with pytest.raises(LedgerFailed, match="responsys/begun/1"):
        marks.newest(NOWHERE)
