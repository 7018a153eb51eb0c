"""What the pages say, of pushes that have run."""

import csv
import io
import logging
import re
import sqlite3
import time
from contextlib import closing
from typing import Any

import pytest

from airflow_provider_responsys.page import app as page_app
from airflow_provider_responsys.page.access import LookUps

PEOPLE, NO_DEVICE = 450, 9
RECIPIENT, WITHOUT_DEVICE = "person-17", "NODEVICE-person-50"


@pytest.fixture(autouse=True)
def fresh_look_ups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no test count what another has looked up."""
    monkeypatch.setattr(page_app, "look_ups", LookUps())


def lead(text: str) -> str:
    """Return the sentence at the head of a page."""
    found = re.search(r'<p class="lead">(.*?)</p>', text, re.DOTALL)
    assert found, text
    return found[1]


def test_a_push_that_ended_well(page: Any, with_ledger: Any) -> None:
    """One sentence, and what Responsys said: succeeded is not delivered."""
    text = page.get("/responsys/push", params=with_ledger.query("well")).text

    assert lead(text) == "All 450 recipients were accepted."
    assert "Campaign_well" in text
    assert ">Ended</span>" in text
    assert "It does not mean delivered." in text
    assert re.search(r"NO_RECIPIENT_FOUND</code></th><td class=\"figure\">9</td>", text)
    assert "Normal for a push" in text
    assert "From the SQL ledger and Airflow" in text


def test_a_push_in_doubt_says_what_to_look_up_and_what_to_type(page: Any, with_ledger: Any) -> None:
    """The page names the request and the command, and changes nothing itself."""
    with closing(sqlite3.connect(with_ledger.ledger)) as connection:
        ((batch_id,),) = connection.execute("SELECT id FROM responsys_batches WHERE settled_at IS NULL").fetchall()

    # While an answer may still come, no command would be carried out, and none is shown.
    deadline = time.monotonic() + 120.0
    while "airflow responsys settle" not in (
        text := page.get("/responsys/push", params=with_ledger.query("doubtful")).text
    ):
        assert "counts as possible" in text
        assert time.monotonic() < deadline
        time.sleep(0.5)

    assert lead(text) == "250 of 450 recipients accepted; 200 may or may not have been pushed."
    assert ">In doubt</span>" in text
    assert "X-Request-Id" in text
    assert f"airflow responsys settle {batch_id} --sent" in text
    assert "Why the task failed" in text


def test_the_list_begins_with_what_is_in_doubt(page: Any, with_ledger: Any) -> None:
    """Then the newest; each with a bar whose parts add up."""
    text = page.get("/responsys/pushes").text

    shown = re.findall(r"Campaign_(\w+)</a>", text)
    assert shown[0] == "doubtful"
    assert set(shown) == {"doubtful", "hidden", "well"}
    assert "450 recipients: accepted 250, in doubt 200" in text


@pytest.mark.parametrize(
    ("query", "shown"),
    [
        ({"campaign": "_well"}, {"well"}),
        ({"state": "in doubt"}, {"doubtful"}),
        ({"state": "ended"}, {"well", "hidden"}),
        ({"since": "2999-01-01"}, set()),
        ({"until": "2020-01-01"}, set()),
        ({"since": "2020-01-01", "until": "2999-01-01"}, {"well", "hidden", "doubtful"}),
        ({"page": "2"}, set()),
    ],
)
def test_the_list_is_filtered(page: Any, with_ledger: Any, query: dict[str, str], shown: set[str]) -> None:
    """By campaign, state and date."""
    # A ledger is not told that a task has ended: it counts as running while it may still write.
    text = page.get("/responsys/pushes", params=query).text

    assert set(re.findall(r"Campaign_(\w+)</a>", text)) == shown


@pytest.mark.parametrize("query", [{"since": "yesterday"}, {"page": "0"}, {"page": "x"}, {"until": "2026-1-1'"}])
def test_a_filter_that_is_none_is_refused(page: Any, with_ledger: Any, query: dict[str, str]) -> None:
    """Nothing of it reaches a query."""
    assert page.get("/responsys/pushes", params=query).status_code == 422


def test_without_a_ledger_the_same_form_says_what_airflow_has(page: Any, sent: Any) -> None:
    """And what a ledger would add."""
    text = page.get("/responsys/push", params=sent.query("alone")).text

    assert lead(text) == "All 450 recipients were accepted."
    assert "Campaign_alone" in text
    assert re.search(r"NO_RECIPIENT_FOUND</code></th><td class=\"figure\">9</td>", text)
    assert "No SQL ledger is set." in text
    assert "Outcomes as CSV" not in text


def test_without_a_ledger_the_list_is_of_what_airflow_has(page: Any, sent: Any) -> None:
    """In doubt first, too."""
    text = page.get("/responsys/pushes").text

    shown = re.findall(r"Campaign_(\w+)</a>", text)
    assert shown[0] == "doubtful"
    assert set(shown) == {"doubtful", "alone", "hidden", "well"}


def test_a_wait_shows_what_it_counted(page: Any, with_ledger: Any) -> None:
    """And leads to the push."""
    text = page.get("/responsys/push", params=with_ledger.query("well", "wait")).text

    assert lead(text) == "3 of 3 requests have results."
    assert "NO_RECIPIENT_FOUND" in text
    assert "task_id=push" in text


@pytest.mark.parametrize("task_id", ["other", "no_such_task", "{TASK_ID}"])
def test_a_task_that_is_no_push_gets_one_sentence(page: Any, with_ledger: Any, task_id: str) -> None:
    """The tab stands on every task of every DAG."""
    answer = page.get("/responsys/push", params=with_ledger.query("well", task_id, map_index="{MAP_INDEX}"))

    assert answer.status_code == 200
    assert "has not pushed a campaign" in answer.text


def test_the_run_id_of_an_older_airflow_is_understood(page: Any, with_ledger: Any) -> None:
    """3.1 does not encode the plus sign in it, which arrives as a space."""
    query = with_ledger.query("well", map_index="{MAP_INDEX}")

    text = page.get("/responsys/push", params={**query, "run_id": query["run_id"].replace("+", " ")}).text

    assert "Campaign_well" in text


def test_the_file_has_each_outcome_by_its_position(page: Any, with_ledger: Any) -> None:
    """And names no recipient."""
    answer = page.get("/responsys/push/outcomes.csv", params=with_ledger.query("well"))

    found = list(csv.DictReader(io.StringIO(answer.text)))
    assert answer.headers["content-disposition"].startswith("attachment")
    assert len(found) == PEOPLE
    assert sum(row["code"] == "NO_RECIPIENT_FOUND" for row in found) == NO_DEVICE
    assert {row["outcome"] for row in found} == {"succeeded", "failed"}
    assert "person" not in answer.text


@pytest.mark.parametrize(
    ("value", "outcome"), [(RECIPIENT, "Succeeded"), (WITHOUT_DEVICE, "NO_RECIPIENT_FOUND")], ids=["good", "bad"]
)
def test_one_recipient_is_looked_up(page: Any, with_ledger: Any, value: str, outcome: str) -> None:
    """In which sends, and with what outcome; what was typed is in no answer."""
    answer = page.post("/responsys/recipient", data={"identifier": "customerId", "value": value})

    assert "Campaign_well" in answer.text
    assert outcome in answer.text
    assert value not in answer.text


def test_who_was_never_pushed_is_in_no_send(page: Any, with_ledger: Any) -> None:
    """And nothing says whether the identifier exists elsewhere."""
    answer = page.post("/responsys/recipient", data={"identifier": "customerId", "value": "person-9999"})

    assert "The ledger knows no push of this recipient" in answer.text


@pytest.mark.parametrize(
    "form",
    [
        {},
        {"identifier": "customerId"},
        {"identifier": "shoeSize", "value": RECIPIENT},
        {"identifier": "recipientId", "value": RECIPIENT},
        {"identifier": "deviceId", "value": RECIPIENT},
    ],
)
def test_what_names_no_recipient_is_answered_in_words(page: Any, with_ledger: Any, form: dict[str, str]) -> None:
    """Without repeating it."""
    answer = page.post("/responsys/recipient", data=form)

    assert answer.status_code == 422
    assert 'role="alert"' in answer.text
    assert RECIPIENT not in answer.text


def test_a_recipient_is_in_no_log_and_on_no_page(
    page: Any, with_ledger: Any, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """Neither when looked up, nor anywhere else."""
    caplog.set_level(logging.DEBUG)

    page.post("/responsys/recipient", data={"identifier": "customerId", "value": RECIPIENT})
    texts = [page.get("/responsys/pushes").text]
    texts += [page.get("/responsys/push", params=with_ledger.query(dag_id)).text for dag_id in ("well", "doubtful")]

    said = caplog.text + "".join(capfd.readouterr())
    assert "/responsys/recipient" in said
    assert "person-" not in said.replace("responsys-person", "")
    assert not [text for text in texts if "person-" in text]


def test_a_ledger_that_cannot_be_read_is_told_in_words(page: Any, sent: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its connection's name; what Airflow has is shown all the same."""
    monkeypatch.setenv("AIRFLOW_CONN_LEDGER", '{"conn_type": "sqlite", "host": "/no/such/folder/ledger.db"}')
    monkeypatch.setenv("AIRFLOW__RESPONSYS__LEDGER_CONN_ID", "ledger")

    text = page.get("/responsys/push", params=sent.query("well")).text

    assert lead(text) == "All 450 recipients were accepted."
    assert "The ledger can't be read." in text or "can&#39;t be read" in text
    assert "/no/such/folder" not in text


