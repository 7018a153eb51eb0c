"""A pytest fixture for the tests of your DAGs.

In ``conftest.py``::

    pytest_plugins = ["airflow_provider_responsys.sandbox.fixtures"]

or, in any test file::

    from airflow_provider_responsys.sandbox.fixtures import responsys_sandbox
"""

import json
from collections.abc import Iterator

import pytest

from airflow_provider_responsys.sandbox.instance import Sandbox

CONNECTION_VARIABLE = "AIRFLOW_CONN_RESPONSYS_DEFAULT"


@pytest.fixture
def responsys_sandbox(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sandbox]:
    """Give each test a Responsys of its own, which the connection ``responsys_default`` leads to."""
    with Sandbox() as sandbox:
        monkeypatch.setenv(CONNECTION_VARIABLE, json.dumps(sandbox.connection()))
        yield sandbox
