"""What is private of Airflow's: it is there in the version that is installed; where it is not, all fails closed."""

import inspect
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import BaseOperator
from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance

from airflow_provider_responsys.airflow_internals import (
    RENDER,
    RendersAside,
    is_answer_of_store,
    left_by_earlier_tries,
    status_of_store,
)
from airflow_provider_responsys.errors import InvalidSettings
from airflow_provider_responsys.ledger import tries


class Aside(RendersAside):
    """Notes what was rendered."""

    def __init__(self) -> None:
        self.taken: list[str] = []

    def take_rendered(self, fields: Iterable[str]) -> None:
        """Note it."""
        self.taken += fields


class Renders:
    """What an operator of Airflow's is to the mixin."""

    def _do_render_template_fields(self, parent: Any, template_fields: Iterable[str], *_: Any) -> None:
        assert parent is self


class Whole(Aside, Renders):
    """As our operator is put together."""


def test_this_airflow_renders_as_expected() -> None:
    """The method is there, with the parameters that the mixin takes and passes on."""
    ours, airflows = (inspect.signature(getattr(owner, RENDER)) for owner in (RendersAside, BaseOperator))

    assert list(ours.parameters) == list(airflows.parameters)


def test_what_was_rendered_is_taken_out() -> None:
    """After Airflow, and only of the fields that it rendered."""
    operator = Whole()

    operator.check_rendering()
    operator._do_render_template_fields(operator, ("recipients",), {}, None, set())

    assert operator.taken == ["recipients"]


def test_an_airflow_that_renders_otherwise() -> None:
    """The recipients would be stored and shown: the task is refused when its DAG is read."""
    with pytest.raises(InvalidSettings, match="would store and show the recipients"):
        Aside().check_rendering()


def test_this_airflow_tells_what_it_deletes() -> None:
    """The attribute is one of its task instance's."""
    assert "_ti_context_from_server" in RuntimeTaskInstance.model_fields | RuntimeTaskInstance.__private_attributes__


@pytest.mark.parametrize("ti", [SimpleNamespace(), SimpleNamespace(_ti_context_from_server=SimpleNamespace())])
def test_an_airflow_that_does_not_tell_what_it_deletes(ti: Any) -> None:
    """A second try counts as one after another that may have claimed."""
    left = left_by_earlier_tries(ti)

    assert left is None
    assert tries.may_have_claimed(try_number=2, max_tries=0, retries=0, left=left) is not False


def test_nothing_left_is_not_unknown() -> None:
    """Airflow tells it as a list that may be empty, or None."""
    ti = SimpleNamespace(_ti_context_from_server=SimpleNamespace(xcom_keys_to_clear=None))

    assert left_by_earlier_tries(ti) == ()


def test_an_error_of_the_store_that_looks_otherwise() -> None:
    """It is no answer, and says nothing of a replaced try: the store is not called again."""
    error = RuntimeError("gone")

    assert not is_answer_of_store(error)
    assert status_of_store(error) is None
