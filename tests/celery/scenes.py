"""What happens to the sharded example on Celery workers, and what became of everybody."""

import re
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Self

from airflow_provider_responsys.sandbox import Sandbox
from tests.celery.cluster import Cluster, Worker
from tests.support.verdict import BATCH, Verdict, judge_push, judge_wait

EXAMPLE = Path(__file__).resolve().parent.parent.parent / "example_dags" / "push_shards.py"
POOL, SLOTS = "responsys", 4
"""The pool of the example: as many slots as two workers have together."""

LIMIT, SHARDS = 200, 8
IN_FLIGHT = 4
RUN_WITHIN = 300.0
MID_SEND = 4
"""Requests that are answered before a worker is struck: some are out then, and most are yet to leave."""

SLOW, QUICK = 2.0, 0.1
"""Seconds that an answer takes until a worker is struck, and from then on."""

EXECUTED = re.compile(r"\[([0-9a-f-]{36})\] Executing workload in Celery")
REFUSED = re.compile(
    "Task already running elsewhere, ignoring|TI was not in a state where it could be marked|'Task Instance not found'"
)


@dataclass(frozen=True, slots=True)
class Scene:
    """The example as *dag_id* on rows of *table*, with its *ledger* or with none, and what is done to a worker."""

    dag_id: str
    store: str
    table: str
    ledger: bool
    strike: Callable[["Play", Worker], None]

    @property
    def struck(self) -> str:
        """Say what was done to a worker."""
        return "killed" if self.strike is kill else "told to stop"

    def dag(self) -> str:
        """Return the example's text, with retries after seconds instead of minutes."""
        text = EXAMPLE.read_text(encoding="utf-8")
        changes = {
            '"push_shards"': f'"{self.dag_id}"',
            "FROM recipients ": f"FROM {self.table} ",
            "minutes=1": "seconds=2",
            "requests_per_minute=": f"max_in_flight={IN_FLIGHT}, requests_per_minute=",
        }
        if not self.ledger:
            changes['"responsys_ledger"'] = "None"
        for now, then in changes.items():
            if now not in text:
                raise RuntimeError(f"{EXAMPLE.name} does not say {now} any more")
            text = text.replace(now, then)
        return text


@dataclass(frozen=True, slots=True)
class Messages:
    """What workers were given by the broker: how much of it a second time, and how much Airflow *refused*.

    It refuses what runs elsewhere, has ended, or was replaced by its retry.
    """

    redelivered: int
    refused: int

    @classmethod
    def of(cls, logs: Sequence[str]) -> Self:
        """Read the *logs* of all workers."""
        executed = [message for log in logs for message in EXECUTED.findall(log)]
        return cls(len(executed) - len(set(executed)), sum(len(REFUSED.findall(log)) for log in logs))


@dataclass(frozen=True, slots=True)
class Told:
    """What there is to tell of a scene: the sums of all shards in *buckets*."""

    scene: Scene
    buckets: Mapping[str, int]
    verdict: Verdict
    repeated: int
    """Rows whose recipient stands in another row as well."""
    state: str
    noticed: float | None
    """Seconds from the kill until Airflow knew of the last shard that it had interrupted."""
    seconds: float
    tries: Mapping[str, int]
    """How many tries of shards each worker began."""
    messages: Messages
    limited: int
    """Requests that the sandbox refused because the account's limit was used up."""
    wait: str
    """What is wrong with the counts of the wait, if anything."""

    def problems(self) -> list[str]:
        """Return what must not be: broken promises, miscounted repetitions, a run that looks like what it is not."""
        found = [self.wait] if self.wait else []
        if not self.verdict.holds:
            found.append(self.verdict.problem or f"a promise is broken: {self.verdict}")
        if (counted := self.buckets.get("duplicate")) != self.repeated:
            found.append(f"{self.repeated} rows repeat somebody, and {counted} are counted")
        if self.state != (wanted := "failed" if self.buckets.get("in_doubt") else "success"):
            found.append(f"the run ended as {self.state}, and not as {wanted}")
        if self.messages.refused < self.messages.redelivered:
            found.append(f"not every message that was given out again was refused: {self.messages}")
        return found


