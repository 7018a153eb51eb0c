"""The places where a ledger can be kept."""

import pytest

from tests.support.places import Place, TaskStatePlace
from tests.support.sql_places import database, mariadb, postgresql, sqlite  # noqa: F401 -- fixtures


@pytest.fixture
def task_state() -> TaskStatePlace:
    """Give a task state store."""
    return TaskStatePlace()


@pytest.fixture(params=["task_state", "sqlite", "postgresql", "mariadb"])
def place(request: pytest.FixtureRequest) -> Place:
    """Give each durable store in turn."""
    place: Place = request.getfixturevalue(request.param)
    return place
