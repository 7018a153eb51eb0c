"""Which requests are out: what a stopped sender need not wait for, and may send again."""

import threading
from typing import TypeVar

from airflow_provider_responsys.errors import NotSent, ResponsysError
from airflow_provider_responsys.protocol.wire import Conversation, Reply, Send

T = TypeVar("T")


class Gate:
    """Every request of a batch leaves through it, until it is shut. Used from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._out: set[int] = set()
        self._shut = False

    def guard(self, batch_id: int, push: Conversation[T]) -> Conversation[T]:
        """Hold the conversation *push* of a batch, and know at each moment whether its request may be out.

        A conversation that goes on after a request (logs in again, pauses) was told
        that nothing was queued: it is not out while it waits.
        """
        reply: Reply = None
        failure: ResponsysError | None = None
        while True:
            try:
                step = push.throw(failure) if failure else push.send(reply)
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]  # StopIteration does not know its generator's type
            reply = failure = None
            self._pass(batch_id, leaves=isinstance(step, Send))
            try:
                reply = yield step
            except ResponsysError as error:
                failure = error

    def forget(self, batch_id: int) -> None:
        """Drop a batch whose answer is taken in."""
        with self._lock:
            self._out.discard(batch_id)

    def shut(self) -> frozenset[int]:
        """Let no request leave any more; return the batches whose request may be out, or was."""
        with self._lock:
            self._shut = True
            return frozenset(self._out)

    def _pass(self, batch_id: int, *, leaves: bool) -> None:
        """Note whether a request of the batch *leaves* now, or waits; raise `NotSent` if none may any more."""
        # In one step: between a look at the gate and the request, it might be shut.
        with self._lock:
            if leaves and not self._shut:
                self._out.add(batch_id)
            else:
                self._out.discard(batch_id)
            if self._shut:
                raise NotSent("the sender was stopped before the request left")
