"""What the command line and the page tell of the SQL ledger, on each database."""

from datetime import timedelta

import pytest
from sqlalchemy import inspect

from airflow_provider_responsys.errors import LedgerFailed, StateLost
from airflow_provider_responsys.ledger.sql_tables import batches, ledger_table
from airflow_provider_responsys.report.batches import POINTS, PositionOutcome
from airflow_provider_responsys.report.model import Buckets, CodeCount, PersonInSend, PushState
from tests.support.book import ANSWER_WITHIN, Book, people, task

LATER = timedelta(hours=1)


def test_a_push_is_summed_up(book: Book) -> None:
    """What, by which task, when, how many requests, and each recipient in one bucket."""
    began_at = book.place.now
    book.push(task(), 3, 2, 4, lost=1)
    book.place.now += LATER

    [found], total = book.reports.pushes(dag_ids=None)

    assert total == 1
    assert found.task == task()
    assert (found.campaign_name, found.account, found.send_key) == ("Autumn", "api@host", "dag/push/run")
    assert (found.began_at, found.ended_at, found.tries, found.requests) == (began_at, None, 1, 2)
    assert (found.state, found.buckets) == (PushState.IN_DOUBT, Buckets(accepted=5, in_doubt=4))


def test_an_answer_that_may_still_come_is_no_doubt_yet(book: Book) -> None:
    """A healthy push always has requests in flight."""
    book.push(task(), 3, 4, lost=1)

    [running], _ = book.reports.pushes(dag_ids=None)
    book.place.now += timedelta(seconds=ANSWER_WITHIN)
    [quiet], _ = book.reports.pushes(dag_ids=None)
    book.place.now += LATER
    [killed], _ = book.reports.pushes(dag_ids=None)

    assert (running.state, running.buckets) == (PushState.RUNNING, Buckets(accepted=3, in_flight=4))
    assert (quiet.state, quiet.buckets) == (PushState.RUNNING, Buckets(accepted=3, in_doubt=4))
    assert killed.state is PushState.IN_DOUBT


def test_a_push_that_was_answered_has_ended(book: Book) -> None:
    """Also where its try did not live to say so."""
    book.push(task(), 3)
    book.place.now += LATER

    [found], _ = book.reports.pushes(dag_ids=None)

    assert (found.state, found.buckets) == (PushState.ENDED, Buckets(accepted=3))


def test_those_in_doubt_come_first_then_the_newest(book: Book) -> None:
    """In pages, whose number is known."""
    for run, lost in (("oldest", 0), ("doubtful", 1), ("newer", 0), ("newest", 0)):
        book.push(task(run), 2, 2, lost=lost)
        book.place.now += LATER

    pages = [book.reports.pushes(dag_ids=None, offset=offset, limit=3) for offset in (0, 3, 6)]

    assert [[push.task.run_id for push in page] for page, _ in pages] == [
        ["doubtful", "newest", "newer"],
        ["oldest"],
        [],
    ]
    assert {total for _, total in pages} == {4}


def test_map_indexes_are_one_push(book: Book) -> None:
    """Of one run; a run's id may hold slashes, and begin like another's."""
    for index in range(12):
        book.push(task("manual/a", map_index=index), 2, lost=int(index == 11), send_key="autumn")
        book.place.now += timedelta(seconds=1)
    book.push(task("manual/a/1", map_index=0), 5, send_key="winter")
    book.push(task("manual/A"), 7, send_key="spring")
    book.place.now += LATER

    found, _ = book.reports.pushes(dag_ids=None)
    whole, one = book.reports.push(task("manual/a")), book.reports.push(task("manual/a", map_index=3))

    accepted = {push.task.run_id: push.buckets.accepted for push in found}
    assert accepted == {"manual/a": 22, "manual/a/1": 5, "manual/A": 7}
    assert whole is not None
    assert (whole.summary.buckets, whole.summary.tries) == (Buckets(accepted=22, in_doubt=2), 1)
    assert [batch.map_index for batch in whole.batches] == [11, *range(11)]
    assert one is not None
    assert (one.summary.task, one.summary.buckets) == (task("manual/a", map_index=3), Buckets(accepted=2))


def test_pushes_are_found_by_dag_campaign_state_and_date(book: Book) -> None:
    """Each filter alone; a campaign by any part of its name, in any case."""
    began_at = book.place.now
    book.push(task("a", dag_id="shop"), 1, campaign="Autumn_Sale")
    book.place.now += LATER
    book.push(task("b", dag_id="shop"), 1, lost=1, campaign="100% off_")
    book.place.now += LATER
    book.push(task("c", dag_id="news"), 1, campaign="Winter sale")

    def runs(**which: object) -> list[str]:
        found, total = book.reports.pushes(**{"dag_ids": None, **which})  # type: ignore[arg-type]  # as the test says
        assert total == len(found)
        return [push.task.run_id for push in found]

    assert runs(dag_ids=["shop"]) == ["b", "a"]
    assert runs(dag_ids=[]) == []
    assert runs(campaign="SALE") == ["c", "a"]
    assert runs(campaign="%") == ["b"]
    assert runs(state=PushState.IN_DOUBT) == ["b"]
    assert runs(state=PushState.RUNNING) == ["c"]
    assert runs(state=PushState.ENDED) == ["a"]
    assert runs(since=began_at + LATER) == ["b", "c"]
    assert runs(until=began_at + LATER) == ["a"]


