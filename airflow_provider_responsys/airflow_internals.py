"""Everything private of Airflow's that is used here: what for, where it was seen, and what happens where it is absent.

Each fails closed: without it, nothing is sent that should not be, and nothing is
stored that must not be seen. Nothing here imports Airflow.
"""

import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from airflow_provider_responsys.errors import InvalidSettings

PROCESS_CONTEXT: Final = "_AIRFLOW_PROCESS_CONTEXT"
RENDER: Final = "_do_render_template_fields"


class RendersAside:
    """Takes values out of an operator's fields after Airflow has rendered them, and before it stores and shows them.

    For that it overrides ``_do_render_template_fields``, the one method that both
    plain and mapped tasks are rendered by. Seen on Airflow 3.1.8 and 3.3.2. Absent:
    `check_rendering` refuses the task when its DAG is read.
    """

    def take_rendered(self, fields: Iterable[str]) -> None:
        """Take what must not be seen out of *fields*, which have just been rendered."""
        raise NotImplementedError

    def check_rendering(self) -> None:
        """Raise `InvalidSettings` where `take_rendered` would not be called."""
        if not hasattr(super(), RENDER):
            raise InvalidSettings(
                "this version of Airflow renders templates in a way that this provider does not know, and would store "
                "and show the recipients: give sql instead, or another version of the provider"
            )

    def _do_render_template_fields(
        self, parent: Any, template_fields: Iterable[str], context: Any, jinja_env: Any, seen_oids: set[int]
    ) -> None:
        super()._do_render_template_fields(parent, template_fields, context, jinja_env, seen_oids)  # type: ignore[misc]  # of the operator that this is mixed into
        self.take_rendered(template_fields)


class PokesInTime:
    """Lets a sensor look once more when its wait ends, however long its interval is.

    For that it overrides ``_get_next_poke_interval``, which both modes ask. Seen on
    Airflow 3.3.2. Absent: the wait ends up to one interval late.
    """

    def seconds_left(self) -> float:
        """Return for how long the wait may go on."""
        raise NotImplementedError

    def _get_next_poke_interval(self, *args: Any, **kwargs: Any) -> float:
        usual: float = super()._get_next_poke_interval(*args, **kwargs)  # type: ignore[misc]  # of the sensor that this is mixed into
        return max(0.0, min(usual, self.seconds_left()))


def left_by_earlier_tries(ti: Any) -> Collection[str] | None:
    """Return the XCom keys that Airflow found when this try of *ti* started, and deletes; None where it does not say.

    They say whether an earlier try may have claimed recipients. In
    ``_ti_context_from_server`` of the task instance; seen on Airflow 3.1.8 and
    3.3.2. Absent: None, with which a later try counts as one that may have claimed.
    """
    server: Any = getattr(ti, "_ti_context_from_server", None)
    return server.xcom_keys_to_clear or () if hasattr(server, "xcom_keys_to_clear") else None


@contextmanager
def connections_of_a_server() -> Iterator[None]:
    """Find connections in Airflow's database, too, as Airflow's own commands do.

    The environment's ``_AIRFLOW_PROCESS_CONTEXT`` says whether a process may. Seen on
    Airflow 3.3.2. Absent: such a connection is not found, and the command says so.
    """
    before = os.environ.get(PROCESS_CONTEXT)
    os.environ[PROCESS_CONTEXT] = "server"
    try:
        yield
    finally:
        os.environ.pop(PROCESS_CONTEXT)
        if before is not None:
            os.environ[PROCESS_CONTEXT] = before


def is_answer_of_store(error: BaseException) -> bool:
    """Return whether the task state store answered with *error*, as opposed to: it came instead of its answer.

    Airflow's ``AirflowRuntimeError`` has an ``error``, its client's error, as under
    `dag.test`, a ``response``. Seen on Airflow 3.3.2, the first with that store.
    Absent: it counts as no answer, after which the store is not called any more.
    """
    return hasattr(error, "error") or hasattr(error, "response")


def status_of_store(error: BaseException) -> object:
    """Return the HTTP status that the task state store answered with *error*, None where there is none.

    In the details of an ``AirflowRuntimeError``, or in the client's response: see
    `is_answer_of_store`. Absent: None, with which the write counts as failed, not as
    one of a try that was replaced; the try ends either way.
    """
    detail = getattr(getattr(error, "error", None), "detail", None)
    if isinstance(detail, Mapping):
        return detail.get("status_code")
    return getattr(getattr(error, "response", None), "status_code", None)
