"""Threads that keep no process from ending, and calls that can be waited for, or left behind."""

import contextvars
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar, cast

T = TypeVar("T")


class Call(Generic[T]):
    """*function*, called on some thread, with what came of it; *then* is called at its end."""

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
    """At most *most* threads that do what is submitted, in its order, with the caller's context variables.

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
        self._work.put(partial(work, *args))
        if not self._idle.acquire(blocking=False) and self._threads < self._most:
            self._threads += 1
            context = contextvars.copy_context()
            name = f"{self._name}-{self._threads}"
            threading.Thread(target=context.run, args=(self._serve,), name=name, daemon=True).start()

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
