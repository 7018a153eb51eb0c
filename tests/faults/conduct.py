"""One run, from its first attempt to its end: attempts are started, killed, and followed by the next."""

import json
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from airflow.sdk.execution_time.supervisor import supervise_task

from tests.faults.home import Child, Server, outage
from tests.faults.ledgers import LedgerPlace
from tests.faults.planted import LEDGER, Plant, Told, plant
from tests.faults.scenarios import NAIVE, STATE, TIMEOUT, Kill, Scenario
from tests.faults.scheduling import Deferred, Launch, Over, Scheduler
from tests.faults.verdict import Verdict, judge_naive, judge_push, judge_wait, lost_answers

RUN_WITHIN = 120.0
"""Seconds after which a run that has not ended is taken for one that never will."""

ZOMBIE_WAKES = 0.4
"""Seconds after its retry has started."""


@dataclass(slots=True)
class Attempt:
    """An attempt whose processes may still be there."""

    launch: Launch
    supervisor: Child
    plant: Plant | None
    began: float = field(default_factory=time.monotonic)


class Stuck(Exception):
    """The run does not end."""


class Conductor:
    """Leads *scenario* to its end in *home*, where its API server is at *url*."""

    def __init__(
        self, scenario: Scenario, scheduler: Scheduler, home: Path, url: str, ledger: LedgerPlace | None
    ) -> None:
        self._scenario = scenario
        self._scheduler = scheduler
        self._url = url
        self._home = home
        self._run_id = f"{scenario.name.replace('/', '-').replace(' ', '_')}-{os.getpid()}-{time.monotonic_ns()}"
        self._folder = home / "runs" / self._run_id
        self._shared_ledger = ledger
        self._ledger = ledger
        self._outage: Callable[[], None] | None = None
        self._sandbox: Server
        self._attempts: dict[str, int] = {}
        self._children: list[Child] = []
        self._interruptions = 0
        self._cleared = False
        self._pushed_when_lost: int | None = None
        self._deadline = time.monotonic() + RUN_WITHIN

    def run(self) -> Verdict:
        """Lead the run to its end; return what became of everybody."""
        scenario = self._scenario
        self._folder.mkdir(parents=True)
        if self._shared_ledger and scenario.event in ("outage", "lose"):
            self._ledger = self._shared_ledger.own(self._folder)
        self._sandbox = Server.start(
            self._folder / "sandbox.log",
            scenario.faults,
            latency=scenario.latency,
            processing_time=scenario.processing,
        )
        try:
            self._scheduler.begin(scenario.dag, self._run_id)
            self._lead()
            return self._judge()
        except Stuck as stuck:
            return Verdict(problem=f"does not end: {stuck}")
        finally:
            for child in self._children:
                for pid in child.children():
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                child.stop()
            self._sandbox.stop()
            if self._ledger and self._ledger is not self._shared_ledger:
                self._ledger.drop()

    @property
    def log(self) -> Path:
        """Return what the processes of this run wrote."""
        return self._folder / "tasks.log"

    # From attempt to attempt

    def _lead(self) -> None:
        while True:
            self._check_time("no attempt is due")
            match self._scheduler.next(self._scenario.dag, self._run_id):
                case Launch() as launch:
                    self._attend(self._start(launch))
                case Deferred() as deferred:
                    self._wait(deferred)
                case Over():
                    if self._scenario.event != "clear done" or self._cleared:
                        return
                    self._clear("push")
                case None:
                    time.sleep(0.01)

    def _start(self, launch: Launch) -> Attempt:
        scenario = self._scenario
        number = self._attempts[launch.task_id] = self._attempts.get(launch.task_id, 0) + 1
        planted = scenario.plants.get((launch.task_id, number))
        if planted and planted.meet:
            planted = Plant(planted.point, planted.nth, meet=str(self._folder / "meet"))
        if scenario.xcom_down_from and number == 1 and launch.task_id == "push":
            self._interruptions += 1
            self._outage = outage(self._home, self._run_id, "POST", ("/xcoms/", self._run_id), scenario.xcom_down_from)
        workload = launch.workload

        def supervise() -> int:
            return supervise_task(
                ti=workload.ti,  # type: ignore[arg-type]  # Airflow's executors pass the same
                bundle_info=workload.bundle_info,
                dag_rel_path=workload.dag_rel_path,
                token=workload.token,
                server=self._url,
            )

        child = Child.fork(supervise, self.log, self._environment(planted, number))
        self._children.append(child)
        return Attempt(launch, child, planted)

    def _environment(self, planted: Plant | None, number: int) -> dict[str, str]:
        scenario = self._scenario
        people = list(range(scenario.people))
        # The source returns its rows in another order each time.
        people = people[number * 7 :] + people[: number * 7]
        told = Told(
            people=people,
            in_flight=scenario.in_flight,
            ledger=None if scenario.store in (STATE, NAIVE) else LEDGER,
            patience=scenario.patience,
            plant=planted,
            trace=str(self._folder / f"killed-{number}-{time.monotonic_ns()}"),
        )
        connection = {**self._sandbox.connection, "extra": {"api": "haAsyncApi", "timeout": TIMEOUT}}
        return {
            **told.to_environment(),
            "AIRFLOW_CONN_RESPONSYS_DEFAULT": json.dumps(connection),
            "AIRFLOW_CONN_LEDGER": json.dumps(self._ledger.connection if self._ledger else {}),
        }

    def _attend(self, attempt: Attempt) -> None:
        """Stay with *attempt* until it has ended, and let the scheduler know."""
        number = self._attempts[attempt.launch.task_id]
        kill = self._scenario.kills.get((attempt.launch.task_id, number))
        met = False
        while not attempt.supervisor.ended():
            self._check_time(f"attempt {number} of {attempt.launch.task_id} runs on")
            if kill and time.monotonic() - attempt.began >= kill.delay:
                self._kill(attempt, kill)
                kill = None
            if attempt.plant and attempt.plant.meet and not met and (self._folder / "meet.at").exists():
                met = True
                MEETINGS[self._scenario.event](self, attempt)
            time.sleep(0.01)
        self._note_end(attempt)

    def _note_end(self, attempt: Attempt) -> None:
        status = attempt.supervisor.status or 0
        self._count_deaths(attempt.launch.task_id)
        if os.WIFSIGNALED(status):
            self._scheduler.lost(attempt.launch)
        else:
            self._scheduler.ended(attempt.launch, well=os.WEXITSTATUS(status) == 0)
        match self._scenario.event:
            case "clean" if not self._cleared:
                self._cleared = True
                self._scheduler.clean()
            case "lose" if not self._cleared:
                self._cleared = True
                self._lose()
        restore, self._outage = self._outage, None
        if restore:
            restore()

    def _lose(self) -> None:
        """Lose the ledger: from now on nothing may be sent."""
        if self._ledger:
            self._ledger.lose()
        else:
            self._scheduler.lose(self._scenario.dag, self._run_id)
        self._pushed_when_lost = len(self._sandbox.ask("pushes"))

    def _count_deaths(self, task_id: str) -> None:
        for trace in self._folder.glob("killed-*"):
            trace.unlink()
            self._interruptions += task_id == "push"  # the others have no requests out that push anybody

    def _kill(self, attempt: Attempt, kill: Kill) -> None:
        tasks = attempt.supervisor.children()
        self._interruptions += attempt.launch.task_id == "push"  # see _count_deaths
        if kill.whom == "term":
            attempt.supervisor.signal(signal.SIGTERM)
            return
        if kill.whom == "host":
            attempt.supervisor.signal(signal.SIGKILL)
        for pid in tasks:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    # Waiting

    def _wait(self, deferred: Deferred) -> None:
        """Run the trigger, again where it is killed, and let the task go on."""
        if self._scenario.event == "clear deferred" and not self._cleared:
            self._clear(deferred.task_id)
            return
        number = self._attempts["trigger"] = self._attempts.get("trigger", 0) + 1
        planted = self._scenario.plants.get(("trigger", number))
        answer = self._folder / f"event-{number}"

        def watch() -> None:
            told = Told(plant=planted, trace=str(self._folder / f"killed-trigger-{number}"))
            os.environ.update(told.to_environment())
            plant(told)
            payload = deferred.fire()
            if planted and planted.point == "trigger with its event":
                os.kill(os.getpid(), signal.SIGKILL)
            answer.write_text(json.dumps(payload))

        child = Child.fork(watch, self.log, self._environment(None, number))
        self._children.append(child)
        began, kill = time.monotonic(), self._scenario.kills.get(("trigger", number))
        while not child.ended():
            self._check_time("the trigger runs on")
            if kill and time.monotonic() - began >= kill.delay:
                child.stop()
            time.sleep(0.01)
        for trace in self._folder.glob("killed-trigger-*"):
            trace.unlink()  # a trigger has no requests out that push anybody
        if answer.exists():
            self._scheduler.fire(deferred, json.loads(answer.read_text()))

    # What happens at a meeting

    def _clear(self, task_id: str) -> None:
        self._cleared = True
        self._scheduler.clear(self._scenario.dag, self._run_id, task_id)

    def _clear_running(self, _attempt: Attempt) -> None:
        self._interruptions += 1
        self._clear("push")
        (self._folder / "meet.go").touch()

    def _break_down(self, attempt: Attempt) -> None:
        """Take the ledger away until the attempt has ended."""
        self._interruptions += 1
        if self._ledger:
            self._outage = self._ledger.take_down()
        else:
            whose = str(attempt.launch.workload.ti.id)
            self._outage = outage(self._home, self._run_id, "PUT", ("/store/", whose), 1)
        (self._folder / "meet.go").touch()

    def _outlive(self, attempt: Attempt) -> None:
        """Freeze the attempt until its heartbeat is missed, start its retry, and let both run."""
        retry = self._freeze(attempt)
        time.sleep(ZOMBIE_WAKES)
        self._wake(attempt)
        self._attend(retry)

    def _come_late(self, attempt: Attempt) -> None:
        """Freeze the attempt until its retry has ended."""
        self._attend(self._freeze(attempt))
        self._wake(attempt)

    def _freeze(self, attempt: Attempt) -> Attempt:
        """Freeze the attempt until its heartbeat is missed; start its retry."""
        self._interruptions += 1
        attempt.supervisor.signal(signal.SIGSTOP)
        self._scheduler.lost(attempt.launch)
        step = None
        while not isinstance(step, Launch):
            self._check_time("the retry of a zombie is not due")
            step = self._scheduler.next(self._scenario.dag, self._run_id)
        return self._start(step)

    def _wake(self, attempt: Attempt) -> None:
        attempt.supervisor.signal(signal.SIGCONT)
        (self._folder / "meet.go").touch()

    # The end

    def _check_time(self, what: str) -> None:
        if time.monotonic() > self._deadline:
            raise Stuck(what)

    def _judge(self) -> Verdict:
        scenario = self._scenario
        times = [push[-1] for push in self._sandbox.ask("pushes")]
        if scenario.store == NAIVE:
            return judge_naive(scenario.people, times)
        if self._pushed_when_lost is not None:
            sent_on = len(times) != self._pushed_when_lost
            problem = "sent on without its record" if sent_on else ""
            return Verdict(sum(number > 1 for number in times), problem=problem)
        faults = self._sandbox.ask("report")["faults"]
        lost = lost_answers(faults) if any(fault.on == "push" for fault in scenario.faults) else 0
        report = self._xcom("push", "recipients")
        verdict = judge_push(
            scenario.people,
            times,
            report,
            interruptions=self._interruptions + lost,
            in_flight=scenario.in_flight,
            expired=faults.get("expired", 0),
        )
        if scenario.strikes and not self._interruptions:
            return Verdict(problem="its plant was never reached")
        if scenario.dag != "push_and_wait" or not report or verdict.problem:
            return verdict
        # The task state store does not tell the sensor how many recipients each request had.
        too_many = sum(fault.kind == "row_too_many" for fault in scenario.faults) if scenario.store == STATE else 0
        ids, told = self._xcom("push", "request_ids"), self._xcom("wait", "return_value")
        wrong = judge_wait(ids, report["accepted"], told, too_many=too_many)
        return Verdict(verdict.duplicates, verdict.forgotten, verdict.in_doubt, verdict.bound, wrong)

    def _xcom(self, task_id: str, key: str) -> Any:
        return self._scheduler.xcom(self._scenario.dag, self._run_id, task_id, key)


MEETINGS: dict[str, Callable[[Conductor, Attempt], None]] = {
    "clear": Conductor._clear_running,
    "zombie": Conductor._outlive,
    "late zombie": Conductor._come_late,
    "outage": Conductor._break_down,
}
