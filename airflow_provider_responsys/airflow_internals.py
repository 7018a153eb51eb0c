"""Everything private of Airflow's that is used here: what for, where it was seen, and what happens where it is absent.

Each fails closed: without it, nothing is sent that should not be, and nothing is
stored that must not be seen. Importing this module imports nothing of Airflow.
"""

import json
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Any, Final

from airflow_provider_responsys.errors import InvalidSettings

PROCESS_CONTEXT: Final = "_AIRFLOW_PROCESS_CONTEXT"
RENDER: Final = "_do_render_template_fields"


class RendersAside:
    """Takes values out of an operator's fields after Airflow has rendered them, and before it stores and shows them.

    For that it overrides ``_do_render_template_fields``, the one method that both
    plain and mapped tasks are rendered by. Seen on Airflow 3.1.8 and 3.3.2. Absent:
    `check_rendering` refuses the task when its DAG is read.
    """

    def take_rendered(self, fields: Iterable[str]) -> None:
        """Take what must not be seen out of *fields*, which have just been rendered."""
        raise NotImplementedError

    def check_rendering(self) -> None:
        """Raise `InvalidSettings` where `take_rendered` would not be called."""
        if not hasattr(super(), RENDER):
            raise InvalidSettings(
                "this version of Airflow renders templates in a way that this provider does not know, and would store "
                "and show the recipients: give sql instead, or another version of the provider"
            )

    def _do_render_template_fields(
        self, parent: Any, template_fields: Iterable[str], context: Any, jinja_env: Any, seen_oids: set[int]
    ) -> None:
        super()._do_render_template_fields(parent, template_fields, context, jinja_env, seen_oids)  # type: ignore[misc]  # of the operator that this is mixed into
        self.take_rendered(template_fields)


class PokesInTime:
    """Lets a sensor look once more when its wait ends, however long its interval is.

    For that it overrides ``_get_next_poke_interval``, which both modes ask. Seen on
    Airflow 3.3.2. Absent: the wait ends up to one interval late.
    """

    def seconds_left(self) -> float:
        """Return for how long the wait may go on."""
        raise NotImplementedError

    def _get_next_poke_interval(self, *args: Any, **kwargs: Any) -> float:
        usual: float = super()._get_next_poke_interval(*args, **kwargs)  # type: ignore[misc]  # of the sensor that this is mixed into
        return max(0.0, min(usual, self.seconds_left()))


def left_by_earlier_tries(ti: Any) -> Collection[str] | None:
    """Return the XCom keys that Airflow found when this try of *ti* started, and deletes; None where it does not say.

    They say whether an earlier try may have claimed recipients. In
    ``_ti_context_from_server`` of the task instance; seen on Airflow 3.1.8 and
    3.3.2. Absent: None, with which a later try counts as one that may have claimed.
    """
    server: Any = getattr(ti, "_ti_context_from_server", None)
    return server.xcom_keys_to_clear or () if hasattr(server, "xcom_keys_to_clear") else None


@contextmanager
def connections_of_a_server() -> Iterator[None]:
    """Find connections in Airflow's database, too, as Airflow's own commands do.

    The environment's ``_AIRFLOW_PROCESS_CONTEXT`` says whether a process may. Seen on
    Airflow 3.3.2. Absent: such a connection is not found, and the command says so.
    """
    before = os.environ.get(PROCESS_CONTEXT)
    os.environ[PROCESS_CONTEXT] = "server"
    try:
        yield
    finally:
        os.environ.pop(PROCESS_CONTEXT)
        if before is not None:
            os.environ[PROCESS_CONTEXT] = before


def is_answer_of_store(error: BaseException) -> bool:
    """Return whether the task state store answered with *error*, as opposed to: it came instead of its answer.

    Airflow's ``AirflowRuntimeError`` has an ``error``, its client's error, as under
    `dag.test`, a ``response``. Seen on Airflow 3.3.2, the first with that store.
    Absent: it counts as no answer, after which the store is not called any more.
    """
    return hasattr(error, "error") or hasattr(error, "response")


