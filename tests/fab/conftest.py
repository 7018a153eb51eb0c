"""Airflow with its FAB auth manager, which knows rights for single DAGs. It runs in an environment of its own."""

import os
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest

FAB = "airflow.providers.fab.auth_manager"

try:
    import airflow.providers.fab  # noqa: F401
except ImportError:
    collect_ignore = ["test_rights.py"]
else:
    # Airflow reads these when it is first used.
    os.environ.update(
        AIRFLOW__CORE__AUTH_MANAGER=f"{FAB}.fab_auth_manager.FabAuthManager",
        AIRFLOW__DATABASE__EXTERNAL_DB_MANAGERS=f"{FAB}.models.db.FABDBManager",
        AIRFLOW__API_AUTH__JWT_SECRET="a-secret-that-is-long-enough-" * 4,
        AIRFLOW__API__SECRET_KEY="another-secret-that-is-long-enough",
    )


@pytest.fixture(scope="session")
def server(airflow_db: None) -> Iterator[Callable[[], Any]]:
    """Give a function that makes a client of Airflow's own API server, who is not signed in."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from airflow.api_fastapi.app import create_app  # noqa: PLC0415 -- importing Airflow's server takes seconds
        from starlette.testclient import TestClient  # noqa: PLC0415 -- the same

        app = create_app()
        yield lambda: TestClient(app)


@pytest.fixture(scope="session")
def dags(airflow_db: None) -> list[str]:
    """Make two DAGs that Airflow knows."""
    from airflow.dag_processing.bundles.manager import DagBundlesManager  # noqa: PLC0415 -- see server
    from airflow.dag_processing.collection import update_dag_parsing_results_in_db  # noqa: PLC0415 -- see server
    from airflow.sdk import DAG  # noqa: PLC0415 -- see server
    from airflow.serialization.serialized_objects import LazyDeserializedDAG  # noqa: PLC0415 -- see server
    from airflow.utils.session import create_session  # noqa: PLC0415 -- see server

    names = ["allowed", "forbidden"]
    DagBundlesManager().sync_bundles_to_db()  # type: ignore[no-untyped-call]  # Airflow did not annotate it
    with create_session() as session:
        parsed = [LazyDeserializedDAG.from_dag(DAG(name, schedule=None)) for name in names]
        update_dag_parsing_results_in_db("dags-folder", None, parsed, {}, None, set(), session=session)
    return names
