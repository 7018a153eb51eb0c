"""The fault suite: ``python -m tests.faults --runs 1000``.

Real processes, real kills, real HTTP to a sandbox, Airflow's own execution API
over its own database, every ledger. Prints one table, and each run that failed
with the arguments that repeat it. Ends with 0 if every promise held.
"""

import argparse
import gc
import itertools
import json
import os
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path

from tests.faults import api as apis
from tests.faults import home as homes
from tests.faults.home import Child
from tests.faults.ledgers import LedgerPlace, places
from tests.faults.scenario import NAIVE, POSTGRES, STORES, Scenario
from tests.faults.scenarios import GROUPS, everything, scenario
from tests.support import databases
from tests.support.verdict import Line, Verdict, table

WHOLE, WITH_SCHEDULER = "whole Airflow", "with its scheduler"
LANES = 4
"""Runs at once: they wait most of their time."""

FORKED_WITH = (
    "airflow.api_fastapi.execution_api.app",
    "airflow.providers.common.io.state_store.backend",
    "airflow.sdk.execution_time.task_runner",
    "airflow_provider_responsys.ledger.sql",
    "airflow_provider_responsys.operators",
    "airflow_provider_responsys.recipients.spool",
    "airflow_provider_responsys.sandbox",
    "airflow_provider_responsys.sensors",
    "airflow_provider_responsys.transport.aio",
    "airflow_provider_responsys.transport.sync",
    "tests.faults.happenings",
)
"""What takes long to import, and every process needs."""

TICKET = struct.Struct("<I")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is asked for; return 0 if every promise held."""
    asked = options(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    warnings.simplefilter("ignore")  # Airflow's own, of libraries
    began = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="responsys-faults-"))
    scenarios = chosen(asked)
    until = began + asked.seconds
    results: list[tuple[Scenario, Verdict]] = []
    try:
        with started(folder, asked.stores) as (url, ledgers):
            say(f"Airflow is ready after {time.monotonic() - began:.0f} s, for {len(scenarios)} runs")
            for run, verdict, took in Course(scenarios, folder, url, ledgers, until).conduct(asked.lanes):
                results.append((run, verdict))
                tell(run, verdict, took, asked)
        missing = len(scenarios) - len(results) if time.monotonic() < until else 0
        if asked.whole:
            results += handful(folder, asked)
    finally:
        if not asked.keep:
            shutil.rmtree(folder, ignore_errors=True)
    if missing:
        say(f"{missing} runs were lost: a lane has died")
    return report(results, time.monotonic() - began, asked) or int(missing > 0)


def options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="tests.faults", description=__doc__)
    parser.add_argument("--runs", type=int, default=2500, help="how many runs, over all groups and stores")
    parser.add_argument("--seconds", type=float, default=4500.0, help="start no run after so many seconds")
    parser.add_argument("--lanes", type=int, default=LANES, help="runs at once")
    parser.add_argument("--group", action="append", choices=list(GROUPS), help="only this group")
    parser.add_argument("--store", action="append", choices=[*STORES, NAIVE], help="only this store")
    parser.add_argument("--only", action="append", metavar="GROUP/STORE/SEED", help="only this run")
    parser.add_argument("--whole", action="store_true", help="and a handful in a whole Airflow with its scheduler")
    parser.add_argument("--json", action="store_true", help="print a line of JSON for each run instead of the table")
    parser.add_argument("--keep", action="store_true", help="keep the folder with all logs")
    parser.add_argument("--verbose", action="store_true", help="tell each run")
    asked = parser.parse_args(arguments)
    asked.stores = {name.split("/")[1] for name in asked.only} if asked.only else set(asked.store or STORES)
    return asked


def chosen(asked: argparse.Namespace) -> list[Scenario]:
    """Return the runs that are asked for."""
    if asked.only:
        parts = (name.split("/") for name in asked.only)
        return [scenario(group, store, int(seed)) for group, store, seed in parts]
    return list(itertools.islice(everything(asked.group, asked.store), asked.runs))


@contextmanager
def started(folder: Path, stores: set[str]) -> Iterator[tuple[str, dict[str, LedgerPlace]]]:
    """Start what all runs share; give the API server's address and the connections of the ledgers."""
    url = homes.settle_in(folder)
    with databases.postgres() if POSTGRES in stores else nullcontext() as server:
        prepare(folder)
        api = apis.serve_api(folder, url)
        try:
            apis.wait_for(url, api, folder / "api.log")
            yield url, places(folder, server)
        finally:
            api.stop()


def prepare(folder: Path) -> None:
    """Make Airflow's database in a child, while this process imports what all others will need."""
    (folder / "runs").mkdir()
    from airflow.utils import db  # noqa: PLC0415 -- after `settle_in`

    database = Child.fork(db.initdb, folder / "database.log")
    for module in FORKED_WITH:
        import_module(module)
    while not database.ended():
        time.sleep(0.01)
    if database.status:
        raise RuntimeError(f"Airflow's database could not be made:\n{(folder / 'database.log').read_text()[-2000:]}")
    parsing = Child.fork(parse, folder / "database.log")
    while not parsing.ended():
        time.sleep(0.01)
    gc.freeze()  # whoever is forked leaves the memory of all this alone
    if parsing.status:
        raise RuntimeError(f"The DAGs could not be read:\n{(folder / 'database.log').read_text()[-2000:]}")


