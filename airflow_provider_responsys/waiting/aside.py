"""Blocking calls of one wait, on one thread of its own: a call that hangs holds up no other wait."""

import asyncio
from collections.abc import Callable
from typing import TypeVar

from airflow_provider_responsys.errors import LedgerUnreachable
from airflow_provider_responsys.threads import Pool, called_on

T = TypeVar("T")


class Aside:
    """A thread for the calls of one wait's ledger, in their order.

    The event loop's own executor has few threads, and all triggers of a triggerer
    share it, also for looking up names.
    """

    def __init__(self, name: str) -> None:
        self._pool = Pool(1, name)

    async def call(self, function: Callable[[], T], within: float) -> T:
        """Return what *function* returns, or raise `LedgerUnreachable` if that is not *within* so many seconds.

        A call that is given up goes on in its thread, and further ones wait for it.
        """
        over = asyncio.timeout(max(within, 0.0))
        try:
            async with over:
                return await called_on(self._pool, function)
        except TimeoutError:
            if not over.expired():  # the function's own
                raise
            raise LedgerUnreachable(f"The ledger did not answer within {within:.0f} s") from None

    def close(self) -> None:
        """Begin no further call."""
        self._pool.close()