def test_an_empty_ledger_is_told_and_stays_empty(
    page: Any, sent: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    """Looking makes no tables."""
    monkeypatch.setenv("AIRFLOW_CONN_LEDGER", f'{{"conn_type": "sqlite", "host": "{tmp_path}/new.db"}}')
    monkeypatch.setenv("AIRFLOW__RESPONSYS__LEDGER_CONN_ID", "ledger")

    text = page.get("/responsys/pushes").text

    assert "The ledger is empty." in text
    with closing(sqlite3.connect(tmp_path / "new.db")) as connection:
        assert connection.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,)


def test_names_are_text_and_no_markup(page: Any, with_ledger: Any) -> None:
    """Whatever an address says."""
    query = {"dag_id": "well", "run_id": "r", "task_id": '<script>alert("x")</script>'}

    for text in (
        page.get("/responsys/push", params=query).text,
        page.get("/responsys/pushes", params={"campaign": query["task_id"]}).text,
    ):
        assert "<script>alert" not in text


def test_links_stay_below_the_path_that_airflow_runs_at(page: Any, with_ledger: Any) -> None:
    """The page learns it from its server, as Airflow's own does."""
    answer = page.get("/responsys/push", params=with_ledger.query("well"))

    assert all(
        address.startswith(("/responsys/", "/dags/", "?", "#main"))
        for address in re.findall(r'(?:href|src|action)="([^"]*)"', answer.text)
    )