def parse() -> None:
    """Write the DAGs to Airflow's database."""
    from tests.faults.scheduling import Scheduler  # noqa: PLC0415 -- after `settle_in`

    Scheduler().parse()


@dataclass(frozen=True, slots=True)
class Course:
    """What all lanes have in common: the runs to conduct, where, and until when one may begin."""

    scenarios: Sequence[Scenario]
    folder: Path
    url: str
    ledgers: Mapping[str, LedgerPlace]
    until: float

    def conduct(self, lanes: int) -> Iterator[tuple[Scenario, Verdict, float]]:
        """Yield each run as it ends, and how long it took: several at once, each lane of them a process."""
        tickets, sell = os.pipe()
        told, tell = os.pipe()

        def work() -> None:
            os.close(sell)
            self._lane(tickets, tell)

        children = [Child.fork(work, self.folder / "lanes.log") for _ in range(lanes)]
        os.close(tickets)
        os.close(tell)
        try:
            # A pipe has room for 16,000 tickets.
            os.write(sell, b"".join(TICKET.pack(number) for number in range(len(self.scenarios))))
            os.close(sell)
            with os.fdopen(told) as lines:
                for line in lines:
                    found = json.loads(line)
                    yield self.scenarios[found["run"]], Verdict(**found["verdict"]), found["took"]
        finally:
            for child in children:
                child.stop()

    def _lane(self, tickets: int, tell: int) -> None:
        """Conduct runs as long as there are tickets."""
        from tests.faults.conduct import Conductor  # noqa: PLC0415 -- after `settle_in`
        from tests.faults.scheduling import Scheduler  # noqa: PLC0415 -- the same

        scheduler = Scheduler()
        parent = os.getppid()
        while time.monotonic() < self.until and os.getppid() == parent and (ticket := os.read(tickets, TICKET.size)):
            (number,) = TICKET.unpack(ticket)
            began = time.monotonic()
            run = self.scenarios[number]
            try:
                verdict = Conductor(run, scheduler, self.folder, self.url, self.ledgers.get(run.store)).run()
            except Exception:  # noqa: BLE001 -- a defect of the suite must not hide the other runs
                traceback.print_exc()
                verdict = Verdict(problem=traceback.format_exc(limit=-3)[-1500:])
            line = {"run": number, "verdict": asdict(verdict), "took": time.monotonic() - began}
            os.write(tell, json.dumps(line).encode() + b"\n")


def handful(folder: Path, asked: argparse.Namespace) -> Iterator[tuple[Scenario, Verdict]]:
    """Yield the runs in a whole Airflow."""
    from tests.faults.whole import verdicts  # noqa: PLC0415 -- only where it is asked for

    for seed, (name, verdict, took) in enumerate(verdicts(folder)):
        run = Scenario(WHOLE, WITH_SCHEDULER, seed, name)
        tell(run, verdict, took, asked)
        yield run, verdict


def tell(run: Scenario, verdict: Verdict, took: float, asked: argparse.Namespace) -> None:
    """Say what came of a run, where that is asked for or it must be known."""
    fine = verdict.holds or run.store == NAIVE
    if asked.verbose or not fine:
        say(f"{'ok  ' if fine else 'FAIL'} {took:5.1f} s  {run.name}: {run.what}: {verdict}")


def report(results: Sequence[tuple[Scenario, Verdict]], took: float, asked: argparse.Namespace) -> int:
    """Print what became of all runs; return 0 if every promise held."""
    if asked.json:
        for run, verdict in results:
            say(
                json.dumps(
                    {"group": run.group, "store": run.store, "name": run.name, "what": run.what, **asdict(verdict)}
                )
            )
    else:
        lines: dict[tuple[str, str], Line] = {}
        for run, verdict in results:
            lines.setdefault((run.group, run.store), Line(naive=run.store == NAIVE)).add(verdict)
        order = [*GROUPS, WHOLE]
        columns = [*STORES, WITH_SCHEDULER, NAIVE]
        by_group = sorted(lines, key=lambda at: (at[1] == NAIVE, order.index(at[0]), columns.index(at[1])))
        say("")
        say(table((*place, lines[place]) for place in by_group))
        say(f"\n{len(results)} runs in {took:.0f} s. In doubt and bound count recipients; the bound is")
        say("(lost answers + kills) x requests in flight x 200, and no more than the budget of doubts allows.")
    broken = [run for run, verdict in results if run.store != NAIVE and not verdict.holds]
    for run in broken:
        again = "--whole" if run.group == WHOLE else f'--only "{run.name}"'
        say(f"repeat: python -m tests.faults --keep --verbose {again}")
    return 1 if broken or not results else 0


def say(text: str) -> None:
    """Print at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