def test_a_push_is_of_its_newest_send(book: Book) -> None:
    """A send key that was corrected on a later try; tries that left nothing count."""
    book.begin(task(), send_key="wrong", campaign="Wrong")
    book.place.now += LATER
    ledger = book.begin(task(), send_key="right", try_number=2)
    book.send(ledger, 2)

    [found], _ = book.reports.pushes(dag_ids=None)

    assert (found.send_key, found.campaign_name, found.tries, found.requests) == ("right", "Autumn", 2, 1)


def test_outcomes_are_counted_by_code(book: Book) -> None:
    """With what each means; what is not known is not presented as known, and the parts add up."""
    book.push(task(), 4, 3, 2, 5)
    first, second, third, _ = book.requests(task())
    codes = {"NO_RECIPIENT_FOUND": [0, 3], "BRAND_NEW_CODE": [1]}
    book.records.record_outcome("dag/push/run", first, succeeded=1, failed=codes)
    book.records.record_outcome("dag/push/run", second, succeeded=2, failed={"NO_RECIPIENT_FOUND": [2]})
    book.records.record_outcome("dag/push/run", third, error="RESPONSE_PURGED")

    report = book.reports.push(task())

    assert report is not None
    outcomes = report.outcomes
    assert (outcomes.succeeded, outcomes.failed, outcomes.unknown) == (3, 4, 7)
    assert sum((outcomes.succeeded, outcomes.failed, outcomes.unknown)) == report.summary.buckets.accepted
    counts = {count.code: (count.count, count.normal) for count in outcomes.by_code}
    assert counts == {"NO_RECIPIENT_FOUND": (3, True), "RESPONSE_PURGED": (2, False), "BRAND_NEW_CODE": (1, False)}
    assert CodeCount(
        code="BRAND_NEW_CODE", count=1, meaning="Responsys' pages do not explain this code.", normal=False
    ) in list(outcomes.by_code)


def test_batches_come_in_pages_those_in_doubt_first(book: Book) -> None:
    """With the id of each request, how long its answer is kept, and what resolves a doubt."""
    now = book.place.now
    book.push(task(), 1, 2, 3, lost=1)
    book.place.now += LATER

    first, rest = (book.reports.push(task(), offset=offset, limit=2) for offset in (0, 2))

    assert first is not None
    assert rest is not None
    assert (first.batch_count, rest.batch_count) == (3, 3)
    assert [batch.size for batch in [*first.batches, *rest.batches]] == [3, 1, 2]
    doubt, answered = first.batches
    assert (doubt.state, doubt.awaited, doubt.request_id, doubt.kept_until) == ("in doubt", False, None, None)
    assert str(doubt.settle_command).startswith(f"airflow responsys settle {doubt.batch_id} --sent")
    assert (answered.state, answered.settled_at, answered.correlation_id) == ("accepted", now, "corr 0")
    assert (answered.kept_until, answered.settle_command) == (now + timedelta(hours=24), None)
    assert (answered.task_instance, answered.number, answered.map_index) == ("dag/push/run/-1", 1, -1)


def test_a_batch_that_may_be_answered_has_no_command_yet(book: Book) -> None:
    """`settle` would refuse it."""
    book.push(task(), 3, lost=1)

    report = book.reports.push(task())

    assert report is not None
    [batch] = report.batches
    assert (batch.state, batch.awaited, batch.settle_command) == ("in doubt", True, None)


@pytest.mark.parametrize(("sent", "buckets"), [(True, Buckets(accepted=5)), (False, Buckets(accepted=2))])
def test_a_doubt_that_was_resolved_is_none(book: Book, sent: bool, buckets: Buckets) -> None:
    """Who resolved it, when and why stands beside it; there is no request, and no outcome."""
    book.push(task(), 2, 3, lost=1)
    book.place.now += LATER
    before = book.reports.push(task())
    assert before is not None
    book.records.settle_by_hand(before.batches[0].batch_id, sent=sent, by="anna", reason="asked Oracle")

    report = book.reports.push(task())

    assert report is not None
    summary = report.summary
    assert (summary.state, summary.buckets, summary.requests) == (PushState.ENDED, buckets, 1)
    [told] = [batch.resolved for batch in report.batches if batch.resolved]
    assert told == f"as {'sent' if sent else 'not sent'} by anna, {book.place.now.isoformat()}: asked Oracle"
    assert report.outcomes.unknown == buckets.accepted


