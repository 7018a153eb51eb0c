"""The SQL ledger as pollers and people use it."""

from collections.abc import Iterator
from datetime import timedelta
from functools import partial

import pytest

from airflow_provider_responsys.errors import LedgerFailed, StateLost
from airflow_provider_responsys.ledger.interface import FINGERPRINT_BYTES, Accepted, Claim, Released, Wanted
from airflow_provider_responsys.ledger.sql import SqlLedger
from airflow_provider_responsys.ledger.sql_records import Records
from airflow_provider_responsys.ledger.sql_tables import batches, claims, sends, task_instances, tries
from airflow_provider_responsys.ledger.sql_values import PersonRecord, RequestOutcome, Resolution, State, TraceRecord
from tests.support.places import IDENTITY, SqlPlace

SEND = "autumn"


def people(first: int, count: int = 3) -> list[bytes]:
    """Return the fingerprints of *count* people, numbered from *first*."""
    return [number.to_bytes(FINGERPRINT_BYTES, "big") for number in range(first, first + count)]


def begun(ledger: SqlLedger) -> SqlLedger:
    """Return *ledger* after its first act."""
    ledger.begin(IDENTITY)
    return ledger


@pytest.fixture
def records(database: SqlPlace) -> Iterator[Records]:
    """Give the records of the database."""
    found = Records(database.engine(), now=lambda: database.now)
    found.fingerprint_key()
    yield found
    found.close()


@pytest.fixture
def ledger(database: SqlPlace, records: Records) -> SqlLedger:
    """Give a try that has two requests accepted, and one batch in doubt."""
    ledger = begun(database.open())
    ledger.commit([], [Wanted(1, people(0)), Wanted(2, people(3)), Wanted(3, people(6, 2))])
    ledger.commit([Accepted(2, "4712"), Accepted(1, "4711")], [])
    return ledger


def states(records: Records) -> list[State]:
    """Return the state of each batch."""
    return [batch.state for batch in records.show(SEND)]


def test_the_key_is_that_of_the_ledger(database: SqlPlace, records: Records) -> None:
    """A person's fingerprint is looked up with it."""
    assert records.fingerprint_key() == database.open().begin(IDENTITY)


def test_open_requests_are_those_without_an_outcome(records: Records, ledger: SqlLedger) -> None:
    """A restarted poller asks only for them."""
    before = records.open_requests(SEND)

    records.record_outcome(SEND, "4711", succeeded=3)

    assert before == ["4711", "4712"]
    assert records.open_requests(SEND) == ["4712"]
    assert records.open_requests("winter") == []


def test_outcomes_are_read_back(records: Records, ledger: SqlLedger) -> None:
    """A restarted poller counts on from them."""
    records.record_outcome(SEND, "4711", succeeded=1, failed={"NO_RECIPIENT_FOUND": (0, 2)})
    records.record_outcome(SEND, "4712", error="RESPONSE_PURGED")

    assert records.outcomes(SEND) == [
        RequestOutcome("4711", 3, 1, {"NO_RECIPIENT_FOUND": [0, 2]}, None),
        RequestOutcome("4712", 3, 0, {}, "RESPONSE_PURGED"),
    ]
    assert states(records) == [State.FINISHED, State.FAILED, State.IN_DOUBT]


def test_an_outcome_may_be_recorded_twice(records: Records, ledger: SqlLedger) -> None:
    """A poller that died after its write reads the same answer again."""
    for _ in range(2):
        records.record_outcome(SEND, "4711", succeeded=3)

    assert [outcome.succeeded for outcome in records.outcomes(SEND)] == [3]


@pytest.mark.parametrize(("send_key", "request_id"), [("winter", "4711"), (SEND, "4799")])
def test_an_outcome_of_nothing_known_is_refused(
    records: Records, ledger: SqlLedger, send_key: str, request_id: str
) -> None:
    """It would be lost silently."""
    with pytest.raises(LedgerFailed, match=request_id):
        records.record_outcome(send_key, request_id, succeeded=3)


def test_sends_are_listed(database: SqlPlace, records: Records, ledger: SqlLedger) -> None:
    """Newest first, with how many recipients are in which state."""
    records.record_outcome(SEND, "4711", succeeded=3)
    database.now += timedelta(hours=1)
    begun(database.open(2))
    begun(database.open(send_key="winter", task_instance="another"))

    winter, autumn = records.sends()

    assert (winter.send_key, winter.campaign_name, winter.tries, winter.recipients) == ("winter", "Autumn", 1, {})
    assert (autumn.send_key, autumn.tries) == (SEND, 2)
    assert autumn.recipients == {State.FINISHED: 3, State.ACCEPTED: 3, State.IN_DOUBT: 2}
    assert autumn.created_at == database.now - timedelta(hours=1)


