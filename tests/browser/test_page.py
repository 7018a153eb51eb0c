"""The page in a real Chromium, in Airflow's own frame, clicked through."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

pytestmark = pytest.mark.standalone

ENDED, DOUBTFUL, RUNNING, IN_SHARDS, NO_PUSH = "spring_offers", "autumn_sale", "winter_news", "in_shards", "report"
WIDTHS = (1440, 390)
THEMES = ("light", "dark")
TASKS = {
    "ended": (ENDED, "push"),
    "in-doubt": (DOUBTFUL, "push"),
    "running": (RUNNING, "push"),
    "in-shards": (IN_SHARDS, "push"),
    "wait": (ENDED, "wait"),
    "no-push": (NO_PUSH, "count"),
}
PAGES = ("pushes", "recipient", *TASKS)
FRAME = "iframe"


@pytest.fixture(scope="session")
def browser(chromium: str) -> Iterator[Any]:
    """Give a running Chromium."""
    from playwright.sync_api import sync_playwright  # noqa: PLC0415 -- installed for these tests alone

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(params=WIDTHS)
def width(request: pytest.FixtureRequest) -> int:
    """Give how wide the window is."""
    return int(request.param)


@pytest.fixture(params=THEMES)
def theme(request: pytest.FixtureRequest) -> str:
    """Give what Airflow's switch says."""
    return str(request.param)


@pytest.fixture
def window(browser: Any, ran: Any) -> Iterator[Any]:
    """Give a window that is signed in; fail where it complained, as it does of what the page's policy forbids."""
    context = browser.new_context(viewport={"width": WIDTHS[0], "height": 900}, color_scheme="light")
    page = context.new_page()
    page.set_default_timeout(60_000)
    page.goto(f"{ran.url}/auth/token/login")
    page.wait_for_load_state("load")
    said: list[str] = []
    page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: said.append(f"error: {error}"))
    yield page
    context.close()
    assert not [text for text in said if "Content Security Policy" in text or "responsys" in text], said


def address(ran: Any, name: str) -> str:
    """Return where the page *name* is, outside of Airflow's frame."""
    if name not in TASKS:
        return f"{ran.url}/responsys/{name}"
    dag_id, task_id = TASKS[name]
    query = {"dag_id": dag_id, "run_id": ran.runs[dag_id], "task_id": task_id}
    return f"{ran.url}/responsys/push?{urlencode(query)}"


@pytest.mark.parametrize("name", PAGES)
def test_each_page_is_usable_in_both_themes_and_on_a_phone(
    *, window: Any, ran: Any, name: str, theme: str, width: int, tmp_path: Path
) -> None:
    """Axe finds nothing, nothing is wider than the window, and the theme is the switch's, not the computer's."""
    from axe_playwright_python.sync_playwright import Axe  # noqa: PLC0415 -- installed for these tests alone

    window.set_viewport_size({"width": width, "height": 900})
    window.evaluate("theme => localStorage.setItem('theme', theme)", theme)
    window.goto(address(ran, name))
    folder = Path(os.environ.get("PICTURES", tmp_path))
    window.screenshot(path=folder / f"{name}-{theme}-{width}.png", full_page=True)

    found = Axe().run(window)

    assert found.violations_count == 0, found.generate_report()
    assert window.evaluate("document.documentElement.dataset.theme") == theme
    assert window.evaluate("document.documentElement.scrollWidth") <= width
    dark = window.evaluate("getComputedStyle(document.documentElement).backgroundColor") == "rgb(0, 0, 0)"
    assert dark == (theme == "dark")


def test_from_the_menu_to_a_push_and_back(window: Any, ran: Any) -> None:
    """In Airflow's own frame, which lets no link out by itself."""
    window.goto(ran.url)
    window.get_by_role("button", name="Browse").click()
    window.get_by_role("menuitem", name="Responsys pushes").click()
    frame = window.frame_locator(FRAME)

    frame.get_by_role("link", name="Autumn_Sale").click()
    frame.get_by_role("heading", name="Autumn_Sale").wait_for()
    frame.get_by_role("link", name="failed").click()

    window.wait_for_url(re.compile(r"/dags/autumn_sale/runs/.*/tasks/push"))
    assert window.locator(FRAME).count() == 0


