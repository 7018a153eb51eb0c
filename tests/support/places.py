"""The places where a ledger can be kept, each opened the way a new try opens it."""

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, Protocol

from sqlalchemy import Table, create_engine, delete, event, insert, select
from sqlalchemy.engine import URL, Engine
from sqlalchemy.exc import OperationalError
from uuid6 import uuid7  # as Airflow makes its ids

from airflow_provider_responsys.ledger.interface import Ledger
from airflow_provider_responsys.ledger.sql import SqlLedger
from airflow_provider_responsys.ledger.sql_tables import metadata
from airflow_provider_responsys.ledger.state_store import StateStore
from airflow_provider_responsys.ledger.task_state import TaskStateLedger
from airflow_provider_responsys.ledger.tries import OnClear

NOW = datetime(2026, 11, 23, 8, 30, tzinfo=UTC)
IDENTITY = {"campaign_name": "Autumn", "list_type": "PROFILE", "match_on": "customerId"}


class Place(Protocol):
    """One task instance and the store that outlives its tries."""

    now: datetime

    def open(
        self,
        try_number: int = 1,
        *,
        max_tries: int = 3,
        on_clear: OnClear = "resume",
        may_have_claimed: bool | None = None,
    ) -> Ledger:
        """Return the ledger as try *try_number* gets it; tries before it may still be alive."""

    def lose(self) -> None:
        """Lose everything."""

    def break_down(self) -> None:
        """Fail each call until `mend`."""

    def mend(self) -> None:
        """Work again."""


class Refusal(Exception):
    """Looks like Airflow's AirflowRuntimeError for an answer of the API server."""

    def __init__(self, status: int) -> None:
        detail = {"status_code": status, "message": "no", "detail": None}
        self.error = SimpleNamespace(error="API_SERVER_ERROR", detail=detail)
        super().__init__(f"API_SERVER_ERROR: {detail}")


class Accessor:
    """One task instance id's view of the fake store, as Airflow's accessor behaves."""

    def __init__(self, airflow: "Airflow") -> None:
        self.airflow = airflow

    def get(self, key: str) -> object:
        """Answer a replaced id like an unknown key: Airflow tells neither from the other."""
        self.airflow.call("get", key)
        return self.airflow.rows.get(key) if self.airflow.current is self else None

    def set(self, key: str, value: str, *, retention: timedelta | None = None) -> None:
        self.airflow.call("set", key)
        self._check()
        self.airflow.rows[key] = value
        self.airflow.retentions.add(retention)

    def delete(self, key: str) -> None:
        self.airflow.call("delete", key)
        self._check()
        self.airflow.rows.pop(key, None)

    def _check(self) -> None:
        if self.airflow.current is not self:
            raise Refusal(404)


class Airflow:
    """A task state store of one task instance, in memory."""

    def __init__(self) -> None:
        self.rows: dict[str, object] = {}
        self.retentions: set[timedelta | None] = set()
        self.calls: list[tuple[str, str]] = []
        self.current: Accessor | None = None
        self.failures: dict[int, BaseException] = {}
        """What the n-th call from now on raises, before it does anything."""
        self.down = False

    def accessor(self) -> Accessor:
        """Give the task instance a new id, as a retry and a clear do."""
        self.current = Accessor(self)
        return self.current

    def call(self, name: str, key: str) -> None:
        """Note one call, or fail it."""
        self.calls.append((name, key))
        self.failures = {turn - 1: failure for turn, failure in self.failures.items()}
        if failure := self.failures.pop(0, None):
            raise failure
        if self.down:
            raise Refusal(500)


