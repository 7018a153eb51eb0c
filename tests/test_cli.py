import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from airflow.cli.cli_config import ActionCommand
from sqlalchemy import inspect

from airflow_provider_responsys.cli import get_cli_commands, main
from airflow_provider_responsys.errors import StateLost
from airflow_provider_responsys.ledger.fingerprint import fingerprinter
from airflow_provider_responsys.ledger.interface import Accepted, Claim, Wanted
from airflow_provider_responsys.ledger.sql import SqlLedger
from airflow_provider_responsys.ledger.sql_records import Records
from airflow_provider_responsys.ledger.sql_values import State
from airflow_provider_responsys.ledgers import ledger_engine
from airflow_provider_responsys.provider_info import get_provider_info
from airflow_provider_responsys.recipients.fields import FieldSettings, recipient_maker

NOW = datetime(2026, 11, 23, 8, 30, tzinfo=UTC)
BIN = Path(sys.executable).parent
on_sqlite = pytest.mark.parametrize("database", ["sqlite"], indirect=True)
PEOPLE = [{"customer_id": f"person-{number}"} for number in range(8)]


class Book:
    """A ledger on a real database, as tasks write it."""

    def __init__(self) -> None:
        self.now = NOW
        self.opened: list[SqlLedger] = []
        self.records = Records(ledger_engine("ledger"), now=lambda: self.now)

    def begin(
        self, send_key: str = "autumn", *, try_number: int = 1, campaign: str = "Autumn", answer_within: float = 0.0
    ) -> SqlLedger:
        """Begin a try."""
        ledger = SqlLedger(
            ledger_engine("ledger"),
            send_key=send_key,
            task_instance=f"dag/{send_key}/run/-1",
            try_number=try_number,
            max_tries=3,
            retries=3,
            answer_within=answer_within,
            now=lambda: self.now,
        )
        self.opened.append(ledger)
        ledger.begin({"account": "api@sandbox", "campaign_name": campaign})
        return ledger

    def fingerprints(self, rows: list[dict[str, Any]], settings: FieldSettings = FieldSettings()) -> list[bytes]:  # noqa: B008 -- a frozen value
        """Return whom a task claims for *rows*."""
        mark = fingerprinter(self.records.fingerprint_key())
        return [mark(recipient_maker(tuple(row), settings)(tuple(row.values())).identity) for row in rows]

    def fill(self, *, answer_within: float = 0.0) -> SqlLedger:
        """Send two batches that are accepted, the first of them finished, and one that is in doubt."""
        ledger = self.begin(answer_within=answer_within)
        marks = self.fingerprints(PEOPLE)
        ledger.commit([], [Wanted(1, marks[:3]), Wanted(2, marks[3:6]), Wanted(3, marks[6:])])
        ledger.commit([Accepted(1, "4711", "0a1b2c3d 77"), Accepted(2, "4712")], [])
        self.records.record_outcome("autumn", "4711", succeeded=2, failed={"NO_RECIPIENT_FOUND": [1]})
        return ledger

    def doubtful(self) -> str:
        """Return the id of the batch in doubt."""
        (found,) = [batch for batch in self.records.show("autumn") if batch.state is State.IN_DOUBT]
        return str(found.batch_id)

    def states(self) -> list[State]:
        """Return the state of each batch, oldest first."""
        return [batch.state for batch in self.records.show("autumn")]

    def close(self) -> None:
        """Close what is open."""
        self.records.close()
        for ledger in self.opened:
            ledger.close()


