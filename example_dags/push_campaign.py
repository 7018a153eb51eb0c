"""A campaign goes out to everyone in a table, and the run waits for the results."""

import pendulum
from airflow.sdk import DAG

from airflow_provider_responsys.operators import TriggerPushOperator
from airflow_provider_responsys.sensors import PushRequestSensor

with DAG(
    dag_id="push_campaign",
    description="Push a campaign to a table of recipients and wait for the outcome",
    schedule=None,  # your own, such as "0 9 * * 1"
    start_date=pendulum.datetime(2026, 1, 1, tz="UTC"),
    catchup=False,
    max_active_runs=1,
    tags=["responsys", "example"],
) as dag:
    push = TriggerPushOperator(
        task_id="push",
        campaign_name="Summer_Push",
        sql="SELECT customer_id, first_name, coupon FROM recipients ORDER BY customer_id",
        sql_conn_id="marketing_db",
        min_recipients=1,
        max_recipients=1_000_000,
        retries=2,
        retry_delay=pendulum.duration(minutes=1),
    )

    # all_done: a push that failed after sending has left requests whose answers are worth reading. Then it fails, too.
    wait = PushRequestSensor(task_id="wait", request_ids=push.output, trigger_rule="all_done", poke_interval=10)

    push >> wait
