"""Waits of one account in one triggerer: how much of the account's poll limit they use, and how often it refuses.

Several `PushRequestTrigger` wait at the same time on one event loop, in a process of
its own, for requests that a sandbox never finishes: each has polls due all the time.
Once they share the account's limit, as they do in a triggerer, and once each keeps to
it by itself. What counts begins a minute after the start, and is what the sandbox says.

python -m benchmarks.sharing [waits] [polls a minute] [counted seconds]
"""

import asyncio
import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from urllib.parse import unquote, urlsplit

import requests

from airflow_provider_responsys.hooks import ResponsysHook
from airflow_provider_responsys.waiting.event import pack
from benchmarks.ground import apart, sandbox
from benchmarks.report import Report
from benchmarks.sender import LOGIN

MINUTE = 60.0
WARM_UP = MINUTE + 10.0
"""Seconds from the process's beginning until the first minute is over."""
EACH = 60
"""Requests of each wait."""

CAMPAIGN = "Bench"
OF_THE_LIMIT, MOST_REFUSED, LEAST_PART = 0.95, 0, 0.9


@dataclass(frozen=True, slots=True)
class Found:
    """In the time that counts: polls *answered* a minute, polls *refused*, and the smallest part of a wait."""

    answered: float
    refused: int
    least: float


def main(waits: int = 4, limit: int = 200, seconds: float = 120.0) -> None:
    """Wait both ways, and report."""
    report = Report(
        "sharing",
        "Waits of one account in one triggerer",
        {"waits": str(waits), "polls a minute": f"{limit:,}", "counted": f"{seconds:.0f} s"},
        baseline="each wait by itself",
    )
    together, alone = (measure(waits, limit, seconds, shared=shared) for shared in (True, False))
    report.add(
        "polls answered",
        together.answered / limit,
        "of the limit",
        baseline=alone.answered / limit,
        at_least=OF_THE_LIMIT,
    )
    report.add("polls refused", together.refused, "polls", baseline=alone.refused, at_most=MOST_REFUSED)
    report.add("smallest part of a wait", together.least, "of an equal part", baseline=alone.least, at_least=LEAST_PART)
    report.write()


def measure(waits: int, limit: int, seconds: float, *, shared: bool) -> Found:
    """Let *waits* poll a sandbox, and count what it saw."""
    options = ("--processing-time", "100000", "--poll-limit", str(limit), "--log-length", "100000")
    with sandbox(*options, campaign=CAMPAIGN) as url:
        wanted = [[f"{wait}"] * EACH for wait in range(waits)]
        ids = apart(push, url, wanted)
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
            polling = process.submit(poll, url, ids, WARM_UP + seconds, shared)
            began = first_poll(url)
            time.sleep(MINUTE)
            before = refusals(url)
            polling.result()
        refused = refusals(url) - before
        log = requests.get(f"{url}/sandbox/requests", timeout=60).json()
    of = {request_id: wait for wait, some in enumerate(ids) for request_id in some}
    counted = [each for each in log if each["endpoint"] == "poll" and 0 <= each["time"] - began - MINUTE < seconds]
    parts = Counter(of[unquote(each["path"]).rpartition("/")[2]] for each in counted)
    sent = parts.total()
    return Found((sent - refused) * MINUTE / seconds, refused, min(parts[wait] for wait in range(waits)) * waits / sent)


def first_poll(url: str) -> float:
    """Wait for the first poll; return when it was, by the sandbox's clock."""
    while True:
        log = requests.get(f"{url}/sandbox/requests", timeout=60).json()
        if polls := [each["time"] for each in log if each["endpoint"] == "poll"]:
            return float(polls[0])
        time.sleep(0.2)


def refusals(url: str) -> int:
    """Return how many requests the sandbox has refused so far."""
    return sum(requests.get(f"{url}/sandbox/report", timeout=60).json()["refusals"].values())


def push(url: str, wanted: Sequence[Sequence[str]]) -> list[list[str]]:
    """Push one request for each name in each of *wanted*; return their ids."""
    connect(url)
    with ResponsysHook("bench") as hook:
        return [[hook.trigger_push(CAMPAIGN, [{"customer_id": name}]) for name in names] for names in wanted]


def poll(url: str, ids: Sequence[Sequence[str]], seconds: float, shared: bool) -> None:  # noqa: FBT001 -- crosses a process
    """Wait for each of *ids* with a trigger of its own, all on one event loop."""
    connect(url)
    from airflow_provider_responsys import triggers  # noqa: PLC0415 -- Airflow reads where it lives when it is imported
    from airflow_provider_responsys.waiting.sharing import Limits, SharedLimit  # noqa: PLC0415 -- see above

    class Apart(Limits):
        """Gives each wait a limit of its own."""

        def of(self, account: str, default: float, *, clock: Callable[[], float]) -> SharedLimit:  # noqa: ARG002 -- as it is called
            return SharedLimit(default, clock)

    triggers.LIMITS = Limits() if shared else Apart()

    async def event(some: Sequence[str]) -> None:
        trigger = triggers.PushRequestTrigger(
            responsys_conn_id="bench",
            packed_ids=pack(some),
            poll_interval=1.0,
            deadline=time.time() + seconds,
            first_delay=0.0,
        )
        await anext(aiter(trigger.run()))

    async def all_of_them() -> None:
        await asyncio.gather(*map(event, ids))

    asyncio.run(all_of_them())


def connect(url: str) -> None:
    """Let the connection ``bench`` lead to the sandbox at *url*."""
    os.environ["AIRFLOW_HOME"] = tempfile.mkdtemp(prefix="bench-")
    parts = urlsplit(url)
    connection = {"conn_type": "responsys", "host": parts.hostname, "port": parts.port, "schema": "http", **LOGIN}
    os.environ["AIRFLOW_CONN_BENCH"] = json.dumps(connection)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
