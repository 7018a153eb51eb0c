"""A push in real Airflow, and what there is to see of it."""

import itertools
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pendulum
from airflow.sdk import DAG

from airflow_provider_responsys.operators import TriggerPushOperator

RunDag = Callable[[DAG], Any]

START = pendulum.datetime(2026, 1, 1, tz="UTC")
NUMBERS = itertools.count(1)
BUCKETS = ("read", "accepted", "rejected", "in_doubt", "not_sent", "withheld", "duplicate", "invalid")


class Push:
    """A push in a DAG of its own: what it returned, and what its tries failed with."""

    def __init__(self, run_dag: RunDag, **arguments: Any) -> None:
        self.failures: list[BaseException] = []
        note = lambda context: self.failures.append(context["exception"])  # noqa: E731 -- a callback
        defaults = {"campaign_name": "Summer_Push", "requests_per_minute": 60_000, "retry_delay": timedelta(0)}
        with DAG(f"push_{next(NUMBERS)}", schedule=None, start_date=START, **arguments.pop("dag", {})) as self.dag:
            self.operator = arguments.pop("kind", TriggerPushOperator)(
                task_id="push",
                on_failure_callback=note,
                on_retry_callback=note,
                **{**defaults, **arguments},
            )
        self.run = run_dag(self.dag)
        self.ti = self.run.get_task_instance("push")

    @property
    def result(self) -> Any:
        """Return what the push reported, None if nothing."""
        return self.ti.xcom_pull(task_ids="push")

    @property
    def recipients(self) -> dict[str, int]:
        """Return the buckets that hold recipients."""
        return {name: count for name, count in self.result["recipients"].items() if count}


def people(count: int, prefix: str = "C") -> list[dict[str, str]]:
    """Return rows for *count* recipients."""
    return [{"customerId": f"{prefix}{number}", "NAME": "Zoë 由紀"} for number in range(count)]


def check(push: Push) -> None:
    """Check that the report of *push* exists, member by member, and that its buckets add up."""
    result = push.result
    buckets = result["recipients"]
    assert {key: push.ti.xcom_pull(task_ids="push", key=key) for key in result} == result
    assert sum(buckets[name] for name in BUCKETS[1:]) == buckets["read"]
    assert (result["problem"] is None) == (push.run.state == "success")
