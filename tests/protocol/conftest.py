"""Conversations with a scripted Responsys, held by each driver in turn."""

import asyncio
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from airflow_provider_responsys.errors import ResponsysError
from airflow_provider_responsys.protocol.account import Account
from airflow_provider_responsys.protocol.wire import Conversation, Request, Response, Token
from airflow_provider_responsys.transport import aio, sync

HERE = Path(__file__).parent
HOST = "https://ws1-company.responsys.net"

T = TypeVar("T")
Answer = Response | ResponsysError


class Script:
    """A Responsys that gives *answers* in order, whoever asks; its clock moves when somebody pauses."""

    def __init__(self, answers: Iterable[Answer]) -> None:
        self.answers = deque(answers)
        self.asked: list[Request] = []
        self.pauses: list[float] = []
        self.now = 1000.0

    def exchange(self, request: Request) -> Response:
        self.asked.append(request)
        answer = self.answers.popleft()
        if isinstance(answer, ResponsysError):
            raise answer
        return answer

    def pause(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds

    def clock(self) -> float:
        return self.now

    @property
    def paths(self) -> list[str]:
        return [request.path for request in self.asked]


class Line:
    """A driver and the *script* at its other end."""

    def __init__(self, script: Script, run: Callable[[Any], Any], keyring: Any) -> None:
        self.script = script
        self.keyring = keyring
        self._run = run

    def run(self, conversation: Conversation[T]) -> T:
        result: T = self._run(conversation)
        return result


Drive = Callable[..., Line]


class SyncScripted(sync.Responsys):
    script: Script

    def _exchange(self, request: Request) -> Response:
        return self.script.exchange(request)


class AioScripted(aio.Responsys):
    script: Script

    async def _exchange(self, request: Request) -> Response:
        await asyncio.sleep(0)
        return self.script.exchange(request)


@pytest.fixture
def account() -> Account:
    """Give an account of AFTM."""
    return Account(host=HOST, login="api_user", password="p&ss wörd")


@pytest.fixture(params=["sync", "aio"])
def drive(request: pytest.FixtureRequest, account: Account) -> Iterator[Drive]:
    """Give what starts a line to a scripted Responsys; it is *signed_in* with the token E0."""
    with asyncio.Runner() as runner:

        def start(
            *answers: Answer, signed_in: bool = True, at: Account = account, login_waits: Iterable[float] = ()
        ) -> Line:
            script = Script(answers)

            async def pause(seconds: float) -> None:
                script.pause(seconds)

            driver: SyncScripted | AioScripted
            if request.param == "sync":
                driver = SyncScripted(
                    at,
                    user_agent="tests",
                    sleep=script.pause,
                    clock=script.clock,
                    login_waits=lambda: iter(login_waits),
                )
            else:
                driver = AioScripted(
                    at, user_agent="tests", sleep=pause, clock=script.clock, login_waits=lambda: iter(login_waits)
                )
            driver.script = script
            if signed_in:
                driver._keyring.token = Token(value="E0", obtained=script.now)

            def run(conversation: Conversation[Any]) -> Any:
                result = driver.run(conversation)
                return runner.run(result) if asyncio.iscoroutine(result) else result

            return Line(script, run, driver._keyring)

        yield start


@pytest.fixture(scope="session")
def recorded() -> list[dict[str, Any]]:
    """Give what real traffic looked like."""
    samples: list[dict[str, Any]] = json.loads((HERE / "recorded.json").read_text())["samples"]
    return samples


@pytest.fixture(scope="session")
def documented() -> dict[str, Any]:
    """Give the samples on Oracle's pages, by name."""
    samples: dict[str, Any] = json.loads((HERE / "documented.json").read_text())["samples"]
    return samples


@pytest.fixture(scope="session")
def swagger() -> dict[str, Any]:
    """Give Oracle's own description of the push call."""
    text: dict[str, Any] = json.loads((HERE / "push.swagger.json").read_text())
    return text
