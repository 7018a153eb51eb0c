"""The page's addresses, mounted into Airflow's API server."""

import csv
import io
from collections.abc import Awaitable, Callable, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote, urlencode

from airflow.api_fastapi.core_api.security import GetUserDep
from fastapi import Depends, FastAPI, Form, Query, Request, Response
from fastapi.exception_handlers import http_exception_handler
from fastapi.responses import HTMLResponse, StreamingResponse
from fastapi.staticfiles import StaticFiles
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.exceptions import HTTPException as AnyHTTPException

from airflow_provider_responsys import __version__
from airflow_provider_responsys.errors import InvalidSettings, LedgerFailed
from airflow_provider_responsys.links import TAB
from airflow_provider_responsys.page import views
from airflow_provider_responsys.page.access import (
    LookUps,
    from_our_page,
    may_read,
    readable,
    readable_dags,
)
from airflow_provider_responsys.page.identity import IDENTIFIERS, identity_of
from airflow_provider_responsys.page.sources import PAGE, Ledger, LedgerState, Wanted, ledger_read
from airflow_provider_responsys.report.from_airflow import Kind
from airflow_provider_responsys.report.model import PushState, PushTask

HERE = Path(__file__).parent
MOUNT = "/responsys"
"""The last part of the path that the page is mounted at; before it is Airflow's own."""

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'self'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
}

SORRY = {
    401: ("Please sign in", "You are not signed in to Airflow any more. Sign in again, and come back."),
    403: ("Not for you", "You may not see this. Ask an administrator of Airflow for the right to read its DAG."),
    404: ("Not here", "There is no such page."),
    413: ("Too much", "This form is too large."),
    503: ("The ledger can't be read", "The SQL ledger did not answer. The API server's log says why; try again."),
}

app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
app.mount("/static", StaticFiles(directory=HERE / "static"), name="static")
look_ups = LookUps()

