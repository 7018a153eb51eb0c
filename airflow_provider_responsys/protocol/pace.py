"""When the next request may leave, so that the account's limit is met and not run into.

A limit counts requests over a minute, by the clock or the last sixty seconds; which
of them is not documented, and another program may use a part of it. So a refusal
says little. The first request that is accepted after it says more: the window has
turned, and what was accepted in it is what others leave.

Until then the sender scouts: one request every few seconds.
"""

from collections import deque
from dataclasses import dataclass, field
from math import floor, inf
from typing import Self

WINDOW = 60.0
"""Seconds that a limit counts over. REST Throttling: per function, per account, one minute."""

HEADROOM = 0.985
"""The share of a limit that is used: requests that are held up on their way arrive closer together than they left."""

CATCH_UP = 0.005
"""The share of a minute's requests by which a late sender may catch up at once."""

SCOUT = 3.0
"""Seconds between a refusal and the next request."""

SLOWER = 0.05
"""The share of the time since the first refusal that a refused sender waits, if that is longer; at most a window."""

MARGIN = 0.98
"""How much of what a window held is asked of the next: when exactly it turned is known to a few seconds."""

LEAST = 0.05
"""The share of the limit that is tried where a window held nothing of ours."""

STEADY = 3 * WINDOW
"""Seconds without a refusal until the pace rises."""

RISE = 0.03
"""The first rise, as a share of the pace. Each window without a refusal doubles it."""


@dataclass(slots=True)
class Pace:
    """Requests evenly spaced at *rate* a minute, never above *limit*.

    *due* is when the next request would leave if all before it had left on time
    (the generic cell rate algorithm). All times are of one clock; a request's own
    time is when it left.
    """

    limit: float
    rate: float
    due: float = 0.0
    began: float = 0.0
    """Since when requests leave without a silence of a whole window."""
    held: deque[float] = field(default_factory=deque)
    """The accepted requests of the last window."""
    refused_since: float | None = None
    """When the first of the present refusals came in; None if nothing is being refused."""
    last_refused: float = -inf
    turned: float = -inf
    """The last request that was the first to be accepted after refusals."""
    wait: float = SCOUT
    """Seconds until the next request while requests are being refused."""
    rise: float = RISE
    """By what share the pace rises next, if nothing has been refused until *rise_at*."""
    rise_at: float = -inf
    headroom: float = HEADROOM
    together: float = CATCH_UP
    """The share of a minute's requests that may leave together."""

    @classmethod
    def at(cls, limit: float, now: float, *, headroom: float = HEADROOM, together: float = CATCH_UP) -> Self:
        """Return a pace of *limit* requests a minute, beginning *now*. *together* must leave some of the headroom."""
        return cls(limit=limit, rate=limit, due=now, began=now, headroom=headroom, together=together)

    @property
    def spacing(self) -> float:
        """Return the seconds between two requests."""
        return self.wait if self.refused_since is not None else WINDOW / (self.rate * self.headroom)

    @property
    def catch_up(self) -> float:
        """Return by how many seconds a request may leave ahead of the even spacing."""
        return 0.0 if self.refused_since is not None else int(self.rate * self.together) * self.spacing

    def earliest(self) -> float:
        """Return when the next request may leave."""
        return self.due - self.catch_up

    def slots(self, now: float) -> int:
        """Return how many requests may leave at once *now*."""
        ahead = max(self.due, now) - now
        return max(0, 1 + floor((self.catch_up - ahead) / self.spacing + 1e-9))

    def take(self, now: float) -> None:
        """Count a request that leaves *now*."""
        if now - self.due > WINDOW:
            self.began = now
        self.due = max(self.due, now) + self.spacing

    def refused(self, sent: float, now: float) -> None:
        """Wait: the limit was run into by the request that left at *sent*. Refusals of one moment count once."""
        if sent > self.turned:  # an older one has nothing new to say
            if self.refused_since is None:
                self.refused_since = now
            self.last_refused = max(self.last_refused, sent)
            self.wait = min(max(SCOUT, (now - self.refused_since) * SLOWER), WINDOW)
        self.due = max(self.due, now + self.wait)

    def accepted(self, sent: float, now: float) -> None:
        """Count the request that left at *sent*. The first one after refusals tells what is left of the limit."""
        if self.refused_since is None:
            self._recover(now)
        elif sent >= self.refused_since:  # what left before it says nothing of now
            self._turn(sent, now)
        self.held.append(sent)
        self._forget((sent if self.refused_since is None else self.last_refused) - WINDOW)

    def _turn(self, sent: float, now: float) -> None:
        """Go on, at the pace that the window allowed whose end the scout has found."""
        before = self.last_refused - WINDOW  # or up to a scout later: rather too much is counted, and found out
        self._forget(before)
        if self.began <= before:  # otherwise the window may have been full of what left before we began
            self.rate = min(self.rate, max(len(self.held) * MARGIN, self.limit * LEAST, 1.0))
        self.refused_since = None
        self.turned = sent
        self.wait = SCOUT
        self.due = now
        self.rise = RISE
        self.rise_at = now + STEADY

    def _recover(self, now: float) -> None:
        """Rise, more with every window that is not refused anything."""
        if self.rate < self.limit and now >= self.rise_at:
            self.rate = min(self.limit, self.rate * (1 + self.rise))
            self.rise *= 2
            self.rise_at = now + WINDOW

    def _forget(self, before: float) -> None:
        while self.held and self.held[0] < before:
            self.held.popleft()
