"""Limits per window: how often each function was called lately."""

from collections import deque


class Windows:
    """The times of the calls that were let through, by name."""

    def __init__(self) -> None:
        self._calls: dict[str, deque[float]] = {}

    def admit(self, name: str, allowed: int | None, *, now: float, span: float, sliding: bool) -> bool:
        """Let a call of *name* through if fewer than *allowed* were in the window of *span* seconds."""
        calls = self._calls.setdefault(name, deque())
        start = now - span if sliding else now // span * span
        while calls and (calls[0] <= start if sliding else calls[0] < start):
            calls.popleft()
        if allowed is not None and len(calls) >= allowed:
            return False
        calls.append(now)
        return True