def test_one_send_and_one_batch_are_found(database: SqlPlace, records: Records, ledger: SqlLedger) -> None:
    """By what a person has read in a log."""
    begun(database.open(send_key="winter", task_instance="another"))

    shown = records.show(SEND)

    assert records.send(SEND) == records.sends()[1]
    assert records.send("spring") is None
    assert [records.batch(batch.batch_id) for batch in shown] == shown
    assert records.batch(12) is None


def test_a_batch_has_the_id_that_its_request_carried(database: SqlPlace, records: Records) -> None:
    """One id in the log, in the ledger and at Oracle; with Responsys' own id of the answer, as far as it fits."""
    wanted = Wanted(1, people(0))
    ledger = begun(database.open())
    ledger.commit([], [wanted])
    ledger.commit([Accepted(1, "4711", "c" * 300)], [])

    [shown] = records.show(SEND)
    [earlier] = begun(database.open(2)).earlier()

    assert shown.batch_id == earlier.batch_id == wanted.batch_id
    assert (shown.correlation_id, shown.polls) == ("c" * 200, 0)


def test_a_doubt_has_the_id_of_the_answer_that_left_it(database: SqlPlace, records: Records) -> None:
    """Oracle's support asks for it; the batch stays in doubt."""
    ledger = begun(database.open())
    ledger.commit([], [Wanted(1, people(0))])

    ledger.name_answer(1, "Id-ccd6245caf83d0861a5c8007 0")

    [shown] = records.show(SEND)
    assert (shown.state, shown.correlation_id) == (State.IN_DOUBT, "Id-ccd6245caf83d0861a5c8007 0")


def test_polls_are_kept(records: Records, ledger: SqlLedger) -> None:
    """How often a request was asked for until its outcome was known."""
    records.record_outcome(SEND, "4711", succeeded=3, polls=7)
    records.record_outcome(SEND, "4711", succeeded=3)

    assert records.show(SEND)[0].polls == 7


def test_a_send_is_shown(database: SqlPlace, records: Records, ledger: SqlLedger) -> None:
    """Each batch with its times, its request and its outcome."""
    records.record_outcome(SEND, "4711", succeeded=1, failed={"NO_RECIPIENT_FOUND": (0, 2)})

    first, _, third = records.show(SEND)

    assert (first.task_instance, first.try_number, first.number, first.size) == ("dag, task, run, -1", 1, 1, 3)
    assert (first.claimed_at, first.settled_at, first.outcome_at) == (database.now, database.now, database.now)
    assert (first.request_id, first.succeeded, first.failed) == ("4711", 1, {"NO_RECIPIENT_FOUND": 2})
    assert (third.state, third.request_id, third.settled_at, third.failed) == (State.IN_DOUBT, None, None, {})
    assert records.show("winter") == []


def test_a_person_settles_a_batch_as_sent(database: SqlPlace, records: Records, ledger: SqlLedger) -> None:
    """It is accepted, with nothing to poll."""
    doubtful = records.show(SEND)[2].batch_id

    records.settle_by_hand(doubtful, sent=True, by="anna", reason="asked Oracle")

    assert states(records) == [State.ACCEPTED] * 3
    assert records.open_requests(SEND) == ["4711", "4712"]
    assert [batch.request_id for batch in begun(database.open(2)).earlier()] == ["4711", "4712", ""]


def test_a_person_settles_a_batch_as_not_sent(database: SqlPlace, records: Records, ledger: SqlLedger) -> None:
    """The next try sends to its recipients."""
    doubtful = records.show(SEND)[2].batch_id

    records.settle_by_hand(doubtful, sent=False, by="anna", reason="asked Oracle")

    retry = begun(database.open(2))
    assert [batch.request_id for batch in retry.earlier()] == ["4711", "4712"]
    assert retry.commit([], [Wanted(1, people(6, 2))]) == [Claim(1)]


def test_a_resolution_is_kept(database: SqlPlace, records: Records, ledger: SqlLedger) -> None:
    """Who, when and why; also of a batch that was not sent, which holds no recipient any more."""
    doubtful = records.show(SEND)[2].batch_id
    database.now += timedelta(hours=1)

    records.settle_by_hand(doubtful, sent=False, by="anna" * 50, reason="asked Oracle")

    [*_, shown] = records.show(SEND)
    assert records.batch(doubtful) == shown
    assert (shown.state, shown.size, shown.counts) == (State.NOT_SENT, 2, False)
    assert shown.resolution == Resolution("not sent", ("anna" * 50)[:100], database.now, "asked Oracle")
    assert len([row for row in database.rows(claims) if row["batch_id"] == doubtful]) == 0
    assert records.sends()[0].recipients == {State.ACCEPTED: 6, State.NOT_SENT: 2}


