"""When the next request may leave, so that the account's limit is met and not run into."""

import math
from dataclasses import dataclass
from typing import Self

WINDOW = 60.0
"""Seconds that a limit counts over. REST Throttling: per function, per account, one minute."""

HEADROOM = 0.99
"""The share of a limit that is used: the server's clock and ours do not agree on where a minute begins."""

CATCH_UP = 0.005
"""The share of a limit by which a late sender may catch up at once."""

CUT = 0.8
"""What a refusal leaves of the pace: somebody else uses a part of the limit."""

RECOVERY = 0.02
"""The share of the limit that the pace regains in each window without a refusal."""


@dataclass(slots=True)
class Pace:
    """Requests evenly spaced at *rate* a minute, never above *limit*.

    *due* is when the next request would leave if all before it had left on time
    (the generic cell rate algorithm).
    """

    limit: float
    rate: float
    due: float = 0.0
    changed: float = 0.0

    @classmethod
    def at(cls, limit: float, now: float) -> Self:
        """Return a pace of *limit* requests a minute, beginning *now*."""
        return cls(limit=limit, rate=limit, due=now, changed=now)

    @property
    def spacing(self) -> float:
        """Return the seconds between two requests."""
        return WINDOW / (self.rate * HEADROOM)

    @property
    def catch_up(self) -> float:
        """Return by how many seconds a request may leave ahead of the even spacing."""
        return int(self.limit * CATCH_UP) * self.spacing

    def earliest(self) -> float:
        """Return when the next request may leave."""
        return self.due - self.catch_up

    def slots(self, now: float) -> int:
        """Return how many requests may leave at once *now*."""
        ahead = max(self.due, now) - now
        return max(0, 1 + math.floor((self.catch_up - ahead) / self.spacing + 1e-9))

    def take(self, now: float) -> None:
        """Count a request that leaves *now*."""
        self.due = max(self.due, now) + self.spacing

    def refused(self, now: float, wait: float) -> None:
        """Go slower after the next *wait* seconds: the limit was run into. Refusals of one moment count once."""
        if now >= self.changed:
            self.rate = max(1.0, self.rate * CUT)
        self.changed = now + wait

    def accepted(self, now: float) -> None:
        """Recover a little for every whole window without a refusal."""
        if self.rate < self.limit and now - self.changed >= WINDOW:
            self.rate = min(self.limit, self.rate + self.limit * RECOVERY)
            self.changed = now
