"""Who may see the page: through Airflow's own server, its sign-in and its cookie."""

import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from airflow_provider_responsys.page import access
from airflow_provider_responsys.page import app as page_app
from airflow_provider_responsys.page.access import LookUps

RECIPIENT = "person-17"
ADDRESSES = ("/pushes", "/push?dag_id=well", "/push/outcomes.csv?dag_id=well", "/recipient")
FORM = {"identifier": "customerId", "value": RECIPIENT}


@pytest.fixture(autouse=True)
def fresh_look_ups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no test count what another has looked up."""
    monkeypatch.setattr(page_app, "look_ups", LookUps())


@pytest.fixture
def only_well(monkeypatch: pytest.MonkeyPatch, server: Callable[[], Any]) -> None:
    """Let the auth manager allow one DAG alone: Airflow's simple one knows no rights for a DAG."""
    from airflow.api_fastapi.app import get_auth_manager  # noqa: PLC0415 -- with the server

    manager = get_auth_manager()

    def is_authorized_dag(*, details: Any = None, **_: Any) -> bool:
        return details is None or details.id is None or details.id == "well"

    monkeypatch.setattr(manager, "is_authorized_dag", is_authorized_dag)
    monkeypatch.setattr(manager, "get_authorized_dag_ids", lambda **_: {"well"})


@pytest.mark.parametrize("address", ADDRESSES)
def test_without_a_sign_in_there_is_nothing(stranger: Any, address: str) -> None:
    """A mounted page inherits no protection: each address asks by itself."""
    assert stranger.get(f"/responsys{address}").status_code == 401


def test_a_look_up_needs_a_sign_in(stranger: Any) -> None:
    """The form as well."""
    assert stranger.post("/responsys/recipient", data=FORM).status_code == 401


@pytest.mark.parametrize("address", ADDRESSES)
def test_a_wrong_token_opens_nothing(stranger: Any, address: str) -> None:
    """As in Airflow itself."""
    stranger.cookies.set("_token", "no-token")

    assert stranger.get(f"/responsys{address}").status_code == 403


@pytest.mark.parametrize("address", ADDRESSES)
def test_a_viewer_may_look(page: Any, with_ledger: Any, address: str) -> None:
    """Reading a DAG's runs is enough."""
    assert page.get(f"/responsys{address}").status_code == 200


@pytest.mark.parametrize("query", ["", "?dag_id=", "?dag=well"])
@pytest.mark.parametrize("address", ["/push", "/push/outcomes.csv"])
def test_without_the_id_of_a_dag_nothing_is_shown(page: Any, address: str, query: str) -> None:
    """Airflow's own check lets a user who may read any DAG pass where there is no id."""
    assert page.get(f"/responsys{address}{query}").status_code == 422


@pytest.mark.parametrize("address", ["/push", "/push/outcomes.csv"])
def test_the_push_of_a_dag_that_may_not_be_read_is_not_shown(
    page: Any, with_ledger: Any, only_well: None, address: str
) -> None:
    """By the very id that the push is looked up with."""
    assert page.get(f"/responsys{address}", params=with_ledger.query("well")).status_code == 200
    assert page.get(f"/responsys{address}", params=with_ledger.query("hidden")).status_code == 403


@pytest.mark.parametrize("ledger", [True, False])
def test_the_list_has_only_dags_that_may_be_read(
    page: Any, request: pytest.FixtureRequest, only_well: None, ledger: bool
) -> None:
    """With a ledger and without."""
    if ledger:
        request.getfixturevalue("with_ledger")

    text = page.get("/responsys/pushes").text

    assert "Campaign_well" in text
    assert "Campaign_hidden" not in text
    assert "Campaign_doubtful" not in text


def test_a_list_that_knows_too_many_dags_shows_none_of_them(
    page: Any, with_ledger: Any, only_well: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each DAG of a page is asked for again, as its own page is."""
    monkeypatch.setattr(page_app, "readable_dags", lambda _: {"well", "hidden"})

    assert "Campaign_hidden" not in page.get("/responsys/pushes").text


def test_a_look_up_tells_only_of_dags_that_may_be_read(page: Any, with_ledger: Any, only_well: None) -> None:
    """Nor how many others there are."""
    text = page.post("/responsys/recipient", data=FORM).text

    assert "Campaign_well" in text
    assert "1 send<" in text
    assert "Campaign_hidden" not in text


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://elsewhere.example"},
        {"Origin": "null"},
        {"Origin": "http://testserver", "Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_a_form_of_another_site_is_refused(page: Any, with_ledger: Any, headers: dict[str, str]) -> None:
    """The browser sends the cookie along: only the origin tells."""
    assert page.post("/responsys/recipient", data=FORM, headers=headers).status_code == 403


@pytest.mark.parametrize("headers", [{}, {"Origin": "http://testserver", "Sec-Fetch-Site": "same-origin"}])
def test_our_own_form_is_answered(page: Any, with_ledger: Any, headers: dict[str, str]) -> None:
    """With the headers that a browser sends, and without."""
    assert page.post("/responsys/recipient", data=FORM, headers=headers).status_code == 200


def test_a_form_that_no_person_typed_is_refused(page: Any, with_ledger: Any) -> None:
    """An identifier is short."""
    assert page.post("/responsys/recipient", data={**FORM, "value": "x" * 20_000}).status_code == 413


def test_look_ups_are_bounded(page: Any, with_ledger: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page is no way to try out identifiers one by one."""
    monkeypatch.setattr(page_app, "look_ups", LookUps(most=2))

    answers = [page.post("/responsys/recipient", data=FORM) for _ in range(3)]

    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert re.search(r"possible in \d+ seconds", answers[2].text)
    assert "Campaign_well" not in answers[2].text


def test_the_bound_is_each_users_own_and_passes() -> None:
    """Thirty in any minute."""
    now = SimpleNamespace(at=0.0)
    bound = LookUps(clock=lambda: now.at)

    waits = [bound.wait("anna") for _ in range(access.LOOK_UPS + 1)]
    others = bound.wait("bert")
    now.at = 60.0
    later = bound.wait("anna")

    assert waits == [0.0] * access.LOOK_UPS + [60.0]
    assert (others, later) == (0.0, 0.0)
    assert set(bound._made) == {"anna"}


def test_the_browser_may_load_our_own_files_alone(page: Any) -> None:
    """Nothing inline, nothing from elsewhere, nothing kept."""
    headers = page.get("/responsys/pushes").headers

    policy = dict(part.split(" ", 1) for part in headers["Content-Security-Policy"].split("; "))
    assert policy == {
        "default-src": "'none'",
        "style-src": "'self'",
        "script-src": "'self'",
        "img-src": "'self'",
        "connect-src": "'self'",
        "form-action": "'self'",
        "base-uri": "'none'",
        "frame-ancestors": "'self'",
    }
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cache-Control"] == "no-store"


def test_a_browser_is_told_in_words(stranger: Any) -> None:
    """JSON in a frame helps no person."""
    text = stranger.get("/responsys/pushes", headers={"Accept": "text/html"}).text

    assert "Please sign in" in text


def test_there_is_no_map_of_the_addresses(page: Any) -> None:
    """The framework's own pages are off."""
    assert [page.get(f"/responsys/{name}").status_code for name in ("docs", "redoc", "openapi.json")] == [404] * 3