@pytest.fixture(params=["sqlite", "postgres"])
def database(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Give the connection `ledger`, which the configuration names, to each database in turn; it is empty."""
    if request.param == "sqlite":
        connection: dict[str, Any] = {"conn_type": "sqlite", "host": str(tmp_path / "ledger.db")}
    else:
        connection = {"conn_type": "postgres", **request.getfixturevalue("empty_postgres")}
    monkeypatch.setenv("AIRFLOW_CONN_LEDGER", json.dumps(connection))
    monkeypatch.setenv("AIRFLOW__RESPONSYS__LEDGER_CONN_ID", "ledger")
    return connection


@pytest.fixture
def empty_postgres(postgres: dict[str, Any]) -> dict[str, Any]:
    """Give a database of its own on the real PostgreSQL."""
    import psycopg  # noqa: PLC0415 -- only these tests need it

    name = f"cli_{uuid4().hex}"
    server = {"host": postgres["host"], "port": postgres["port"], "user": postgres["login"], "dbname": "postgres"}
    with psycopg.connect(**server, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return {**postgres, "schema": name}


@pytest.fixture
def book(database: dict[str, Any]) -> Iterator[Book]:
    """Give the ledger of the database."""
    opened = Book()
    yield opened
    opened.close()


@pytest.fixture
def answer(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Give a function that says what stands on standard input."""
    return lambda text: monkeypatch.setattr("sys.stdin", io.StringIO(text))


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Give a function that runs one command, and returns its status, what it printed, and its complaint."""

    def run_one(*arguments: str) -> tuple[int, str, str]:
        try:
            status = main(arguments)
        except SystemExit as end:  # argparse's way to refuse
            status = int(str(end.code))
        return status, *capsys.readouterr()

    return run_one


Run = Callable[..., tuple[int, str, str]]
Answer = Callable[[str], None]


def test_sends_are_listed(book: Book, run: Run) -> None:
    """Key, campaign, when, tries, and recipients by state; newest first."""
    book.fill()
    book.begin(try_number=2)
    book.now += timedelta(days=1)
    book.begin("winter", campaign="Winter")

    status, out, err = run("sends", "--output", "json")

    assert (status, err) == (0, "")
    assert json.loads(out) == [
        {
            "send_key": "winter",
            "campaign": "Winter",
            "account": "api@sandbox",
            "created": "2026-11-24T08:30:00+00:00",
            "tries": 1,
        }
        | {"recipients": {}},
        {
            "send_key": "autumn",
            "campaign": "Autumn",
            "account": "api@sandbox",
            "created": "2026-11-23T08:30:00+00:00",
            "tries": 2,
        }
        | {"recipients": {"in doubt": 2, "accepted": 3, "finished": 3}},
    ]


def test_a_send_is_shown(book: Book, run: Run) -> None:
    """Each batch with how it ended; what is in doubt comes first."""
    book.fill()

    status, out, err = run("show", "autumn", "--output", "json")

    shown = json.loads(out)
    assert (status, err) == (0, "")
    assert [batch["state"] for batch in shown] == ["in doubt", "finished", "accepted"]
    assert shown[0]["batch_id"] == book.doubtful()
    assert shown[1] | {"batch_id": ""} == {
        "batch_id": "",
        "task_instance": "dag/autumn/run/-1",
        "try": 1,
        "number": 1,
        "recipients": 3,
        "state": "finished",
        "claimed": "2026-11-23T08:30:00+00:00",
        "settled": "2026-11-23T08:30:00+00:00",
        "request_id": "4711",
        "correlation_id": "0a1b2c3d 77",
        "outcome": {"succeeded": 2, "NO_RECIPIENT_FOUND": 1},
        "resolved": None,
    }
    assert shown[2]["outcome"] is None


def test_a_request_without_results_is_shown_by_its_code(book: Book, run: Run) -> None:
    """Nobody can say how its recipients fared."""
    book.fill()
    book.records.record_outcome("autumn", "4712", error="RESPONSE_PURGED")

    _, out, _ = run("show", "autumn", "--output", "json")

    assert json.loads(out)[2] | {"state": "failed", "outcome": {"RESPONSE_PURGED": 3}} == json.loads(out)[2]


@on_sqlite
@pytest.mark.parametrize("output", ["table", "plain", "yaml"])
def test_tables_are_airflows(book: Book, run: Run, output: str) -> None:
    """As in Airflow's own commands; a send key that looks like mark-up stays as it is."""
    book.begin("[bold]a[/x]:star:")
    book.fill()

    _, sends, _ = run("sends", "--output", output)
    _, batches, _ = run("show", "autumn", "--output", output)

    assert "[bold]a[/x]:star:" in sends
    assert "2 in doubt, 3 accepted, 3 finished" in sends
    assert "2 succeeded, 1 NO_RECIPIENT_FOUND" in batches
    assert ("not delivered" in batches) == (output == "table")


def test_what_is_not_there_is_said(book: Book, run: Run) -> None:
    """Status 1, a sentence, and output that a program can still read."""
    book.records.fingerprint_key()

    sends = run("sends", "--output", "json")
    batches = run("show", "spring", "--output", "json")

    assert sends == (1, "[]\n", "The ledger knows no send.\n")
    assert batches[:2] == (1, "[]\n")
    assert "no batch of this send key" in batches[2]


def test_a_batch_is_settled_as_sent(book: Book, run: Run) -> None:
    """A later try pushes nobody of it."""
    book.fill()

    doubtful = book.doubtful()

    status, out, _ = run("settle", doubtful, "--sent", "--reason", "Oracle found it", "--yes")

    assert status == 0
    assert f"X-Request-Id {doubtful}" in out
    assert "2 recipients, claimed 2026-11-23T08:30:00+00:00 by try 1 of dag/autumn/run/-1" in out
    assert "count as pushed" in out
    assert book.states() == [State.FINISHED, State.ACCEPTED, State.ACCEPTED]


def test_a_batch_is_settled_as_not_sent(book: Book, run: Run) -> None:
    """A later try pushes its recipients."""
    book.fill()

    status, out, _ = run("settle", book.doubtful(), "--not-sent", "--reason", "Oracle has none", "--yes")

    assert status == 0
    assert "may be pushed by the next try" in out
    retry = book.begin(try_number=2)
    assert retry.commit([], [Wanted(1, book.fingerprints(PEOPLE[6:]))]) == [Claim(1)]


@on_sqlite
@pytest.mark.parametrize(
    ("said", "settled"), [("y\n", True), ("Yes\n", True), ("n\n", False), ("\n", False), ("", False)]
)
def test_settling_asks_first(book: Book, run: Run, answer: Answer, said: str, settled: bool) -> None:
    """Only a yes is one; the end of the input is none."""
    book.fill()
    answer(said)

    status, out, err = run("settle", book.doubtful(), "--not-sent", "--reason", "Oracle has none")

    assert "pushed twice" in out
    assert status == (0 if settled else 1)
    assert ("Nothing was changed" in err) is not settled
    assert (State.IN_DOUBT in book.states()) is not settled


@on_sqlite
@pytest.mark.parametrize(("said", "status"), [("told so\ny\n", 0), (" \n", 2), ("", 2)])
def test_settling_asks_why(book: Book, run: Run, answer: Answer, said: str, status: int) -> None:
    """Without a reason nothing is settled; it is asked for where the command line does not say."""
    book.fill()
    answer(said)

    ended, _, err = run("settle", book.doubtful(), "--sent")

    assert ended == status
    assert ("give --reason. Nothing was changed" in err) is (status == 2)
    assert (State.IN_DOUBT in book.states()) is (status == 2)


def test_who_settled_what_when_and_why_is_shown(book: Book, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside the batch, which stays on record, and in the history."""
    monkeypatch.setattr("getpass.getuser", lambda: "anna")
    book.fill()
    doubtful = book.doubtful()
    run("settle", doubtful, "--not-sent", "--reason", "Oracle's log has none", "--yes")

    _, out, _ = run("show", "autumn", "--output", "json")
    _, table, _ = run("show", "autumn")
    _, history, _ = run("history", "--output", "json")

    (shown,) = [batch for batch in json.loads(out) if batch["batch_id"] == doubtful]
    (trace,) = json.loads(history)
    assert shown["state"] == "not sent"
    assert re.fullmatch(r"as not sent by anna, 2026-.*\+00:00: Oracle's log has none", shown["resolved"])
    assert "anna" in table
    assert trace | {"when": ""} == {
        "when": "",
        "who": "anna",
        "action": "settle",
        "about": f"batch {doubtful} as not sent",
        "count": 2,
        "reason": "Oracle's log has none",
    }


@pytest.mark.parametrize("how", ["--sent", "--not-sent"])
def test_a_batch_whose_answer_may_still_come_is_not_settled(book: Book, run: Run, how: str) -> None:
    """Unless a person forces it: the try may be sending to its recipients at this moment."""
    book.now = datetime.now(UTC)
    book.fill(answer_within=3600.0)
    doubtful = book.doubtful()
    settle = ("settle", doubtful, how, "--reason", "in a hurry", "--yes")

    refused, _, err = run(*settle)
    before = book.states()
    forced, _, _ = run(*settle, "--force")

    assert (refused, forced) == (1, 0)
    assert f"Batch {doubtful} may still be answered" in err
    assert "an answer may take 3600 s" in err
    assert State.IN_DOUBT in before
    assert State.IN_DOUBT not in book.states()


@on_sqlite
def test_what_was_forgotten_and_pruned_leaves_a_trace(book: Book, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who, when, why, and how many; never whom. A user without a name is told by number."""

    def nameless() -> str:
        raise KeyError("getpwuid(): uid not found")

    monkeypatch.setattr("getpass.getuser", nameless)
    book.fill()
    run("forget", "--identifier", "customerId", "--value", "person-0", "--reason", "they asked")
    run("prune", "--older-than", "1m", "--yes")

    status, out, _ = run("history", "--output", "json")

    pruned, forgotten = json.loads(out)
    assert status == 0
    assert (forgotten["action"], forgotten["about"], forgotten["count"], forgotten["reason"]) == (
        "forget",
        "one recipient",
        1,
        "they asked",
    )
    assert (pruned["action"], pruned["count"], pruned["who"]) == ("prune", 1, f"user {os.getuid()}")
    assert "person-0" not in out


def test_a_ledger_without_a_history_says_so(book: Book, run: Run) -> None:
    """Status 1, as where any other list is empty."""
    book.fill()

    status, out, err = run("history", "--output", "json")

    assert (status, out) == (1, "[]\n")
    assert "No person" in err


@pytest.mark.parametrize("how", ["--sent", "--not-sent"])
def test_only_a_doubt_is_settled(book: Book, run: Run, how: str) -> None:
    """An answer is not a person's to change."""
    book.fill()
    accepted = book.records.show("autumn")[1].batch_id
    before = book.states()

    status, out, err = run("settle", str(accepted), how, "--yes")

    assert (status, out) == (1, "")
    assert f"no batch {accepted} in doubt" in err
    assert book.states() == before


@on_sqlite
@pytest.mark.parametrize("how", [(), ("--sent", "--not-sent")])
def test_a_settlement_is_one_or_the_other(book: Book, run: Run, how: tuple[str, ...]) -> None:
    """Status 2, and nothing is touched."""
    book.fill()

    status, _, err = run("settle", book.doubtful(), *how, "--yes")

    assert status == 2
    assert "either --sent or --not-sent" in err
    assert State.IN_DOUBT in book.states()


@pytest.mark.parametrize(
    ("row", "settings", "asked"),
    [
        ({"customer_id": 42}, FieldSettings(), ("--identifier", "customerId", "--value", "42")),
        (
            {"EMAIL_ADDRESS_": " Anna@Example.com "},
            FieldSettings(),
            ("--identifier", "email_address", "--value", "anna@example.COM"),
        ),
        (
            {"riid": 4711.0},
            FieldSettings(),
            ("--list-type", "profile", "--identifier", "recipientId", "--value", "4711"),
        ),
        (
            {"device_id": "D-anna", "api_key": "an-app"},
            FieldSettings(list_type="PUSH"),
            ("--list-type", "PUSH", "--identifier", "device_id", "--api-key", "an-app", "--value", "D-anna"),
        ),
    ],
    ids=["customer", "e-mail", "riid", "device"],
)
def test_one_recipient_is_forgotten(
    book: Book, run: Run, row: dict[str, Any], settings: FieldSettings, asked: tuple[str, ...]
) -> None:
    """In every send, told as tasks tell recipients; nothing says who it was."""
    marks = book.fingerprints([row], settings)
    for send in ("autumn", "winter"):
        book.begin(send).commit([], [Wanted(1, marks)])

    status, out, err = run("forget", *asked)

    assert (status, err) == (0, "")
    assert "Forgotten in 2 sends." in out
    assert asked[-1] not in out
    assert book.records.person(marks[0]) == []


def test_one_recipient_is_found_in_its_sends(book: Book, run: Run, answer: Answer) -> None:
    """Who it is stands in nothing that is printed; an outcome is that of its place in the request."""
    book.fill()
    book.now += timedelta(days=1)
    book.begin("winter", campaign="Winter").commit([], [Wanted(1, book.fingerprints(PEOPLE[1:2]))])

    answer("person-1\n")
    _, failed, _ = run("person", "--identifier", "customerId", "--output", "json")
    status, table, err = run("person", "--identifier", "customer_id", "--value", "person-0")

    newest, oldest = json.loads(failed)
    assert (newest["send_key"], newest["campaign"], newest["state"], newest["request_id"]) == (
        "winter",
        "Winter",
        "in doubt",
        None,
    )
    assert oldest == {
        "send_key": "autumn",
        "campaign": "Autumn",
        "task_instance": "dag/autumn/run/-1",
        "claimed": "2026-11-23T08:30:00+00:00",
        "state": "accepted",
        "request_id": "4711",
        "position": 1,
        "outcome": "failed",
        "code": "NO_RECIPIENT_FOUND",
    }
    assert (status, err) == (0, "")
    assert "succeeded" in table
    assert "not delivered" in table
    assert "person-" not in failed + table


def test_a_recipient_that_was_never_claimed_is_in_no_send(book: Book, run: Run) -> None:
    """Status 1, a sentence, and output that a program can still read."""
    book.fill()

    status, out, err = run("person", "--identifier", "customerId", "--value", "stranger", "--output", "json")

    assert (status, out) == (1, "[]\n")
    assert "no push of this recipient" in err
    assert "stranger" not in err


@on_sqlite
def test_a_recipient_can_be_read_from_standard_input(book: Book, run: Run, answer: Answer) -> None:
    """It stays out of the shell's history, and out of the list of processes."""
    book.fill()
    answer("person-0\n")

    status, out, _ = run("forget", "--identifier", "customerId")

    assert (status, out[:20]) == (0, "Forgotten in 1 send.")


def test_whoever_was_never_pushed_is_not_found(book: Book, run: Run) -> None:
    """The same value under another identifier is somebody else."""
    book.fill()

    status, out, err = run("forget", "--identifier", "mobileNumber", "--value", "person-0")

    assert (status, out) == (1, "")
    assert "no push of this recipient" in err


@pytest.mark.parametrize(
    "asked",
    [
        ("--identifier", "emailAddress"),
        ("--identifier", "riid"),
        ("--identifier", "shoe_size"),
        ("--identifier", "deviceId"),
        ("--identifier", "deviceId", "--list-type", "PUSH"),
        ("--identifier", "customerId", "--list-type", "person-0"),
    ],
    ids=" ".join,
)
def test_who_cannot_be_a_recipient_is_refused(run: Run, asked: tuple[str, ...]) -> None:
    """Status 2, and the sentence shows no value."""
    status, out, err = run("forget", *asked, "--value", "person-0")

    assert (status, out) == (2, "")
    assert err.count("\n") == 1
    assert "person-0" not in err


def test_old_sends_are_pruned(book: Book, run: Run) -> None:
    """It says what that means: a later try fails closed."""
    book.fill()
    book.now = datetime.now(UTC)
    book.begin("winter")
    book.now = NOW + timedelta(days=1)

    status, out, _ = run("prune", "--older-than", "1m", "--yes")

    assert status == 0
    assert "fails closed" in out
    assert "at most 1 of 2 sends, with 2 recipients in doubt" in out
    assert "Removed 1 send." in out
    assert [send.send_key for send in book.records.sends()] == ["winter"]
    with pytest.raises(StateLost):
        book.begin(try_number=2)


@on_sqlite
def test_pruning_asks_first(book: Book, run: Run, answer: Answer) -> None:
    """Without a yes, all stays."""
    book.fill()
    answer("no\n")

    status, _, err = run("prune", "--older-than", "1m")

    assert status == 1
    assert "Nothing was changed" in err
    assert len(book.records.sends()) == 1


@on_sqlite
def test_nothing_old_is_no_failure(book: Book, run: Run) -> None:
    """A nightly prune goes on, and asks nobody."""
    book.now = datetime.now(UTC)
    book.fill()

    status, out, _ = run("prune", "--older-than", "4w")

    assert status == 0
    assert "nothing to remove" in out
    assert len(book.records.sends()) == 1


@pytest.mark.parametrize("age", ["90", "0d", "-1d", "d", "1.5h", "9999999d", "90 days"])
def test_an_age_is_a_number_and_a_unit(run: Run, age: str) -> None:
    """Whatever else could be meant is not guessed."""
    status, _, err = run("prune", f"--older-than={age}")

    assert status == 2
    assert "90d are 90 days" in err


def test_no_tables_are_made(database: dict[str, Any], run: Run) -> None:
    """A mistyped connection is not given a ledger; only tasks make one."""
    status, out, err = run("sends")

    engine = ledger_engine("ledger")
    assert (status, out) == (1, "")
    assert "no ledger in the database of connection 'ledger'" in err
    assert inspect(engine).get_table_names() == []
    engine.dispose()


@pytest.mark.parametrize(
    ("connection", "status", "sentence"),
    [
        (None, 1, "isn't defined"),
        ({"conn_type": "nothing_known", "host": "localhost"}, 1, "Unknown hook type"),
        ({"conn_type": "responsys", "host": "localhost"}, 2, "its hook names no database"),
        ({"conn_type": "sqlite", "host": "/nowhere/at/all.db"}, 1, "unable to open database file"),
        ({"conn_type": "postgres", "host": "/nowhere", "password": "hush"}, 1, "database failed (OperationalError)"),
    ],
)
def test_a_ledger_that_cannot_be_read_says_so(
    run: Run, monkeypatch: pytest.MonkeyPatch, connection: dict[str, Any] | None, status: int, sentence: str
) -> None:
    """A plain sentence, no traceback, no password."""
    if connection:
        monkeypatch.setenv("AIRFLOW_CONN_ELSEWHERE", json.dumps(connection))

    ended, out, err = run("sends", "--ledger-conn-id", "elsewhere")

    assert (ended, out) == (status, "")
    assert sentence in err
    assert err.count("\n") == 1
    assert "hush" not in err


def test_a_ledger_must_be_named(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the option or the configuration."""
    monkeypatch.delenv("AIRFLOW__RESPONSYS__LEDGER_CONN_ID", raising=False)

    status, _, err = run("sends")

    assert status == 2
    assert "--ledger-conn-id" in err


@on_sqlite
def test_a_connection_in_airflows_database_is_found(
    airflow_db: None, database: dict[str, Any], book: Book, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where people keep their connections; outside of tasks, Airflow does not look there by itself."""
    # Importing it takes seconds, and only this test needs it.
    from airflow.models.connection import Connection  # noqa: PLC0415 -- see above
    from airflow.utils.session import create_session  # noqa: PLC0415 -- see above

    book.fill()
    context = os.environ.get("_AIRFLOW_PROCESS_CONTEXT")
    with create_session() as session:
        session.add(Connection(conn_id="kept_by_airflow", conn_type="sqlite", host=database["host"]))

    status, out, _ = run("sends", "--ledger-conn-id", "kept_by_airflow", "-o", "json")

    assert status == 0
    assert json.loads(out)[0]["send_key"] == "autumn"
    assert os.environ.get("_AIRFLOW_PROCESS_CONTEXT") == context


def test_airflows_command_line_learns_the_status(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Airflow takes no notice of what a command returns, so it ends the program itself."""
    (group,) = get_cli_commands()
    sends = {command.name: command for command in group.subcommands}["sends"]
    options = type("Options", (), {"ledger_conn_id": "elsewhere", "output": "json"})()

    with pytest.raises(SystemExit) as end:
        sends.func(options)

    assert end.value.code == 1


def test_both_command_lines_offer_the_same() -> None:
    """One table of commands serves them; the provider info names where it is."""
    (group,) = get_cli_commands()

    assert group.name == "responsys"
    assert [command.name for command in group.subcommands] == [
        "sends",
        "show",
        "settle",
        "person",
        "forget",
        "prune",
        "history",
    ]
    assert all(isinstance(command, ActionCommand) for command in group.subcommands)
    assert get_provider_info()["cli"] == [f"{get_cli_commands.__module__}.{get_cli_commands.__name__}"]


def test_every_airflow_command_imports_the_table_and_nothing_else_of_ours() -> None:
    """The ledger, and what reads connections, come with the command that needs them."""
    script = (
        "import sys, json, airflow.cli.cli_config\n"
        "before = set(sys.modules)\n"
        "import airflow_provider_responsys.cli as cli; cli.get_cli_commands()\n"
        "print(json.dumps(sorted(m for m in set(sys.modules) - before if m not in sys.stdlib_module_names)))"
    )

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    imported = set(json.loads(done.stdout.splitlines()[-1])) - {"airflow_provider_responsys"}
    assert imported == {"airflow_provider_responsys.cli", "airflow_provider_responsys.errors"}


@on_sqlite
def test_as_programs(book: Book) -> None:
    """Airflow's command line and our own do the same, and say by their status how it ended."""
    book.fill()
    programs = {
        "airflow": [str(BIN / "airflow"), "responsys", "show", "autumn", "-o", "json"],
        "ours": [sys.executable, "-m", "airflow_provider_responsys", "show", "autumn", "-o", "json"],
        "refused": [str(BIN / "airflow"), "responsys", "settle", "12", "--sent"],
    }
    started = {
        name: subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for name, command in programs.items()
    }

    ended = {name: (*program.communicate(), program.returncode) for name, program in started.items()}

    assert {name: status for name, (_, _, status) in ended.items()} == {"airflow": 0, "ours": 0, "refused": 1}
    assert json.loads(ended["airflow"][0]) == json.loads(ended["ours"][0])
    assert [batch["state"] for batch in json.loads(ended["ours"][0])] == ["in doubt", "finished", "accepted"]
    assert "no batch 12 in doubt" in ended["refused"][1]
    assert "Traceback" not in ended["refused"][1]
