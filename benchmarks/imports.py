"""What importing the operator and the sensor costs when a DAG is parsed, beside ``airflow.sdk`` itself.

Each of several fresh interpreters imports Airflow first, then ours, and reports
both; ours are also summed from ``-X importtime``.
"""

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile

RUNS = 5
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


def main() -> None:
    """Print both costs, their ratio, and the time spent in our own modules."""
    with tempfile.TemporaryDirectory() as home:
        environment = {**os.environ, "AIRFLOW_HOME": home}
        costs = [measure(environment) for _ in range(RUNS)]
    airflow = statistics.median(cost[0] for cost in costs)
    ours = statistics.median(cost[1] for cost in costs)
    own = statistics.median(cost[2] for cost in costs)
    print(f"airflow.sdk and its base classes     {airflow * 1_000:7.0f} ms  (median of {RUNS} fresh interpreters)")
    print(f"operators and sensors, on top        {ours * 1_000:7.0f} ms  ratio {ours / airflow:.3f}")
    print(f"of that, in our own modules          {own * 1_000:7.0f} ms  (-X importtime, self time; goal 50 ms)")


def measure(environment: dict[str, str]) -> tuple[float, float, float]:
    """Return the seconds for Airflow's part and ours, and the self time of our modules."""
    command = [sys.executable, "-X", "importtime", "-c", SCRIPT]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    rows = re.findall(r"import time:\s+(\d+) \|\s+\d+ \|\s+(\S+)", done.stderr)
    own = sum(int(micros) for micros, name in rows if name.startswith("airflow_provider_responsys"))
    airflow, ours = json.loads(done.stdout.splitlines()[-1])
    return airflow, ours, own / 1e6


if __name__ == "__main__":
    main()
