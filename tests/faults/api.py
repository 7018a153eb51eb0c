"""The execution API of Airflow over its own database, and what goes wrong in it: outages, and writes that are late."""

import json
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import quote

import requests

from tests.faults.home import START_WITHIN, Child, while_parent_lives
from tests.faults.late import BACKEND, Late

CONTROL = "/faults/"
"""Where the API server is told of writes that are to be late."""


class Outages:
    """An ASGI application that answers 500 instead of *app* while there is a file that says so.

    The files are in *folder*; each is JSON with a ``method``, texts that the path
    must contain (``path``), and the ``first`` of such requests that fails.
    """

    def __init__(self, app: Any, folder: Path) -> None:
        self._app = app
        self._folder = folder
        self._seen: dict[str, int] = {}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request."""
        if scope["type"] == "http" and self._is_down(scope["method"], scope["path"]):
            await _answer(send, 500, {"detail": "an outage"})
            return
        await self._app(scope, receive, send)

    def _is_down(self, method: str, path: str) -> bool:
        for file in self._folder.iterdir():
            try:
                outage = json.loads(file.read_text())
            except (OSError, ValueError):
                continue  # taken away, or being written
            if method == outage["method"] and all(text in path for text in outage["path"]):
                self._seen[file.name] = self._seen.get(file.name, 0) + 1
                return self._seen[file.name] >= int(outage["first"])
        return False


class Controls:
    """An ASGI application that takes orders about late writes, and passes all else to *app*.

    ``PUT /faults/<run>`` plans them, ``POST /faults/<run>/<flag>`` raises a flag;
    both answer with how many writes are held, and how many came late.
    """

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request."""
        if scope["type"] != "http" or not scope["path"].startswith(CONTROL):
            await self._app(scope, receive, send)
            return
        import asyncio  # noqa: PLC0415 -- only in the API server

        body = b""
        more = True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        await _answer(send, 200, await asyncio.to_thread(self._do, scope["path"], body))

    @staticmethod
    def _do(path: str, body: bytes) -> Mapping[str, int]:
        from tests.faults.late import WRITES  # noqa: PLC0415 -- only in the API server

        run_id, _, flag = path.removeprefix(CONTROL).partition("/")
        if body:
            WRITES.plan(run_id, [Late(**each) for each in json.loads(body)])
        elif flag:
            WRITES.raise_flag(run_id, flag)
        return WRITES.counts(run_id)


async def _answer(send: Any, status: int, body: Mapping[str, Any]) -> None:
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps(body).encode()})


def outage(home: Path, name: str, method: str, path: Sequence[str], first: int) -> Callable[[], None]:
    """Let the API server fail from the *first* request on whose path contains all of *path*; return what ends it."""
    file = home / "outages" / name
    hidden = home / f"{name}.outage"
    hidden.write_text(json.dumps({"method": method, "path": list(path), "first": first}))
    hidden.rename(file)
    return file.unlink


def plan_late(url: str, run_id: str, late: Sequence[Late]) -> None:
    """Let writes of the run *run_id* to the task state store be *late*."""
    _control("PUT", url, run_id, json=[asdict(each) for each in late])


def raise_flag(url: str, run_id: str, flag: str) -> None:
    """Let the writes be done that waited for *flag* alone."""
    _control("POST", url, f"{run_id}/{flag}")


def late_writes(url: str, run_id: str) -> Mapping[str, int]:
    """Return how many writes of the run were ``held``, how many were done ``late``, and how many it made."""
    return _control("GET", url, run_id)


def _control(method: str, url: str, path: str, **body: Any) -> Mapping[str, int]:
    answer = requests.request(method, f"{url.rstrip('/')}{CONTROL}{quote(path)}", timeout=60, **body)
    answer.raise_for_status()
    found: dict[str, int] = answer.json()
    return found


def serve_api(home: Path, url: str) -> Child:
    """Start the execution API of Airflow, with its own authentication, on *url*."""
    (home / "outages").mkdir()
    parent = os.getpid()

    def serve() -> None:
        import uvicorn  # noqa: PLC0415 -- comes with Airflow
        from airflow.api_fastapi.common.dagbag import create_dag_bag  # noqa: PLC0415 -- after `settle_in`
        from airflow.api_fastapi.execution_api.app import create_task_execution_api_app  # noqa: PLC0415 -- the same

        os.environ["AIRFLOW__STATE_STORE__BACKEND"] = BACKEND
        app = create_task_execution_api_app()
        app.state.dag_bag = create_dag_bag()

        def end_with_parent() -> None:
            while_parent_lives(parent)
            os._exit(0)

        threading.Thread(target=end_with_parent, daemon=True).start()
        port = int(url.rstrip("/").rpartition(":")[2])
        served = Controls(Outages(app, home / "outages"))
        uvicorn.run(served, host="127.0.0.1", port=port, log_level="error", access_log=False)

    return Child.fork(serve, home / "api.log")


def wait_for(url: str, child: Child, log: Path) -> None:
    """Wait until *child* serves *url*."""
    deadline = time.monotonic() + START_WITHIN
    while True:
        try:
            if requests.get(f"{url}health", timeout=5).status_code < 500:
                return
        except requests.RequestException:
            time.sleep(0.05)
        if child.ended() or time.monotonic() > deadline:
            raise RuntimeError(f"The API server did not start:\n{log.read_text()[-2000:]}")