class TaskStatePlace:
    """The task state store."""

    def __init__(self) -> None:
        self.airflow = Airflow()
        self.now = NOW

    def open(
        self,
        try_number: int = 1,
        *,
        max_tries: int = 3,
        on_clear: OnClear = "resume",
        may_have_claimed: bool | None = None,
        by_position: bool = False,
    ) -> TaskStateLedger:
        """Give the try a new accessor."""
        return TaskStateLedger(
            self.airflow.accessor(),
            try_number=try_number,
            max_tries=max_tries,
            retries=3,
            on_clear=on_clear,
            may_have_claimed=may_have_claimed,
            retention=timedelta.max,
            by_position=by_position,
            now=lambda: self.now,
        )

    def lose(self) -> None:
        """Lose every row."""
        self.airflow.rows.clear()

    def break_down(self) -> None:
        """Answer 500."""
        self.airflow.down = True

    def mend(self) -> None:
        """Answer again."""
        self.airflow.down = False


class SqlPlace:
    """A database, and Airflow's task state store beside it."""

    def __init__(self, url: URL, **connect: str) -> None:
        self.url = url
        self.connect = connect
        self.now = NOW
        self.ledgers: list[SqlLedger] = []
        self.down = False
        self.airflows: dict[str, Airflow] = {}
        """The part of the store of each task instance."""
        self.has_store = True

    def airflow(self, task_instance: str = "dag, task, run, -1") -> Airflow:
        """Return the part of the store that is *task_instance*'s."""
        return self.airflows.setdefault(task_instance, Airflow())

    def snapshot(self) -> dict[Table, list[Any]]:
        """Return all that the database holds at this moment."""
        return {table: self.rows(table) for table in metadata.sorted_tables}

    def put_back(self, snapshot: dict[Table, list[Any]]) -> None:
        """Let the database be as it was: a backup that was restored, a replica that lagged."""
        engine = create_engine(self.url, connect_args=self.connect)
        with engine.begin() as connection:
            for table, rows in snapshot.items():
                connection.execute(delete(table))
                if rows:
                    connection.execute(insert(table), [dict(row) for row in rows])
        engine.dispose()

    def engine(self) -> Engine:
        """Return an engine as each try has its own."""
        engine = create_engine(self.url, connect_args=self.connect)
        event.listen(engine, "before_cursor_execute", self._fail_when_down)
        return engine

    def open(
        self,
        try_number: int = 1,
        *,
        max_tries: int = 3,
        on_clear: OnClear = "resume",
        may_have_claimed: bool | None = None,
        task_instance: str = "dag, task, run, -1",
        send_key: str = "autumn",
        instance_id: str | None = None,
        answer_within: float = 0.0,
        sleep: Callable[[float], object] = time.sleep,
    ) -> SqlLedger:
        """Give the try connections of its own."""
        ledger = SqlLedger(
            self.engine(),
            send_key=send_key,
            task_instance=task_instance,
            try_number=try_number,
            max_tries=max_tries,
            retries=3,
            instance_id=str(uuid7()) if instance_id is None else instance_id,
            on_clear=on_clear,
            may_have_claimed=may_have_claimed,
            answer_within=answer_within,
            store=StateStore(self.airflow(task_instance).accessor()) if self.has_store else None,
            now=lambda: self.now,
            sleep=sleep,
        )
        self.ledgers.append(ledger)
        return ledger

    def rows(self, table: Table) -> list[Any]:
        """Return everything that is in *table*."""
        engine = create_engine(self.url, connect_args=self.connect)
        with engine.connect() as connection:
            found = list(connection.execute(select(table)).mappings())
        engine.dispose()
        return found

    def lose(self) -> None:
        """Lose every table."""
        self.close()
        engine = create_engine(self.url, connect_args=self.connect)
        metadata.drop_all(engine)
        engine.dispose()

    def break_down(self) -> None:
        """Fail each statement."""
        self.down = True

    def mend(self) -> None:
        """Work again."""
        self.down = False

    def close(self) -> None:
        """Close what the tries left open."""
        for ledger in self.ledgers:
            ledger.close()

    def _fail_when_down(self, *_: object) -> None:
        if self.down:
            raise OperationalError("a statement with a recipient in it", {}, OSError("server closed the connection"))
