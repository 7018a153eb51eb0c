"""A process that waits: the trigger on an event loop, and what a bare client needs for the same questions.

Each function runs in a process of its own (`benchmarks.ground.apart`), beside a
probe on the same loop that sees how late it is woken. What the probe itself
costs is measured alone, and subtracted.
"""

import asyncio
import gc
import json
import logging
import os
import tempfile
import time
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlsplit

from benchmarks.ground import forget_highest, resident

LOGIN = {"login": "api_user", "password": "sandbox-password"}
CONNECTION = "responsys_default"
PROBE_EVERY = 0.05
"""Seconds between two looks of the probe: 20 a second cost little beside 17 polls."""
PROBE_ALONE = 5.0
"""Seconds that the probe's own cost is measured for."""
IDS_PER_POLL = {"haAsyncApi": 1, "asyncApi": 200}

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Cost:
    """What a process needed: seconds of processors, without the probe's; megabytes over the start; lags in seconds."""

    cpu: float
    memory: float
    lags: list[float]

    @property
    def lag(self) -> float:
        """Return the 99th percentile of the lags in milliseconds."""
        return percentile(self.lags, 99) * 1e3


@dataclass(frozen=True, slots=True)
class Waited:
    """What a trigger's wait came to: when it *began*, its event, and its cost."""

    began: float
    event: dict[str, Any]
    cost: Cost


@dataclass(frozen=True, slots=True)
class Asked:
    """What a bare client asked about: so many requests, and what that cost."""

    requests: int
    cost: Cost


def trigger(url: str, api: str, ids: Sequence[str], interval: float, timeout: float) -> Waited:
    """Wait for *ids* as the triggerer does, at most *timeout* seconds, asking again after *interval*."""
    parts = urlsplit(url)
    connection = {"conn_type": "responsys", "host": parts.hostname, "port": parts.port, "schema": "http", **LOGIN}
    with tempfile.TemporaryDirectory() as home:
        os.environ["AIRFLOW_HOME"] = home
        os.environ[f"AIRFLOW_CONN_{CONNECTION.upper()}"] = json.dumps({**connection, "extra": {"api": api}})
        # Airflow reads where it lives when it is imported. The rest would be imported by the first question.
        import airflow.providers.common.compat.connection  # noqa: F401, PLC0415 -- see above

        import airflow_provider_responsys.transport.aio  # noqa: F401, PLC0415 -- see above
        from airflow_provider_responsys.triggers import PushRequestTrigger  # noqa: PLC0415 -- see above
        from airflow_provider_responsys.waiting.event import pack  # noqa: PLC0415 -- see above

        stored = PushRequestTrigger(
            responsys_conn_id=CONNECTION,
            packed_ids=pack(ids),
            poll_interval=interval,
            deadline=time.time() + timeout,
        ).serialize()[1]
        waiting = PushRequestTrigger(**json.loads(json.dumps(stored)))
        logging.basicConfig(level=logging.INFO, format="  %(asctime)s %(message)s", datefmt="%H:%M:%S")
        waiting._log = logging.getLogger("benchmarks.trigger")  # type: ignore[assignment]  # noqa: SLF001 -- Airflow's writes elsewhere

        async def event() -> tuple[float, dict[str, Any]]:
            began = time.time()
            return began, (await anext(aiter(waiting.run()))).payload

        told, cost = asyncio.run(probed(event()))
        return Waited(*told, cost)


def bare(url: str, api: str, ids: Sequence[str], per_minute: float, seconds: float) -> Asked:
    """Ask about *ids* in turn with nothing but aiohttp and json, *per_minute* questions for at most *seconds*."""
    import aiohttp  # noqa: PLC0415 -- not in the process that reports

    groups = [ids[start : start + IDS_PER_POLL[api]] for start in range(0, len(ids), IDS_PER_POLL[api])]
    groups = groups[: max(1, int(seconds * per_minute / 60))]

    async def ask_all() -> None:
        async with aiohttp.ClientSession() as session:
            form = {"user_name": LOGIN["login"], "password": LOGIN["password"], "auth_type": "password"}
            async with session.post(f"{url}/rest/api/v1.3/auth/token", data=form) as answer:
                headers = {"Authorization": (await answer.json(content_type=None))["authToken"]}
            polls = f"{url}/rest/{api}/v1.3/requests"
            loop = asyncio.get_running_loop()
            due = loop.time()
            for some in groups:
                if len(some) == 1:
                    question = session.get(f"{polls}/{some[0]}", headers=headers)
                else:
                    question = session.post(polls, json={"requestIds": list(some)}, headers=headers)
                async with question as answer:
                    json.loads(await answer.read())
                due += 60 / per_minute
                await asyncio.sleep(due - loop.time())

    _, cost = asyncio.run(probed(ask_all()))
    return Asked(sum(map(len, groups)), cost)


async def probed(work: Awaitable[T]) -> tuple[T, Cost]:
    """Do *work* beside a probe; return its result, and what it cost."""
    gc.collect()  # what the imports left is nobody's cost
    alone: list[float] = []
    began = time.process_time()
    await asyncio.wait([asyncio.ensure_future(probe(alone))], timeout=PROBE_ALONE)
    a_look = (time.process_time() - began) / len(alone)
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()
    lags: list[float] = []
    before = resident()
    forget_highest()
    probing = asyncio.ensure_future(probe(lags))
    began = time.process_time()
    result = await work
    cpu = time.process_time() - began - a_look * len(lags)
    probing.cancel()
    return result, Cost(cpu, resident("VmHWM") - before, lags)


async def probe(lags: list[float]) -> None:
    """Look again and again how much later than wanted one is woken."""
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + PROBE_EVERY
        await asyncio.sleep(PROBE_EVERY)
        lags.append(loop.time() - due)


def percentile(values: Sequence[float], per_cent: float) -> float:
    """Return the value that *per_cent* of *values* stay below."""
    return sorted(values)[min(len(values) - 1, int(len(values) * per_cent / 100))]
