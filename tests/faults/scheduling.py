"""What Airflow's scheduler does between two attempts of a task, done at once and by its own functions.

The import needs an Airflow home: `home.settle_in` comes first.
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from airflow import settings
from airflow.dag_processing.bundles.manager import DagBundlesManager
from airflow.dag_processing.dagbag import BundleDagBag, sync_bag_to_db
from airflow.executors.base_executor import BaseExecutor
from airflow.executors.workloads import BundleInfo, ExecuteTask
from airflow.jobs.scheduler_job_runner import SchedulerJobRunner
from airflow.models.dagbag import DBDagBag
from airflow.models.dagrun import DagRun
from airflow.models.task_state_store import TaskStateStoreModel
from airflow.models.taskinstance import TaskInstance, clear_task_instances
from airflow.models.trigger import Trigger
from airflow.models.xcom import XComModel
from airflow.sdk import timezone
from airflow.sdk._shared.module_loading import import_string
from airflow.sdk.serde import deserialize
from airflow.state.metastore import MetastoreBackend
from airflow.triggers.base import TriggerEvent
from airflow.utils.session import create_session
from airflow.utils.state import DagRunState, TaskInstanceState
from airflow.utils.types import DagRunTriggeredByType, DagRunType
from sqlalchemy import delete, func, select
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

BUNDLE = "dags-folder"
LOCKED_TRIES = 40
"""A SQLite database refuses whom another writer was faster than."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Launch:
    """A task instance that is queued, and what an executor is given to run it."""

    workload: ExecuteTask

    @property
    def task_id(self) -> str:
        """Return the task's name."""
        return self.workload.ti.task_id


@dataclass(frozen=True, slots=True)
class Deferred:
    """A task that waits for a trigger."""

    task_id: str
    trigger_id: int
    classpath: str
    kwargs: Mapping[str, Any]

    def fire(self) -> Any:
        """Run the trigger to its event; return what that holds."""
        trigger = import_string(self.classpath)(**self.kwargs)

        async def first() -> Any:
            return (await anext(trigger.run())).payload

        return asyncio.run(first())


@dataclass(frozen=True, slots=True)
class Over:
    """The run has ended."""

    state: str


class Executor(BaseExecutor):
    """An executor that keeps what it is told; attempts are started elsewhere."""

    def sync(self) -> None:
        """Do nothing."""

    def send_callback(self, request: Any) -> None:
        """Do nothing: the DAGs have no callbacks."""