def status_of_store(error: BaseException) -> object:
    """Return the HTTP status that the task state store answered with *error*, None where there is none.

    In the details of an ``AirflowRuntimeError``, or in the client's response: see
    `is_answer_of_store`. Absent: None, with which the write counts as failed, not as
    one of a try that was replaced; the try ends either way.
    """
    detail = getattr(getattr(error, "error", None), "detail", None)
    if isinstance(detail, Mapping):
        return detail.get("status_code")
    return getattr(getattr(error, "response", None), "status_code", None)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTask:
    """What Airflow's database has of one task instance: its *xcom* values, and the *notes* in its task state store."""

    dag_id: str
    run_id: str
    task_id: str
    map_index: int
    state: str | None
    try_number: int
    started_at: datetime | None
    ended_at: datetime | None
    xcom: dict[str, Any] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)


def stored_tasks(
    dag_id: str,
    run_id: str,
    task_ids: Collection[str],
    *,
    map_index: int | None = None,
    xcom_keys: Collection[str],
    note_keys: Collection[str],
) -> list[StoredTask]:
    """Return the task instances *task_ids* of a run, all map indexes of them or one, with what they left.

    For the API server, by Airflow's models, which no page of its documentation names.
    Seen on Airflow 3.1.8 and 3.3.2. XCom values that a backend keeps elsewhere, and
    notes of an Airflow without a task state store, are absent.
    """
    from airflow.models.taskinstance import TaskInstance  # noqa: PLC0415 -- for the API server alone
    from sqlalchemy import select  # noqa: PLC0415 -- the same

    def own(model: Any) -> list[Any]:
        where = [model.dag_id == dag_id, model.run_id == run_id, model.task_id.in_(task_ids)]
        return where if map_index is None else [*where, model.map_index == map_index]

    with _session() as session:
        rows = session.execute(_task_columns(select, TaskInstance).where(*own(TaskInstance))).all()
        found = {(dag_id, run_id, row.task_id, row.map_index): _stored(row) for row in rows}
        _add_values(session, found, own, xcom_keys, note_keys)
    return sorted(found.values(), key=lambda task: (task.task_id, task.map_index))


def tasks_with_xcom(dag_id: str, run_id: str, keys: Collection[str]) -> dict[str, set[str]]:
    """Return the tasks of a run that left an XCom under one of *keys*, by that key. See `stored_tasks`."""
    from airflow.models.xcom import XComModel  # noqa: PLC0415 -- for the API server alone
    from sqlalchemy import select  # noqa: PLC0415 -- the same

    query = select(XComModel.key, XComModel.task_id).distinct()
    query = query.where(XComModel.dag_id == dag_id, XComModel.run_id == run_id, XComModel.key.in_(keys))
    found: dict[str, set[str]] = {key: set() for key in keys}
    with _session() as session:
        for key, task_id in session.execute(query).all():
            found[key].add(task_id)
    return found


def newest_tasks_with_xcom(
    key: str,
    *,
    dag_ids: Collection[str],
    since: datetime | None,
    until: datetime | None,
    xcom_keys: Collection[str],
    note_keys: Collection[str],
    most: int,
) -> list[StoredTask]:
    """Return at most *most* task instances of *dag_ids* that left an XCom *key*, newest first. See `stored_tasks`."""
    from airflow.models.taskinstance import TaskInstance  # noqa: PLC0415 -- for the API server alone
    from airflow.models.xcom import XComModel  # noqa: PLC0415 -- the same
    from sqlalchemy import and_, select  # noqa: PLC0415 -- the same

    same = [getattr(XComModel, name) == getattr(TaskInstance, name) for name in TASK_INSTANCE]
    query = _task_columns(select, TaskInstance).join(XComModel, and_(*same))
    query = query.where(XComModel.key == key, TaskInstance.dag_id.in_(dag_ids))
    if since:
        query = query.where(TaskInstance.start_date >= since)
    if until:
        query = query.where(TaskInstance.start_date < until)
    with _session() as session:
        rows = session.execute(query.order_by(XComModel.timestamp.desc()).limit(most)).all()
        found = {(row.dag_id, row.run_id, row.task_id, row.map_index): _stored(row) for row in rows}
        for tasks in _in_pieces(list(dict.fromkeys(name[:3] for name in found)), PIECE):
            _add_values(session, found, partial(_where_among, tasks), xcom_keys, note_keys)
    return list(found.values())


