"""What happens while an attempt halts at a point, between two attempts, and when a run is over."""

import argparse
import json
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from datetime import timedelta
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

import requests

from tests.faults.api import outage
from tests.faults.home import Child
from tests.faults.planted import LEDGER, Plant
from tests.faults.scenario import EXTERNAL
from tests.faults.scheduling import Launch

if TYPE_CHECKING:
    from tests.faults.conduct import Attempt, Conductor

ZOMBIE_WAKES = 0.4
"""Seconds after its retry has started."""

STALLED_FOR = 1.5
"""Seconds of a stall that ends by itself."""

STOP_AFTER = 0.5
"""Seconds into a stall until the task is told to stop."""

HEALTHY = {"login_limit": None, "token_lifetime": 7200.0}


def _go_on(met: Plant) -> None:
    Path(f"{met.meet}.go").touch()


# At a meeting


def _clear_running(run: "Conductor", attempt: "Attempt", met: Plant) -> None:
    run.interruptions += 1
    attempt.replaced = True
    run.clear("push")
    _go_on(met)


def _break_down(run: "Conductor", attempt: "Attempt", met: Plant) -> None:
    """Take the ledger away until the attempt has ended."""
    run.interruptions += 1
    if run.ledger:
        run.restore = run.ledger.take_down()
    else:
        run.restore = outage(run.home, run.run_id, "PUT", ("/store/", str(attempt.launch.workload.ti.id)), 1)
    _go_on(met)


def _outlive(run: "Conductor", attempt: "Attempt", met: Plant) -> None:
    """Freeze the attempt until its heartbeat is missed, start its retry, and let both run."""
    retry = _freeze(run, attempt)
    time.sleep(ZOMBIE_WAKES)
    _wake(attempt, met)
    run.attend(retry)


def _come_late(run: "Conductor", attempt: "Attempt", met: Plant) -> None:
    """Freeze the attempt until its retry has ended."""
    run.attend(_freeze(run, attempt))
    _wake(attempt, met)


def _freeze(run: "Conductor", attempt: "Attempt") -> "Attempt":
    """Freeze the attempt until its heartbeat is missed; start its retry."""
    run.interruptions += 1
    attempt.replaced = True
    attempt.supervisor.signal(signal.SIGSTOP)
    run.scheduler.lost(attempt.launch)
    step = None
    while not isinstance(step, Launch):
        run.check_time("the retry of a zombie is not due")
        step = run.scheduler.next(run.scenario.dag, run.run_id)
    return run.start(step)


def _wake(attempt: "Attempt", met: Plant) -> None:
    attempt.supervisor.signal(signal.SIGCONT)
    _go_on(met)


def _snapshot(run: "Conductor", _attempt: "Attempt", met: Plant) -> None:
    assert run.ledger
    run.ledger.snapshot()
    _go_on(met)


def _put_back_meanwhile(*, end_connections: bool) -> "Meeting":
    def put_back(run: "Conductor", _attempt: "Attempt", met: Plant) -> None:
        assert run.ledger
        run.interruptions += 1
        run.ledger.put_back(end_connections=end_connections)
        _go_on(met)

    return put_back


def _stall(begin: str, *, stop: bool) -> "Meeting":
    """Let the ledger stall as its method *begin* does it: for a while, or until the attempt was told to *stop*."""

    def stall(run: "Conductor", attempt: "Attempt", met: Plant) -> None:
        end: Callable[[], None] = getattr(run.ledger, begin)()
        run.interruptions += 1
        _go_on(met)
        if stop:
            run.restore = end
            time.sleep(STOP_AFTER)
            run.stop(attempt)
        else:
            threading.Timer(STALLED_FOR, end).start()

    return stall


def _drop_idle(run: "Conductor", _attempt: "Attempt", met: Plant) -> None:
    assert run.ledger
    run.ledger.end_connections()
    _go_on(met)


def _settle(*, then_kill: bool) -> "Meeting":
    """Settle every batch in doubt as not sent, while a request is out: that must be refused."""

    def settle(run: "Conductor", attempt: "Attempt", met: Plant) -> None:
        _at_the_command_line(run, _settle_all)
        if then_kill:
            run.interruptions += 1
            run.kill_task(attempt)
        _go_on(met)

    return settle


def _forget(run: "Conductor", _attempt: "Attempt", met: Plant) -> None:
    """Erase one recipient who was pushed."""
    first, *_ = sorted(key[2] for *key, _ in run.sandbox.ask("pushes"))
    _at_the_command_line(
        run, lambda _: _cli("forget", "--identifier", "customerId", "--value", first, "--ledger-conn-id", LEDGER)
    )
    _go_on(met)


