"""Pushes of every kind that the page shows."""

from airflow.sdk import DAG, task

from airflow_provider_responsys.operators import TriggerPushOperator
from airflow_provider_responsys.sensors import PushRequestSensor

FROM_TABLE = "SELECT customer_id, first_name FROM recipients WHERE n < %d ORDER BY n"

with DAG("spring_offers", schedule=None):
    push = TriggerPushOperator(
        task_id="push",
        campaign_name="Spring_Offers_2026",
        sql=FROM_TABLE % 2_400,
        sql_conn_id="marketing_db",
        requests_per_minute=240,
    )
    push >> PushRequestSensor(
        task_id="wait", request_ids=push.output, poke_interval=2, max_failed=100, trigger_rule="all_done"
    )

with DAG("autumn_sale", schedule=None):
    push = TriggerPushOperator(
        task_id="push",
        campaign_name="Autumn_Sale",
        sql=FROM_TABLE % 1_900,
        sql_conn_id="marketing_db",
        responsys_conn_id="responsys_flaky",
        requests_per_minute=240,
        max_in_flight=1,
        max_in_doubt=0.2,
    )
    push >> PushRequestSensor(
        task_id="wait",
        request_ids=push.output,
        responsys_conn_id="responsys_flaky",
        poke_interval=2,
        max_failed=100,
        trigger_rule="all_done",
    )

with DAG("winter_news", schedule=None):
    TriggerPushOperator(
        task_id="push",
        campaign_name="Winter_News",
        sql=FROM_TABLE % 2_400,
        sql_conn_id="marketing_db",
        requests_per_minute=1,
        max_in_flight=1,
    )

with DAG("in_shards", schedule=None):
    TriggerPushOperator.partial(
        task_id="push", campaign_name="Members_Only", sql_conn_id="marketing_db", requests_per_minute=240
    ).expand(sql=[f"{FROM_TABLE % 900} LIMIT 300 OFFSET {start}" for start in (0, 300, 600)])

with DAG("report", schedule=None):

    @task
    def count() -> int:
        """Return a number: this is no push."""
        return 1

    count()
