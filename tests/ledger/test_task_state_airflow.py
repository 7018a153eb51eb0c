"""The task state ledger on Airflow's own store, through `dag.test()`."""

from collections.abc import Callable
from typing import Any

import pendulum
import pytest

from airflow_provider_responsys.errors import Fenced, StateLost
from airflow_provider_responsys.ledger.interface import FINGERPRINT_BYTES, Accepted, Released, Wanted
from airflow_provider_responsys.ledger.task_state import TaskStateLedger
from airflow_provider_responsys.ledger.tries import CLAIMED, may_have_claimed
from tests.support.places import IDENTITY

airflow_sdk = pytest.importorskip("airflow.sdk", exc_type=ImportError)

# What Airflow and its libraries warn about while they start is not ours to mend.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def run_dag(airflow_home: object) -> Callable[[Any], Any]:
    """Give a way to run a DAG to its end, retries included, in this process."""
    from airflow.utils import db  # noqa: PLC0415 -- Airflow is imported only where it is needed

    db.initdb()

    def run(dag: Any) -> Any:
        from airflow.dag_processing.bundles.manager import DagBundlesManager  # noqa: PLC0415 -- the same
        from airflow.dag_processing.collection import update_dag_parsing_results_in_db  # noqa: PLC0415 -- the same
        from airflow.serialization.serialized_objects import LazyDeserializedDAG  # noqa: PLC0415 -- the same
        from airflow.utils.session import create_session  # noqa: PLC0415 -- the same

        DagBundlesManager().sync_bundles_to_db()  # type: ignore[no-untyped-call]  # Airflow annotates it in part
        with create_session() as session:
            parsed = [LazyDeserializedDAG.from_dag(dag)]
            update_dag_parsing_results_in_db("dags-folder", None, parsed, {}, None, set(), session=session)
        return dag.test()

    return run


def people(first: int, count: int = 200) -> list[bytes]:
    """Return the fingerprints of *count* people, numbered from *first*."""
    return [number.to_bytes(FINGERPRINT_BYTES, "big") for number in range(first, first + count)]


def open_ledger(context: Any) -> TaskStateLedger:
    """Return the ledger of the try that runs now, as the operator opens it."""
    ti, task = context["ti"], context["task"]
    return TaskStateLedger(
        context["task_state_store"],
        try_number=ti.try_number,
        max_tries=ti.max_tries,
        retries=task.retries,
        may_have_claimed=may_have_claimed(
            try_number=ti.try_number,
            max_tries=ti.max_tries,
            retries=task.retries,
            left=ti._ti_context_from_server.xcom_keys_to_clear,
        ),
        retention=airflow_sdk.NEVER_EXPIRE,
    )


def run_once(run_dag: Callable[[Any], Any], dag_id: str, push: type[Any]) -> Any:
    """Run *push* as the only task of a DAG, with two retries."""
    with airflow_sdk.DAG(dag_id, schedule=None, start_date=pendulum.datetime(2026, 1, 1)) as dag:
        push(task_id="push", retries=2, retry_delay=0)
    return run_dag(dag)


def test_two_tries_on_airflows_own_store(run_dag: Callable[[Any], Any]) -> None:
    """What try 1 claimed, try 2 finds; what try 1 writes afterwards is refused."""
    ledgers: list[TaskStateLedger] = []
    found: list[tuple[str, str | None, bool]] = []
    fenced: list[Fenced] = []

    class Push(airflow_sdk.BaseOperator):  # type: ignore[misc, name-defined]  # importorskip gives Any
        def execute(self, context: Any) -> None:
            ledgers.append(open_ledger(context))
            ledgers[-1].begin(IDENTITY)
            if context["ti"].try_number == 1:
                ledgers[0].commit([], [Wanted(number, people(number * 200)) for number in range(1, 31)])
                ledgers[0].commit([Accepted(1, "4711"), *(Released(number) for number in range(2, 30))], [])
                raise RuntimeError("a crash")
            found.extend(
                (b.label, b.request_id, b.fingerprints == people(int(b.label[13:]) * 200)) for b in ledgers[1].earlier()
            )
            with pytest.raises(Fenced) as refused:
                ledgers[0].commit([], [Wanted(31, people(0))])
            fenced.append(refused.value)

    ended = run_once(run_dag, "two_tries", Push)

    assert found == [("try 1, batch 1", "4711", True), ("try 1, batch 30", None, True)]
    assert len(fenced) == 1
    assert ended.state == "success"


def test_a_try_that_begins_after_its_successor_is_refused(run_dag: Callable[[Any], Any]) -> None:
    """It was taken for dead on its way: to it, the record looks as if it were lost, and is not touched."""
    ledgers: list[TaskStateLedger] = []
    found: list[int] = []

    class Push(airflow_sdk.BaseOperator):  # type: ignore[misc, name-defined]  # importorskip gives Any
        def execute(self, context: Any) -> None:
            context["ti"].xcom_push(CLAIMED, context["ti"].try_number)
            ledgers.append(open_ledger(context))
            if context["ti"].try_number == 2:
                raise RuntimeError("taken for dead")
            ledgers[-1].begin(IDENTITY)
            if context["ti"].try_number == 1:
                raise RuntimeError("a crash")
            ledgers[2].commit([], [Wanted(1, people(0))])
            with pytest.raises(Fenced):
                ledgers[1].begin(IDENTITY)
            ledgers[2].commit([Accepted(1, "4711")], [Wanted(2, people(200))])
            store = context["task_state_store"]
            found.extend(number for number in (1, 2, 3) if store.get(f"responsys/try/{number}/0"))

    ended = run_once(run_dag, "late_beginner", Push)

    assert found == [1, 3]
    assert ended.state == "success"


def test_a_try_that_died_before_execute_left_no_mark(run_dag: Callable[[Any], Any]) -> None:
    """Airflow says so: it lists the XComs that earlier tries left."""
    began: list[int] = []

    class Push(airflow_sdk.BaseOperator):  # type: ignore[misc, name-defined]  # importorskip gives Any
        def pre_execute(self, context: Any) -> None:
            if context["ti"].try_number == 1:
                raise RuntimeError("died on the way")

        def execute(self, context: Any) -> None:
            open_ledger(context).begin(IDENTITY)
            began.append(context["ti"].try_number)

    ended = run_once(run_dag, "died_before_execute", Push)

    assert began == [2]
    assert ended.state == "success"


def test_a_record_lost_after_a_mark_fails_closed(run_dag: Callable[[Any], Any]) -> None:
    """Somebody cleaned the store between two tries."""
    refused: list[int] = []

    class Push(airflow_sdk.BaseOperator):  # type: ignore[misc, name-defined]  # importorskip gives Any
        def execute(self, context: Any) -> None:
            ledger = open_ledger(context)
            context["ti"].xcom_push(CLAIMED, context["ti"].try_number)
            try:
                ledger.begin(IDENTITY)
            except StateLost:
                refused.append(context["ti"].try_number)
                raise
            context["task_state_store"].clear()
            raise RuntimeError("a crash")

    ended = run_once(run_dag, "lost_record", Push)

    assert refused == [2, 3]
    assert ended.state == "failed"
