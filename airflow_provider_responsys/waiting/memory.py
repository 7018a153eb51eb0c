"""What a wait keeps from one try of its task to the next, and from look to look where it is rescheduled."""

import hashlib
import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from airflow_provider_responsys.errors import InvalidAnswer
from airflow_provider_responsys.protocol.results import Results
from airflow_provider_responsys.waiting.event import MAX_PACKED, pack, unpack
from airflow_provider_responsys.waiting.state import WaitState

KEY = "responsys/wait"
"""Where it stands in Airflow's task state store."""


@dataclass(frozen=True, slots=True)
class Kept:
    """When the wait *began*, and when it ends at the latest, in seconds since the epoch; its counts, if they fit."""

    began: float
    deadline: float
    open: tuple[str, ...] | None = None
    results: Results | None = None


class Memory:
    """The memory of a wait for *ids* in Airflow's task state *store*, where there is one.

    It is of the tries of one cycle: after a person's clear, which changes the task
    instance's *max_tries*, and for other ids, the wait begins anew. Nothing depends
    on it but that: whatever happens to the store, requests are polled again.
    """

    def __init__(self, store: Any, ids: Iterable[str], max_tries: int | None, log: Any) -> None:
        self._store = store
        self._of = hashlib.blake2b("\n".join([str(max_tries), *ids]).encode(), digest_size=12).hexdigest()
        self._log = log
        self.keeps_counts = store is not None
        """Whether what is learned is kept."""

    def recall(self, timeout: float, *, began: float | None = None, clock: Callable[[], float] = time.time) -> Kept:
        """Return what is kept; a wait of *timeout* seconds that *began* then, otherwise now, where nothing is."""
        if found := self._read():
            return found
        since = clock() if began is None else began
        kept = Kept(since, since + timeout)
        self._write({"began": kept.began, "deadline": kept.deadline})
        return kept

    def keep(self, kept: Kept, state: WaitState) -> None:
        """Keep what *state* has counted, if it fits."""
        packed = pack(state.open) if self.keeps_counts else ""
        value: dict[str, Any] = {"began": kept.began, "deadline": kept.deadline}
        if len(packed) <= MAX_PACKED:
            self._write({**value, "open": packed, "results": state.results.to_event()})
        elif self.keeps_counts:
            self.keeps_counts = False
            self._log.warning(
                "%d request ids are too many for Airflow's task state store: each look begins anew. Set a SQL ledger, "
                "or wait deferrable",
                len(state.open),
            )

    def _read(self) -> Kept | None:
        if self._store is None:
            return None
        try:
            found = json.loads(self._store.get(KEY) or "null")
            if not found or found["of"] != self._of:
                return None
            results = Results.from_event(found["results"]) if "results" in found else None
            waits = tuple(filter(None, unpack(found["open"]))) if "open" in found else None
            return Kept(float(found["began"]), float(found["deadline"]), waits, results)
        except (KeyError, TypeError, ValueError, InvalidAnswer):
            self._log.warning("What the wait kept in Airflow's task state store can't be read; it begins anew")
        except Exception as error:  # noqa: BLE001 -- however the store fails
            self._fail(error)
        return None

    def _write(self, value: dict[str, Any]) -> None:
        if self._store is None:
            return
        try:
            self._store.set(KEY, json.dumps({"of": self._of, **value}))
        except Exception as error:  # noqa: BLE001 -- however the store fails
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        self.keeps_counts, self._store = False, None
        self._log.warning(
            "Airflow's task state store can't be used (%s): a retry begins its timeout anew", type(error).__name__
        )
