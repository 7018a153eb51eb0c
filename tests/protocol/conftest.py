"""Conversations with a scripted Responsys, held by each driver in turn."""

import asyncio
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_responsys.protocol.account import Account
from airflow_provider_responsys.protocol.wire import Conversation, Token
from tests.support.scripted import AioScripted, Answer, Drive, Line, Script, SyncScripted

HERE = Path(__file__).parent
HOST = "https://ws1-company.responsys.net"


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
