"""Fifty tasks of one account that start together, at ten logins a minute: when all are in, and how often they knock.

    python -m benchmarks.login

Each task is a thread with a line of its own, as a worker has it; each trigger a
line of its own on one event loop, as after a restart of the triggerer. Fixed and
sliding windows run side by side, and beside them tasks that do what a client does
that knows the limit: sleep a minute, all of them the same.
"""

import asyncio
import itertools
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass

from airflow_provider_responsys.errors import LoginFailed, NotAccepted
from airflow_provider_responsys.protocol.account import Account
from airflow_provider_responsys.protocol.call import authorized
from airflow_provider_responsys.transport import aio, sync
from airflow_provider_responsys.transport.limits import LOGIN_SPREADS, login_waits
from benchmarks.ground import sandbox
from benchmarks.report import Report

TASKS = 50
LIMIT = 10  # logins a minute: the ratelimit page's sample
IN_TIME = 720.0  # seconds: twelve minutes
PATIENCE = 780.0
"""Seconds after which nobody waits any longer, and the benchmark ends."""

WINDOWS = ("fixed", "sliding")
AGENT = "benchmark"

Waits = Callable[[], Iterator[float]]


class OutOfTimeError(Exception):
    """The next look would be too late."""


@dataclass(slots=True)
class Login:
    """What became of one task: after how many seconds it was *in*, if it was, and how often it was refused."""

    refused: int = 0
    seconds: float | None = None
    locked: bool = False


@dataclass(slots=True)
class Herd:
    """What became of many."""

    logins: list[Login]

    @property
    def last(self) -> float:
        """Return when the last one was in, as far as they got there."""
        return max(login.seconds or 0.0 for login in self.logins)

    @property
    def outside(self) -> int:
        """Return how many never got in."""
        return sum(login.seconds is None for login in self.logins)


def minute() -> Iterator[float]:
    """Yield what a client waits beyond the minute that knows the limit and thinks of nobody else."""
    return itertools.repeat(0.0)


def tasks(url: str, count: int, waits: Waits) -> Herd:
    """Let *count* threads log in at once, each with a line of its own."""
    together = threading.Barrier(count)

    def log_in(_: int) -> Login:
        login = Login()
        together.wait()
        began = time.monotonic()

        def sleep(seconds: float) -> None:
            login.refused += 1
            _check(began, seconds)
            time.sleep(seconds)

        try:
            with sync.Responsys(_account(url), user_agent=AGENT, sleep=sleep, login_waits=waits) as line:
                line.run(authorized(None))
            login.seconds = time.monotonic() - began
        except LoginFailed:
            login.locked = True
        except (NotAccepted, OutOfTimeError):
            pass  # outside
        return login

    with ThreadPoolExecutor(count) as pool:
        return Herd(list(pool.map(log_in, range(count))))


def triggers(url: str, count: int, waits: Waits) -> Herd:
    """Let *count* lines on one event loop log in at once."""

    async def log_in() -> Login:
        login, began = Login(), time.monotonic()

        async def sleep(seconds: float) -> None:
            login.refused += 1
            _check(began, seconds)
            await asyncio.sleep(seconds)

        try:
            async with aio.Responsys(_account(url), user_agent=AGENT, sleep=sleep, login_waits=waits) as line:
                await line.run(authorized(None))
            login.seconds = time.monotonic() - began
        except LoginFailed:
            login.locked = True
        except (NotAccepted, OutOfTimeError):
            pass  # outside
        return login

    async def all_of_them() -> Herd:
        return Herd(await asyncio.gather(*(log_in() for _ in range(count))))

    return asyncio.run(all_of_them())


HERDS = {"tasks": (tasks, login_waits), "triggers": (triggers, login_waits), "naive": (tasks, minute)}


def main(count: int = TASKS, limit: int = LIMIT) -> None:
    """Let all herds log in at the same time, each at a sandbox of its own, and compare."""
    report = Report(
        "login",
        f"{count} tasks of one account log in at {limit} a minute",
        {"tasks": count, "logins a minute": limit},
        baseline="tasks that sleep 60 s without jitter",
    )
    with ExitStack() as stack, ThreadPoolExecutor(len(HERDS) * len(WINDOWS)) as pool:
        running = {}
        for window in WINDOWS:
            for name, (run, waits) in HERDS.items():
                url = stack.enter_context(sandbox("--login-limit", str(limit), "--window", window))
                running[window, name] = pool.submit(run, url, count, waits)
        herds = {place: future.result() for place, future in running.items()}
    for window in WINDOWS:
        for name in ("tasks", "triggers"):
            _compare(report, f"{name}, {window} window", herds[window, name], herds[window, "naive"])
    report.write()


def _compare(report: Report, what: str, herd: Herd, naive: Herd) -> None:
    report.add(f"{what}: all logged in after", herd.last, "s", baseline=naive.last, at_most=IN_TIME)
    report.add(f"{what}: not logged in", herd.outside, "logins", baseline=naive.outside, at_most=0)
    refused, naively = ([login.refused for login in each.logins] for each in (herd, naive))
    report.add(f"{what}: refused by the limit", sum(refused), "logins", baseline=sum(naively))
    report.add(f"{what}: refused, of one", max(refused), "logins", baseline=max(naively), at_most=len(LOGIN_SPREADS))
    locked, naively_locked = (sum(login.locked for login in each.logins) for each in (herd, naive))
    report.add(f"{what}: locked out", locked, "logins", baseline=naively_locked, at_most=0)


def _account(url: str) -> Account:
    return Account(host=url, login="api_user", password="sandbox-password")


def _check(began: float, seconds: float) -> None:
    if time.monotonic() + seconds - began > PATIENCE:
        raise OutOfTimeError


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
