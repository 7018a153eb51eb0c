"""A campaign goes out to the rows that a task returns.

Rows in XCom stand in Airflow's database, readable for whoever may read it: for
more than a few thousand people, or where that is not wanted, use ``sql``.
"""

import pendulum
from airflow.sdk import DAG, task

from airflow_provider_responsys.operators import TriggerPushOperator
from airflow_provider_responsys.sensors import PushRequestSensor

with DAG(
    dag_id="push_from_task",
    description="Push a campaign to the recipients that a task returns",
    schedule=None,
    start_date=pendulum.datetime(2026, 1, 1, tz="UTC"),
    catchup=False,
    max_active_runs=1,
    tags=["responsys", "example"],
) as dag:

    @task(show_return_value_in_logs=False)  # the rows are people: keep them out of the log
    def winners() -> list[dict[str, str]]:
        """Return whom to push: one identifier each, and what the message is personalised with."""
        return [
            {"emailAddress": "anna@example.com", "FIRST_NAME": "Anna", "PRIZE": "a weekend in Málaga"},
            {"emailAddress": "jiri@example.com", "FIRST_NAME": "Jiří", "PRIZE": "two tickets"},
            {"emailAddress": "yuki@example.com", "FIRST_NAME": "由紀", "PRIZE": "a voucher of 50 €"},
        ]

    push = TriggerPushOperator(
        task_id="push",
        campaign_name="Winners_Push",
        recipients=winners(),
        on_invalid="skip",
        reference_data="{{ run_id }}",
    )

    # all_done: a push that failed after sending has left requests whose answers are worth reading. Then it fails, too.
    wait = PushRequestSensor(task_id="wait", request_ids=push.output, trigger_rule="all_done", poke_interval=10)

    push >> wait
