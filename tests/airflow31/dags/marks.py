"""Pushes in an Airflow that has no task state store."""

import os
from pathlib import Path
from typing import Any

import pendulum
from airflow.sdk import DAG

from airflow_provider_responsys.ledger.tries import began
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


class DiesOnTheWay(TriggerPushOperator):
    """Its second try dies before ``execute``, as a late copy of the first one's mark is stored."""

    def pre_execute(self, context: Any) -> None:
        """Store the copy, and die."""
        if context["ti"].try_number == 2:
            context["ti"].xcom_push(key=began(1), value=1)
            raise RuntimeError("died on the way")
        super().pre_execute(context)


with DAG("without_ledger", schedule=None, start_date=START, default_args=RETRIES):
    TriggerPushOperator(recipients=people, **push)

with DAG("dies_on_the_way", schedule=None, start_date=START, default_args=RETRIES):
    DiesOnTheWay(recipients=people, **push)

with DAG("with_ledger", schedule=None, start_date=START, default_args=RETRIES):
    TriggerPushOperator(recipients=people, ledger_conn_id="ledger", **push)

with DAG("provider_missing", schedule=None, start_date=START, default_args=RETRIES):
    TriggerPushOperator(
        sql="SELECT customerId FROM people", sql_conn_id="source" if INSTALLED.exists() else "absent", **push
    )
