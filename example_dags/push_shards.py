"""A campaign goes out to a large table in shards: tasks that any worker may run, several at a time.

No recipient is pushed twice, also where shards overlap: all of them write to one
SQL ledger, under one send key (DAG, task and run, which the shards share). It must be
a PostgreSQL or MySQL database that every worker and the triggerer reach.

A pool says how many shards send at the same time, in this DAG and in every other
that uses the account. Each of them gets its share of the account's limit::

    airflow pools set responsys 4 "shards that send to Responsys at the same time"
    airflow connections add responsys_ledger --conn-uri "postgresql://user:password@host/database"
"""

import pendulum
from airflow.sdk import DAG

from airflow_provider_responsys.operators import TriggerPushOperator
from airflow_provider_responsys.sensors import PushRequestSensor

LEDGER = "responsys_ledger"
LIMIT = 200
"""Push requests a minute that the account allows."""

AT_ONCE = 4
"""Slots of the pool."""

SHARDS = 8
"""More than slots: who loses a worker loses less, and the last ones end at about the same time."""

with DAG(
    dag_id="push_shards",
    description="Push a campaign to a table of recipients, in shards on several workers",
    schedule=None,  # your own, such as "0 9 * * 1"
    start_date=pendulum.datetime(2026, 1, 1, tz="UTC"),
    catchup=False,
    max_active_runs=1,
    tags=["responsys", "example"],
) as dag:
    push = TriggerPushOperator.partial(
        task_id="push",
        campaign_name="Summer_Push",
        # The same rows in the same shard each time: a retry reads what its first try read.
        sql="SELECT customer_id, first_name, coupon FROM recipients WHERE MOD(id, %(shards)s) = %(shard)s ORDER BY id",
        sql_conn_id="marketing_db",
        ledger_conn_id=LEDGER,
        requests_per_minute=LIMIT // AT_ONCE,
        pool="responsys",
        retries=3,
        retry_delay=pendulum.duration(minutes=1),
    ).expand(parameters=[{"shards": SHARDS, "shard": shard} for shard in range(SHARDS)])

    # all_done: shards that failed after sending have left requests whose answers are worth reading. Then it fails, too.
    wait = PushRequestSensor(
        task_id="wait", request_ids=push.output, ledger_conn_id=LEDGER, trigger_rule="all_done", poke_interval=10
    )

    push >> wait
