"""What the SQL ledger promises beyond the contract: across tasks and runs, and while others write."""

import random
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import timedelta
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
from sqlalchemy import create_engine, delete, event, insert, select, update
from sqlalchemy.dialects import mysql
from sqlalchemy.exc import OperationalError
from sqlalchemy.schema import CreateTable

from airflow_provider_responsys.errors import (
    Fenced,
    InvalidSettings,
    LedgerFailed,
    LedgerUnreachable,
    SettingsChanged,
    StateLost,
)
from airflow_provider_responsys.ledger import sql_schema
from airflow_provider_responsys.ledger.fingerprint import key_id
from airflow_provider_responsys.ledger.interface import (
    FINGERPRINT_BYTES,
    Accepted,
    Claim,
    Earlier,
    Holder,
    Released,
    Wanted,
)
from airflow_provider_responsys.ledger.sql import SqlLedger
from airflow_provider_responsys.ledger.sql_claims import Writer
from airflow_provider_responsys.ledger.sql_records import Records
from airflow_provider_responsys.ledger.sql_schema import ATTEMPTS, ClaimRow, Database
from airflow_provider_responsys.ledger.sql_tables import VERSION, batches, claims, ledger_table, metadata, sends, tries
from airflow_provider_responsys.ledger.sql_values import State
from tests.support.places import IDENTITY, SqlPlace

OTHER_TASK = "dag, other task, run, -1"


def people(first: int, count: int = 3) -> list[bytes]:
    """Return the fingerprints of *count* people, numbered from *first*."""
    return [number.to_bytes(FINGERPRINT_BYTES, "big") for number in range(first, first + count)]


def begun(ledger: SqlLedger) -> SqlLedger:
    """Return *ledger* after its first act."""
    ledger.begin(IDENTITY)
    return ledger


def won(wanted: Wanted, claim: Claim) -> list[bytes]:
    """Return whom *claim* lets go out."""
    return [one for index, one in enumerate(wanted.fingerprints) if index not in claim.lost]


def change(database: SqlPlace, statement: Any) -> None:
    """Change the tables as an accident does."""
    engine = create_engine(database.url, connect_args=database.connect)
    with engine.begin() as connection:
        connection.execute(statement)
    engine.dispose()


def side_by_side(*work: Callable[[], Any]) -> list[Any]:
    """Do all of *work* at once, each on its thread; return the results."""
    start = threading.Barrier(len(work))

    def run(one: Callable[[], Any]) -> Any:
        start.wait()
        return one()

    with ThreadPoolExecutor(len(work)) as pool:
        return [future.result(timeout=60) for future in [pool.submit(run, one) for one in work]]


