"""Who may see which push, by the rights for single DAGs that Airflow's FAB auth manager has."""

from collections.abc import Callable
from typing import Any

import pytest

PASSWORD = "only-for-this-test"
ROLES = {
    "one-dag": [("can_read", "DAG:allowed"), ("can_read", "DAG Runs")],
    "all-dags": [("can_read", "DAGs"), ("can_read", "DAG Runs")],
    "no-runs": [("can_read", "DAG:allowed")],
    "nothing": [],
}
BOTH = ["/push", "/push/outcomes.csv"]


@pytest.fixture(scope="module")
def signed_in(server: Callable[[], Any], dags: list[str]) -> Callable[[str], Any]:
    """Give a function that signs in a user with one of `ROLES`, at Airflow itself."""
    server()
    from airflow.providers.fab.auth_manager.cli_commands.utils import (  # noqa: PLC0415 -- Airflow comes with the server
        get_application_builder,
    )

    with get_application_builder() as builder:
        security = builder.sm
        for role, rights in ROLES.items():
            made = security.add_role(role)
            for action, resource in rights:
                security.add_permission_to_role(made, security.create_permission(action, resource))
            security.add_user(role, role, role, f"{role}@example.com", made, password=PASSWORD)

    def sign_in(role: str) -> Any:
        client = server()
        answer = client.post("/auth/token", json={"username": role, "password": PASSWORD})
        client.cookies.set("_token", answer.json()["access_token"])
        return client

    return sign_in


@pytest.mark.parametrize("address", BOTH)
@pytest.mark.parametrize(
    ("role", "dag_id", "status"),
    [
        ("one-dag", "allowed", 200),
        ("one-dag", "forbidden", 403),
        ("one-dag", "no_such_dag", 403),
        ("all-dags", "allowed", 200),
        ("all-dags", "forbidden", 200),
        ("no-runs", "allowed", 403),
        ("nothing", "allowed", 403),
    ],
)
def test_a_push_is_shown_to_whom_its_dag_is(
    signed_in: Callable[[str], Any], address: str, role: str, dag_id: str, status: int
) -> None:
    """By the right to read the runs of that very DAG."""
    answer = signed_in(role).get(f"/responsys{address}", params={"dag_id": dag_id, "run_id": "r", "task_id": "t"})

    assert answer.status_code == status
    assert "Content-Security-Policy" in answer.headers  # the page's own answer: Airflow's UI answers at any address


@pytest.mark.parametrize("address", BOTH)
@pytest.mark.parametrize("query", ["", "?dag_id=", "?dag=forbidden"])
def test_without_the_id_of_a_dag_nothing_is_shown(signed_in: Callable[[str], Any], address: str, query: str) -> None:
    """Airflow's own check would let this user pass, who may read another DAG."""
    assert signed_in("one-dag").get(f"/responsys{address}{query}").status_code == 422


@pytest.mark.parametrize("address", ["/pushes", "/recipient", "/push?dag_id=allowed"])
def test_without_a_sign_in_there_is_nothing(server: Callable[[], Any], address: str) -> None:
    """The page asks by itself."""
    assert server().get(f"/responsys{address}").status_code == 401


@pytest.mark.parametrize(
    ("role", "readable"), [("one-dag", {"allowed"}), ("all-dags", {"allowed", "forbidden"}), ("nothing", set())]
)
def test_the_list_is_asked_for_with_the_dags_that_may_be_read(
    signed_in: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch, role: str, readable: set[str]
) -> None:
    """And no other is looked up."""
    from airflow_provider_responsys.page import sources  # noqa: PLC0415 -- Airflow comes with the server

    asked: list[set[str]] = []
    real = sources.Ledger.pushes

    def noted(ledger: Any, wanted: Any) -> Any:
        asked.append(set(wanted.dag_ids))
        return real(ledger, wanted)

    monkeypatch.setattr(sources.Ledger, "pushes", noted)

    assert signed_in(role).get("/responsys/pushes").status_code == 200
    assert asked == [readable]