def test_an_answer_that_comes_after_all_is_recorded(
    database: SqlPlace, records: Records, ledger: SqlLedger, caplog: pytest.LogCaptureFixture
) -> None:
    """The person was wrong, or early: the request id is known then, and the log says who may be pushed twice."""
    doubtful = records.show(SEND)[2].batch_id
    records.settle_by_hand(doubtful, sent=False, by="anna", reason="in a hurry")

    ledger.commit([Accepted(3, "4713")], [])

    shown = records.batch(doubtful)
    assert shown
    assert (shown.state, shown.request_id, shown.settled_at) == (State.NOT_SENT, "4713", database.now)
    assert f"Batch {doubtful} was resolved as not sent by anna" in caplog.text
    assert records.open_requests(SEND) == ["4711", "4712"]


@pytest.mark.parametrize("sent", [True, False])
def test_a_batch_is_not_resolved_while_its_answer_may_come(database: SqlPlace, records: Records, sent: bool) -> None:
    """Its try wrote a moment ago, so it lives, and may be sending what it claimed long before."""
    ledger = begun(database.open(answer_within=70.0))
    ledger.commit([], [Wanted(1, people(0))])
    ledger.commit([], [Wanted(2, people(3))])
    database.now += timedelta(seconds=60)
    ledger.commit([Accepted(2, "4712")], [])
    [doubt, _] = records.show(SEND)
    resolve = partial(records.settle_by_hand, doubt.batch_id, sent=sent, by="anna", reason="asked Oracle")

    for seconds in (0, 15, 54):  # the second is past the claim's own time
        database.now += timedelta(seconds=seconds)
        with pytest.raises(LedgerFailed, match=rf"Batch {doubt.batch_id} may still be answered.*--force"):
            resolve()
    database.now += timedelta(seconds=1)
    resolve()

    assert records.show(SEND)[0].resolution


def test_a_batch_may_be_resolved_by_force(database: SqlPlace, records: Records) -> None:
    """A person who knows that the worker is gone need not wait."""
    ledger = begun(database.open(answer_within=70.0))
    ledger.commit([], [Wanted(1, people(0))])

    records.settle_by_hand(records.show(SEND)[0].batch_id, sent=True, by="anna", reason="the host is gone", force=True)

    assert states(records) == [State.ACCEPTED]


def test_what_people_do_leaves_a_trace(database: SqlPlace, records: Records, ledger: SqlLedger) -> None:
    """Also after a prune; never whom it was about, and nothing where nothing was done."""
    doubtful = records.show(SEND)[2].batch_id
    records.settle_by_hand(doubtful, sent=True, by="anna", reason="asked Oracle")
    records.forget(people(0, 1)[0], by="ben", reason="they asked")
    records.forget(people(0, 1)[0], by="ben", reason="they asked")
    database.now += timedelta(days=30)
    records.prune(database.now - timedelta(days=7), by="cron")
    records.prune(database.now - timedelta(days=7), by="cron")

    pruned, forgotten, settled = records.traces()

    since = "2026-12-16 08:30:00+0000"
    about = f"sends in which nothing was begun or claimed since {since}"
    assert pruned == TraceRecord(database.now, "cron", "prune", about, 1, "")
    assert (forgotten.done_by, forgotten.action, forgotten.about, forgotten.count) == (
        "ben",
        "forget",
        "one recipient",
        1,
    )
    assert (settled.about, settled.count, settled.reason) == (f"batch {doubtful} as sent", 2, "asked Oracle")
    assert records.sends() == []


@pytest.mark.parametrize("sent", [True, False])
def test_only_a_doubt_can_be_settled_by_hand(records: Records, ledger: SqlLedger, sent: bool) -> None:
    """An answer is not a person's to change."""
    accepted = records.show(SEND)[0].batch_id

    with pytest.raises(LedgerFailed, match=str(accepted)):
        records.settle_by_hand(accepted, sent=sent, by="anna", reason="asked Oracle")

    assert states(records) == [State.ACCEPTED, State.ACCEPTED, State.IN_DOUBT]


def test_who_was_sent_to_again_is_shown_once(database: SqlPlace, records: Records, ledger: SqlLedger) -> None:
    """The batch that they left stays on record, with the id that its request carried, and a late answer to it."""
    second = begun(database.open(2))
    [*_, doubt] = second.earlier()

    second.commit([], [Wanted(1, people(6, 2), doubt)])
    ledger.commit([Accepted(3, "late")], [])

    assert states(records) == [State.ACCEPTED, State.ACCEPTED, State.MOVED, State.IN_DOUBT]
    assert [(batch.size, batch.request_id) for batch in records.show(SEND)][2:] == [(0, "late"), (2, None)]
    assert records.open_requests(SEND) == ["4711", "4712"]
    assert records.sends()[0].recipients == {State.ACCEPTED: 6, State.IN_DOUBT: 2}


