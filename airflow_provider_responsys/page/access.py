"""Who may see what: a mounted page inherits nothing of Airflow's protection."""

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Annotated
from urllib.parse import urlsplit

from airflow.api_fastapi.app import get_auth_manager
from airflow.api_fastapi.auth.managers.models.base_user import BaseUser
from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity, DagDetails
from airflow.api_fastapi.core_api.security import GetUserDep
from airflow.providers.common.compat.sdk import conf
from fastapi import HTTPException, Query, Request, status

from airflow_provider_responsys.airflow_internals import team_of

LOOK_UPS = 30
PER = 60.0
"""A user may look up so many recipients in so many seconds, in each process of the API server."""

MOST_FORM = 16 * 1024
"""Bytes of a form: a recipient's identifier is short."""


def may_read(user: BaseUser, dag_id: str) -> bool:
    """Return whether *user* may read the runs of the DAG *dag_id*."""
    multi_team = conf.getboolean("core", "multi_team", fallback=False)
    # Only a version with teams takes a team's name.
    details = DagDetails(id=dag_id, team_name=team_of(dag_id)) if multi_team else DagDetails(id=dag_id)
    return get_auth_manager().is_authorized_dag(
        method="GET", access_entity=DagAccessEntity.RUN, details=details, user=user
    )


def readable_dags(user: BaseUser) -> set[str]:
    """Return the DAGs that *user* may read. What is shown of one is checked again with `may_read`."""
    return get_auth_manager().get_authorized_dag_ids(user=user, method="GET")


def readable(user: GetUserDep, dag_id: Annotated[str, Query(min_length=1)]) -> str:
    """Return *dag_id*, or refuse a user who may not read it."""
    # Airflow's own `requires_access_dag` lets a user who may read any DAG pass where the id is not where it looks.
    if not may_read(user, dag_id):
        raise HTTPException(status.HTTP_403_FORBIDDEN)
    return dag_id


def from_our_page(request: Request) -> None:
    """Refuse a form that another site's page sends, and one that no person typed."""
    origin, site = request.headers.get("origin"), request.headers.get("sec-fetch-site", "same-origin")
    hosts = {request.headers.get("host", ""), urlsplit(conf.get("api", "base_url", fallback="")).netloc}
    if site not in ("same-origin", "none") or (origin is not None and urlsplit(origin).netloc not in hosts - {""}):
        raise HTTPException(status.HTTP_403_FORBIDDEN)
    length = request.headers.get("content-length", "")
    if not length.isdigit() or int(length) > MOST_FORM:
        raise HTTPException(status.HTTP_413_CONTENT_TOO_LARGE)


class LookUps:
    """Bounds how many recipients each user may look up in a while."""

    def __init__(self, most: int = LOOK_UPS, per: float = PER, clock: Callable[[], float] = time.monotonic) -> None:
        self._most = most
        self._per = per
        self._clock = clock
        self._made: dict[str, deque[float]] = {}
        self._lock = threading.Lock()

    def wait(self, user: str) -> float:
        """Count one look-up of *user* and return 0.0, or return in how many seconds the next one is allowed."""
        with self._lock:
            now = self._clock()
            self._forget(now)
            made = self._made.setdefault(user, deque())
            if len(made) >= self._most:
                return made[0] + self._per - now
            made.append(now)
            return 0.0

    def _forget(self, now: float) -> None:
        for user, made in list(self._made.items()):
            while made and made[0] <= now - self._per:
                made.popleft()
            if not made:
                del self._made[user]
