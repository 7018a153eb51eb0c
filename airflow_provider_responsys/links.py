"""The button *Push report* on a task in Airflow's UI."""

import logging
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from airflow.providers.common.compat.sdk import BaseOperatorLink

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

TAB = "responsys-push"
"""The tab of the task instance that the plugin adds, in Airflow's addresses."""

PUSH_KEY = "responsys_report"
WAIT_KEY = "responsys_wait_report"
"""XCom keys of the links: by them the page knows a push, and a wait, whatever the class of its operator."""

log = logging.getLogger(__name__)


class PushReportLink(BaseOperatorLink):
    """Leads from a push to its report.

    The address is relative: Airflow's UI resolves it under whatever path it runs at.
    """

    name = "Push report"
    xcom_key = PUSH_KEY

    def get_link(self, operator: Any, *, ti_key: Any) -> str:  # noqa: ARG002 -- Airflow's signature
        """Return the address of the report of the task instance *ti_key*."""
        dag_id, run_id, task_id = (quote(name, safe="") for name in (ti_key.dag_id, ti_key.run_id, ti_key.task_id))
        place = -1 if ti_key.map_index is None else ti_key.map_index
        mapped = f"/mapped/{place}" if place >= 0 else ""
        return f"dags/{dag_id}/runs/{run_id}/tasks/{task_id}{mapped}/plugin/{TAB}"


class WaitReportLink(PushReportLink):
    """Leads from a wait to its report."""

    xcom_key = WAIT_KEY


def show_link(link: PushReportLink, context: "Context") -> None:
    """Store *link* now: Airflow itself stores it when a try ends, and a try that is killed has no end."""
    ti: Any = context.get("ti")
    if ti is None:
        return
    try:
        ti.xcom_push(key=link.xcom_key, value=link.get_link(None, ti_key=ti))
    except Exception as error:  # noqa: BLE001 -- a button is no reason to send nothing
        log.warning("The button to the push's report can't be shown yet (%s): %s", type(error).__name__, error)