def test_acceptances_over_time_end_with_all(book: Book) -> None:
    """In at most a hundred points, however many requests there are."""
    began_at = book.place.now
    ledger = book.begin(task())
    for number in range(3):
        book.place.now = began_at + timedelta(minutes=number)
        book.push(task(map_index=number), *[2] * 90, send_key="dag/push/run")
    book.send(ledger, 1, lost=1)

    report = book.reports.push(task())

    assert report is not None
    points = report.accepted_over_time
    assert len(points) == POINTS
    assert points == sorted(points, key=lambda point: (point.at, point.requests))
    last = points[-1]
    assert (last.at, last.requests, last.recipients) == (began_at + timedelta(minutes=2), 270, 540)
    assert report.summary.buckets.accepted == 540


def test_outcomes_are_told_by_position(book: Book) -> None:
    """One of each recipient of the accepted requests, as Responsys numbers them; a doubt has no request."""
    book.push(task(), 3, 1, 2, 4, lost=1)
    first, second, third = book.requests(task())
    book.records.record_outcome("dag/push/run", first, succeeded=2, failed={"NO_RECIPIENT_FOUND": [1]})
    book.records.record_outcome("dag/push/run", second, error="RESPONSE_PURGED")

    found = list(book.reports.outcomes_by_position(task()))

    assert found == [
        PositionOutcome(first, 0, "succeeded", None),
        PositionOutcome(first, 1, "failed", "NO_RECIPIENT_FOUND"),
        PositionOutcome(first, 2, "succeeded", None),
        PositionOutcome(second, 0, "unknown", "RESPONSE_PURGED"),
        PositionOutcome(third, 0, "unknown", None),
        PositionOutcome(third, 1, "unknown", None),
    ]
    assert list(book.reports.outcomes_by_position(task("another"))) == []


def test_a_recipient_is_found_in_every_send(book: Book) -> None:
    """With the request, the position in it, and the outcome; newest first."""
    began_at = book.place.now
    book.push(task("a"), 3)
    [request] = book.requests(task("a"))
    book.records.record_outcome("dag/push/a", request, succeeded=2, failed={"NO_RECIPIENT_FOUND": [1]})
    book.place.now += LATER
    book.recipients = 1
    book.push(task("b", map_index=4), 1, lost=1)

    found = book.reports.person(people(1, 1)[0])

    newest = PersonInSend(
        task=task("b", map_index=4),
        campaign_name="Autumn",
        send_key="dag/push/b",
        claimed_at=began_at + LATER,
        bucket="in doubt",
    )
    oldest = PersonInSend(
        task=task("a", map_index=-1),
        campaign_name="Autumn",
        send_key="dag/push/a",
        claimed_at=began_at,
        bucket="accepted",
        request_id=request,
        position=1,
        outcome="failed",
        code="NO_RECIPIENT_FOUND",
    )
    assert found == [newest, oldest]
    assert [(one.position, one.outcome) for one in book.reports.person(people(2, 1)[0])] == [(2, "succeeded")]
    assert book.reports.person(people(99, 1)[0]) == []


def test_a_send_is_told_whole(book: Book) -> None:
    """Over all tasks that share its key, in the words of the list."""
    book.push(task("a"), 1, 2, lost=1, send_key="autumn")
    book.push(task("b"), 3, send_key="autumn")

    told = book.reports.batches_of("autumn")

    assert [(batch.task_instance, batch.size) for batch in told] == [
        ("dag/push/a/-1", 2),
        ("dag/push/a/-1", 1),
        ("dag/push/b/-1", 3),
    ]
    assert book.reports.sends() == book.records.sends()
    assert book.reports.batches_of("winter") == []


def test_a_task_instance_that_no_operator_named_is_of_no_dag(book: Book) -> None:
    """It is told to those alone who may read all."""
    ledger = book.place.open(task_instance="by hand")
    ledger.begin({"account": "api@host", "campaign_name": "Autumn"})
    book.send(ledger, 2)

    [found], _ = book.reports.pushes(dag_ids=None)

    assert (found.task.dag_id, found.task.run_id) == ("by hand", "")
    assert [one.task.dag_id for one in book.reports.person(people(0, 1)[0])] == ["by hand"]


def test_no_ledger_is_said_and_none_is_made(book: Book) -> None:
    """Looking makes no tables."""
    with pytest.raises(LedgerFailed, match="no task has used it yet"):
        book.reports.pushes(dag_ids=None)

    engine = book.place.engine()
    assert inspect(engine).get_table_names() == []
    engine.dispose()


def test_a_ledger_without_its_key_is_not_taken_for_none(book: Book) -> None:
    """Its claims could be of no known recipient."""
    book.push(task(), 1)
    engine = book.place.engine()
    with engine.begin() as connection:
        connection.execute(ledger_table.delete())
    engine.dispose()

    with pytest.raises(StateLost, match="fingerprint key is gone"):
        book.reports.pushes(dag_ids=None)


def test_a_look_reads_one_state_and_keeps_no_claim_waiting(book: Book) -> None:
    """The numbers of one report add up while tasks write."""
    book.push(task(), 1)
    is_file = book.place.url.drivername == "sqlite"

    with book.reports._database.reading() as connection:
        before = connection.execute(batches.select()).all()
        if not is_file:
            book.push(task("b"), 2)
        after = connection.execute(batches.select()).all()

    assert len(before) == len(after) == 1
    assert len(book.place.rows(batches)) == (1 if is_file else 2)