class Scheduler:
    """Schedules the runs of the DAGs in the home's database."""

    def __init__(self) -> None:
        self._executor = Executor(parallelism=1)
        self._dag_bag = DBDagBag()

    def parse(self) -> None:
        """Write the DAGs to the database."""
        bundles = DagBundlesManager()  # type: ignore[no-untyped-call]  # Airflow did not annotate it
        bundles.sync_bundles_to_db()
        (bundle,) = bundles.get_all_dag_bundles()
        bundle.initialize()
        bag = BundleDagBag(dag_folder=bundle.path, bundle_path=bundle.path, bundle_name=bundle.name)
        if bag.import_errors:
            raise RuntimeError(f"the DAGs of the fault suite can't be read: {bag.import_errors}")
        sync_bag_to_db(bag, bundle.name, bundle.version)
        self.let_go()

    def let_go(self) -> None:
        """Close the connections to the database: a fork must not inherit them."""
        if settings.engine:
            settings.engine.dispose()

    def begin(self, dag_id: str, run_id: str) -> None:
        """Start a run."""

        def begin(session: Session) -> None:
            self._dag(session, dag_id).create_dagrun(
                run_id=run_id,
                logical_date=None,
                run_after=timezone.utcnow(),
                run_type=DagRunType.MANUAL,
                triggered_by=DagRunTriggeredByType.TEST,
                state=DagRunState.RUNNING,
                session=session,
            )

        self._do(begin)

    def next(self, dag_id: str, run_id: str) -> Launch | Deferred | Over | None:
        """Schedule and queue what is due; return the first of it, what is waited for, or None."""

        def schedule(session: Session) -> None:
            run = self._run(session, dag_id, run_id)
            run.dag = self._dag(session, dag_id)
            due, _ = run.update_state(session=session, execute_callbacks=False)
            run.schedule_tis(due, session=session)

        def queue(session: Session) -> Launch | Deferred | Over | None:
            run = self._run(session, dag_id, run_id)
            if run.state != DagRunState.RUNNING:
                return Over(str(run.state))
            # The first tries of mapped tasks before any second one.
            by_turn = sorted(run.get_task_instances(session=session), key=lambda ti: (ti.try_number, ti.map_index))
            for ti in by_turn:
                if ti.state == TaskInstanceState.SCHEDULED:
                    ti.state = TaskInstanceState.QUEUED
                    bundle = BundleInfo(name=BUNDLE)
                    return Launch(ExecuteTask.make(ti, generator=self._executor.jwt_generator, bundle_info=bundle))
                if ti.state == TaskInstanceState.DEFERRED:
                    trigger = session.scalars(select(Trigger).where(Trigger.id == ti.trigger_id)).one()
                    kwargs: Any = deserialize(trigger.kwargs)
                    return Deferred(ti.task_id, trigger.id, trigger.classpath, kwargs)
            return None

        self._do(schedule)
        return self._do(queue)

    def ended(self, launch: Launch, *, well: bool) -> None:
        """Take in that the supervisor of *launch* has ended by itself."""

        def take_in(session: Session) -> None:
            state = TaskInstanceState.SUCCESS if well else TaskInstanceState.FAILED
            self._executor.event_buffer[launch.workload.ti.key] = (state, None)
            SchedulerJobRunner.process_executor_events(
                executor=self._executor, job_id=None, scheduler_dag_bag=self._dag_bag, session=session
            )

        self._do(take_in)

    def lost(self, launch: Launch) -> None:
        """Take in that *launch* has sent no heartbeat for long."""

        def take_in(session: Session) -> None:
            ti = session.get(TaskInstance, launch.workload.ti.id)
            if ti and ti.state in (TaskInstanceState.RUNNING, TaskInstanceState.RESTARTING):
                ti.handle_failure("no heartbeat", session=session)
            elif ti and ti.state == TaskInstanceState.QUEUED:
                ti.state = TaskInstanceState.SCHEDULED  # its supervisor died before it could start

        self._do(take_in)

    def fire(self, deferred: Deferred, payload: Any) -> None:
        """Let the task of *deferred* go on with the event of its trigger."""
        event = TriggerEvent(payload)  # type: ignore[no-untyped-call]  # Airflow did not annotate it
        self._do(lambda session: Trigger.submit_event(deferred.trigger_id, event, session=session))

    def clear(self, dag_id: str, run_id: str, task_id: str, *, only_failed: bool = False) -> None:
        """Clear a task as a person does."""

        def clear(session: Session) -> None:
            tis = [
                ti
                for ti in self._tis(session, dag_id, run_id)
                if ti.task_id == task_id and (not only_failed or ti.state == TaskInstanceState.FAILED)
            ]
            clear_task_instances(tis, session, dag_run_state=DagRunState.RUNNING)

        self._do(clear)

    def clean(self) -> None:
        """Do what ``airflow state-store clean`` does."""
        MetastoreBackend().cleanup()
        self.let_go()

    def lose(self, dag_id: str, run_id: str) -> int:
        """Lose the state of a run, wherever its values are; return how much of it there was."""
        scope = (TaskStateStoreModel.dag_id == dag_id, TaskStateStoreModel.run_id == run_id)

        def lose(session: Session) -> int:
            count = session.scalar(select(func.count()).select_from(TaskStateStoreModel).where(*scope))
            session.execute(delete(TaskStateStoreModel).where(*scope))
            return count or 0

        return self._do(lose)

    def xcoms(self, dag_id: str, run_id: str, task_id: str, key: str) -> dict[int, Any]:
        """Return what a task pushed, by its map index."""

        def read(session: Session) -> dict[int, Any]:
            scope = {"dag_id": dag_id, "run_id": run_id, "task_id": task_id, "key": key}
            found = session.scalars(select(XComModel).filter_by(**scope))
            return {each.map_index: XComModel.deserialize_value(each) for each in found}

        return self._do(read)

    def drop_xcoms(self, run_id: str) -> None:
        """Do to a run what ``airflow db clean --tables xcom`` does."""
        self._do(lambda session: session.execute(delete(XComModel).where(XComModel.run_id == run_id)))

    def failed(self, dag_id: str, run_id: str, task_id: str) -> int:
        """Return how many instances of a task have failed."""

        def count(session: Session) -> int:
            tis = [ti for ti in self._tis(session, dag_id, run_id) if ti.task_id == task_id]
            return sum(ti.state == TaskInstanceState.FAILED for ti in tis)

        return self._do(count)

    def _dag(self, session: Session, dag_id: str) -> Any:
        return self._dag_bag.get_latest_version_of_dag(dag_id, session=session)

    def _run(self, session: Session, dag_id: str, run_id: str) -> DagRun:
        return session.scalars(select(DagRun).filter_by(dag_id=dag_id, run_id=run_id)).one()

    def _tis(self, session: Session, dag_id: str, run_id: str) -> list[TaskInstance]:
        return list(session.scalars(select(TaskInstance).filter_by(dag_id=dag_id, run_id=run_id)))

    def _do(self, work: Callable[[Session], T]) -> T:
        """Do *work* in a transaction of its own, again where another writer was faster."""
        for turn in range(LOCKED_TRIES):
            try:
                with create_session() as session:
                    done = work(session)
                    session.commit()
            except OperationalError as error:
                if "locked" not in str(error) or turn == LOCKED_TRIES - 1:
                    raise
                time.sleep(0.05)
            else:
                self.let_go()
                return done
        raise AssertionError("unreachable")
