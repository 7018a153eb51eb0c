"""One run, from its first attempt to its end: attempts are started, killed, and followed by the next."""

import json
import math
import os
import re
import signal
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from airflow.sdk.api import client
from airflow.sdk.execution_time.supervisor import supervise_task

from tests.faults.api import outage, plan_late, raise_flag
from tests.faults.happenings import BETWEEN, MEETINGS
from tests.faults.home import Child, Server
from tests.faults.judging import judge
from tests.faults.late import CLIENT_GIVES_UP
from tests.faults.ledgers import LedgerPlace
from tests.faults.planted import LEDGER, Plant, Told, begun, plant
from tests.faults.scenario import EXTERNAL, MAY_CLOSE, NAIVE, TIMEOUT, Kill, Scenario
from tests.faults.scheduling import Deferred, Launch, Over, Scheduler
from tests.support.verdict import Verdict, report_problem

RUN_WITHIN = 120.0
"""Seconds after which a run that has not ended is taken for one that never will."""

STOP_WITHIN = 8.0
"""Seconds within which a stop must have been noticed. Airflow's are five; the machine may be busy."""

EXTERNAL_BACKEND = "airflow.providers.common.io.state_store.backend.StateStoreObjectStorageBackend"


@dataclass(slots=True)
class Attempt:
    """An attempt whose processes may still be there."""

    launch: Launch
    number: int
    supervisor: Child
    plants: list[Plant]
    done: Path
    """There when ``execute`` has come to its end."""
    began: float = field(default_factory=time.monotonic)
    executing: float | None = None
    killed: bool = False
    replaced: bool = False
    stopped_at: float | None = None


def _since(attempt: Attempt, kill: Kill) -> float:
    """Return when the delay of *kill* began: a stop is the sender's to notice, so its delay begins with ``execute``."""
    if kill.whom == "stop" and attempt.executing is None:
        if not begun(attempt.done).exists():
            return math.inf
        attempt.executing = time.monotonic()
    return attempt.executing if kill.whom == "stop" and attempt.executing else attempt.began


class Stuck(Exception):
    """The run does not end."""