class Play:
    """One run of *scene* on *workers*, seen from outside."""

    def __init__(self, scene: Scene, cluster: Cluster, sandbox: Sandbox, workers: Sequence[Worker]) -> None:
        self.scene = scene
        self.cluster = cluster
        self.interrupted: list[int] = []
        self._sandbox = sandbox
        self._workers = workers
        self._pushes = Counter(sandbox.pushes)
        self._limited = sandbox.refusals["API_LIMIT_EXCEEDED"]
        self._logs = {worker.name: len(text(worker)) for worker in workers}
        self._run_id = ""

    def play(self, customers: Sequence[str]) -> Told:
        """Run the DAG, strike the first worker in the middle, and tell what became of the *customers* of the rows."""
        self._sandbox.change(latency=SLOW)
        self._run_id = self.cluster.trigger(self.scene.dag_id)
        began = time.monotonic()
        accepted = self._sandbox.counts["accepted"]
        mid_send = lambda: (  # noqa: E731 -- a name for the wait
            self._sandbox.counts["accepted"] >= accepted + MID_SEND and all(map(self.shards_of, self._workers))
        )
        self.cluster.wait_until(mid_send, RUN_WITHIN, f"{self.scene.dag_id} was not in the middle of sending")
        struck = time.time()
        self.scene.strike(self, self._workers[0])
        self._sandbox.change(latency=QUICK)
        state = self.cluster.wait_for(self.scene.dag_id, self._run_id, RUN_WITHIN)
        return self._tell(customers, state, struck, time.monotonic() - began)

    def shards_of(self, worker: Worker) -> list[int]:
        """Return the shards that *worker* has in hand."""
        shards = (self._get("push/listMapped") or {}).get("task_instances", ())
        return [each["map_index"] for each in shards if each["state"] == "running" and each["hostname"] == worker.name]

    def _tell(self, customers: Sequence[str], state: str, struck: float, seconds: float) -> Told:
        buckets: Counter[str] = Counter()
        ids: list[str] = []
        tries: list[Any] = []
        for shard in range(SHARDS):
            buckets.update(self._xcom("push", "recipients", shard) or {})
            ids += self._xcom("push", "request_ids", shard) or []
            tries += self._get(f"push/{shard}/tries")["task_instances"]
        lost = [each for each in tries if each["try_number"] == 1 and each["map_index"] in self.interrupted]
        return Told(
            scene=self.scene,
            buckets=buckets,
            verdict=judge_push(
                len(customers),
                list((Counter(self._sandbox.pushes) - self._pushes).values()),
                buckets,
                bound=len(self.interrupted) * IN_FLIGHT * BATCH,
            ),
            repeated=len(customers) - len(set(customers)),
            state=state,
            noticed=max((datetime.fromisoformat(each["end_date"]).timestamp() - struck for each in lost), default=None),
            seconds=seconds,
            tries={worker.name: sum(each["hostname"] == worker.name for each in tries) for worker in self._workers},
            messages=Messages.of([text(worker)[self._logs[worker.name] :] for worker in self._workers]),
            limited=self._sandbox.refusals["API_LIMIT_EXCEEDED"] - self._limited,
            wait=judge_wait(ids, buckets["accepted"], self._xcom("wait", "return_value")),
        )

    def _get(self, path: str) -> Any:
        return self.cluster.get(f"/dags/{self.scene.dag_id}/dagRuns/{self._run_id}/taskInstances/{path}")

    def _xcom(self, task_id: str, key: str, shard: int = -1) -> Any:
        return self.cluster.xcom(self.scene.dag_id, self._run_id, task_id, key, map_index=shard)


def kill(play: Play, worker: Worker) -> None:
    """Kill *worker* with all it runs, as a machine that loses power."""
    play.interrupted = play.shards_of(worker)
    play.cluster.leave(worker)
    worker.kill()


def stop(play: Play, worker: Worker) -> None:
    """Tell *worker* to stop: Celery takes nothing new then, and ends what it has in hand."""
    play.cluster.leave(worker)
    worker.process.terminate()


def text(worker: Worker) -> str:
    """Return what *worker* wrote."""
    return worker.log.read_text(encoding="utf-8", errors="replace")