def test_a_restart_shows(database: SqlPlace, records: Records, ledger: SqlLedger) -> None:
    """What was sent before it stays on record; its requests are no longer waited for."""
    begun(database.open(2, max_tries=4, on_clear="restart")).commit([], [Wanted(1, people(0))])

    assert states(records) == [State.FORGOTTEN] * 3 + [State.IN_DOUBT]
    assert records.open_requests(SEND) == []
    assert records.sends()[0].recipients == {State.FORGOTTEN: 8, State.IN_DOUBT: 3}


def test_one_person_is_found(database: SqlPlace, records: Records, ledger: SqlLedger) -> None:
    """With how their push ended: the position counts those whom the request went out for."""
    other = begun(database.open(task_instance="another"))
    mixed = [*people(0, 1), *people(20, 1), *people(1, 1), *people(21, 1)]
    other.commit([], [Wanted(1, mixed)])
    other.commit([Accepted(1, "4713")], [])
    records.record_outcome(SEND, "4713", succeeded=1, failed={"NO_RECIPIENT_FOUND": [1]})
    records.record_outcome(SEND, "4711", error="RESPONSE_PURGED")

    found = {name: records.person(people(name, 1)[0]) for name in (0, 3, 6, 20, 21, 99)}

    now = database.now
    assert found == {
        0: [PersonRecord(SEND, now, State.FAILED, "4711", "RESPONSE_PURGED")],
        3: [PersonRecord(SEND, now, State.ACCEPTED, "4712", None)],
        6: [PersonRecord(SEND, now, State.IN_DOUBT, None, None)],
        20: [PersonRecord(SEND, now, State.FINISHED, "4713", None)],
        21: [PersonRecord(SEND, now, State.FINISHED, "4713", "NO_RECIPIENT_FOUND")],
        99: [],
    }


def test_one_person_is_erased_from_every_send(database: SqlPlace, records: Records, ledger: SqlLedger) -> None:
    """Nobody can tell any more that they were pushed; the others keep their positions."""
    winter = begun(database.open(task_instance="another", send_key="winter"))
    winter.commit([], [Wanted(1, people(0))])
    records.record_outcome(SEND, "4711", succeeded=2, failed={"NO_RECIPIENT_FOUND": [2]})

    erased = records.forget(people(0, 1)[0], by="anna")

    assert erased == 2
    assert records.person(people(0, 1)[0]) == []
    assert {one.send_key: one.code for one in records.person(people(2, 1)[0])} == {
        SEND: "NO_RECIPIENT_FOUND",
        "winter": None,
    }
    assert people(0, 1)[0] not in {bytes(row["fingerprint"]) for row in database.rows(claims)}
    assert records.forget(people(0, 1)[0], by="anna") == 0


def test_old_sends_are_pruned(database: SqlPlace, records: Records, ledger: SqlLedger) -> None:
    """All of an old one goes, nothing of a recent one; a later try of it fails closed."""
    database.now += timedelta(days=30)
    begun(database.open(task_instance="another", send_key="winter")).commit([], [Wanted(1, people(0))])

    pruned = records.prune(database.now - timedelta(days=7), by="anna")

    assert pruned == 1
    assert [send.send_key for send in records.sends()] == ["winter"]
    assert [len(database.rows(table)) for table in (sends, task_instances, tries, batches, claims)] == [1, 1, 1, 1, 3]
    with pytest.raises(StateLost):
        begun(database.open(2))


def test_a_task_instance_stays_while_a_send_of_it_does(database: SqlPlace, records: Records) -> None:
    """Its key was corrected on a later try: the older send goes, and its counter stays."""
    begun(database.open(1))
    database.now += timedelta(days=30)
    begun(database.open(2, send_key="winter")).commit([], [Wanted(1, people(0))])

    pruned = records.prune(database.now - timedelta(days=7), by="anna")

    assert pruned == 1
    assert [row["claim_count"] for row in database.rows(task_instances)] == [1]
    assert len(list(begun(database.open(3, send_key="winter")).earlier())) == 1


@pytest.mark.parametrize("act", ["begins", "claims"])
def test_a_send_in_use_is_not_pruned(database: SqlPlace, records: Records, ledger: SqlLedger, act: str) -> None:
    """However long ago it was first used."""
    database.now += timedelta(days=30)
    if act == "begins":
        begun(database.open(2))
    else:
        ledger.commit([Released(3)], [Wanted(4, people(9))])

    assert records.prune(database.now - timedelta(days=7), by="anna") == 0


def test_a_ledger_that_is_down_says_so(database: SqlPlace, records: Records) -> None:
    """The same error as for senders."""
    database.break_down()

    with pytest.raises(LedgerFailed, match="server closed the connection"):
        records.sends()
