"""Airflow's own task state backend, in which writes can be late. The API server alone imports it."""

import time
from functools import partial
from typing import Any

from airflow.state.metastore import MetastoreBackend
from fastapi import HTTPException

from airflow_provider_responsys.progress import PUSH, WAIT
from tests.faults.late import CLIENT_GIVES_UP, WRITES, LostAnswer, Write

NOTES = (PUSH, WAIT)
"""Keys that are for people alone: nothing happens to them."""

GATEWAY_TIMEOUT = 504


class LateBackend(MetastoreBackend):
    """Does each write when the fault suite says."""

    def set(self, scope: Any, key: str, value: str, *, expires_at: Any = None, session: Any = None) -> None:
        """Write a value."""
        real = super().set
        self._take(scope, key, lambda session: real(scope, key, value, expires_at=expires_at, session=session), session)

    def delete(self, scope: Any, key: str, *, session: Any = None) -> None:
        """Remove a key."""
        real = super().delete
        self._take(scope, key, lambda session: real(scope, key, session=session), session)

    def _take(self, scope: Any, key: str, write: Write, session: Any) -> None:
        if key in NOTES:
            write(session)
            return
        try:
            WRITES.take(scope.run_id, partial(write), session)
        except LostAnswer as lost:
            if lost.silent:
                time.sleep(2 * CLIENT_GIVES_UP)
            raise HTTPException(GATEWAY_TIMEOUT, "no answer in time") from None
