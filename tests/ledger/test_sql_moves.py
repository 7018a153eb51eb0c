"""A commit that fails after recipients moved out of a doubt: the batch that they are in now is named."""

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any

import pytest
from pytest_mock import MockerFixture
from sqlalchemy import create_engine
from sqlalchemy.exc import OperationalError

from airflow_provider_responsys.errors import LedgerFailed
from airflow_provider_responsys.ledger.interface import FINGERPRINT_BYTES, Earlier, Wanted
from airflow_provider_responsys.ledger.sql import SqlLedger
from airflow_provider_responsys.protocol.pace import Pace
from airflow_provider_responsys.recipients.spool import Batch
from airflow_provider_responsys.sending.engine import Delivery, Engine, Limits
from airflow_provider_responsys.sending.queue import Due
from airflow_provider_responsys.sending.run import Report, Run
from tests.support.places import IDENTITY, Refusal, SqlPlace

TAKEN = [number.to_bytes(FINGERPRINT_BYTES, "big") for number in range(3)]
"""The fingerprints of the recipients that the first try left in doubt."""


def begun(ledger: SqlLedger) -> SqlLedger:
    """Return *ledger* after its first act."""
    ledger.begin(IDENTITY)
    return ledger


def open_batches(ledger: SqlLedger) -> list[tuple[str, int]]:
    """Return the label and the id of each batch that a new try finds in doubt."""
    return [(batch.label, batch.batch_id) for batch in begun(ledger).earlier() if batch.request_id is None]


def in_doubt(database: SqlPlace) -> tuple[SqlLedger, Earlier]:
    """Let a first try leave a batch in doubt; return a second try, and what it finds."""
    begun(database.open(1)).commit([], [Wanted(1, TAKEN)])
    second = begun(database.open(2))
    [doubt] = second.earlier()
    return second, doubt


def no_more() -> Generator[Batch]:
    """Yield no batch: nothing is sent but what is in doubt."""
    yield from ()


def send_again(ledger: SqlLedger, doubt: Earlier) -> Report:
    """Send what is in *doubt* again, at least once."""
    places = tuple(range(len(TAKEN)))
    batch = Batch(places, tuple(doubt.fingerprints), tuple(f'"{place}"' for place in places))
    run = Run(
        Engine(limits=Limits(delivery=Delivery.AT_LEAST_ONCE, grace=0.0), pace=Pace.at(60_000, 0.0)),
        no_more(),
        0,
        repeats=[Due(batch, doubt)],
        ledger=ledger,
        post=lambda *_: pytest.fail("a request left"),
        probe=lambda: None,
        inbox=SimpleQueue(),
    )
    return run.to_end()


@contextmanager
def without_a_column(database: SqlPlace) -> Iterator[None]:
    """Let each transaction fail that says when a try wrote last: the second of a commit, and not the first."""
    engine = create_engine(database.url, connect_args=database.connect)
    with engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE responsys_tries RENAME COLUMN last_write_at TO gone")
    yield
    with engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE responsys_tries RENAME COLUMN gone TO last_write_at")
    engine.dispose()


def told(failure: LedgerFailed) -> list[tuple[str, int]]:
    """Return the label and the id of each batch that *failure* says recipients moved into."""
    return [(batch.label, batch.batch_id) for batch in failure.moved.values()]


def break_commits(
    ledger: SqlLedger, mocker: MockerFixture, *, was_done: bool, then: Callable[[], object] = lambda: None
) -> None:
    """Let the next COMMIT of *ledger* end without an answer, done or not; then do *then*."""
    dialect = ledger._database._engine.dialect
    real = dialect.do_commit
    broken: list[bool] = []

    def commit(connection: Any) -> None:
        first = not broken
        if was_done or not first:
            real(connection)
        if first:
            broken.append(True)
            then()
            raise OperationalError("COMMIT", {}, OSError("no answer"))

    mocker.patch.object(dialect, "do_commit", commit)


def test_a_report_names_the_batch_that_a_doubt_was_moved_into(database: SqlPlace) -> None:
    """The database fails after the move: the id in the report is the one that a person finds in the ledger."""
    second, doubt = in_doubt(database)

    with without_a_column(database):
        report = send_again(second, doubt)

    assert isinstance(report.stopped, LedgerFailed)
    assert [(found.label, found.batch_id) for found in report.doubts] == open_batches(database.open(3))
    assert [found.batch_id for found in report.doubts] != [doubt.batch_id]
    assert report.in_doubt == len(TAKEN)


def test_what_moved_before_a_failure_can_be_wanted_again(database: SqlPlace) -> None:
    """It is in the doubt that the error names."""
    second, doubt = in_doubt(database)
    with without_a_column(database), pytest.raises(LedgerFailed) as raised:
        second.commit([], [Wanted(1, TAKEN, doubt)])

    [claim] = second.commit([], [Wanted(2, TAKEN, raised.value.moved[1])])

    assert not claim.lost
    assert [name for name, _ in open_batches(database.open(3))] == ["try 2, batch 2"]


def test_a_move_whose_mark_fails_is_told(database: SqlPlace) -> None:
    """The move was committed by then."""
    second, doubt = in_doubt(database)
    database.airflow().failures = {1: Refusal(500)}

    with pytest.raises(LedgerFailed) as raised:
        second.commit([], [Wanted(1, TAKEN, doubt)])

    assert told(raised.value) == open_batches(database.open(3)) != [("try 1, batch 1", doubt.batch_id)]


@pytest.mark.parametrize("was_done", [True, False])
def test_a_move_without_an_answer_is_looked_up(database: SqlPlace, mocker: MockerFixture, was_done: bool) -> None:
    """The connection broke during COMMIT: whether it was done is known to the database."""
    second, doubt = in_doubt(database)
    break_commits(second, mocker, was_done=was_done)

    with pytest.raises(LedgerFailed, match="no answer") as raised:
        second.commit([], [Wanted(1, TAKEN, doubt)])

    assert told(raised.value) == (open_batches(database.open(3)) if was_done else [])


def test_a_move_that_can_not_be_looked_up_counts_as_not_done(database: SqlPlace, mocker: MockerFixture) -> None:
    """The error that came first is the one that is raised."""
    second, doubt = in_doubt(database)
    break_commits(second, mocker, was_done=True, then=database.break_down)

    with pytest.raises(LedgerFailed, match="no answer") as raised:
        second.commit([], [Wanted(1, TAKEN, doubt)])

    assert told(raised.value) == []


def test_a_failure_before_the_move_tells_of_none(database: SqlPlace) -> None:
    """The doubt is as it was."""
    second, doubt = in_doubt(database)
    database.break_down()

    with pytest.raises(LedgerFailed) as raised:
        second.commit([], [Wanted(1, TAKEN, doubt)])
    database.mend()

    assert told(raised.value) == []
    assert open_batches(database.open(3)) == [("try 1, batch 1", doubt.batch_id)]


def test_a_failure_tells_of_its_own_moves(database: SqlPlace, mocker: MockerFixture) -> None:
    """What an earlier commit moved hides no later move."""
    begun(database.open(1)).commit([], [Wanted(1, TAKEN[:1]), Wanted(2, TAKEN[1:])])
    second = begun(database.open(2))
    doubts = list(second.earlier())
    second.commit([], [Wanted(1, TAKEN[:1], doubts[0])])
    break_commits(second, mocker, was_done=True)

    with pytest.raises(LedgerFailed) as raised:
        second.commit([], [Wanted(2, TAKEN[1:], doubts[1])])

    assert told(raised.value) == [one for one in open_batches(database.open(3)) if one[0] == "try 2, batch 2"] != []