def tasks_of_runs(
    tasks: Collection[tuple[str, str, str]], *, xcom_keys: Collection[str], note_keys: Collection[str]
) -> dict[tuple[str, str, str], list[StoredTask]]:
    """Return the task instances of some *tasks*, each named by DAG, run and task. See `stored_tasks`."""
    from airflow.models.taskinstance import TaskInstance  # noqa: PLC0415 -- for the API server alone
    from sqlalchemy import select  # noqa: PLC0415 -- the same

    found: dict[tuple[str, str, str], dict[int, StoredTask]] = {task: {} for task in tasks}
    if not found:
        return {}
    with _session() as session:
        for row in session.execute(_task_columns(select, TaskInstance).where(_among(TaskInstance, found))).all():
            found[row.dag_id, row.run_id, row.task_id][row.map_index] = _stored(row)
        instances = {(*task, place): one for task, places in found.items() for place, one in places.items()}
        _add_values(session, instances, partial(_where_among, list(found)), xcom_keys, note_keys)
    return {task: list(places.values()) for task, places in found.items()}


def team_of(dag_id: str) -> str | None:
    """Return the team that the DAG *dag_id* belongs to, as Airflow's own pages look it up.

    ``DagModel.get_team_name``, seen on Airflow 3.3.2. Absent, as in versions without
    teams: None.
    """
    from airflow.models.dag import DagModel  # noqa: PLC0415 -- for the API server alone

    look_up = getattr(DagModel, "get_team_name", None)
    return look_up(dag_id) if look_up else None


TASK_INSTANCE: Final = ("dag_id", "run_id", "task_id", "map_index")
PIECE: Final = 100
"""Tasks that one statement names: databases bound how deep a condition is."""


@contextmanager
def _session() -> Iterator[Any]:
    """Give a session on Airflow's own database, to read."""
    from airflow.utils.session import create_session  # noqa: PLC0415 -- for the API server alone

    with create_session() as session:
        yield session


def _task_columns(select: Any, model: Any) -> Any:
    names = (*TASK_INSTANCE, "state", "try_number", "start_date", "end_date")
    return select(*(getattr(model, name) for name in names))


def _stored(row: Any) -> StoredTask:
    return StoredTask(
        dag_id=row.dag_id,
        run_id=row.run_id,
        task_id=row.task_id,
        map_index=row.map_index,
        state=None if row.state is None else str(getattr(row.state, "value", row.state)),
        try_number=row.try_number or 0,
        started_at=row.start_date,
        ended_at=row.end_date,
    )


def _in_pieces(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def _where_among(tasks: Iterable[tuple[str, str, str]], model: Any) -> list[Any]:
    return [_among(model, tasks)]


def _among(model: Any, tasks: Iterable[tuple[str, str, str]]) -> Any:
    from sqlalchemy import and_, or_  # noqa: PLC0415 -- for the API server alone

    return or_(*(and_(model.dag_id == dag, model.run_id == run, model.task_id == task) for dag, run, task in tasks))


def _add_values(
    session: Any,
    found: Mapping[tuple[str, str, str, int], StoredTask],
    where: Callable[[Any], Sequence[Any]],
    xcom_keys: Collection[str],
    note_keys: Collection[str],
) -> None:
    """Put XCom values and notes into the tasks *found*; *where* says which rows of a model are theirs."""
    from airflow.models.xcom import XComModel  # noqa: PLC0415 -- for the API server alone

    for task, row in _values(session, XComModel, found, where, xcom_keys):
        task.xcom[row.key] = XComModel.deserialize_value(row)
    try:
        from airflow.models.task_state_store import TaskStateStoreModel  # noqa: PLC0415 -- Airflow 3.3 and newer
    except ImportError:
        return
    for task, row in _values(session, TaskStateStoreModel, found, where, note_keys):
        task.notes[row.key] = _decoded(row.value)


def _values(
    session: Any,
    model: Any,
    found: Mapping[tuple[str, str, str, int], StoredTask],
    where: Callable[[Any], Sequence[Any]],
    keys: Collection[str],
) -> Iterator[tuple[StoredTask, Any]]:
    from sqlalchemy import select  # noqa: PLC0415 -- for the API server alone

    columns = [getattr(model, name) for name in (*TASK_INSTANCE, "key", "value")]
    for row in session.execute(select(*columns).where(*where(model), model.key.in_(keys))).all():
        if task := found.get((row.dag_id, row.run_id, row.task_id, row.map_index)):
            yield task, row


def _decoded(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:  # kept by a backend in a form of its own
        return None