def _prune(run: "Conductor", _attempt: "Attempt", met: Plant) -> None:
    """Remove every send."""

    def prune(_: str) -> None:
        from airflow_provider_responsys import commands  # noqa: PLC0415 -- in a process of its own

        # The command line takes no age below a minute.
        commands.prune_sends(
            argparse.Namespace(older_than=timedelta(0), ledger_conn_id=LEDGER, yes=True, force=True, reason="a test")
        )

    run.interruptions += 1
    _at_the_command_line(run, prune)
    _go_on(met)


# At the command line


def _at_the_command_line(run: "Conductor", work: Callable[[str], None]) -> None:
    """Let a process of its own do *work* with the ledger, given the send's key."""
    environment = run.environment([], 1, run.folder / "nowhere")
    send_key = f"{run.scenario.dag}/push/{run.run_id}"
    child = Child.fork(lambda: work(send_key), run.folder / "cli.log", environment)
    while not child.ended():
        run.check_time("the command line runs on")
        time.sleep(0.01)
    if child.status:
        run.problems.append(f"the command line: {(run.folder / 'cli.log').read_text()[-300:]}")


def _settle_all(send_key: str) -> None:
    from airflow_provider_responsys import cli  # noqa: PLC0415 -- in a process of its own

    shown = StringIO()
    with redirect_stdout(shown):
        cli.main(["show", send_key, "--ledger-conn-id", LEDGER, "--output", "json"])
    settle = next(command for command in cli.COMMANDS if command.name == "settle")
    takes_reason = any("--reason" in argument.flags for argument in settle.args)
    reason = ["--reason", "seen in no report"] if takes_reason else []
    for batch in json.loads(shown.getvalue() or "[]"):
        if batch["state"] == "in doubt":
            _cli("settle", batch["batch_id"], "--not-sent", "--yes", "--ledger-conn-id", LEDGER, *reason)


def _cli(*arguments: str) -> None:
    """Run one command; that it refuses is fine."""
    from airflow_provider_responsys import cli  # noqa: PLC0415 -- in a process of its own

    sys.stdin = open(os.devnull)  # noqa: SIM115, PTH123 -- the process ends with it
    cli.main(arguments)


# Between two attempts, and at the end


def _clean(run: "Conductor") -> None:
    run.scheduler.clean()


def _lose(run: "Conductor") -> None:
    """Lose the record: from now on nothing may be sent."""
    if run.ledger:
        run.ledger.lose()
    elif run.scenario.store == EXTERNAL:
        shutil.rmtree(run.folder / "store")  # its files; their names stand in Airflow's database still
    else:
        run.scheduler.lose(run.scenario.dag, run.run_id)
    run.pushed_when_lost = sum(run.pushes())


def _drop_xcoms(run: "Conductor") -> None:
    run.scheduler.drop_xcoms(run.run_id)


def _clear(run: "Conductor") -> None:
    run.clear("push")


def _clear_failed(run: "Conductor") -> None:
    run.clear("push", only_failed=True)


def _put_back(run: "Conductor") -> None:
    assert run.ledger
    run.ledger.put_back(end_connections=False)


def _heal(run: "Conductor") -> None:
    """Let the brown-out be over."""
    run.faults = run.faults_so_far()
    for what, value in (("faults", []), ("settings", HEALTHY)):
        requests.post(f"{run.sandbox.url}/sandbox/{what}", json=value, timeout=10).raise_for_status()


Meeting = Callable[["Conductor", "Attempt", Plant], None]

MEETINGS: Mapping[str, Meeting] = {
    "clear": _clear_running,
    "zombie": _outlive,
    "late zombie": _come_late,
    "outage": _break_down,
    "snapshot": _snapshot,
    "put back": _put_back_meanwhile(end_connections=False),
    "put back, connections ended": _put_back_meanwhile(end_connections=True),
    "lock": _stall("lock", stop=True),
    "lock for a while": _stall("lock", stop=False),
    "dark": _stall("go_dark", stop=True),
    "dark for a while": _stall("go_dark", stop=False),
    "drop idle": _drop_idle,
    "settle": _settle(then_kill=False),
    "settle, then kill": _settle(then_kill=True),
    "forget": _forget,
    "prune": _prune,
}
BETWEEN: Mapping[str, Callable[["Conductor"], None]] = {
    "clean": _clean,
    "lose": _lose,
    "xcoms": _drop_xcoms,
    "clear": _clear,
    "clear failed": _clear_failed,
    "put back": _put_back,
    "heal": _heal,
}
