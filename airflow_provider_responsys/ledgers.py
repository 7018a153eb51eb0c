"""From an Airflow connection, or none, to the ledger that remembers a send."""

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import BaseHook, conf

from airflow_provider_responsys.airflow_internals import left_by_earlier_tries
from airflow_provider_responsys.errors import InvalidSettings
from airflow_provider_responsys.ledger import tries
from airflow_provider_responsys.ledger.interface import Ledger
from airflow_provider_responsys.ledger.marked import MarkedLedger
from airflow_provider_responsys.ledger.memory import MemoryLedger
from airflow_provider_responsys.ledger.state_store import StateStore
from airflow_provider_responsys.ledger.task_state import TaskStateLedger

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context
    from sqlalchemy.engine import Engine

    from airflow_provider_responsys.ledger.sql_records import Records


def push_ledger(
    context: "Context",
    *,
    retries: int,
    on_clear: tries.OnClear,
    send_key: str | None,
    ledger_conn_id: str | None,
    answer_within: float,
) -> Ledger:
    """Return the ledger of the task instance in *context*: SQL if there is a connection, else the task state store.

    *answer_within* is in how many seconds each request is answered, or lost.
    """
    ti = context["ti"]
    left = left_by_earlier_tries(ti)
    claimed = tries.may_have_claimed(try_number=ti.try_number, max_tries=ti.max_tries, retries=retries, left=left)
    history: dict[str, Any] = {
        "try_number": ti.try_number,
        "max_tries": ti.max_tries,
        "retries": retries,
        "on_clear": on_clear,
        "may_have_claimed": claimed,
    }
    return MarkedLedger(
        _store(context, send_key, ledger_conn_id, answer_within, history),
        push=lambda mark: ti.xcom_push(key=mark, value=ti.try_number),
        try_number=ti.try_number,
        may_have_claimed=claimed,
    )


def send_key_of(context: "Context", given: str | None) -> str:
    """Return the name of the send: the one *given*, otherwise dag, task and run."""
    ti = context["ti"]
    return given or f"{ti.dag_id}/{ti.task_id}/{ti.run_id}"


def ledger_conn_id_of(given: str | None) -> str | None:
    """Return the connection of the SQL ledger: the one *given*, else the configured one, else none."""
    return given or conf.get("responsys", "ledger_conn_id", fallback="") or None


def ledger_engine(ledger_conn_id: str) -> "Engine":
    """Return a new SQLAlchemy engine on the SQL ledger's database; the caller disposes of it."""
    from airflow_provider_responsys.ledger.sql_engine import hook_engine  # noqa: PLC0415 -- brings SQLAlchemy

    connection = BaseHook.get_connection(ledger_conn_id)
    hook: Any = connection.get_hook()  # type: ignore[no-untyped-call]  # Airflow's own
    look_up = getattr(hook, "get_connection", None)
    # Read once: the engine connects later, too, and in threads whose look-ups Airflow may not answer.
    hook.get_connection = lambda conn_id: connection if conn_id == ledger_conn_id or not look_up else look_up(conn_id)
    return hook_engine(hook, ledger_conn_id, connection.schema)


def ledger_records(ledger_conn_id: str) -> "Records":
    """Return what reads all sends of the SQL ledger; the caller closes it."""
    from airflow_provider_responsys.ledger.sql_records import Records  # noqa: PLC0415 -- brings SQLAlchemy

    return Records(ledger_engine(ledger_conn_id))


def _store(
    context: "Context",
    send_key: str | None,
    ledger_conn_id: str | None,
    answer_within: float,
    history: dict[str, Any],
) -> Ledger:
    """Return what is written to."""
    ti = context["ti"]
    store = context.get("task_state_store")
    if conn_id := ledger_conn_id_of(ledger_conn_id):
        from airflow_provider_responsys.ledger.sql import SqlLedger  # noqa: PLC0415 -- brings SQLAlchemy

        return SqlLedger(
            ledger_engine(conn_id),
            send_key=send_key_of(context, send_key),
            task_instance=f"{ti.dag_id}/{ti.task_id}/{ti.run_id}/{ti.map_index}",
            instance_id=str(ti.id),
            answer_within=answer_within,
            store=None if store is None else StateStore(store, retention=_never_expire()),
            **history,
        )
    if send_key:
        raise InvalidSettings(
            "send_key needs a SQL ledger: set ledger_conn_id, or [responsys] ledger_conn_id in Airflow's config"
        )
    if store is None:
        return MemoryLedger(try_number=ti.try_number, may_have_claimed=history["may_have_claimed"])
    by_position = ti.map_index is not None and ti.map_index >= 0
    return TaskStateLedger(store, retention=_never_expire(), by_position=by_position, **history)


def _never_expire() -> timedelta:
    """Return how the task state store spells "for ever"."""
    from airflow.sdk import NEVER_EXPIRE  # type: ignore[attr-defined]  # noqa: PLC0415 -- 3.3+, not in its stub

    return NEVER_EXPIRE  # type: ignore[no-any-return]  # the same
