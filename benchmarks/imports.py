"""What importing the operator and the sensor costs when a DAG is parsed, beside ``airflow.sdk`` itself.

Each of several fresh interpreters imports Airflow first, then ours, and reports
both; ours are also summed from ``-X importtime``. The least of them counts: what a
busy machine adds is not ours. A first interpreter, which may have to compile, is
left out.

python -m benchmarks.imports [runs]
"""

import json
import os
import re
import subprocess
import sys
import tempfile

from benchmarks.report import Report

RUNS = 10
GOAL = 50  # milliseconds
SCRIPT = """
import json, time
began = time.perf_counter()
import airflow.sdk
from airflow.providers.common.compat.sdk import BaseHook, BaseOperator, BaseSensorOperator
from airflow.triggers.base import BaseTrigger
airflow = time.perf_counter()
import airflow_provider_responsys.operators, airflow_provider_responsys.sensors
ours = time.perf_counter()
print(json.dumps([airflow - began, ours - airflow]))
"""


def main(runs: int = RUNS) -> None:
    """Measure *runs* times, and report."""
    report = Report(
        "imports",
        "Importing operators and sensors, as each parse of a DAG does",
        {"fresh interpreters": runs, "of which": "the fastest counts"},
        baseline="airflow.sdk and its base classes",
    )
    with tempfile.TemporaryDirectory() as home:
        environment = {**os.environ, "AIRFLOW_HOME": home}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)  # no installation compiles its modules at each import
        measure(environment)
        airflow, ours, own = map(min, zip(*(measure(environment) for _ in range(runs)), strict=True))
    report.add("our own modules (-X importtime)", own * 1e3, "ms", baseline=airflow * 1e3, at_most=GOAL)
    report.add("with what they import on top of Airflow", ours * 1e3, "ms", baseline=airflow * 1e3)
    report.write()


def measure(environment: dict[str, str]) -> tuple[float, float, float]:
    """Return the seconds for Airflow's part and ours, and the self time of our modules."""
    command = [sys.executable, "-X", "importtime", "-c", SCRIPT]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    rows = re.findall(r"import time:\s+(\d+) \|\s+\d+ \|\s+(\S+)", done.stderr)
    own = sum(int(micros) for micros, name in rows if name.startswith("airflow_provider_responsys"))
    airflow, ours = json.loads(done.stdout.splitlines()[-1])
    return airflow, ours, own / 1e6


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