def test_every_page_is_quick(page: Any, with_ledger: Any) -> None:
    """Nothing is computed that is not shown: no query runs for each batch or recipient."""
    queries = 0

    def count(*_: object) -> None:
        nonlocal queries
        queries += 1

    from sqlalchemy import event  # noqa: PLC0415 -- for this test alone
    from sqlalchemy.engine import Engine  # noqa: PLC0415 -- the same

    event.listen(Engine, "before_cursor_execute", count)
    try:
        page.get("/responsys/pushes")
        page.get("/responsys/push", params=with_ledger.query("well"))
    finally:
        event.remove(Engine, "before_cursor_execute", count)

    assert queries < 60


def test_links_and_files_are_right_below_a_path_of_airflows_own(page: Any, with_ledger: Any) -> None:
    """As where Airflow's base_url ends with a path, which its server knows."""
    client = type(page)(page.app, root_path="/airflow", headers=page.headers, cookies=page.cookies)

    text = client.get("/airflow/responsys/push", params=with_ledger.query("well")).text
    addresses = re.findall(r'(?:href|src|action)="([^"]*)"', text)

    assert all(address.startswith(("/airflow/responsys/", "/airflow/dags/", "?", "#main")) for address in addresses)
    assert [client.get(address).status_code for address in addresses if "/static/" in address] == [200, 200]
