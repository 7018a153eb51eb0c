"""Each driver, to hold conversations with on real sockets."""

import asyncio
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from airflow_provider_responsys.protocol.account import Account
from airflow_provider_responsys.protocol.wire import Conversation

T = TypeVar("T")


class Line:
    """A driver to hold conversations with. *kind* is its name, *driver* the thing itself."""

    def __init__(self, kind: str, driver: Any, runner: asyncio.Runner) -> None:
        self.kind = kind
        self.driver = driver
        self.account: Account = driver._account
        self._runner = runner

    def run(self, conversation: Conversation[T]) -> T:
        result = self.driver.run(conversation)
        found: T = self._runner.run(result) if self.kind == "aio" else result
        return found

    def settle(self) -> None:
        """Let what the other end has done arrive."""
        if self.kind == "aio":
            self._runner.run(asyncio.sleep(0.05))
        else:
            threading.Event().wait(0.05)

    def at_once(self, *conversations: Conversation[T]) -> list[T | BaseException]:
        """Hold all *conversations* at the same time; return what each came to."""
        if self.kind == "aio":
            found: list[T | BaseException] = self._runner.run(self._gathered(conversations))
            return found
        results: list[T | BaseException] = [KeyError()] * len(conversations)

        def hold(place: int) -> None:
            try:
                results[place] = self.driver.run(conversations[place])
            except BaseException as error:  # noqa: BLE001 -- it is looked at by the test
                results[place] = error

        threads = [threading.Thread(target=hold, args=(place,)) for place in range(len(conversations))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return results

    def close(self) -> None:
        result = self.driver.close()
        if self.kind == "aio":
            self._runner.run(result)

    async def _gathered(self, conversations: tuple[Conversation[T], ...]) -> list[T | BaseException]:
        results: list[T | BaseException] = await asyncio.gather(
            *map(self.driver.run, conversations), return_exceptions=True
        )
        return results


OpenLine = Callable[..., Line]
