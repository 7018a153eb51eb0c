"""A sandbox whose clock stands still, and a client that is logged in to it."""

from collections.abc import Iterator
from typing import Any

import pytest

from airflow_provider_responsys.sandbox import Clock, Sandbox
from tests.support.client import NOON, Client, Start


@pytest.fixture
def start() -> Iterator[Start]:
    """Give a function that starts a sandbox, its clock standing still, and logs a client in."""
    started: list[tuple[Sandbox, Client]] = []

    def run(*, log_in: bool = True, **settings: Any) -> tuple[Sandbox, Client]:
        sandbox = Sandbox(clock=Clock(frozen_at=NOON), **settings).start()
        client = Client(sandbox)
        started.append((sandbox, client))
        if log_in:
            assert client.log_in().status == 200
        return sandbox, client

    yield run

    for sandbox, client in started:
        client.connection.close()
        sandbox.stop()
