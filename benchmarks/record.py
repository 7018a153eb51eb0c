"""What a ledger holds of a send: made the short way, and kept by a task in Airflow's own store.

`remember` is the work of a task that runs twice: its first try writes the record of
everybody in a table, and fails; its second reads that back, as an operator's retry
does. Both note what it took.
"""

import json
from collections.abc import Mapping
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from time import perf_counter
from typing import Any

from airflow_provider_responsys.ledger.fingerprint import fingerprinter
from airflow_provider_responsys.ledger.interface import Accepted, Ledger, Wanted
from airflow_provider_responsys.ledger.task_state import TaskStateLedger
from airflow_provider_responsys.protocol.push import MAX_RECIPIENTS
from airflow_provider_responsys.recipients.fields import FieldSettings
from airflow_provider_responsys.recipients.spool import Spool
from airflow_provider_responsys.recipients.sql import query
from airflow_provider_responsys.sending.outcome import Resumed
from benchmarks.ground import forget_highest, hook_at, resident
from benchmarks.people import SELECT, customer
from benchmarks.sender import CAMPAIGN

AT_A_TIME = 25 * MAX_RECIPIENTS  # recipients that one call of the ledger claims


class EndOfFirstTryError(Exception):
    """The first try has written its record: the second is to read it."""


class Sized:
    """A store that counts what it is given."""

    def __init__(self, store: Any) -> None:
        self._store = store
        self.values: dict[str, tuple[int, int]] = {}
        """Of each key, the characters and the batches of its value."""
        self.writes = 0

    def get(self, key: str) -> object:
        """Return the value of *key*."""
        return self._store.get(key)

    def set(self, key: str, value: str, *, retention: timedelta | None = None) -> None:
        """Write *value*, and count it."""
        self.writes += 1
        self.values[key] = len(value), value.count("\n") if "/people/" in key else 0
        self._store.set(key, value, retention=retention)

    def delete(self, key: str) -> None:
        """Remove *key*, and count it."""
        self.writes += 1
        self._store.delete(key)


def claim(ledger: Ledger, numbers: range) -> None:
    """Be a whole try: everybody at *numbers* of the table is claimed and accepted."""
    fingerprint = fingerprinter(ledger.begin({"campaign_name": CAMPAIGN}))
    answers: list[Accepted] = []
    batch = 0
    for start in range(0, len(numbers), AT_A_TIME):
        people = [fingerprint(f'["PROFILE","customerId","{customer(n)}"]') for n in numbers[start : start + AT_A_TIME]]
        wanted = []
        for first in range(0, len(people), MAX_RECIPIENTS):
            batch += 1
            wanted.append(Wanted(batch, people[first : first + MAX_RECIPIENTS]))
        ledger.commit(answers, wanted, [want.fingerprints for want in wanted])
        answers = [Accepted(want.number, f"YjN1aWowOjoxNjQz{want.number:08}") for want in wanted]
    ledger.commit(answers, [])


def remember(context: Mapping[str, Any], source: str, rows: int, notes: str) -> None:
    """Write the record of the *rows* of *source* in the first try, read it back in the second; write down *notes*."""
    from airflow.sdk import NEVER_EXPIRE  # noqa: PLC0415 -- only a task has it at hand

    ti = context["ti"]
    store = Sized(context["task_state_store"])
    ledger = TaskStateLedger(store, try_number=ti.try_number, max_tries=ti.max_tries, retries=1, retention=NEVER_EXPIRE)
    found = _write(ledger, store, rows) if ti.try_number == 1 else _read(ledger, source)
    with Path(notes).open("a", encoding="utf-8") as file:
        print(json.dumps(found), file=file)
    if ti.try_number == 1:
        raise EndOfFirstTryError


def _write(ledger: TaskStateLedger, store: Sized, rows: int) -> dict[str, float]:
    began = perf_counter()
    claim(ledger, range(rows))
    return {
        "seconds": perf_counter() - began,
        "writes": store.writes,
        "keys": len(store.values),
        "megabytes": sum(size for size, _ in store.values.values()) / 1e6,
        "largest": max(size for size, _ in store.values.values()),
        "batches": max(batches for _, batches in store.values.values()),
    }


def _read(ledger: TaskStateLedger, source: str) -> dict[str, float]:
    hook = hook_at(source)
    forget_highest()
    memory = resident()
    began = perf_counter()
    key = ledger.begin({"campaign_name": CAMPAIGN})
    seconds = perf_counter() - began
    with closing(ledger), Spool() as spool:
        with query(hook, SELECT) as chunks:
            spool.fill(chunks, FieldSettings(), fingerprinter(key))
        began = perf_counter()
        resumed = Resumed.of(ledger.earlier(), spool)
        seconds += perf_counter() - began
        left = len(spool) - resumed.here
    return {"seconds": seconds, "accepted": resumed.accepted, "left": left, "memory": resident("VmHWM") - memory}