pages = Environment(
    loader=FileSystemLoader(HERE / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
pages.filters |= {
    "number": views.number,
    "moment": views.moment,
    "clock": views.clock,
}
pages.globals |= {
    "bar": views.bar,
    "sentence": views.sentence,
    "lasted": views.lasted,
    "share": views.share,
    "version": __version__,
    "PushState": PushState,
    "LedgerState": LedgerState,
    "Kind": Kind,
}


@app.middleware("http")
async def protect(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
    """Let a browser load nothing but our own files, and keep nothing."""
    response = await call_next(request)
    response.headers.update(HEADERS)
    if "etag" in response.headers:  # a file of ours, which holds no data: asked for again, and rarely sent again
        response.headers["Cache-Control"] = "no-cache"
    return response


@app.exception_handler(AnyHTTPException)
async def explain(request: Request, error: AnyHTTPException) -> Response:
    """Answer a browser with a sentence, and a program with JSON."""
    if error.status_code not in SORRY or "text/html" not in request.headers.get("accept", ""):
        return await http_exception_handler(request, error)
    return _sorry(request, error.status_code)


@app.exception_handler(LedgerFailed)
def explain_ledger(request: Request, _: LedgerFailed) -> Response:
    """Answer while the ledger can't be read."""
    return _sorry(request, 503)


def a_ledger() -> Iterator[Ledger]:
    """Give the ledger for one answer."""
    with ledger_read() as ledger:
        yield ledger


LedgerDep = Annotated[Ledger, Depends(a_ledger)]
Day = Annotated[str, Query(pattern=r"^(\d{4}-\d{2}-\d{2})?$")]
PageNumber = Annotated[int, Query(ge=1, le=100_000)]


@app.get("/pushes", response_class=HTMLResponse)
def pushes(
    *,
    request: Request,
    user: GetUserDep,
    ledger: LedgerDep,
    campaign: Annotated[str, Query(max_length=500)] = "",
    state: Annotated[str, Query(max_length=20)] = "",
    since: Day = "",
    until: Day = "",
    page: PageNumber = 1,
) -> HTMLResponse:
    """Show a page of the pushes of the DAGs that the user may read."""
    wanted = Wanted(
        dag_ids=readable_dags(user),
        campaign=campaign.strip() or None,
        state=PushState(state) if state in set(PushState) else None,
        since=_day(since),
        until=_day(until, timedelta(days=1)),
        page=page,
    )
    listed = ledger.pushes(wanted)
    readable_now = {dag_id for dag_id in {push.task.dag_id for push in listed.pushes} if may_read(user, dag_id)}
    shown = [push for push in listed.pushes if push.task.dag_id in readable_now]
    given = {"campaign": campaign.strip(), "state": state, "since": since, "until": until}
    return _page(
        request,
        "pushes.html",
        ledger=ledger,
        pushes=shown,
        total=listed.total,
        progress=listed.progress,
        cut=listed.cut,
        given=given,
        filtered=any(given.values()),
        paging=_paging(page, listed.total, given),
    )


@app.get("/push", response_class=HTMLResponse)
def push(
    *,
    request: Request,
    dag_id: Annotated[str, Depends(readable)],
    ledger: LedgerDep,
    run_id: str = "",
    task_id: str = "",
    map_index: Annotated[str, Query(max_length=20)] = "",
    page: PageNumber = 1,
    tab: str = "",
) -> HTMLResponse:
    """Show what is known of one task: a push, a wait, or neither."""
    task = _task(dag_id, run_id, task_id, map_index)
    shown = ledger.push(task, page)
    report = shown.report
    query = _query(task, tab)
    return _page(
        request,
        "push.html",
        ledger=ledger,
        shown=shown,
        report=report,
        found=shown.task,
        task=task,
        tab=bool(tab),
        curve=views.curve(report.accepted_over_time, report.summary.began_at) if report else None,
        now=datetime.now(UTC),
        csv=f"push/outcomes.csv?{urlencode(_query(task, ''))}",
        paging=_paging(page, report.batch_count, query) if report else None,
    )


@app.get("/push/outcomes.csv")
def outcomes(
    dag_id: Annotated[str, Depends(readable)],
    run_id: str = "",
    task_id: str = "",
    map_index: Annotated[str, Query(max_length=20)] = "",
) -> StreamingResponse:
    """Send the outcome of each recipient by its request and position: no recipient is named."""
    task = _task(dag_id, run_id, task_id, map_index)
    return StreamingResponse(
        _csv(task),
        media_type="text/csv; charset=utf-8",
        headers={"Content-Disposition": 'attachment; filename="responsys-outcomes.csv"'},
    )


@app.get("/recipient", response_class=HTMLResponse)
def recipient(request: Request, user: GetUserDep, ledger: LedgerDep) -> HTMLResponse:  # noqa: ARG001 -- signed in
    """Show the form that looks up one recipient."""
    return _recipient(request, ledger)


@app.post("/recipient", response_class=HTMLResponse, dependencies=[Depends(from_our_page)])
def look_up(
    *,
    request: Request,
    user: GetUserDep,
    ledger: LedgerDep,
    identifier: Annotated[str, Form()] = "",
    value: Annotated[str, Form()] = "",
    api_key: Annotated[str, Form()] = "",
) -> HTMLResponse:
    """Show in which sends one recipient is recorded. What was typed is in no address, no log and no answer."""
    if wait := look_ups.wait(str(user.get_id())):
        text = f"That was many look-ups in a minute. The next one is possible in {wait:.0f} seconds."
        return _recipient(request, ledger, identifier=identifier, problem=text, status=429)
    try:
        identity = identity_of(identifier, value, api_key)
    except InvalidSettings as error:
        return _recipient(request, ledger, identifier=identifier, problem=str(error), status=422)
    found = [(one, one.task.dag_id) for one in ledger.person(identity) if one.task is not None]
    allowed = {dag_id for dag_id in {dag_id for _, dag_id in found} if may_read(user, dag_id)}
    sends = [one for one, dag_id in found if dag_id in allowed]
    return _recipient(request, ledger, identifier=identifier, sends=sends)


def _recipient(
    request: Request,
    ledger: Ledger,
    *,
    identifier: str = "",
    problem: str = "",
    sends: list[Any] | None = None,
    status: int = 200,
) -> HTMLResponse:
    return _page(
        request,
        "recipient.html",
        status=status,
        ledger=ledger,
        identifiers=IDENTIFIERS,
        identifier=identifier if identifier in IDENTIFIERS else "",
        problem=problem,
        sends=sends,
    )


def _page(request: Request, template: str, *, status: int = 200, **values: Any) -> HTMLResponse:
    root = request.scope.get("root_path", "")
    above = root.removesuffix(MOUNT)

    def push_address(task: PushTask) -> str:
        return f"{root}/push?{urlencode(_query(task, ''))}"

    def airflow_address(task: PushTask, what: str = "") -> str:
        """Return the address of *what* of *task* in Airflow's own UI."""
        dag_id, run_id, task_id = (quote(name, safe="") for name in (task.dag_id, task.run_id, task.task_id))
        mapped = f"/mapped/{task.map_index}" if task.map_index is not None and task.map_index >= 0 else ""
        return f"{above}/dags/{dag_id}/runs/{run_id}/tasks/{task_id}{mapped}{what}"

    text = pages.get_template(template).render(
        root=root,
        above=above,
        push_address=push_address,
        airflow_address=airflow_address,
        report_tab=f"/plugin/{TAB}",
        **values,
    )
    return HTMLResponse(text, status)


def _sorry(request: Request, status: int) -> HTMLResponse:
    title, text = SORRY[status]
    return _page(request, "sorry.html", status=status, title=title, text=text)


def _task(dag_id: str, run_id: str, task_id: str, map_index: str) -> PushTask:
    """Return the task that is asked for. The UI leaves a placeholder as it is where it has no value for it."""
    run_id, task_id, place = ("" if text.startswith("{") else text for text in (run_id, task_id, map_index))
    number = int(place) if place.removeprefix("-").isdecimal() else -1
    # Airflow 3.1 does not encode the plus sign of a run's id, and no id has a space.
    run_id = run_id.replace(" ", "+")
    return PushTask(dag_id=dag_id, run_id=run_id, task_id=task_id, map_index=number if number >= 0 else None)


def _query(task: PushTask, tab: str) -> dict[str, str]:
    query = {"dag_id": task.dag_id, "run_id": task.run_id, "task_id": task.task_id}
    if task.map_index is not None:
        query["map_index"] = str(task.map_index)
    return {**query, "tab": "1"} if tab else query


def _paging(page: int, total: int, query: dict[str, str]) -> dict[str, Any]:
    """Return what a template needs to lead to the pages before and after."""
    first = (page - 1) * PAGE + 1
    last = min(total, page * PAGE)
    given = {name: value for name, value in query.items() if value}

    def to(number: int) -> str:
        return "?" + urlencode({**given, "page": str(number)})

    return {
        "first": first,
        "last": last,
        "total": total,
        "many": total > PAGE,
        "before": to(page - 1) if page > 1 else None,
        "after": to(page + 1) if last < total else None,
    }


def _day(text: str, later: timedelta = timedelta()) -> datetime | None:
    try:
        return datetime.fromisoformat(text).replace(tzinfo=UTC) + later if text else None
    except (ValueError, OverflowError):
        return None


def _csv(task: PushTask) -> Iterator[str]:
    """Yield the lines of the file, some at a time. Its ledger is its own: it is sent after the answer has begun."""
    with ledger_read() as ledger:
        yield from _lines(ledger.outcomes(task))


def _lines(rows: Iterable[tuple[Any, ...]]) -> Iterator[str]:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("request_id", "position", "outcome", "code"))
    for number, row in enumerate(rows, start=1):
        writer.writerow(row)
        if number % PAGE == 0:
            yield text.getvalue()
            text.seek(0)
            text.truncate()
    yield text.getvalue()
