"""The databases that a SQL ledger is kept in: one for all runs, or one of its own for a run that breaks it."""

import itertools
import os
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Protocol, Self

import psycopg
from psycopg.sql import SQL, Identifier

from tests.faults.proxy import Proxy
from tests.faults.scenario import POSTGRES, SQLITE

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

    def snapshot(self) -> None:
        """Remember what it holds."""

    def put_back(self, *, end_connections: bool) -> None:
        """Let it hold again what it held at its `snapshot`, with or without an end of all connections."""

    def lock(self) -> Callable[[], None]:
        """Hold a lock on all of its tables, as another program's session does; return what ends that."""

    def go_dark(self) -> Callable[[], None]:
        """Let its address swallow everything; return what ends that."""

    def end_connections(self) -> None:
        """End every connection, as an idle one is ended."""

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
        with closing(self._open()) as connection:
            found = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table' AND name LIKE 'responsys%'")
            tables = [name for (name,) in found]
        away = [f"{name}_away" for name in tables]
        self._rename(tables, away)
        return lambda: self._rename(away, tables)

    def lose(self) -> None:
        """Be another worker's disk."""
        for file in self._path.parent.glob(f"{self._path.name}*"):
            file.unlink()

    def drop(self) -> None:
        """Do nothing: the folder goes with the run."""

    def snapshot(self) -> None:
        """Copy it as SQLite does, write-ahead log and all."""
        with closing(self._open()) as here, closing(sqlite3.connect(f"{self._path}.snapshot")) as there:
            here.backup(there)

    def put_back(self, *, end_connections: bool) -> None:
        """Copy it back; whoever has it open sees that."""
        del end_connections  # there are none
        with closing(self._open()) as here, closing(sqlite3.connect(f"{self._path}.snapshot")) as there:
            there.backup(here)

    def lock(self) -> Callable[[], None]:
        """Keep a transaction that writes."""
        other = self._open()
        other.isolation_level = None
        other.execute("BEGIN EXCLUSIVE")
        return other.close

    def go_dark(self) -> Callable[[], None]:
        """Refuse: it has no address."""
        raise NotImplementedError

    def end_connections(self) -> None:
        """Refuse: it has none."""
        raise NotImplementedError

    def _open(self) -> sqlite3.Connection:
        return sqlite3.connect(self._path, timeout=30, check_same_thread=False)

    def _rename(self, now: Sequence[str], then: Sequence[str]) -> None:
        with closing(self._open()) as connection, connection:
            for name, other in zip(now, then, strict=True):
                connection.execute(f"ALTER TABLE {name} RENAME TO {other}")


class PostgresPlace:
    """A database of a PostgreSQL server, reached as *server* says; one of its own *behind* a proxy in a folder."""

    def __init__(self, server: Mapping[str, Any], name: str = "postgres", behind: Path | None = None) -> None:
        self._server = server
        self._name = name
        self._tables: dict[str, bytes] = {}
        self._sequences: dict[str, Any] = {}
        self._proxy = Proxy.start(behind, f"{server['host']}/.s.PGSQL.{server['port']}") if behind else None
        address = {"host": "127.0.0.1", "port": self._proxy.port} if self._proxy else {}
        self.connection: Mapping[str, Any] = {"conn_type": "postgres", **server, "schema": name, **address}

    def own(self, folder: Path) -> Self:
        """Return a database of the run's own."""
        name = f"ledger_{os.getpid()}_{next(NUMBERS)}"
        self._do("CREATE DATABASE {}", name)
        return type(self)(self._server, name, folder)

    def take_down(self) -> Callable[[], None]:
        """End its connections, and let nobody in."""
        self._do("ALTER DATABASE {} ALLOW_CONNECTIONS false", self._name)
        self.end_connections()
        return lambda: self._do("ALTER DATABASE {} ALLOW_CONNECTIONS true", self._name)

    def lose(self) -> None:
        """Be a database that somebody has made anew."""
        self._do("DROP DATABASE {} WITH (FORCE)", self._name)
        self._do("CREATE DATABASE {}", self._name)

    def snapshot(self) -> None:
        """Copy all tables as of one moment."""
        with self._connect(self._name) as connection, connection.transaction():
            connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            tables = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
            for (table,) in tables:
                with connection.cursor().copy(
                    SQL("COPY {} TO STDOUT (FORMAT BINARY)").format(Identifier(table))
                ) as copied:
                    self._tables[table] = b"".join(bytes(block) for block in copied)
            sequences = connection.execute("SELECT sequencename, last_value FROM pg_sequences").fetchall()
            self._sequences = dict(sequences)

    def put_back(self, *, end_connections: bool) -> None:
        """Copy all tables back, in one transaction."""
        if end_connections:
            self.end_connections()
        with self._connect(self._name) as connection, connection.transaction():
            connection.execute("SET LOCAL session_replication_role = replica")  # no foreign key is checked
            tables = SQL(", ").join(map(Identifier, self._tables))
            connection.execute(SQL("TRUNCATE {}").format(tables))
            for table, rows in self._tables.items():
                with connection.cursor().copy(
                    SQL("COPY {} FROM STDIN (FORMAT BINARY)").format(Identifier(table))
                ) as copied:
                    copied.write(rows)
            for sequence, last in self._sequences.items():
                connection.execute("SELECT setval(%s::regclass, %s, %s)", (sequence, last or 1, last is not None))

    def lock(self) -> Callable[[], None]:
        """Keep a transaction that has locked all tables."""
        other = self._connect(self._name)
        tables = other.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
        other.execute("BEGIN")
        other.execute(
            SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE").format(
                SQL(", ").join(Identifier(table) for (table,) in tables)
            )
        )
        return other.close

    def go_dark(self) -> Callable[[], None]:
        """Let the proxy swallow everything."""
        assert self._proxy
        return self._proxy.go_dark()

    def drop(self) -> None:
        """Remove it."""
        self._do("DROP DATABASE {} WITH (FORCE)", self._name)
        if self._proxy:
            self._proxy.stop()

    def end_connections(self) -> None:
        """End all connections to it."""
        with self._connect() as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (self._name,)
            )

    def _do(self, statement: str, name: str) -> None:
        with self._connect() as connection:
            connection.execute(SQL(statement).format(Identifier(name)))

    def _connect(self, database: str = "postgres") -> psycopg.Connection[Any]:
        server = self._server
        return psycopg.connect(
            host=server["host"], port=server["port"], user=server["login"], dbname=database, autocommit=True
        )


def places(folder: Path, postgres: Mapping[str, Any] | None) -> dict[str, LedgerPlace]:
    """Return where each store keeps its ledger."""
    found: dict[str, LedgerPlace] = {SQLITE: SqlitePlace(folder / "ledger.db")}
    if postgres:
        found[POSTGRES] = PostgresPlace(postgres)
    return found
