"""The DAGs that the faults happen to. What a run is about stands in its environment."""

from collections.abc import Sequence
from datetime import timedelta
from inspect import signature
from typing import Any

import pendulum
from airflow.sdk import DAG

from airflow_provider_responsys.operators import TriggerPushOperator
from airflow_provider_responsys.sensors import PushRequestSensor
from tests.faults import planted
from tests.faults.naive import NaivePush

START = pendulum.datetime(2026, 1, 1, tz="UTC")
CAMPAIGN = "Summer_Push"
RETRIES = {"retries": planted.TRIES - 1, "retry_delay": 0}

told = planted.told()


def rows(numbers: Sequence[int]) -> list[dict[str, str]]:
    """Return the recipients of these numbers."""
    return [{"customerId": f"C{number}", "NAME": "Zoë 由紀"} for number in numbers]


def shards(number: int) -> list[list[dict[str, str]]]:
    """Return the recipients of each of so many mapped tasks."""
    return [rows(shard) for shard in told.shards] or [[]] * number


people = rows(told.people)
push: dict[str, Any] = {
    "campaign_name": CAMPAIGN,
    "requests_per_minute": 60_000,
    "max_in_flight": told.in_flight,
    "retry_for": 2.0,
    "ledger_conn_id": told.ledger,
    "on_clear": told.on_clear,
    "execution_timeout": timedelta(seconds=told.execution_timeout) if told.execution_timeout else None,
}
if told.max_in_doubt is not None and "max_in_doubt" in signature(TriggerPushOperator).parameters:
    push["max_in_doubt"] = told.max_in_doubt

with DAG("push_only", schedule=None, start_date=START, default_args=RETRIES):
    TriggerPushOperator(task_id="push", recipients=people, **push)

with DAG("push_with_ledger", schedule=None, start_date=START, default_args=RETRIES):
    TriggerPushOperator(task_id="push", recipients=people, **{**push, "ledger_conn_id": planted.LEDGER})

with DAG("push_and_wait", schedule=None, start_date=START, default_args=RETRIES):
    pushed = TriggerPushOperator(task_id="push", recipients=people, **push)
    wait = PushRequestSensor(
        task_id="wait", request_ids=pushed.output, poke_interval=0.2, timeout=told.patience, ledger_conn_id=told.ledger
    )
    wait.first_delay = 0.1

with DAG("push_shards", schedule=None, start_date=START, default_args=RETRIES):
    TriggerPushOperator.partial(task_id="push", **push).expand(recipients=shards(2))

with DAG("push_many", schedule=None, start_date=START, default_args=RETRIES):
    TriggerPushOperator.partial(task_id="push", **push).expand(recipients=shards(8))

with DAG("naive", schedule=None, start_date=START, default_args=RETRIES):
    NaivePush(task_id="push", campaign_name=CAMPAIGN, recipients=people)

planted.plant(told)