def test_the_tab_of_a_task_shows_its_push(window: Any, ran: Any) -> None:
    """And leads to all pushes, out of the task."""
    window.goto(ran.tab(ENDED))
    frame = window.frame_locator(FRAME)
    frame.get_by_text("All 2,400 recipients were accepted.").wait_for()

    frame.get_by_role("link", name="All pushes").click()

    window.wait_for_url(re.compile(r"/plugin/responsys-pushes"))
    window.frame_locator(FRAME).get_by_role("heading", name="Pushes").wait_for()


def test_the_tab_of_another_task_says_so_kindly(window: Any, ran: Any) -> None:
    """It stands on each task of each DAG."""
    window.goto(ran.tab(NO_PUSH, "count"))

    window.frame_locator(FRAME).get_by_role("heading", name="No push here").wait_for()


@pytest.mark.parametrize("dag_id", [ENDED, DOUBTFUL, RUNNING])
def test_the_button_leads_to_the_report(window: Any, ran: Any, dag_id: str) -> None:
    """After a success, after a failure, and while it runs."""
    window.goto(ran.tab(dag_id).replace("/plugin/responsys-push", "/details"))

    window.get_by_role("link", name="Push report").click()

    window.wait_for_url(re.compile(r"/plugin/responsys-push"))
    window.frame_locator(FRAME).get_by_role("heading", level=1).wait_for()


def test_a_running_push_is_refreshed_where_it_was_scrolled_to(window: Any, ran: Any) -> None:
    """The part that changes is replaced: the place and the focus stay."""
    window.set_viewport_size({"width": WIDTHS[1], "height": 600})
    window.goto(address(ran, "running"))
    window.evaluate("document.getElementById('live').dataset.marked = 'before'")
    window.get_by_role("link", name="Outcomes as CSV").focus()
    window.evaluate("scrollTo(0, 300)")

    window.locator("#live:not([data-marked])").wait_for(state="attached")

    assert window.evaluate("scrollY") == 300
    assert window.evaluate("document.activeElement.textContent") == "Outcomes as CSV"


def test_one_recipient_is_looked_up_by_the_keyboard_alone(window: Any, ran: Any) -> None:
    """What is typed is masked until asked for, and in no address and no history."""
    window.goto(address(ran, "recipient"))
    before = window.evaluate("history.length")
    value = window.get_by_label("Value")
    window.get_by_label("Pushed by").focus()
    window.keyboard.type("Customer")
    window.keyboard.press("Tab")
    window.keyboard.type("person-18")
    masked = value.get_attribute("type")
    window.keyboard.press("Tab")
    window.keyboard.press("Enter")
    shown = value.get_attribute("type")

    value.press("Enter")
    window.get_by_role("link", name="Spring_Offers_2026").wait_for()

    assert (masked, shown) == ("password", "text")
    assert window.url == address(ran, "recipient")
    assert window.evaluate("history.length") == before
    assert "person-18" not in window.locator("#result").inner_html()


def test_the_outcomes_are_saved_from_within_the_frame(window: Any, ran: Any) -> None:
    """The frame allows downloads from 3.3.2 on."""
    window.goto(ran.tab(ENDED))

    with window.expect_download() as saved:
        window.frame_locator(FRAME).get_by_role("link", name="Outcomes as CSV").click()

    assert len(Path(saved.value.path()).read_text().splitlines()) == 2_401


def test_the_theme_follows_the_switch_at_once(window: Any, ran: Any) -> None:
    """Airflow's switch is no media query."""
    window.goto(f"{ran.url}/plugin/responsys-pushes")
    root = window.frame_locator(FRAME).locator("html")
    root.wait_for()

    window.evaluate("localStorage.setItem('theme', 'dark')")

    window.frame_locator(FRAME).locator("html[data-theme=dark]").wait_for()


def test_on_paper_there_is_nothing_to_click(window: Any, ran: Any) -> None:
    """And it is dark on white, whatever the theme."""
    window.evaluate("localStorage.setItem('theme', 'dark')")
    window.goto(address(ran, "in-doubt"))

    window.emulate_media(media="print")

    assert not window.locator("nav").first.is_visible()
    assert not window.get_by_role("link", name="Outcomes as CSV").is_visible()
    assert window.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert window.evaluate("getComputedStyle(document.body).color") == "rgb(0, 0, 0)"
