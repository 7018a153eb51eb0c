"""Shows a person in Airflow how far a task is, while it runs."""

import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

PUSH = "push_progress"
WAIT = "wait_progress"
"""Keys in the task state store. The ledger's begin with ``responsys/``, which the UI lists after a push's."""

SILENCE = 600.0
"""Seconds without another attempt after one failed: Airflow may take a minute to find out that it can't write."""


class TaskStateNote:
    """Numbers under *key* in Airflow's task state *store*, where the UI and the REST API show them.

    They are for people alone: nothing reads them, they expire as Airflow is set
    up, and deleting them loses nothing. Without a store, nothing is written.
    """

    def __init__(self, store: Any, key: str, log: Any, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._key = key
        self._log = log
        self._clock = clock
        self._failed_at: float | None = None

    def write(self, numbers: Mapping[str, object]) -> None:
        """Show *numbers*, and when that was. A failure is logged once, and changes nothing else."""
        if self._store is None or (self._failed_at is not None and self._clock() - self._failed_at < SILENCE):
            return
        try:
            self._store.set(self._key, {**numbers, "updated": told(datetime.now(UTC))})
        except Exception as error:  # noqa: BLE001 -- however the store fails: what is done matters, not that it is seen
            if self._failed_at is None:
                self._log.warning(
                    "How far the task is can't be shown in Airflow (%s): %s. It goes on", type(error).__name__, error
                )
            self._failed_at = self._clock()


def told(moment: datetime) -> str:
    """Return *moment* as a note shows it."""
    return moment.isoformat(timespec="seconds")