@pytest.fixture
def no_second_attempt(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Give a way to let each transaction fail that is undone because of another."""
    return lambda: monkeypatch.setattr(sql_schema, "ATTEMPTS", 1)


def test_another_task_with_the_same_key_is_told_who_is_taken(database: SqlPlace) -> None:
    """Two tasks with one send key never push one recipient twice."""
    first = begun(database.open())
    first.commit([], [Wanted(1, people(0, 4))])
    first.commit([Accepted(1, "4711")], [])
    other = begun(database.open(task_instance=OTHER_TASK))

    claims_won = other.commit([], [Wanted(1, people(2, 4))])

    assert list(other.earlier()) == []
    assert claims_won == [Claim(1, {0: Holder.OTHER, 1: Holder.OTHER})]


def test_another_key_is_another_send(database: SqlPlace) -> None:
    """The same people may be pushed by another campaign."""
    begun(database.open()).commit([], [Wanted(1, people(0))])

    other = begun(database.open(task_instance=OTHER_TASK, send_key="winter"))

    assert other.commit([], [Wanted(1, people(0))]) == [Claim(1)]


def test_moments_are_kept_to_the_microsecond(database: SqlPlace) -> None:
    """A database may round what is meant to be compared with what another host wrote."""
    database.now += timedelta(microseconds=999_999)
    begun(database.open(1)).commit([], [Wanted(1, people(0))])

    [batch] = begun(database.open(2)).earlier()

    assert batch.since == database.now


def test_request_ids_are_told_apart_by_every_letter(database: SqlPlace) -> None:
    """A database may compare texts as people do, who see no difference."""
    ledger = begun(database.open())
    ledger.commit([], [Wanted(1, people(0)), Wanted(2, people(3))])
    ledger.commit([Accepted(1, "a1"), Accepted(2, "A1")], [])
    records = Records(database.engine())

    records.record_outcome("autumn", "a1", succeeded=3)

    assert records.open_requests("autumn") == ["A1"]
    records.close()


def test_a_send_may_have_any_name(database: SqlPlace) -> None:
    """In every script, and of any length that Airflow allows."""
    name = "冬の campaign 🎿" + "x" * 2_000
    first = begun(database.open(1, send_key=name))
    first.commit([], [Wanted(1, people(0))])
    records = Records(database.engine())

    assert [send.send_key for send in records.sends()] == [name]
    records.close()


def test_what_an_earlier_try_claimed_is_lost_as_it_stands(database: SqlPlace) -> None:
    """Even where the caller did not leave them out."""
    first = begun(database.open(1))
    first.commit([], [Wanted(1, people(0, 2)), Wanted(2, people(2, 2))])
    first.commit([Accepted(1, "4711")], [])

    claims_won = begun(database.open(2)).commit([], [Wanted(1, people(1, 4))])

    assert claims_won == [Claim(1, {0: Holder.ACCEPTED, 1: Holder.IN_DOUBT, 2: Holder.IN_DOUBT})]


def test_a_batch_that_won_nobody_leaves_no_record(database: SqlPlace) -> None:
    """Nothing was sent for it, so nothing can be in doubt."""
    begun(database.open(1)).commit([], [Wanted(1, people(0))])
    other = begun(database.open(task_instance=OTHER_TASK))

    other.commit([], [Wanted(1, people(0)), Wanted(2, people(0, 2))])

    assert len(database.rows(batches)) == 1
    assert list(begun(database.open(2, task_instance=OTHER_TASK)).earlier()) == []


def test_one_person_in_two_batches_of_a_call_is_won_once(database: SqlPlace) -> None:
    """The spool leaves no duplicates; the ledger would not let them through."""
    ledger = begun(database.open())

    claims_won = ledger.commit([], [Wanted(1, people(0, 2)), Wanted(2, people(1, 2)), Wanted(3, people(5) + people(5))])

    assert sum(len(claim.lost) for claim in claims_won) == 4
    assert {holder for claim in claims_won for holder in claim.lost.values()} == {Holder.OTHER}
    assert len(database.rows(claims)) == 6


def test_many_are_looked_up(database: SqlPlace) -> None:
    """More losses than one question has room for."""
    begun(database.open()).commit([], [Wanted(number, people(number * 200, 200)) for number in range(8)])
    other = begun(database.open(task_instance=OTHER_TASK))

    claims_won = other.commit([], [Wanted(number, people(number * 200 + 100, 200)) for number in range(8)])

    assert sum(len(claim.lost) for claim in claims_won) == 1500


def test_a_claim_given_back_meanwhile_is_not_sure(database: SqlPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its holder was alive a moment ago."""
    begun(database.open()).commit([], [Wanted(1, people(0))])
    other = begun(database.open(task_instance=OTHER_TASK))
    monkeypatch.setattr(other._began(), "_holders", lambda *_: {})

    [claim] = other.commit([], [Wanted(1, people(0))])

    assert set(claim.lost.values()) == {Holder.IN_DOUBT}


def test_one_key_serves_one_campaign(database: SqlPlace) -> None:
    """Otherwise a second campaign would find everybody taken, and push nobody."""
    begun(database.open()).commit([], [Wanted(1, people(0))])

    with pytest.raises(
        SettingsChanged, match=r"(?s)'autumn'.*campaign_name was 'Autumn' and is 'Winter'.*one campaign"
    ):
        database.open(task_instance=OTHER_TASK).begin({**IDENTITY, "campaign_name": "Winter"})


def test_settings_changed_by_another_task_stop_this_one(database: SqlPlace) -> None:
    """Nobody was claimed yet, so the other one could: this one's fingerprints are of another kind."""
    first = begun(database.open())
    database.open(task_instance=OTHER_TASK).begin({**IDENTITY, "match_on": "riid"})

    with pytest.raises(SettingsChanged, match="match_on"):
        first.commit([], [Wanted(1, people(0))])


def test_another_key_on_a_retry_fails_closed(database: SqlPlace) -> None:
    """A template that renders differently on each try would forget everybody."""
    begun(database.open(1)).commit([], [Wanted(1, people(0))])

    with pytest.raises(SettingsChanged, match="send_key was 'autumn' and is 'winter'"):
        begun(database.open(2, send_key="winter"))


def test_another_key_on_a_retry_is_fine_while_nobody_is_claimed(database: SqlPlace) -> None:
    """A misspelt key can be corrected."""
    begun(database.open(1))

    second = begun(database.open(2, send_key="winter"))

    assert second.commit([], [Wanted(1, people(0))]) == [Claim(1)]


def test_a_restart_frees_only_its_own(database: SqlPlace) -> None:
    """Whom another task pushed stays pushed."""
    begun(database.open(1)).commit([], [Wanted(1, people(0, 2))])
    begun(database.open(task_instance=OTHER_TASK)).commit([], [Wanted(1, people(2, 2))])

    restarted = begun(database.open(2, max_tries=4, on_clear="restart"))

    assert restarted.commit([], [Wanted(1, people(0, 4))]) == [Claim(1, {2: Holder.OTHER, 3: Holder.OTHER})]
    assert [row["forgotten_at"] is None for row in database.rows(batches)].count(False) == 1


def test_a_restart_does_not_free_the_key_from_others(database: SqlPlace) -> None:
    """Their claims still stand under the old settings."""
    begun(database.open(1)).commit([], [Wanted(1, people(0, 2))])
    begun(database.open(task_instance=OTHER_TASK)).commit([], [Wanted(1, people(2, 2))])

    with pytest.raises(SettingsChanged):
        database.open(2, max_tries=4, on_clear="restart").begin({**IDENTITY, "match_on": "riid"})


def test_a_refused_beginning_forgets_nothing(database: SqlPlace) -> None:
    """The restart before it is undone with it."""
    begun(database.open(1)).commit([], [Wanted(1, people(0, 2))])
    begun(database.open(task_instance=OTHER_TASK)).commit([], [Wanted(1, people(2, 2))])
    with pytest.raises(SettingsChanged):
        database.open(2, max_tries=4, on_clear="restart").begin({**IDENTITY, "match_on": "riid"})

    found = list(begun(database.open(2)).earlier())

    assert [batch.label for batch in found] == ["try 1, batch 1"]


def test_a_restart_does_without_the_record(database: SqlPlace, caplog: pytest.LogCaptureFixture) -> None:
    """It would forget it anyway, and says so."""
    begun(database.open(1))
    database.lose()

    begun(database.open(2, max_tries=4, on_clear="restart"))

    assert "forgotten" in caplog.text


def ends(database: SqlPlace) -> list[Any]:
    """Return when each try ended."""
    engine = database.engine()
    with engine.connect() as connection:
        found = list(connection.execute(select(tries.c.ended_at)).scalars())
    engine.dispose()
    return found


def test_the_end_of_a_try_is_recorded_once(database: SqlPlace) -> None:
    """When it closed first; a try that never began has none, and a database that is gone keeps none from closing."""
    ledger, other = database.open(1, task_instance="a/b/c/0"), database.open(1, task_instance="a/b/c/1")
    ledger.begin(IDENTITY)

    other.close()
    ledger.close()
    ended_at = database.now
    database.now += timedelta(minutes=1)
    ledger.close()

    assert ends(database) == [ended_at]


def test_a_try_ends_where_its_end_cannot_be_recorded(database: SqlPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    """People see the end, and nothing that is sent depends on it."""
    ledger = database.open(1)
    ledger.begin(IDENTITY)
    monkeypatch.setattr(Writer, "end", Mock(side_effect=LedgerUnreachable("gone")))

    ledger.close()

    assert ends(database) == [None]


def test_a_replaced_try_still_records_its_answers(database: SqlPlace) -> None:
    """What was accepted is no doubt, whoever hears of it; but it claims nobody any more."""
    zombie = begun(database.open(1))
    zombie.commit([], [Wanted(1, people(0)), Wanted(2, people(3))])
    retry = begun(database.open(2))

    zombie.commit([Accepted(1, "4711")], [])
    with pytest.raises(Fenced, match="Another try"):
        zombie.commit([Accepted(2, "4712")], [Wanted(3, people(6))])

    assert [batch.request_id for batch in retry.earlier()] == ["4711", "4712"]


def in_doubt(database: SqlPlace, whom: Sequence[bytes]) -> tuple[SqlLedger, Earlier]:
    """Let a first try leave *whom* in doubt; return a second one, and what it finds."""
    begun(database.open(1)).commit([], [Wanted(1, whom)])
    second = begun(database.open(2))
    [doubt] = second.earlier()
    return second, doubt


def by_hand(database: SqlPlace) -> "closing[Records]":
    """Give the ledger as a person sees it."""
    return closing(Records(database.engine(), now=lambda: database.now))


def test_a_doubt_that_was_settled_as_sent_is_not_sent_again(database: SqlPlace) -> None:
    """A person found out while the try was reading its source."""
    second, doubt = in_doubt(database, people(0))
    with by_hand(database) as records:
        records.settle_by_hand(doubt.batch_id, sent=True, by="anna", reason="seen")

    claims_won = second.commit([], [Wanted(1, people(0), doubt), Wanted(2, people(3))])

    assert claims_won == [Claim(1, dict.fromkeys(range(3), Holder.ACCEPTED)), Claim(2)]
    assert [row["size"] for row in database.rows(batches)] == [3, 3]


def test_a_doubt_that_was_settled_as_not_sent_is_claimed_like_others(database: SqlPlace) -> None:
    """Its claims are free."""
    second, doubt = in_doubt(database, people(0))
    with by_hand(database) as records:
        records.settle_by_hand(doubt.batch_id, sent=False, by="anna", reason="not seen")

    assert second.commit([], [Wanted(1, people(0), doubt)]) == [Claim(1)]
    assert [batch.label for batch in begun(database.open(3)).earlier()] == ["try 2, batch 1"]


def test_who_was_erased_from_a_doubt_is_not_sent_to_again(database: SqlPlace) -> None:
    """Who it was can't be told any more, and they may have been pushed."""
    second, doubt = in_doubt(database, people(0))
    with by_hand(database) as records:
        records.forget(people(1)[0], by="anna")

    assert second.commit([], [Wanted(1, people(0), doubt)]) == [Claim(1, {1: Holder.IN_DOUBT})]
    assert sorted(row["size"] for row in database.rows(batches)) == [1, 2]


def test_a_doubt_of_whom_all_were_erased_stays(database: SqlPlace) -> None:
    """How many there were is known, and nothing goes out again."""
    second, doubt = in_doubt(database, people(0, 2))
    with by_hand(database) as records:
        for one in people(0, 2):
            records.forget(one, by="anna")

    assert second.commit([], [Wanted(1, people(0, 2), doubt)]) == [Claim(1, dict.fromkeys((0, 1), Holder.IN_DOUBT))]
    assert [(row["size"], row["moved"]) for row in database.rows(batches)] == [(2, 0)]


def test_who_moves_keeps_the_order_of_the_request(database: SqlPlace) -> None:
    """Results are told by position: of those in the new request."""
    whom = [people(2)[0], people(0)[0], people(1)[0]]
    second, doubt = in_doubt(database, whom)

    second.commit([], [Wanted(1, whom[:2], doubt)])
    second.commit([Accepted(1, "id-1")], [])

    rows = {row["size"]: row["id"] for row in database.rows(batches)}
    moved = [row for row in database.rows(claims) if row["batch_id"] == rows[2]]
    assert [bytes(row["fingerprint"]) for row in sorted(moved, key=lambda row: row["position"])] == whom[:2]
    assert [(batch.request_id, batch.fingerprints) for batch in begun(database.open(3)).earlier()] == [
        (None, whom[2:]),
        ("id-1", whom[:2]),
    ]


def test_a_zombie_that_hears_of_what_was_taken_over_settles_the_rest(database: SqlPlace) -> None:
    """Those who are no longer in the source were in its request, too."""
    zombie = begun(database.open(1))
    zombie.commit([], [Wanted(1, people(0)), Wanted(2, people(3))])
    second = begun(database.open(2))
    one, two = second.earlier()
    second.commit([], [Wanted(1, people(0, 2), one), Wanted(2, people(3), two)])

    zombie.commit([Accepted(1, "late-1"), Accepted(2, "late-2")], [])

    assert {
        batch.label: (batch.request_id, list(batch.fingerprints)) for batch in begun(database.open(3)).earlier()
    } == {
        "try 1, batch 1": ("late-1", people(2, 1)),
        "try 2, batch 1": (None, people(0, 2)),
        "try 2, batch 2": (None, people(3)),
    }


def test_taking_over_does_not_deadlock(database: SqlPlace, no_second_attempt: Callable[[], None]) -> None:
    """Two tasks send again what they left in doubt, and claim each other's people beside it."""
    everybody = people(0, 400)
    names = [f"dag, task, run, {number}" for number in range(2)]
    for number, task_instance in enumerate(names):
        begun(database.open(1, task_instance=task_instance)).commit(
            [], [Wanted(batch, everybody[number + 2 * batch :: 40]) for batch in range(20)]
        )
    ledgers = [begun(database.open(2, task_instance=task_instance)) for task_instance in names]
    doubts = [list(ledger.earlier()) for ledger in ledgers]
    no_second_attempt()

    def task(number: int) -> int:
        chance = random.Random(number)  # noqa: S311 -- a seeded order, no secret
        for turn, doubt in enumerate(doubts[number]):
            others = Wanted(100 + turn, [*chance.sample(everybody, 20), *people(1_000 * number + 20 * turn + 400, 20)])
            again, new = ledgers[number].commit([], [Wanted(turn, doubt.fingerprints, doubt), others])
            assert not again.lost
            assert len(new.lost) == 20
        return 1

    assert side_by_side(*(lambda n=n: task(n) for n in range(2))) == [1, 1]
    assert len(database.rows(claims)) == 400 + 2 * 20 * 20


def test_a_run_made_anew_under_its_old_name_goes_on(database: SqlPlace) -> None:
    """Its tries are counted from 1 again; a try of the deleted run that begins now is refused."""
    late = database.open(1)
    begun(database.open(2, may_have_claimed=False)).commit([], [Wanted(1, people(0))])

    anew = begun(database.open(1))
    with pytest.raises(Fenced):
        begun(late)

    assert [batch.label for batch in anew.earlier()] == ["try 2, batch 1"]
    assert anew.commit([], [Wanted(1, people(3))]) == [Claim(1)]


def test_a_clock_that_is_behind_does_not_stop_a_retry(database: SqlPlace) -> None:
    """The id of the second try was made on a host that lives in the past."""
    begun(database.open(1, instance_id="2"))

    retry = begun(database.open(2, instance_id="1"))

    assert retry.commit([], [Wanted(1, people(0))]) == [Claim(1)]


def test_an_empty_file_on_a_later_try_fails_closed(sqlite: SqlPlace) -> None:
    """Another worker has another disk."""
    begun(sqlite.open(1))
    sqlite.lose()

    for try_number in (2, 3):
        with pytest.raises(StateLost, match="another worker's disk"):
            begun(sqlite.open(try_number))


def test_a_file_is_never_believed_to_have_been_empty_from_the_third_try_on(sqlite: SqlPlace) -> None:
    """Try 1 ran on another worker, try 2 died on its way and took the mark of try 1 with it."""
    with pytest.raises(StateLost):
        begun(sqlite.open(3, may_have_claimed=False))

    begun(sqlite.open(2, may_have_claimed=False, task_instance=OTHER_TASK))


def test_a_try_that_runs_while_its_record_is_pruned_is_stopped(database: SqlPlace) -> None:
    """Its claims would stand alone."""
    ledger = begun(database.open())
    ledger.commit([], [Wanted(1, people(0))])
    records = Records(database.engine())
    records.prune(database.now + timedelta(days=1), by="anna")
    records.close()

    with pytest.raises(StateLost, match="pruned"):
        ledger.commit([Accepted(1, "4711")], [Wanted(2, people(3))])


def test_an_earlier_try_may_still_hear_from_responsys(database: SqlPlace) -> None:
    """Its claim is in doubt only when it is older than the request timeout."""
    zombie = begun(database.open(1))
    zombie.commit([], [Wanted(1, people(0))])
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        assert len(slept) < 9
        database.now += timedelta(seconds=seconds)
        if len(slept) == 3:
            zombie.commit([Accepted(1, "4711")], [])

    retry = begun(database.open(2, answer_within=60.5, sleep=sleep))
    found = list(retry.earlier())

    assert [batch.request_id for batch in found] == ["4711"]
    assert slept == [1.0, 1.0, 1.0]


def test_waiting_for_an_answer_ends(database: SqlPlace) -> None:
    """A killed try will never settle."""
    begun(database.open(1)).commit([], [Wanted(1, people(0))])
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        assert len(slept) < 9
        database.now += timedelta(seconds=seconds)

    found = list(begun(database.open(2, answer_within=2.5, sleep=sleep)).earlier())

    assert [batch.request_id for batch in found] == [None]
    assert slept == [1.0, 1.0, 0.5]


def test_a_million_are_read_back_in_pieces(database: SqlPlace) -> None:
    """Memory stays flat on a retry, too."""
    first = begun(database.open(1))
    first.commit([], [Wanted(number, people(number * 10, 10)) for number in range(250)])

    found = list(begun(database.open(2)).earlier())

    assert [sorted(batch.fingerprints) for batch in found] == [people(number * 10, 10) for number in range(250)]


def test_claims_fill_no_cache_of_sqlite(sqlite: SqlPlace) -> None:
    """Python's sqlite3 keeps a hundred statements by their text: a text for each claim would fill 100 MB."""
    ledger = begun(sqlite.open())
    texts: set[str] = set()
    listen = lambda _connection, _cursor, text, *_: texts.add(text)  # noqa: E731 -- the event's own signature
    event.listen(ledger._database._engine, "before_cursor_execute", listen)

    for number in range(3):
        ledger.commit([], [Wanted(number, people(number * 10, number + 1))])

    assert len([text for text in texts if "INTO responsys_claims" in text]) == 1


def test_claims_fill_no_cache_of_psycopg(postgresql: SqlPlace) -> None:
    """It keeps a hundred statements, too: of claims, up to 30 MB."""
    ledger = begun(postgresql.open())

    with closing(ledger._database._engine.raw_connection()) as connection:
        driver: Any = connection.driver_connection

        assert driver.prepare_threshold is None


@pytest.mark.parametrize(
    ("version", "says"), [(VERSION + 1, "on every worker"), (VERSION - 1, "before the first release")]
)
def test_another_schema_fails_closed(database: SqlPlace, version: int, says: str) -> None:
    """A worker that was not upgraded must not guess, nor one that was."""
    begun(database.open())
    engine = create_engine(database.url, connect_args=database.connect)
    with engine.begin() as connection:
        connection.execute(update(ledger_table).values(version=version))
    engine.dispose()

    with pytest.raises(LedgerFailed, match=f"version {version}, .*{says}"):
        begun(database.open())


def test_other_databases_are_refused() -> None:
    """Their inserts would need to be tried first."""
    oracle: Any = SimpleNamespace(dialect=SimpleNamespace(name="oracle"))

    with pytest.raises(InvalidSettings, match=r"SQLite, PostgreSQL or MySQL, not in oracle"):
        Database(oracle)


def test_a_failure_names_no_recipient(database: SqlPlace) -> None:
    """The statement holds their fingerprints."""
    ledger = begun(database.open())
    database.break_down()

    with pytest.raises(LedgerFailed, match="server closed the connection") as raised:
        ledger.commit([], [Wanted(1, people(0))])

    assert "a statement with a recipient" not in str(raised.value)


def test_a_file_that_is_no_database_fails_closed(sqlite: SqlPlace) -> None:
    """So does a directory that is not there."""
    sqlite.url = sqlite.url.set(database="/nowhere/at/all.db")

    with pytest.raises(LedgerFailed, match="unable to open"):
        begun(sqlite.open())


def test_psycopg2_serves_as_well(postgresql: SqlPlace) -> None:
    """Airflow's PostgreSQL provider may use either driver."""
    postgresql.url = postgresql.url.set(drivername="postgresql+psycopg2")
    first = begun(postgresql.open(1))
    first.commit([], [Wanted(1, people(0)), Wanted(2, people(3))])
    [claim] = first.commit([Accepted(1, "4711"), Released(2)], [Wanted(3, people(2, 1))])

    second = begun(postgresql.open(2))

    assert [(batch.fingerprints, batch.request_id) for batch in second.earlier()] == [(people(0), "4711")]
    assert claim.lost == {0: Holder.OTHER}
    assert second.commit([], [Wanted(1, people(2))]) == [Claim(1, {0: Holder.ACCEPTED})]


def test_mysql_gets_tables_and_statements_of_its_own() -> None:
    """Not every machine has a server of it: what would be sent is looked at."""
    statements: list[str] = []
    engine = create_engine("mysql+pymysql://")  # connects nowhere

    def execute(statement: str) -> SimpleNamespace:
        statements.append(statement)
        return SimpleNamespace(rowcount=2)

    connection: Any = SimpleNamespace(exec_driver_sql=execute)

    inserted = Database(engine).insert_claims(connection, 7, [ClaimRow(one, 8, 9) for one in people(0, 2)])
    table = str(CreateTable(claims).compile(dialect=mysql.dialect()))

    [statement] = statements
    assert statement.startswith("INSERT IGNORE INTO responsys_claims (send_id,fingerprint,batch_id,position) VALUES ")
    assert statement.endswith("(7,X'000000000000000000',8,9),(7,X'000000000000000001',8,9)")
    assert inserted == 2
    assert "fingerprint BINARY(9) NOT NULL" in table


@pytest.mark.parametrize(
    "original",
    [
        SimpleNamespace(sqlstate="40P01"),
        SimpleNamespace(pgcode="40001"),
        SimpleNamespace(args=(1213, "Deadlock found")),
        SimpleNamespace(args=(1684, "Table was skipped since its definition is being modified")),
    ],
    ids=[
        "a deadlock in PostgreSQL",
        "a serialization failure in PostgreSQL",
        "a deadlock in MySQL",
        "a table that is being made in MySQL",
    ],
)
def test_a_transaction_that_met_another_is_repeated(sqlite: SqlPlace, original: Any) -> None:
    """The database undid all of it; but not for ever."""
    database = Database(sqlite.engine())
    done: list[int] = []

    def work(times: int) -> Callable[[Any], str]:
        def fail_first(_: object) -> str:
            done.append(times)
            if len(done) <= times:
                raise OperationalError("a statement", {}, original)
            return "done"

        return fail_first

    assert database.attempt(work(2)) == "done"
    done.clear()
    with pytest.raises(LedgerFailed):
        database.attempt(work(99))

    assert len(done) == ATTEMPTS
    database.dispose()


def test_tries_that_begin_at_once_make_the_tables_once(database: SqlPlace) -> None:
    """The shards of a mapped task do, and share one key."""
    ledgers = [database.open(task_instance=f"dag, task, run, {shard}") for shard in range(6)]

    keys = side_by_side(*(lambda one=one: one.begin(IDENTITY) for one in ledgers))

    assert len(set(keys)) == 1
    assert len(database.rows(sends)) == 1
    assert len(database.rows(tries)) == 6


def test_overlapping_shards_push_nobody_twice(database: SqlPlace, no_second_attempt: Callable[[], None]) -> None:
    """In whatever order each of them reads its source, and without one deadlock."""
    everybody = people(0, 2000)
    ledgers = [begun(database.open(task_instance=f"dag, task, run, {number}")) for number in range(4)]
    no_second_attempt()

    def shard(number: int) -> Counter[bytes]:
        ledger = ledgers[number]
        mine = random.Random(number).sample(everybody, 1500)  # noqa: S311 -- a seeded order, no secret
        sent: Counter[bytes] = Counter()
        for start in range(0, len(mine), 300):
            wanted = [Wanted(start + at, mine[start + at : start + at + 100]) for at in (0, 100, 200)]
            for want, claim in zip(wanted, ledger.commit([], wanted), strict=True):
                sent.update(won(want, claim))
                assert set(claim.lost.values()) <= {Holder.OTHER}
        return sent

    sent: Counter[bytes] = sum(side_by_side(*(lambda n=n: shard(n) for n in range(4))), Counter())

    assert max(sent.values()) == 1
    assert len(sent) > 1900
    assert len(database.rows(claims)) == len(sent)


def test_giving_back_and_taking_does_not_deadlock(database: SqlPlace, no_second_attempt: Callable[[], None]) -> None:
    """Tasks pass the same people to and fro."""
    everybody = people(0, 60)
    ledgers = [begun(database.open(task_instance=f"dag, task, run, {number}")) for number in range(3)]
    no_second_attempt()

    def task(number: int) -> int:
        ledger = ledgers[number]
        chance = random.Random(number)  # noqa: S311 -- a seeded order, no secret
        held: list[Released] = []
        for turn in range(30):
            wanted = [Wanted(turn * 2 + half, chance.sample(everybody, 20)) for half in (0, 1)]
            claims_won = ledger.commit(held, wanted)
            held = [
                Released(want.number)
                for want, claim in zip(wanted, claims_won, strict=True)
                if len(claim.lost) < len(want.fingerprints)
            ]
        ledger.commit(held, [])
        return 1

    finished = side_by_side(*(lambda n=n: task(n) for n in range(3)))

    assert finished == [1, 1, 1]
    assert database.rows(claims) == []
    assert database.rows(batches) == []


def test_a_zombie_beside_its_retry_pushes_nobody_twice(database: SqlPlace) -> None:
    """The retry begins at any moment of the zombie's work, and nothing but the tables keeps them apart."""
    database.has_store = False
    everybody = people(0, 2000)
    begun_first = begun(database.open(1))

    def send(ledger: SqlLedger, whom: Sequence[bytes]) -> Counter[bytes]:
        sent: Counter[bytes] = Counter()
        for start in range(0, len(whom), 50):
            want = Wanted(start, whom[start : start + 50])
            try:
                [claim] = ledger.commit([], [want])
            except Fenced:
                break
            sent.update(won(want, claim))
        return sent

    def retry() -> Counter[bytes]:
        ledger = begun(database.open(2))
        known = {one for batch in ledger.earlier() for one in batch.fingerprints}
        return send(ledger, [one for one in reversed(everybody) if one not in known])

    by_zombie, by_retry = side_by_side(lambda: send(begun_first, everybody), retry)

    assert set(by_zombie) | set(by_retry) == set(everybody)
    assert not set(by_zombie) & set(by_retry)


PROCESS = """
import sys
from sqlalchemy import create_engine
from sqlalchemy.engine import make_url
from airflow_provider_responsys.ledger.interface import Wanted
from airflow_provider_responsys.ledger.sql import SqlLedger

url, options, shard, reverse = sys.argv[1:]
ledger = SqlLedger(
    create_engine(url, connect_args={"options": options} if options else {}),
    send_key="autumn", task_instance=f"dag, task, run, {shard}", try_number=1, max_tries=3, retries=3,
)
ledger.begin({"campaign_name": "Autumn", "list_type": "PROFILE", "match_on": "customerId"})
everybody = [n.to_bytes(9, "big") for n in range(3000)]
if reverse == "yes":
    everybody.reverse()
for number, start in enumerate(range(0, 3000, 100)):
    want = Wanted(number, everybody[start : start + 100])
    [claim] = ledger.commit([], [want])
    print(*(one.hex() for index, one in enumerate(want.fingerprints) if index not in claim.lost), flush=True)
print("done", flush=True)
sys.stdin.read()
"""


def start_process(database: SqlPlace, shard: int, *, reverse: bool) -> "subprocess.Popen[str]":
    """Start a task of its own process."""
    url = database.url.render_as_string(hide_password=False)
    arguments = [url, database.connect.get("options", ""), str(shard), "yes" if reverse else "no"]
    return subprocess.Popen(
        [sys.executable, "-c", PROCESS, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_two_processes_push_nobody_twice(database: SqlPlace) -> None:
    """Real workers, side by side."""
    processes = [start_process(database, shard, reverse=shard == 1) for shard in range(2)]

    outputs = [process.communicate(timeout=60)[0] for process in processes]

    sent = Counter(word for output in outputs for word in output.split() if word != "done")
    assert [process.returncode for process in processes] == [0, 0]
    assert len(sent) == 3000
    assert max(sent.values()) == 1


def test_a_killed_process_leaves_its_claims(database: SqlPlace) -> None:
    """What it said it would send is found, and nothing is left locked."""
    process = start_process(database, -1, reverse=False)
    assert process.stdout
    assert process.stdin
    said = [process.stdout.readline() for _ in range(5)]
    process.send_signal(signal.SIGKILL)
    said += process.stdout.readlines()
    process.wait()
    process.stdin.close()
    process.stdout.close()

    found = {one.hex() for batch in begun(database.open(2)).earlier() for one in batch.fingerprints}

    assert {word for line in said for word in line.split()} - {"done"} <= found


def test_a_row_that_two_insert_at_once_is_no_failure(sqlite: SqlPlace) -> None:
    """The second transaction is repeated, and finds the first one's row."""
    database = Database(sqlite.engine())
    database.prepare(sqlite.now)
    turns: list[int] = []

    def work(connection: Any) -> str:
        turns.append(1)
        if len(turns) == 1:
            connection.execute(insert(ledger_table).values(id=1, version=1, fingerprint_key="", created_at=sqlite.now))
        return "done"

    assert database.attempt(work) == "done"
    assert len(turns) == 2
    database.dispose()


def test_a_ledger_that_lost_its_key_is_closed(database: SqlPlace) -> None:
    """With another key it would recognise nobody, and push all again."""
    begun(database.open(1)).commit([], [Wanted(1, people(0))])
    change(database, delete(ledger_table))

    for number in (1, 2):
        with pytest.raises(StateLost, match="fingerprint key is gone"):
            begun(database.open(number, task_instance=f"task {number}"))

    assert database.rows(ledger_table) == []


def test_a_ledger_that_lost_its_table_of_keys_is_closed(database: SqlPlace) -> None:
    """The claims are there, so it is none that was never used."""
    begun(database.open(1)).commit([], [Wanted(1, people(0))])
    engine = create_engine(database.url, connect_args=database.connect)
    ledger_table.drop(engine)
    engine.dispose()

    with pytest.raises(StateLost, match="Restore that table"):
        begun(database.open(2))


@pytest.mark.parametrize("key", ["", "no key", "00" * 16])
def test_a_key_that_was_changed_is_no_key(database: SqlPlace, key: str) -> None:
    """Its id says which one it was."""
    begun(database.open(1)).commit([], [Wanted(1, people(0))])
    change(database, update(ledger_table).values(fingerprint_key=key))

    with pytest.raises(StateLost, match="fingerprint key is gone or damaged"):
        begun(database.open(2))


def test_a_ledger_without_claims_may_get_a_new_key(database: SqlPlace) -> None:
    """Nobody was claimed with the old one."""
    key = database.open(1).begin(IDENTITY)
    change(database, delete(ledger_table))

    second = database.open(2)

    assert second.begin(IDENTITY) != key
    assert second.commit([], [Wanted(1, people(0))]) == [Claim(1)]


def test_a_send_is_of_one_key(database: SqlPlace) -> None:
    """Claims that were made with another one can't be compared."""
    begun(database.open(1)).commit([], [Wanted(1, people(0))])
    key = bytes(range(16))
    change(database, update(ledger_table).values(fingerprint_key=key.hex(), fingerprint_key_id=key_id(key)))

    with pytest.raises(StateLost, match="fingerprint key"):
        begun(database.open(2))


def test_a_send_whose_key_changed_stops_a_running_try(database: SqlPlace) -> None:
    """Another task began with the new key before this one claimed anybody."""
    first = begun(database.open(1))
    key = bytes(range(16))
    change(database, update(ledger_table).values(fingerprint_key=key.hex(), fingerprint_key_id=key_id(key)))
    begun(database.open(task_instance=OTHER_TASK))

    with pytest.raises(StateLost, match="fingerprint key"):
        first.commit([], [Wanted(1, people(0))])


def test_a_request_id_may_be_long(database: SqlPlace) -> None:
    """As long as the protocol takes one; the other answers of its commit are recorded beside it."""
    ledger = begun(database.open(1))
    ledger.commit([], [Wanted(1, people(0)), Wanted(2, people(3))])

    ledger.commit([Accepted(1, "4711"), Accepted(2, "x" * 512)], [])

    assert [batch.request_id for batch in begun(database.open(2)).earlier()] == ["4711", "x" * 512]


def test_an_answer_without_its_batch_is_told(database: SqlPlace) -> None:
    """It would be lost silently; the other answers are recorded, and nothing is claimed beside it."""
    ledger = begun(database.open(1))
    first, second = Wanted(1, people(0)), Wanted(2, people(3))
    ledger.commit([], [first, second])
    change(database, delete(batches).where(batches.c.id == first.batch_id))
    answers = [Accepted(1, "4711"), Accepted(2, "4712")]

    with pytest.raises(LedgerFailed, match=rf"lacks batches.*1 of its batches.*\({first.batch_id}\)"):
        ledger.commit(answers, [Wanted(3, people(6))])
    with pytest.raises(LedgerFailed, match=str(first.batch_id)):
        ledger.commit(answers, [])

    assert [row["request_id"] for row in database.rows(batches)] == ["4712"]
    assert people(6)[0] not in {bytes(row["fingerprint"]) for row in database.rows(claims)}


def test_an_answer_to_what_was_pruned_says_so(database: SqlPlace) -> None:
    """A person removed the send while it ran."""
    ledger = begun(database.open())
    ledger.commit([], [Wanted(1, people(0))])
    with by_hand(database) as records:
        records.prune(database.now + timedelta(days=1), by="anna")

    with pytest.raises(StateLost, match=r"pruned while the try ran.*answers to 1 of its batches"):
        ledger.commit([Accepted(1, "4711")], [])


def test_an_answer_to_what_a_restart_forgot_is_recorded(database: SqlPlace) -> None:
    """A zombie's request was accepted: a person can see it, and no wait asks for it."""
    zombie = begun(database.open(1))
    zombie.commit([], [Wanted(1, people(0))])
    begun(database.open(2, max_tries=4, on_clear="restart"))

    zombie.commit([Accepted(1, "4711")], [])

    with by_hand(database) as records:
        [batch] = records.show("autumn")
        assert (batch.state, batch.request_id) == (State.FORGOTTEN, "4711")
        assert records.open_requests("autumn") == []


def test_a_replaced_try_still_releases(database: SqlPlace) -> None:
    """What was certainly not accepted is no doubt for its successor."""
    zombie = begun(database.open(1))
    zombie.commit([], [Wanted(1, people(0)), Wanted(2, people(3))])
    retry = begun(database.open(2))

    zombie.commit([Released(1)], [])
    with pytest.raises(Fenced):
        zombie.commit([Released(2)], [Wanted(3, people(6))])
    zombie.commit([Released(2)], [])

    assert list(retry.earlier()) == []
    assert retry.commit([], [Wanted(1, people(0, 6))]) == [Claim(1)]


def test_a_replaced_try_may_repeat_its_answers(database: SqlPlace) -> None:
    """It does not know which of them were recorded when it was told that it is replaced."""
    zombie = begun(database.open(1))
    zombie.commit([], [Wanted(1, people(0)), Wanted(2, people(3))])
    retry = begun(database.open(2))
    with pytest.raises(Fenced):
        zombie.commit([Accepted(1, "4711")], [Wanted(3, people(6))])

    zombie.commit([Accepted(1, "4711"), Accepted(2, "4712")], [])

    assert [batch.request_id for batch in retry.earlier()] == ["4711", "4712"]


def test_one_key_serves_one_account(database: SqlPlace) -> None:
    """A rehearsal elsewhere would leave nobody to push, and no failure."""
    rehearsal = database.open()
    rehearsal.begin({**IDENTITY, "account": "api@rehearsal.example"})
    rehearsal.commit([], [Wanted(1, people(0))])

    with pytest.raises(
        SettingsChanged, match=r"account was 'api@rehearsal\.example' and is 'api@production\.example'.*send_key"
    ):
        database.open(task_instance=OTHER_TASK).begin({**IDENTITY, "account": "api@production.example"})

    assert [row["account"] for row in database.rows(sends)] == ["api@rehearsal.example"]


def test_another_account_is_fine_while_nobody_is_claimed(database: SqlPlace) -> None:
    """A connection that was wrong, and refused, can be corrected."""
    database.open(1).begin({**IDENTITY, "account": "a"})

    database.open(2).begin({**IDENTITY, "account": "b"})

    assert [row["account"] for row in database.rows(sends)] == ["b"]


def test_an_earlier_try_may_wait_longer_than_this_one(database: SqlPlace) -> None:
    """Its request timeout is the one that its answers keep to."""
    begun(database.open(1, answer_within=3.5)).commit([], [Wanted(1, people(0))])
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        database.now += timedelta(seconds=seconds)

    list(begun(database.open(2, answer_within=1.0, sleep=sleep)).earlier())

    assert slept == [1.0, 1.0, 1.0, 0.5]


def test_dropping_and_making_the_tables_again(sqlite: SqlPlace) -> None:
    """Every table is ours to name."""
    assert {table.name for table in metadata.sorted_tables} == {
        "responsys_ledger",
        "responsys_sends",
        "responsys_task_instances",
        "responsys_traces",
        "responsys_tries",
        "responsys_batches",
        "responsys_claims",
    }
