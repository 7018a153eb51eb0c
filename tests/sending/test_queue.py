"""Batches in the order in which they are claimed."""

from collections.abc import Generator

import pytest

from airflow_provider_responsys.errors import SourceFailed
from airflow_provider_responsys.recipients.spool import Batch
from airflow_provider_responsys.sending import queue
from airflow_provider_responsys.sending.queue import LOOK_AHEAD, Due, Queue


def batch(number: int, size: int = 1) -> Batch:
    """Return a batch of one recipient with a body of *size* characters."""
    return Batch((number,), (bytes([number]),), ("x" * size,))


def source(count: int, *, breaks: bool = False, size: int = 1) -> Generator[Batch]:
    """Yield *count* batches, then fail if it *breaks*."""
    for number in range(count):
        yield batch(number, size)
    if breaks:
        raise SourceFailed("the disk is broken")


def numbers(dues: list[Due]) -> list[int]:
    """Return the batches' numbers."""
    return [due.batch.positions[0] for due in dues]


def test_what_was_taken_is_kept_when_the_source_fails_in_the_same_call() -> None:
    """The failure is raised when its batch is needed, once."""
    waiting = Queue(source(3, breaks=True), [])
    waiting.put_back(Due(batch(9)))

    taken = waiting.take(64)

    assert numbers(taken) == [9, 0, 1, 2]
    assert waiting
    with pytest.raises(SourceFailed):
        waiting.take(64)
    assert not waiting
    assert waiting.taken == 3  # one of the four had been taken before


def test_a_source_that_fails_beyond_what_is_needed_is_no_failure_yet() -> None:
    """Batches are looked at ahead: what is not taken raises nothing."""
    waiting = Queue(source(3, breaks=True), [])

    upcoming = waiting.upcoming()

    assert upcoming == [(bytes([0]),), (bytes([1]),), (bytes([2]),)]
    assert numbers(waiting.take(2)) == [0, 1]
    assert numbers(waiting.take(2)) == [2]
    with pytest.raises(SourceFailed):
        waiting.take(1)


def test_upcoming_is_what_is_taken_next() -> None:
    """Repeats and what is claimed again come first, then the source."""
    waiting = Queue(source(100), [Due(batch(200))])
    waiting.put_back(Due(batch(201)))

    upcoming = waiting.upcoming()

    assert len(upcoming) == LOOK_AHEAD
    assert upcoming == [due.batch.fingerprints for due in waiting.take(LOOK_AHEAD)]


def test_looking_ahead_is_bounded_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Large bodies: only as many as there is room for."""
    monkeypatch.setattr(queue, "LOOK_AHEAD_BYTES", 100)
    waiting = Queue(source(100, size=30), [])

    upcoming = waiting.upcoming()

    assert len(upcoming) == 4
    assert len(waiting.take(50)) == 50
