"""How people push without this package: a `requests.Session` in a loop, and Airflow's HTTP operator mapped per batch.

Neither remembers whom it pushed.
"""

import json
import time
from pathlib import Path

import requests

from airflow_provider_responsys.protocol.push import MAX_RECIPIENTS
from benchmarks.sender import CAMPAIGN, LOGIN, Seen
from example_dags.demo.standalone import Standalone

TOKEN = "rest/api/v1.3/auth/token"  # noqa: S105 -- a path
PUSH = f"rest/haAsyncApi/v1.3/campaigns/{CAMPAIGN}/push"
IDENTIFIERS = (
    "customerId",
    "emailAddress",
    "recipientId",
    "mobileNumber",
    "emailSHA256Hash",
    "emailMD5Hash",
    "deviceId",
    "apiKey",
)
PATIENCE = 60.0
"""Seconds that the loop sleeps when the limit is used up: what Responsys' message advises."""

TASKS_AT_ONCE = 16
"""Airflow's own default of tasks at once in a DAG."""

DAG = """
import datetime, json
import pendulum, requests
from airflow.providers.http.operators.http import HttpOperator
from airflow.sdk import DAG, task

with DAG("mapped", schedule=None, start_date=pendulum.datetime(2026, 1, 1)):

    @task
    def token():
        return requests.post("{url}/{token}", data={login}, timeout=60).json()["authToken"]

    @task
    def batches():
        with open("{bodies}", encoding="utf-8") as lines:
            return lines.read().splitlines()

    HttpOperator.partial(
        task_id="push",
        http_conn_id="sandbox",
        endpoint="{push}",
        headers={{"Content-Type": "application/json", "Authorization": token()}},
        retries=3,
        retry_delay=datetime.timedelta(seconds={patience}),
    ).expand(data=batches())
"""


def body(number: int) -> str:
    """Return the request that pushes batch *number*."""
    first = number * MAX_RECIPIENTS
    people = [
        {
            **dict.fromkeys(IDENTIFIERS),
            "customerId": f"C{first + place:08d}",
            "listType": "PROFILE",
            "optionalData": [{"name": "first_name", "value": "Zoë 由紀"}],
        }
        for place in range(MAX_RECIPIENTS)
    ]
    return json.dumps({"recipientData": people})


def loop(url: str, seconds: float) -> None:
    """Push one batch after the other for so many *seconds*, as fast as they are answered."""
    end = time.monotonic() + seconds
    with requests.Session() as session:
        form = {"user_name": LOGIN["login"], "password": LOGIN["password"], "auth_type": "password"}
        answer = session.post(f"{url}/{TOKEN}", data=form, timeout=60)
        session.headers.update({"Authorization": answer.json()["authToken"], "Content-Type": "application/json"})
        number = 0
        while time.monotonic() < end:
            try:
                answer = session.post(f"{url}/{PUSH}", data=body(number), timeout=60)
            except requests.ConnectionError:
                continue  # the connection was closed while it slept: such loops just send the batch again
            if answer.ok:
                number += 1
            elif answer.json()["errorCode"] == "API_LIMIT_EXCEEDED":
                time.sleep(max(0.0, min(PATIENCE, end - time.monotonic())))
            else:
                answer.raise_for_status()


def mapped(folder: Path, url: str, batches: int, seconds: float) -> tuple[Seen, str]:
    """Map Airflow's HTTP operator over *batches* in a whole Airflow; return what came of it in so many *seconds*."""
    dags = folder / "dags"
    dags.mkdir()
    bodies = folder / "bodies.jsonl"
    bodies.write_text("\n".join(map(body, range(batches))), encoding="utf-8")
    form = {"user_name": LOGIN["login"], "password": LOGIN["password"], "auth_type": "password"}
    text = DAG.format(url=url, token=TOKEN, login=form, bodies=bodies, push=PUSH, patience=PATIENCE)
    (dags / "mapped.py").write_text(text, encoding="utf-8")
    environment = {
        "AIRFLOW_CONN_SANDBOX": json.dumps({"conn_type": "http", "host": url}),
        "AIRFLOW__CORE__PARALLELISM": str(TASKS_AT_ONCE),
    }
    with Standalone(dags, environment) as airflow:
        airflow.wait_until(lambda: airflow.get("/dags/mapped") is not None, 60.0, "mapped was not parsed")
        run_id = airflow.trigger("mapped")
        end = time.monotonic() + seconds
        while airflow.state("mapped", run_id) not in ("success", "failed") and time.monotonic() < end:
            time.sleep(1.0)
        return Seen.at(url), airflow.state("mapped", run_id)
