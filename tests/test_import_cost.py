"""Airflow parses DAGs every few seconds, and imports hooks to list them: that must stay cheap."""

import json
import subprocess
import sys

import pytest


@pytest.mark.parametrize("module", ["hooks", "operators", "sensors", "triggers"])
def test_importing_adds_no_module_that_airflow_has_not_loaded(module: str) -> None:
    """The HTTP clients and the database come when they are used."""
    script = (
        "import sys, json, airflow.sdk\n"
        "from airflow.providers.common.compat.sdk import BaseHook, BaseOperator, BaseSensorOperator\n"
        "from airflow.triggers.base import BaseTrigger\n"
        "before = {m.split('.')[0] for m in sys.modules}\n"
        f"import airflow_provider_responsys.{module}\n"
        "new = {m.split('.')[0] for m in sys.modules} - before - {'airflow_provider_responsys'}\n"
        "print(json.dumps(sorted(new - sys.stdlib_module_names)))"
    )

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert json.loads(done.stdout.splitlines()[-1]) == []
