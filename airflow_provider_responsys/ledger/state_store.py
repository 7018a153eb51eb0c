"""Airflow's task state store (3.3+), with what goes wrong named."""

from collections.abc import Callable
from datetime import timedelta
from http import HTTPStatus
from typing import Protocol, TypeVar

from airflow_provider_responsys.airflow_internals import is_answer_of_store, status_of_store
from airflow_provider_responsys.errors import Fenced, LedgerFailed

REPLACED = (HTTPStatus.NOT_FOUND, HTTPStatus.GONE)
"""How the store answers a task instance id that a retry or a clear has replaced."""

T = TypeVar("T")


class Store(Protocol):
    """What is used of Airflow's ``context["task_state_store"]``."""

    def get(self, key: str) -> object:
        """Return the value of *key*, None if there is none."""

    def set(self, key: str, value: str, *, retention: timedelta | None = None) -> None:
        """Write *value* durably."""

    def delete(self, key: str) -> None:
        """Remove *key*, if it is there."""


class StateStore:
    """One task instance's part of *store*, as one try sees it. *retention* is how Airflow spells "for ever".

    A call that ends without an answer may leave one behind, which the next call
    would take for its own: after it, every further call is refused.
    """

    def __init__(self, store: Store, *, retention: timedelta | None = None) -> None:
        self._store = store
        self._retention = retention
        self.refused: LedgerFailed | None = None
        """Why every further call is refused, if it is."""

    def get(self, key: str) -> str | None:
        """Return the text under *key*, None if there is none."""
        value = self._call(self._store.get, key)
        if value is None or isinstance(value, str):
            return value
        raise LedgerFailed(f"Airflow's task state store holds a value under {key} that this provider did not write")

    def set(self, key: str, value: str) -> None:
        """Write *value* durably."""
        self._call(self._store.set, key, value, retention=self._retention)

    def delete(self, key: str) -> None:
        """Remove *key*, if it is there; raise `Fenced` if this try was replaced, which reading does not tell."""
        self._call(self._store.delete, key)

    def _call(self, function: Callable[..., T], *args: str, **kwargs: timedelta | None) -> T:
        """Call the store, and name what goes wrong."""
        if self.refused:
            raise self.refused
        try:
            return function(*args, **kwargs)
        except BaseException as error:
            if status_of_store(error) in REPLACED:
                self.refused = Fenced(
                    "Airflow refuses this try's writes: another try of the task has taken its place, or it was cleared"
                )
                raise self.refused from error
            failure = LedgerFailed(f"Airflow's task state store failed ({type(error).__name__}): {error}")
            if not is_answer_of_store(error):
                self.refused = failure
            if isinstance(error, Exception):
                raise failure from error
            raise
