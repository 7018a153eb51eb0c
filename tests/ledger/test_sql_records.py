"""The SQL ledger as pollers and people use it."""

from collections.abc import Iterator
from datetime import timedelta

import pytest

from airflow_provider_responsys.errors import LedgerFailed, StateLost
from airflow_provider_responsys.ledger.interface import FINGERPRINT_BYTES, Accepted, Claim, Released, Wanted
from airflow_provider_responsys.ledger.sql import SqlLedger
from airflow_provider_responsys.ledger.sql_records import PersonRecord, Records, RequestOutcome, State
from airflow_provider_responsys.ledger.sql_schema import batches, claims, sends, tries
from tests.ledger.conftest import IDENTITY, SqlPlace

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
    begun(database.open(send_key="winter", owner="another"))

    winter, autumn = records.sends()

    assert (winter.send_key, winter.campaign_name, winter.tries, winter.recipients) == ("winter", "Autumn", 1, {})
    assert (autumn.send_key, autumn.tries) == (SEND, 2)
    assert autumn.recipients == {State.FINISHED: 3, State.ACCEPTED: 3, State.IN_DOUBT: 2}
    assert autumn.created_at == database.now - timedelta(hours=1)


def test_a_send_is_shown(database: SqlPlace, records: Records, ledger: SqlLedger) -> None:
    """Each batch with its times, its request and its outcome."""
    records.record_outcome(SEND, "4711", succeeded=1, failed={"NO_RECIPIENT_FOUND": (0, 2)})

    first, _, third = records.show(SEND)

    assert (first.owner, first.try_number, first.number, first.size) == ("dag, task, run, -1", 1, 1, 3)
    assert (first.claimed_at, first.settled_at, first.outcome_at) == (database.now, database.now, database.now)
    assert (first.request_id, first.succeeded, first.failed) == ("4711", 1, {"NO_RECIPIENT_FOUND": 2})
    assert (third.state, third.request_id, third.settled_at, third.failed) == (State.IN_DOUBT, None, None, {})
    assert records.show("winter") == []


def test_a_person_settles_a_batch_as_sent(database: SqlPlace, records: Records, ledger: SqlLedger) -> None:
    """It is accepted, with nothing to poll."""
    doubtful = records.show(SEND)[2].batch_id

    records.settle_by_hand(doubtful, sent=True)

    assert states(records) == [State.ACCEPTED] * 3
    assert records.open_requests(SEND) == ["4711", "4712"]
    assert [batch.request_id for batch in begun(database.open(2)).earlier()] == ["4711", "4712", ""]


def test_a_person_settles_a_batch_as_not_sent(database: SqlPlace, records: Records, ledger: SqlLedger) -> None:
    """The next try sends to its recipients."""
    doubtful = records.show(SEND)[2].batch_id

    records.settle_by_hand(doubtful, sent=False)

    retry = begun(database.open(2))
    assert [batch.request_id for batch in retry.earlier()] == ["4711", "4712"]
    assert retry.commit([], [Wanted(1, people(6, 2))]) == [Claim(1)]


@pytest.mark.parametrize("sent", [True, False])
def test_only_a_doubt_can_be_settled_by_hand(records: Records, ledger: SqlLedger, sent: bool) -> None:
    """An answer is not a person's to change."""
    accepted = records.show(SEND)[0].batch_id

    with pytest.raises(LedgerFailed, match=str(accepted)):
        records.settle_by_hand(accepted, sent=sent)

    assert states(records) == [State.ACCEPTED, State.ACCEPTED, State.IN_DOUBT]


def test_a_restart_shows(database: SqlPlace, records: Records, ledger: SqlLedger) -> None:
    """What was sent before it stays on record; its requests are no longer waited for."""
    begun(database.open(2, max_tries=4, on_clear="restart")).commit([], [Wanted(1, people(0))])

    assert states(records) == [State.FORGOTTEN] * 3 + [State.IN_DOUBT]
    assert records.open_requests(SEND) == []
    assert records.sends()[0].recipients == {State.FORGOTTEN: 8, State.IN_DOUBT: 3}


def test_one_person_is_found(database: SqlPlace, records: Records, ledger: SqlLedger) -> None:
    """With how their push ended: the position counts those whom the request went out for."""
    other = begun(database.open(owner="another"))
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
    winter = begun(database.open(owner="another", send_key="winter"))
    winter.commit([], [Wanted(1, people(0))])
    records.record_outcome(SEND, "4711", succeeded=2, failed={"NO_RECIPIENT_FOUND": [2]})

    erased = records.forget(people(0, 1)[0])

    assert erased == 2
    assert records.person(people(0, 1)[0]) == []
    assert {one.send_key: one.code for one in records.person(people(2, 1)[0])} == {
        SEND: "NO_RECIPIENT_FOUND",
        "winter": None,
    }
    assert people(0, 1)[0] not in {bytes(row["fingerprint"]) for row in database.rows(claims)}
    assert records.forget(people(0, 1)[0]) == 0


def test_old_sends_are_pruned(database: SqlPlace, records: Records, ledger: SqlLedger) -> None:
    """All of an old one goes, nothing of a recent one; a later try of it fails closed."""
    database.now += timedelta(days=30)
    begun(database.open(owner="another", send_key="winter")).commit([], [Wanted(1, people(0))])

    pruned = records.prune(database.now - timedelta(days=7))

    assert pruned == 1
    assert [send.send_key for send in records.sends()] == ["winter"]
    assert [len(database.rows(table)) for table in (sends, tries, batches, claims)] == [1, 1, 1, 3]
    with pytest.raises(StateLost):
        begun(database.open(2))


@pytest.mark.parametrize("act", ["begins", "claims"])
def test_a_send_in_use_is_not_pruned(database: SqlPlace, records: Records, ledger: SqlLedger, act: str) -> None:
    """However long ago it was first used."""
    database.now += timedelta(days=30)
    if act == "begins":
        begun(database.open(2))
    else:
        ledger.commit([Released(3)], [Wanted(4, people(9))])

    assert records.prune(database.now - timedelta(days=7)) == 0


def test_a_ledger_that_is_down_says_so(database: SqlPlace, records: Records) -> None:
    """The same error as for senders."""
    database.break_down()

    with pytest.raises(LedgerFailed, match="server closed the connection"):
        records.sends()
