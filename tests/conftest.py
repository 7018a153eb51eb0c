"""What every test stands on: an Airflow home of its own, and a real PostgreSQL."""

import atexit
import getpass
import json
import os
import shutil
import socket
import subprocess
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from secrets import token_hex
from typing import Any

import pytest

from airflow_provider_responsys.sandbox import Sandbox
from tests.support import databases
from tests.support.servers import PlainServer, Proxy

# Airflow reads these when it is first imported, so they come before any test module.
HOME = Path(tempfile.mkdtemp(prefix="responsys-tests-"))
atexit.register(shutil.rmtree, HOME, ignore_errors=True)
(HOME / "dags").mkdir()
os.environ.update(
    AIRFLOW_HOME=str(HOME),
    AIRFLOW__CORE__DAGS_FOLDER=str(HOME / "dags"),
    AIRFLOW__CORE__LOAD_EXAMPLES="False",
    AIRFLOW__DATABASE__SQL_ALCHEMY_CONN=f"sqlite:///{HOME / 'airflow.db'}",
)
# It replaces settings by those of Airflow's own test suite.
os.environ.pop("AIRFLOW__CORE__UNIT_TEST_MODE", None)


@pytest.fixture(autouse=True)
def state_home(monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give the folder in which this test, and what it starts, remembers refused logins; nothing makes it before."""
    folder = HOME / "state" / token_hex(8)
    monkeypatch.setenv("XDG_STATE_HOME", str(folder))
    return folder


@pytest.fixture(scope="session")
def airflow_home() -> Path:
    """Give the folder that Airflow lives in during the tests."""
    return HOME


@pytest.fixture(scope="session")
def postgres() -> Iterator[dict[str, str | int]]:
    """Give a real PostgreSQL, as the keyword arguments of an Airflow connection."""
    with databases.postgres() as server:
        yield server


@pytest.fixture(scope="session")
def mysql() -> Iterator[Path]:
    """Give the socket of a real MariaDB that trusts root; skip where none is installed."""
    program, maker = shutil.which("mariadbd"), shutil.which("mariadb-install-db")
    if not (program and maker):
        pytest.skip("no MariaDB here: its mariadbd and mariadb-install-db come with the package mariadb-server")
    folder = Path(tempfile.mkdtemp(prefix="my-"))
    data, socket, log = folder / "data", folder / "socket", folder / "log"
    # It will not be root's server unless told so.
    common = ["--no-defaults", f"--datadir={data}", f"--user={getpass.getuser()}"]
    made = [maker, *common, "--auth-root-authentication-method=normal", "--skip-test-db"]
    subprocess.run(made, check=True, capture_output=True)
    with log.open("w") as output:
        server = subprocess.Popen(
            [program, *common, f"--socket={socket}", "--skip-networking", "--innodb-flush-method=nosync"],
            stdout=output,
            stderr=output,
        )
    try:
        deadline = time.monotonic() + 60.0
        while not socket.exists():
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        yield socket
    finally:
        server.terminate()
        server.wait()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def fresh_postgres(postgres: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Give a database of its own on the real PostgreSQL."""
    import psycopg  # noqa: PLC0415 -- only some tests need it

    name = f"fresh_{token_hex(8)}"
    server = {"host": postgres["host"], "port": postgres["port"], "user": postgres["login"], "dbname": "postgres"}
    with psycopg.connect(**server, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
        yield {**postgres, "schema": name}
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(params=[True, False], ids=["psycopg", "psycopg2"])
def either_psycopg(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Airflow's PostgreSQL hook use each of its drivers in turn."""
    from airflow.providers.postgres.hooks import postgres as postgres_hooks  # noqa: PLC0415 -- see airflow_db

    monkeypatch.setattr(postgres_hooks, "USE_PSYCOPG3", request.param)


@pytest.fixture
def plain_server() -> Iterator[PlainServer]:
    """Give a server that has no TLS."""
    server = PlainServer()
    yield server
    server.close()


@pytest.fixture
def silent_address() -> Iterator[int]:
    """Give a port that takes connections and says nothing for a minute, then closes them."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            with suppress(OSError):
                client, _ = listener.accept()
                with client:
                    time.sleep(60.0)

        threading.Thread(target=accept, daemon=True).start()
        yield listener.getsockname()[1]


@pytest.fixture
def proxy(postgres: dict[str, Any]) -> Iterator[Proxy]:
    """Give a port before the real PostgreSQL that can fall silent."""
    proxy = Proxy(f"{postgres['host']}/.s.PGSQL.{postgres['port']}")
    yield proxy
    proxy.close()


@pytest.fixture(params=["sqlite", "postgres"])
def ledger(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Give the id of a connection to a SQL ledger."""
    if request.param == "sqlite":
        connection: dict[str, Any] = {"conn_type": "sqlite", "host": str(tmp_path / "ledger.db")}
    else:
        connection = {"conn_type": "postgres", **request.getfixturevalue("fresh_postgres")}
    monkeypatch.setenv("AIRFLOW_CONN_LEDGER", json.dumps(connection))
    return "ledger"


@pytest.fixture
def sandbox(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sandbox]:
    """Give a sandbox that responsys_default leads to."""
    with Sandbox(processing_time=0.0) as sandbox:
        monkeypatch.setenv("AIRFLOW_CONN_RESPONSYS_DEFAULT", json.dumps(sandbox.connection()))
        yield sandbox


@pytest.fixture(scope="session")
def airflow_db() -> None:
    """Make Airflow's own database: two seconds, once."""
    from airflow.utils import db  # noqa: PLC0415 -- importing Airflow takes seconds, and few tests need it

    db.initdb()
    with warnings.catch_warnings():
        # The web framework, which Airflow imports with its first task, wants another HTTP client for its own tests.
        warnings.simplefilter("ignore")
        import airflow.api_fastapi.execution_api.app  # noqa: F401, PLC0415 -- imported here for its warning only


@pytest.fixture(scope="session")
def run_dag(airflow_db: None) -> Callable[[Any], Any]:
    """Give a function that runs a DAG to its end in this process, triggers included, and returns the run."""

    def run(dag: Any) -> Any:
        from airflow.dag_processing.bundles.manager import DagBundlesManager  # noqa: PLC0415 -- see airflow_db
        from airflow.dag_processing.collection import update_dag_parsing_results_in_db  # noqa: PLC0415 -- see airflow_db
        from airflow.serialization.serialized_objects import LazyDeserializedDAG  # noqa: PLC0415 -- see airflow_db
        from airflow.utils.session import create_session  # noqa: PLC0415 -- see airflow_db

        DagBundlesManager().sync_bundles_to_db()  # type: ignore[no-untyped-call]  # Airflow did not annotate it
        with create_session() as session:
            parsed = [LazyDeserializedDAG.from_dag(dag)]
            update_dag_parsing_results_in_db("dags-folder", None, parsed, {}, None, set(), session=session)
        return dag.test()

    return run
