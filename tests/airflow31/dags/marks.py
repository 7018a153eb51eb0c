"""Pushes in an Airflow that has no task state store."""

import os
from pathlib import Path
from typing import Any

import pendulum
from airflow.sdk import DAG

from airflow_provider_responsys.operators import TriggerPushOperator

PEOPLE = 1_000
INSTALLED = Path(os.environ["MARKS_FOLDER"]) / "installed"
"""There when the provider of the source's connection is."""

START = pendulum.datetime(2026, 1, 1, tz="UTC")
RETRIES = {"retries": 2, "retry_delay": pendulum.duration(seconds=3)}
push: dict[str, Any] = {
    "task_id": "push",
    "campaign_name": "Summer_Push",
    "requests_per_minute": 60_000,
    "max_in_flight": 1,
}
people = [{"customerId": f"C{number}"} for number in range(PEOPLE)]

with DAG("without_ledger", schedule=None, start_date=START, default_args=RETRIES):
    TriggerPushOperator(recipients=people, **push)

with DAG("with_ledger", schedule=None, start_date=START, default_args=RETRIES):
    TriggerPushOperator(recipients=people, ledger_conn_id="ledger", **push)

with DAG("provider_missing", schedule=None, start_date=START, default_args=RETRIES):
    TriggerPushOperator(
        sql="SELECT customerId FROM people", sql_conn_id="source" if INSTALLED.exists() else "absent", **push
    )
