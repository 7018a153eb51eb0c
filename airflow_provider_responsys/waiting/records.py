"""What the SQL ledger knows of requests that are being waited for, and the outcomes that it is still to be told."""

import threading
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Self

from airflow_provider_responsys.errors import LedgerFailed, NotInLedger
from airflow_provider_responsys.protocol.polling import (
    PURGED,
    ROWS_DIFFER,
    Failed,
    Finished,
    Gone,
    Outcome,
    Processing,
    Unclear,
)

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine

    from airflow_provider_responsys.ledger.sql_records import Records
    from airflow_provider_responsys.ledger.sql_values import BatchRecord


class RequestRecords:
    """What the SQL ledger knows of the requests of some sends, and what it is still to be told.

    `read`, `write` and `close` block, and wait for each other.
    """

    def __init__(self, records: "Records", send_keys: Sequence[str], log: Any) -> None:
        self._records = records
        self._send_keys = send_keys
        self._log = log
        self._keys: dict[str, str] = {}
        self._task_instances: dict[str, str] = {}
        self._ended: dict[str, Outcome] = {}
        self._unwritten: deque[tuple[str, Ending]] = deque()
        """Filled by one thread, and emptied by another."""
        self._early: dict[str, Outcome] = {}
        """Outcomes that were noted before it is known which batches they are of."""
        self._is_read = False
        self._busy = threading.Lock()
        self._stopped = False
        self.polls: Mapping[str, int] = {}
        """How often the wait that these are read for has polled each request."""
        self.sizes: dict[str, int] = {}
        """How many recipients each request has."""
        self.accepted_at: dict[str, datetime] = {}
        """When Responsys took each request."""

    @classmethod
    def on(cls, engine: "Engine", send_keys: Sequence[str], log: Any) -> Self:
        """Return the book of *send_keys* on *engine*, which is its own; nothing is read yet."""
        from airflow_provider_responsys.ledger.sql_records import Records  # noqa: PLC0415 -- brings SQLAlchemy

        return cls(Records(engine), send_keys, log)

    @property
    def unwritten(self) -> int:
        """Return how many outcomes the ledger is still to be told."""
        return len(self._unwritten) + len(self._early)

    def read(self) -> None:
        """Read what the ledger knows, or raise `LedgerFailed`."""
        with self._busy:
            self._read()
            self._is_read = True
        early, self._early = self._early, {}
        self.note(early)

    def knows(self, request_id: str) -> bool:
        """Tell whether *request_id* is in the ledger."""
        return request_id in self.sizes

    def task_instances(self, ids: Iterable[str]) -> list[str]:
        """Return the tasks that sent *ids*, all of which are known."""
        return sorted({self._task_instances[request_id] for request_id in ids})

    def of(self, task_instances: Iterable[str]) -> list[str]:
        """Return the requests that *task_instances* sent, oldest first."""
        wanted = set(task_instances)
        return [request_id for request_id, name in self._task_instances.items() if name in wanted]

    def outcome_of(self, request_id: str) -> Outcome | None:
        """Return the outcome of *request_id* that is recorded, None if there is none."""
        return self._ended.get(request_id)

    def note(self, outcomes: Mapping[str, Outcome]) -> None:
        """Keep those of *outcomes* that are final until they are written."""
        if not self._is_read:
            self._early.update(outcomes)
            return
        for request_id, outcome in outcomes.items():
            size = self.sizes.get(request_id)
            if size is not None and (ending := Ending.of(outcome, size, self.polls.get(request_id))):
                self._unwritten.append((request_id, ending))

    def write(self) -> LedgerFailed | None:
        """Record the outcomes noted so far, one write each; return what kept them from being written, if anything."""
        if self._early:
            try:
                self.read()
            except LedgerFailed as error:
                return error
        with self._busy:
            while self._unwritten and not self._stopped:
                request_id, ending = self._unwritten[0]
                try:
                    self._records.record_outcome(self._keys[request_id], request_id, **ending.as_arguments())
                except NotInLedger as error:
                    self._log.warning("The outcome of request %s can't be written to the ledger: %s", request_id, error)
                except LedgerFailed as error:
                    return error
                self._unwritten.popleft()
        return None

    def stop(self) -> None:
        """Let a write that goes on in another thread end early: the next poller polls again."""
        self._stopped = True

    def close(self) -> None:
        """Close the connections. Harmless to repeat, and what is written later opens others."""
        with self._busy:
            self._records.close()

    def _read(self) -> None:
        self._records.fingerprint_key()  # makes the tables if there are none
        for send_key in self._send_keys:
            for batch in self._records.show(send_key):
                # What was given up counts no more; what was resolved by hand has no request.
                if batch.request_id is not None and batch.counts:
                    self._note(send_key, batch.request_id, batch)

    def _note(self, send_key: str, request_id: str, batch: "BatchRecord") -> None:
        self._keys[request_id] = send_key
        self._task_instances[request_id] = batch.task_instance
        self.sizes[request_id] = batch.size
        if batch.settled_at:
            self.accepted_at[request_id] = batch.settled_at
        if batch.outcome_at:
            self._ended[request_id] = _recorded(batch)


@dataclass(frozen=True, slots=True)
class Ending:
    """How a request ended, as the ledger takes it."""

    succeeded: int = 0
    failed: Mapping[str, Sequence[int]] = field(default_factory=dict)
    error: str | None = None
    polls: int | None = None

    @classmethod
    def of(cls, outcome: Outcome, size: int, polls: int | None = None) -> Self | None:
        """Return what to record of a request of *size* recipients after so many *polls*, or None while it is open."""
        match outcome:
            case Finished(rows=rows) if rows != size:
                return cls(error=ROWS_DIFFER, polls=polls)
            case Finished(rows=rows, failed=failed):
                return cls(succeeded=rows - outcome.failures, failed=failed, polls=polls)
            case Gone(code=code) | Failed(code=code):
                return cls(error=code, polls=polls)
            case Processing() | Unclear():
                return None

    def as_arguments(self) -> dict[str, Any]:
        """Return what `Records.record_outcome` takes."""
        return {"succeeded": self.succeeded, "failed": self.failed, "error": self.error, "polls": self.polls}


def log_unwritten(log: Any, unwritten: int, failure: LedgerFailed) -> None:
    """Tell that the ledger lacks outcomes; the counts have them."""
    log.warning(
        "%d request outcomes were not written to the ledger; this task's counts include them: %s",
        unwritten,
        failure,
    )


def _recorded(batch: "BatchRecord") -> Outcome:
    """Return the outcome in *batch*. Which positions failed stays in the ledger: here they are numbered anew."""
    if batch.request_error == PURGED:
        return Gone(PURGED)
    if batch.request_error == ROWS_DIFFER:
        return Finished(0)
    if batch.request_error:
        return Failed(batch.request_error)
    failed = {code: tuple(range(number)) for code, number in batch.failed.items()}
    return Finished(batch.succeeded + sum(batch.failed.values()), failed)
