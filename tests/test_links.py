"""The button that leads from a task to its report."""

import json
import subprocess
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk import DAG

from airflow_provider_responsys.links import PUSH_KEY, WAIT_KEY, PushReportLink, WaitReportLink, show_link
from airflow_provider_responsys.operators import TriggerPushOperator
from airflow_provider_responsys.provider_info import get_provider_info
from airflow_provider_responsys.sandbox import Fault, Sandbox
from airflow_provider_responsys.sensors import PushRequestSensor


def task_instance(**changes: Any) -> SimpleNamespace:
    """Return as much of a task instance as a link is made of."""
    return SimpleNamespace(**{"dag_id": "d", "run_id": "r", "task_id": "t", "map_index": -1, **changes})


@pytest.mark.parametrize(
    ("changes", "address"),
    [
        ({}, "dags/d/runs/r/tasks/t/plugin/responsys-push"),
        ({"map_index": None}, "dags/d/runs/r/tasks/t/plugin/responsys-push"),
        ({"map_index": 0}, "dags/d/runs/r/tasks/t/mapped/0/plugin/responsys-push"),
        (
            {"run_id": "manual__2026-01-01T00:00:00+00:00/x"},
            "dags/d/runs/manual__2026-01-01T00%3A00%3A00%2B00%3A00%2Fx/tasks/t/plugin/responsys-push",
        ),
    ],
)
def test_it_leads_to_the_tab_of_its_own_task_instance(changes: dict[str, Any], address: str) -> None:
    """Relative, so that it is right under whatever path Airflow runs at."""
    assert PushReportLink().get_link(None, ti_key=task_instance(**changes)) == address


def test_a_link_that_cannot_be_stored_stops_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """A button is no reason to send nothing: the task goes on and says so."""

    def xcom_push(**_: object) -> None:
        raise RuntimeError("the API server is away")

    show_link(PushReportLink(), {"ti": task_instance(xcom_push=xcom_push)})  # type: ignore[typeddict-item]  # as much as it uses

    assert "can't be shown yet (RuntimeError)" in caplog.text


def test_both_operators_have_the_button_and_airflow_is_told() -> None:
    """Airflow restores the button from the class's path: one that is not listed is not shown."""
    listed = set(get_provider_info()["extra-links"])

    for operator, link in ((TriggerPushOperator, PushReportLink), (PushRequestSensor, WaitReportLink)):
        (found,) = operator.operator_extra_links
        assert type(found) is link
        assert found.name == "Push report"
        assert f"{link.__module__}.{link.__qualname__}" in listed


def test_it_is_there_before_the_first_request_leaves(
    run_dag: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch, pushed_keys: list[str]
) -> None:
    """A task that runs, or is killed, has the button: Airflow alone would store it at the end of a try."""
    with Sandbox() as sandbox:
        monkeypatch.setenv("AIRFLOW_CONN_RESPONSYS_DEFAULT", json.dumps(sandbox.connection()))
        sandbox.plan(Fault("push", "CAMPAIGN_NOT_FOUND"))
        with DAG("linked", schedule=None) as dag:
            push = TriggerPushOperator(
                task_id="push", campaign_name="Promo", recipients=[{"customer_id": "1"}], retries=0
            )
            wait = PushRequestSensor(task_id="wait", request_ids=[], trigger_rule="all_done")
            push >> wait

        run_dag(dag)

    assert pushed_keys[0] == PUSH_KEY
    assert pushed_keys.index(WAIT_KEY) < len(pushed_keys) - 1


@pytest.fixture
def pushed_keys(monkeypatch: pytest.MonkeyPatch, airflow_db: None) -> list[str]:
    """Give the XCom keys that tasks push, in their order."""
    from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance  # noqa: PLC0415 -- see airflow_db

    real, keys = RuntimeTaskInstance.xcom_push, list[str]()

    def noted(self: Any, key: str, value: Any) -> None:
        keys.append(key)
        real(self, key, value)

    monkeypatch.setattr(RuntimeTaskInstance, "xcom_push", noted)
    return keys


def test_the_plugin_costs_a_task_nothing() -> None:
    """Every task loads its plugins: neither the web framework nor the page comes with ours."""
    script = (
        "import sys, json\n"
        "from airflow.plugins_manager import AirflowPlugin\n"
        "before = set(sys.modules)\n"
        "from airflow_provider_responsys.plugin import ResponsysPlugin\n"
        "plugin = ResponsysPlugin()\n"
        "assert plugin.external_views\n"
        "print(json.dumps(sorted(set(sys.modules) - before)))"
    )

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    loaded = set(json.loads(done.stdout.splitlines()[-1]))
    assert loaded <= {"airflow_provider_responsys", "airflow_provider_responsys.plugin"}


def test_airflow_finds_the_plugin_and_its_page() -> None:
    """By its entry point, as in every installation."""
    script = (
        "import json\n"
        "from airflow import plugins_manager\n"
        "apps, _ = plugins_manager.get_fastapi_plugins()\n"
        "print(json.dumps([(a['name'], a['url_prefix'], type(a['app']).__name__) for a in apps]))"
    )

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert ["Responsys", "/responsys", "FastAPI"] in json.loads(done.stdout.splitlines()[-1])
