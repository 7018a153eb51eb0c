"""The main job, once, without an account: sandbox, a table of recipients, Airflow, and the report.

Everything it makes is in a temporary folder, and everything it starts is stopped again: at once, or with KEEP=1 in
the environment when it is interrupted.
"""

import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import requests

from example_dags.demo.standalone import Standalone

DAGS = Path(__file__).resolve().parent.parent
CAMPAIGN = "Summer_Push"
USER, PASSWORD = "demo", "only-for-the-sandbox"
NAMES = ("Anna", "Jiří", "Zoë", "由紀", "Олена", "José", "ليلى", "Mette", "Σοφία", "Łukasz")
PROCESSING = 8
"""Seconds until an answer is there: the first look finds none, so the wait is handed to the triggerer."""
OTHERS = ("rejected", "in_doubt", "not_sent", "duplicate", "invalid")
RECIPIENTS = 1_200
KEEP = os.environ.get("KEEP", "") not in {"", "0"}
NO_DEVICE_EVERY = 97
"""Every so manieth recipient has no device: Responsys answers NO_RECIPIENT_FOUND for those."""


def main() -> int:
    """Run the demo; return 0 if the campaign went out as the report says."""
    # Also where somebody started it with interrupts ignored, as a shell does in the background.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    folder = Path(tempfile.mkdtemp(prefix="responsys-demo-"))
    try:
        fill(folder / "marketing.db")
        with sandbox(folder) as url:
            return push(folder, url)
    except KeyboardInterrupt:
        say("Interrupted: everything is stopped.")
        return 130
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def push(folder: Path, url: str) -> int:
    """Run the campaign in an Airflow of its own, and report; leave that up where it is asked for."""
    began = time.monotonic()
    say(f"Sandbox at {url}, {RECIPIENTS} recipients in a SQLite table. Starting Airflow …")
    responsys = {"conn_type": "responsys", "host": url, "login": USER, "password": PASSWORD}
    environment = {
        "AIRFLOW_CONN_RESPONSYS_DEFAULT": json.dumps(responsys),
        "AIRFLOW_CONN_MARKETING_DB": json.dumps({"conn_type": "sqlite", "host": str(folder / "marketing.db")}),
        "AIRFLOW_CONN_RESPONSYS_LEDGER": json.dumps({"conn_type": "sqlite", "host": str(folder / "ledger.db")}),
        "AIRFLOW__RESPONSYS__LEDGER_CONN_ID": "responsys_ledger",
    }
    with Standalone(DAGS, environment) as airflow:
        say(f"Airflow is up after {time.monotonic() - began:.0f} s. Running the DAG push_campaign …")
        started = time.monotonic()
        run_id = airflow.run("push_campaign")
        state = airflow.state("push_campaign", run_id)
        pushed = airflow.xcom("push_campaign", run_id, "push")
        waited = airflow.xcom("push_campaign", run_id, "wait")
        took = time.monotonic() - started
        seen = requests.get(f"{url}/sandbox/report", timeout=30).json()
        status = report(state, pushed, waited, seen, took)
        tab = f"{airflow.url}/dags/push_campaign/runs/{quote(run_id)}/tasks/push/plugin/responsys-push"
        if KEEP:
            say(f"Pushes       {airflow.url}/plugin/responsys-pushes\nThis push    {tab}\n\nCtrl-C stops Airflow.")
            with suppress(KeyboardInterrupt):
                airflow.wait()
        else:
            say("The page     make demo KEEP=1 leaves Airflow up, with the page of this push in it")
    return status


def fill(database: Path) -> None:
    """Make the table of recipients."""
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("CREATE TABLE recipients (customer_id TEXT PRIMARY KEY, first_name TEXT, coupon TEXT)")
        connection.executemany("INSERT INTO recipients VALUES (?, ?, ?)", rows())


def rows() -> Iterator[tuple[str, str, str]]:
    """Yield the recipients: some without a device, all with a name to personalise the message with."""
    for number in range(RECIPIENTS):
        kind = "NODEVICE" if number % NO_DEVICE_EVERY == 0 else "C"
        yield f"{kind}{number:06d}", NAMES[number % len(NAMES)], f"SUMMER-{number % 50:02d}"


@contextmanager
def sandbox(folder: Path) -> Iterator[str]:
    """Run a sandbox; give its address."""
    command = [sys.executable, "-m", "airflow_provider_responsys.sandbox", "--port", "0", "--campaign", CAMPAIGN]
    command += ["--api-user", USER, "--password", PASSWORD, "--processing-time", str(PROCESSING)]
    with (folder / "sandbox.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, start_new_session=True)  # noqa: S603 -- our own
    try:
        assert process.stdout  # noqa: S101 -- a pipe was asked for
        line = process.stdout.readline().decode()
        found = re.search(r"http://\S+", line)
        if not found:
            raise RuntimeError(f"The sandbox did not start: {(folder / 'sandbox.log').read_text()}")
        yield found[0]
    finally:
        process.terminate()
        process.wait(10)


def report(state: str, pushed: Any, waited: Any, seen: dict[str, Any], took: float) -> int:
    """Print what became of everybody; return 0 if the run succeeded and nobody was pushed twice."""
    if state != "success" or not pushed or not waited:
        say(f"The run ended as {state}: push {pushed}, wait {waited}")
        return 1
    people, outcomes = pushed["recipients"], waited["recipients"]
    reasons = ", ".join(f"{count} {code}" for code, count in sorted(waited["errors"].items()))
    once, more = seen["recipients"]["once"], seen["recipients"]["more_than_once"]
    say(
        f"""
Campaign     {pushed["campaign_name"]}
Read         {people["read"]} recipients
Accepted     {people["accepted"]} in {len(pushed["request_ids"])} requests
Succeeded    {outcomes["succeeded"]}   handed over to be personalised and sent, which is not yet delivered
Failed       {outcomes["failed"]}{f"   {reasons}" if reasons else ""}
Others       {", ".join(f"{people[name]} {name.replace('_', ' ')}" for name in OTHERS)}
Time         {took:.0f} s, most of it waiting for the answers in the triggerer
Sandbox      counted {once} recipients pushed once, {more} more than once
"""
    )
    return 0 if not more and once == people["accepted"] else 1


def say(text: str) -> None:
    """Print at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
