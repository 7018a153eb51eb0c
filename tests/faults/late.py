"""Writes to Airflow's task state store that are late, done twice, or out of order.

The delay is where a stalled API server has it: behind the check of the task
instance, before the row. So a late write is done even when its try was replaced
in the meantime. Airflow's client has given it up by then and repeated it.
"""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

BACKEND = "tests.faults.late_backend.LateBackend"
"""What the API server keeps the task state in, as ``[state_store] backend``."""

CLIENT_GIVES_UP = 1.0
"""Seconds that a client waits for an answer where one may be lost in silence; Airflow's default are five."""

PATIENCE = 20
"""How often a late write is tried: a SQLite database refuses whom another writer was faster than."""

Write = Callable[[Any], None]
"""Does a write in the session that it is given."""


@dataclass(frozen=True, slots=True)
class Late:
    """What happens to the *nth* write of a run to the task state store.

    It is done later, when the flag *after* has been raised ("" stands from the
    start) and *writes* further writes were done. It is done at once as well if
    *now*. Its answer is lost, so that the client repeats it, unless *answered*:
    then the late copy is one that a gateway has made. A lost answer is an error of
    a gateway, or, if *silent*, none at all: the client gives up by itself.
    """

    nth: int
    after: str = ""
    writes: int = 1
    now: bool = False
    answered: bool = False
    silent: bool = False


@dataclass(slots=True)
class Held:
    """A write that is still to be done: *left* writes after its flag."""

    late: Late
    write: Write
    left: int


@dataclass(slots=True)
class RunWrites:
    """The writes of one run."""

    plan: dict[int, Late]
    seen: int = 0
    done_late: int = 0
    flags: set[str] = field(default_factory=lambda: {""})
    held: list[Held] = field(default_factory=list)

    def due(self, *, passed: int) -> list[Held]:
        """Return what is to be done now that *passed* further writes were done."""
        due = []
        for held in self.held:
            if held.late.after in self.flags:
                held.left -= passed
                if held.left <= 0:
                    due.append(held)
        self.held = [held for held in self.held if held not in due]
        self.done_late += len(due)
        return due


class LostAnswer(Exception):
    """The client gets no answer to this write, or, if it is not *silent*, an error."""

    def __init__(self, *, silent: bool) -> None:
        super().__init__()
        self.silent = silent


class Writes:
    """The writes of all runs for which something is planned."""

    def __init__(self, fresh: Callable[[Write], None]) -> None:
        self._fresh = fresh
        self._runs: dict[str, RunWrites] = {}
        self._lock = threading.RLock()

    def plan(self, run_id: str, late: Sequence[Late]) -> None:
        """Plan what happens to the writes of the run *run_id*."""
        with self._lock:
            self._runs[run_id] = RunWrites({each.nth: each for each in late})

    def raise_flag(self, run_id: str, flag: str) -> None:
        """Do what waited for *flag* and no further write."""
        with self._lock:
            run = self._runs.setdefault(run_id, RunWrites({}))
            run.flags.add(flag)
            due = run.due(passed=0)
        for held in due:
            self._do(held.write)

    def counts(self, run_id: str) -> dict[str, int]:
        """Return what happened so far."""
        with self._lock:
            run = self._runs.get(run_id, RunWrites({}))
            return {"seen": run.seen, "held": len(run.held), "late": run.done_late}

    def take(self, run_id: str, write: Write, session: Any) -> None:
        """Do *write* in *session*, as the plan of its run has it; raise `LostAnswer` where that is lost."""
        with self._lock:
            run = self._runs.get(run_id)
        if run is None:
            write(session)
            return
        with self._lock:
            run.seen += 1
            late = run.plan.get(run.seen)
            answered = late is None or late.answered
            if answered:
                write(session)
                # In the same transaction, so right after it.
                for held in run.due(passed=1):
                    held.write(session)
            if late:
                run.held.append(Held(late, write, late.writes))
        if late and not answered:
            if late.now:
                self._do(write)
            raise LostAnswer(silent=late.silent)

    def _do(self, write: Write) -> None:
        """Do *write* in a transaction of its own."""
        for turn in range(PATIENCE):
            try:
                self._fresh(write)
            except Exception as error:
                if "locked" not in str(error) or turn == PATIENCE - 1:
                    raise
                time.sleep(0.05)
            else:
                return


def _fresh(write: Write) -> None:
    from airflow.utils.session import create_session  # noqa: PLC0415 -- only in the API server

    with create_session() as session:
        write(session)


WRITES = Writes(_fresh)
"""Those of this process, which is the API server."""
