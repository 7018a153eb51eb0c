"""The databases that a SQL ledger is kept in: one for all runs, or one of its own for a run that breaks it."""

import itertools
import os
import sqlite3
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, Protocol, Self

import psycopg
from psycopg.sql import SQL, Identifier

from tests.faults.scenarios import POSTGRES, SQLITE

TABLES = ("responsys_batches", "responsys_claims")
NUMBERS = itertools.count(1)


class LedgerPlace(Protocol):
    """A database for a ledger."""

    connection: Mapping[str, Any]
    """The Airflow connection that leads to it."""

    def own(self, folder: Path) -> "LedgerPlace":
        """Return another one like it, which nobody else uses."""

    def take_down(self) -> Callable[[], None]:
        """Take it out of service; return what brings it back."""

    def lose(self) -> None:
        """Lose all that it holds."""

    def drop(self) -> None:
        """Remove it."""


class SqlitePlace:
    """A file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.connection: Mapping[str, Any] = {"conn_type": "sqlite", "host": str(path)}

    def own(self, folder: Path) -> Self:
        """Return a file of the run's own."""
        return type(self)(folder / "ledger.db")

    def take_down(self) -> Callable[[], None]:
        """Let its tables be somewhere else: a lock would be waited for, for half a minute."""
        self._rename("", "_away")
        return lambda: self._rename("_away", "")

    def lose(self) -> None:
        """Be another worker's disk."""
        for file in self._path.parent.glob(f"{self._path.name}*"):
            file.unlink()

    def drop(self) -> None:
        """Do nothing: the folder goes with the run."""

    def _rename(self, now: str, then: str) -> None:
        with closing(sqlite3.connect(self._path, timeout=30)) as connection, connection:
            for table in TABLES:
                connection.execute(f"ALTER TABLE {table}{now} RENAME TO {table}{then}")


class PostgresPlace:
    """A database of a PostgreSQL server, reached as *server* says."""

    def __init__(self, server: Mapping[str, Any], name: str = "postgres") -> None:
        self._server = server
        self._name = name
        self.connection: Mapping[str, Any] = {"conn_type": "postgres", **server, "schema": name}

    def own(self, folder: Path) -> Self:
        """Return a database of the run's own."""
        del folder
        name = f"ledger_{os.getpid()}_{next(NUMBERS)}"
        self._do("CREATE DATABASE {}", name)
        return type(self)(self._server, name)

    def take_down(self) -> Callable[[], None]:
        """End its connections, and let nobody in."""
        self._do("ALTER DATABASE {} ALLOW_CONNECTIONS false", self._name)
        self._end_connections()
        return lambda: self._do("ALTER DATABASE {} ALLOW_CONNECTIONS true", self._name)

    def lose(self) -> None:
        """Be a database that somebody has made anew."""
        self.drop()
        self._do("CREATE DATABASE {}", self._name)

    def drop(self) -> None:
        """Remove it."""
        self._do("DROP DATABASE {} WITH (FORCE)", self._name)

    def _end_connections(self) -> None:
        with self._connect() as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (self._name,)
            )

    def _do(self, statement: str, name: str) -> None:
        with self._connect() as connection:
            connection.execute(SQL(statement).format(Identifier(name)))

    def _connect(self) -> psycopg.Connection[Any]:
        server = self._server
        return psycopg.connect(
            host=server["host"], port=server["port"], user=server["login"], dbname="postgres", autocommit=True
        )


def places(folder: Path, postgres: Mapping[str, Any] | None) -> dict[str, LedgerPlace]:
    """Return where each store keeps its ledger."""
    found: dict[str, LedgerPlace] = {SQLITE: SqlitePlace(folder / "ledger.db")}
    if postgres:
        found[POSTGRES] = PostgresPlace(postgres)
    return found
