"""A scripted Responsys, and each driver with it at its other end."""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from airflow_provider_responsys.errors import ResponsysError
from airflow_provider_responsys.protocol.wire import Conversation, Request, Response
from airflow_provider_responsys.transport import aio, sync

T = TypeVar("T")
Answer = Response | ResponsysError


class Script:
    """A Responsys that gives *answers* in order, to any caller; its clock moves during pauses."""

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