class Conductor:
    """Leads *scenario* to its end in *home*, where its API server is at *url*."""

    def __init__(
        self, scenario: Scenario, scheduler: Scheduler, home: Path, url: str, ledger: LedgerPlace | None
    ) -> None:
        self.scenario = scenario
        self.scheduler = scheduler
        self.url = url
        self.home = home
        self.run_id = f"{re.sub(r'[^a-zA-Z0-9]+', '-', scenario.name)}-{os.getpid()}-{time.monotonic_ns()}"
        self.folder = home / "runs" / self.run_id
        self.sandbox: Server
        self.ledger = ledger
        self._shared_ledger = ledger
        self.interruptions = 0
        self.restore: Callable[[], None] | None = None
        """Ends what lasts as long as the attempt."""
        self.problems: list[str] = []
        self.faults: Counter[str] = Counter()
        """Those of plans that are no longer in force."""
        self.pushed_before: Counter[tuple[Any, ...]] = Counter()
        """Pushes before a restart."""
        self.pushed_when_lost: int | None = None
        self.cleared = False
        self.attempts: Counter[str] = Counter()
        self._ended: Counter[str] = Counter()
        self._children: list[Child] = []
        self._at_end_done = False
        self._deadline = time.monotonic() + RUN_WITHIN

    def run(self) -> Verdict:
        """Lead the run to its end; return what came of it."""
        scenario = self.scenario
        self.folder.mkdir(parents=True)
        if self._shared_ledger and scenario.own_ledger:
            self.ledger = self._shared_ledger.own(self.folder)
        self.sandbox = Server.start(
            self.folder / "sandbox.log",
            scenario.faults,
            latency=scenario.latency,
            processing_time=scenario.processing,
            **scenario.sandbox,
        )
        try:
            if scenario.late:
                plan_late(self.url, self.run_id, scenario.late)
            self.scheduler.begin(scenario.dag, self.run_id)
            self._lead()
            return judge(self)
        except Stuck as stuck:
            return Verdict(problem=f"does not end: {stuck}")
        finally:
            for child in self._children:
                for pid in child.children():
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                child.stop()
            self.sandbox.stop()
            if self.ledger and self.ledger is not self._shared_ledger:
                self.ledger.drop()

    # From attempt to attempt

    def _lead(self) -> None:
        while True:
            self.check_time("no attempt is due")
            match self.scheduler.next(self.scenario.dag, self.run_id):
                case Launch() as launch:
                    for attempt in self._start_due(launch):
                        self.attend(attempt)
                case Deferred() as deferred:
                    self._wait(deferred)
                case Over():
                    if self._at_end_done:
                        return
                    self._at_end_done = True
                    if self.scenario.late:
                        raise_flag(self.url, self.run_id, "over")
                    for what in self.scenario.at_end:
                        BETWEEN[what](self)
                case None:
                    time.sleep(0.01)

    def _start_due(self, launch: Launch) -> list[Attempt]:
        """Start *launch*, and, where attempts run at once, all others that are due."""
        attempts = [self.start(launch)]
        while self.scenario.wrong_first and isinstance(
            due := self.scheduler.next(self.scenario.dag, self.run_id), Launch
        ):
            attempts.append(self.start(due))
        return attempts

    def start(self, launch: Launch) -> Attempt:
        """Start an attempt."""
        scenario = self.scenario
        self.attempts[launch.task_id] += 1
        number = self.attempts[launch.task_id]
        plants = [
            replace(each, meet=str(self.folder / f"meet-{launch.task_id}-{number}-{place}") if each.event else "")
            for place, each in enumerate(scenario.plants.get((launch.task_id, number), ()))
        ]
        if scenario.xcom_down_from and number == 1 and launch.task_id == "push":
            self.interruptions += 1
            self.restore = outage(self.home, self.run_id, "POST", ("/xcoms/", self.run_id), scenario.xcom_down_from)
        if scenario.execution_timeout and number == 1 and not scenario.gentle:
            self.interruptions += 1
        workload = launch.workload

        def supervise() -> int:
            if any(late.silent for late in scenario.late):
                client.API_TIMEOUT = CLIENT_GIVES_UP
            return supervise_task(
                ti=workload.ti,  # type: ignore[arg-type]  # Airflow's executors pass the same
                bundle_info=workload.bundle_info,
                dag_rel_path=workload.dag_rel_path,
                token=workload.token,
                server=self.url,
            )

        done = self.folder / f"done-{launch.task_id}-{number}"
        child = Child.fork(supervise, self.folder / "tasks.log", self.environment(plants, number, done))
        self._children.append(child)
        return Attempt(launch, number, child, plants, done)

    def environment(self, plants: list[Plant], number: int, done: Path) -> dict[str, str]:
        """Return what a process of this run finds in its environment."""
        scenario = self.scenario
        people = list(range(scenario.people))
        # The source returns its rows in another order each time.
        people = people[number * 7 :] + people[: number * 7]
        shards = [shards for first, shards in scenario.shards.items() if first <= number]
        told = Told(
            people=() if shards else people,
            shards=shards[-1] if shards else (),
            in_flight=scenario.in_flight,
            ledger=LEDGER if self.ledger else None,
            on_clear=scenario.on_clear,
            execution_timeout=scenario.execution_timeout if number == 1 else None,
            max_in_doubt=None if scenario.budget else scenario.people,
            patience=scenario.patience,
            plants=plants,
            trace=str(self.folder / f"killed-{number}-{time.monotonic_ns()}"),
            done=str(done),
        )
        connection = {**self.sandbox.connection, "extra": {"api": "haAsyncApi", "timeout": TIMEOUT}}
        if number <= scenario.wrong_first:
            connection["password"] = f"wrong in {self.run_id}"
        external = {
            "AIRFLOW__WORKERS__STATE_STORE_BACKEND": EXTERNAL_BACKEND,
            "AIRFLOW__COMMON_IO__STATE_STORE_OBJECTSTORAGE_PATH": f"file://{self.folder}/store",
        }
        return {
            **told.to_environment(),
            **(external if scenario.store == EXTERNAL else {}),
            "AIRFLOW_CONN_RESPONSYS_DEFAULT": json.dumps(connection),
            "AIRFLOW_CONN_LEDGER": json.dumps(self.ledger.connection if self.ledger else {}),
        }

    def attend(self, attempt: Attempt) -> None:
        """Stay with *attempt* until it has ended, and let the scheduler know."""
        kill = self.scenario.kills.get((attempt.launch.task_id, attempt.number))
        to_meet = [each for each in attempt.plants if each.event]
        while not attempt.supervisor.ended():
            self.check_time(f"attempt {attempt.number} of {attempt.launch.task_id} runs on")
            if kill and time.monotonic() >= _since(attempt, kill) + kill.delay:
                self._kill(attempt, kill)
                kill = None
            for met in [each for each in to_meet if Path(f"{each.meet}.at").exists()]:
                to_meet.remove(met)
                MEETINGS[met.event](self, attempt, met)
            if attempt.stopped_at and time.monotonic() - attempt.stopped_at > STOP_WITHIN:
                self.kill_task(attempt)
                attempt.stopped_at = None
                self.problems.append(f"attempt {attempt.number} noticed no stop")
            time.sleep(0.01)
        self._note_end(attempt)

    def _note_end(self, attempt: Attempt) -> None:
        status = attempt.supervisor.status or 0
        task_id = attempt.launch.task_id
        died = self._count_deaths(task_id)
        self._ended[task_id] += 1
        lasting, self.restore = self.restore, None
        if lasting:
            lasting()
        if self.scenario.late:
            raise_flag(self.url, self.run_id, f"ended {self._ended[task_id]}")
        if os.WIFSIGNALED(status):
            self.scheduler.lost(attempt.launch)
        else:
            self.scheduler.ended(attempt.launch, well=os.WEXITSTATUS(status) == 0)
        if not (lasting or died or attempt.killed or attempt.replaced) and attempt.done.exists():
            self._check_report(attempt)
        if task_id == "push":
            for what in self.scenario.between.get(self._ended[task_id], ()):
                BETWEEN[what](self)

    def _check_report(self, attempt: Attempt) -> None:
        """Note what is wrong with the report that a try left, which came to its end."""
        if attempt.launch.task_id != "push" or self.scenario.store == NAIVE or self.scenario.shards:
            return
        wrong = report_problem(
            len(self.pushes()),
            self.report(),
            closed=self.scenario.ends == MAY_CLOSE,
            expired=self.faults_so_far()["expired"],
        )
        if wrong:
            self.problems.append(f"after attempt {attempt.number}: {wrong}")

    def _count_deaths(self, task_id: str) -> int:
        traces = list(self.folder.glob("killed-*"))
        for trace in traces:
            trace.unlink()
            self.interruptions += task_id == "push"  # the others have no requests out that push anybody
        return len(traces)

    def _kill(self, attempt: Attempt, kill: Kill) -> None:
        self.interruptions += attempt.launch.task_id == "push" and not self.scenario.gentle  # see _count_deaths
        match kill.whom:
            case "term":
                attempt.supervisor.signal(signal.SIGTERM)
            case "stop":
                self.stop(attempt)
            case "host":
                tasks = attempt.supervisor.children()
                attempt.supervisor.signal(signal.SIGKILL)
                self.kill_task(attempt, tasks)
            case _:
                self.kill_task(attempt)

    def kill_task(self, attempt: Attempt, tasks: list[int] | None = None) -> None:
        """Kill the process of the task."""
        attempt.killed = True
        for pid in attempt.supervisor.children() if tasks is None else tasks:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def stop(self, attempt: Attempt) -> None:
        """Ask the task to stop, and see that it does."""
        if attempt.supervisor.signal(signal.SIGTERM):
            attempt.stopped_at = time.monotonic()

    # Waiting

    def _wait(self, deferred: Deferred) -> None:
        """Run the trigger, again where it is killed, and let the task go on."""
        if self.scenario.what == "cleared while deferred" and not self.cleared:
            self.clear(deferred.task_id)
            return
        self.attempts["trigger"] += 1
        number = self.attempts["trigger"]
        planted = self.scenario.plants.get(("trigger", number), ())
        answer = self.folder / f"event-{number}"

        def watch() -> None:
            told = Told(plants=planted, trace=str(self.folder / f"killed-trigger-{number}"))
            os.environ.update(told.to_environment())
            plant(told)
            payload = deferred.fire()
            if any(each.point == "trigger with its event" for each in planted):
                os.kill(os.getpid(), signal.SIGKILL)
            answer.write_text(json.dumps(payload))

        nowhere = self.folder / "nowhere"
        child = Child.fork(watch, self.folder / "tasks.log", self.environment([], number, nowhere))
        self._children.append(child)
        began, kill = time.monotonic(), self.scenario.kills.get(("trigger", number))
        while not child.ended():
            self.check_time("the trigger runs on")
            if kill and time.monotonic() - began >= kill.delay:
                child.stop()
            time.sleep(0.01)
        for trace in self.folder.glob("killed-trigger-*"):
            trace.unlink()  # a trigger has no requests out that push anybody
        if answer.exists():
            self.scheduler.fire(deferred, json.loads(answer.read_text()))

    def clear(self, task_id: str, *, only_failed: bool = False) -> None:
        """Clear a task as a person does."""
        self.cleared = True
        if self.scenario.on_clear == "restart":
            self.pushed_before = self._pushed_in_all()
        self.scheduler.clear(self.scenario.dag, self.run_id, task_id, only_failed=only_failed)

    # What is known

    def check_time(self, what: str) -> None:
        """Raise if the run has taken too long."""
        if time.monotonic() > self._deadline:
            raise Stuck(what)

    def pushes(self) -> list[int]:
        """Return how often each recipient was pushed, since the last restart."""
        times = list((self._pushed_in_all() - self.pushed_before).values())
        twice = [place for place, often in enumerate(times) if often == 2]
        for place in twice[: self.scenario.forgiven]:
            # Whom the ledger has forgotten is another recipient to it.
            times[place] = 1
            times.append(1)
        return times

    def _pushed_in_all(self) -> Counter[tuple[Any, ...]]:
        return Counter({tuple(key): times for *key, times in self.sandbox.ask("pushes")})

    def faults_so_far(self) -> Counter[str]:
        """Return how often each fault happened."""
        return self.faults + Counter(self.sandbox.ask("report")["faults"])

    def report(self) -> dict[str, int] | None:
        """Return the push's counts of recipients, of all mapped tasks together."""
        found = self.scheduler.xcoms(self.scenario.dag, self.run_id, "push", "recipients")
        sums: Counter[str] = Counter()
        for counts in found.values():
            sums.update(counts)
        return dict(sums) if found else None

    def xcom(self, task_id: str, key: str) -> Any:
        """Return what a task pushed, or None."""
        return next(iter(self.scheduler.xcoms(self.scenario.dag, self.run_id, task_id, key).values()), None)
