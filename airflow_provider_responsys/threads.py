"""Threads that keep no process from ending, and calls that can be waited for, or left behind."""

import asyncio
import contextvars
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar, cast

T = TypeVar("T")


class Call(Generic[T]):
    """*function*, called on some thread, and its result or error; *then* is called at its end."""

    def __init__(self, function: Callable[[], T], then: Callable[[], object] = lambda: None) -> None:
        self._function = function
        self._then = then
        self._ended = threading.Event()
        self._value: T | None = None
        self._error: BaseException | None = None

    def __call__(self) -> None:
        """Call the function."""
        try:
            self._value = self._function()
        except BaseException as error:  # noqa: BLE001 -- it is raised where it is waited for
            self._error = error
        self._ended.set()
        self._then()

    @property
    def ended(self) -> bool:
        """Whether the function has returned, or raised."""
        return self._ended.is_set()

    @property
    def returned(self) -> bool:
        """Whether the function has returned."""
        return self.ended and self._error is None

    def wait(self, seconds: float) -> bool:
        """Wait at most *seconds* for the end; return whether it has come."""
        return self._ended.wait(seconds)

    def result(self) -> T:
        """Return what the function returned, or raise what it raised."""
        if self._error:
            raise self._error
        return cast("T", self._value)


class Pool:
    """At most *most* threads that run what is submitted, in its order, with its caller's context variables.

    Unlike those of `concurrent.futures`, the interpreter does not wait for them at its end.
    """

    def __init__(self, most: int, name: str) -> None:
        self._most = most
        self._name = name
        self._work: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self._idle = threading.Semaphore(0)
        self._threads = 0
        self._closed = False
        self._under_way = 0
        self._counting = threading.Lock()

    @property
    def is_at_work(self) -> bool:
        """Whether something that was submitted has not ended."""
        return self._under_way > 0 or not self._work.empty()

    def submit(self, work: Callable[..., object], *args: object) -> None:
        """Do *work*, which must not raise, on one of the threads."""
        if self._closed:
            raise RuntimeError("the pool is closed")
        # Each call has the variables of its own caller: Airflow finds a trigger's log by them.
        self._work.put(partial(contextvars.copy_context().run, work, *args))
        if not self._idle.acquire(blocking=False) and self._threads < self._most:
            self._threads += 1
            name = f"{self._name}-{self._threads}"
            threading.Thread(target=self._serve, name=name, daemon=True).start()

    def close(self) -> None:
        """Begin nothing more. What is under way goes on."""
        self._closed = True
        with suppress(Empty):
            while True:
                self._work.get_nowait()
        for _ in range(self._threads):
            self._work.put(None)

    def _serve(self) -> None:
        while (work := self._work.get()) is not None:
            with self._counting:
                self._under_way += 1
            work()
            work = None  # what it was given may be large, and this thread may be idle for long
            with self._counting:
                self._under_way -= 1
            self._idle.release()


@dataclass(frozen=True, slots=True)
class LoopThreads:
    """At most *most* threads of this process for blocking calls of its event loops.

    The loop's own executor has few threads. All triggers of a triggerer share them,
    also to look up names: a call that hangs there stalls every one of them.
    """

    name: str
    most: int

    async def call(self, function: Callable[[], T]) -> T:
        """Return what *function* returns, or raise what it raises. A cancelled call goes on in its thread."""
        return await called_on(self.pool, function)

    @property
    def pool(self) -> Pool:
        """Return the threads of this process."""
        return _pool(self.name, self.most, os.getpid())


async def called_on(pool: Pool, function: Callable[[], T]) -> T:
    """Return what *function* returns on a thread of *pool*, or raise what it raises."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()

    def tell() -> None:
        with suppress(RuntimeError):  # the loop is closed: nothing waits any more
            loop.call_soon_threadsafe(ended.set)

    call = Call(function, then=tell)
    pool.submit(call)
    await ended.wait()
    return call.result()


@cache
def _pool(name: str, most: int, _process: int) -> Pool:
    return Pool(most, name)  # a process that was forked has none of its parent's threads
