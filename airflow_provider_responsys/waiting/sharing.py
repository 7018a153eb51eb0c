"""One account's poll limit, shared by the waits of one process: together they keep to it, and each gets its part.

A wait uses its `Share` as if it were a pace of its own. Waits in other processes are
not seen; a shared row elsewhere can take this one's place behind the same methods.
"""

import time
from collections.abc import Callable
from math import inf
from weakref import WeakSet

from airflow_provider_responsys.protocol.pace import Pace
from airflow_provider_responsys.waiting.schedule import paced

UNHEARD_OF = 5.0
"""Seconds without a poll after which a wait loses its turn to the others."""


class SharedLimit:
    """The poll limit of one account, and the waits that share it.

    Which limit holds is decided in `limit`: the lowest that the connections of the
    waits set; otherwise what Responsys says is the account's own; otherwise *default*.
    """

    def __init__(self, default: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._default = default
        self._own: float | None = None
        self._shares: WeakSet[Share] = WeakSet()
        self._setting: WeakSet[Share] = WeakSet()
        """The waits whose connection sets a limit. It holds as long as one of them is there."""
        self._pace = paced(default, clock())
        self.reached = 0
        """Where the turns are: what the wait that sent the last poll had been served before it."""

    @property
    def limit(self) -> float:
        """Return how many polls a minute all waits together may send."""
        settings = [share.setting for share in self._setting if share.setting]
        return min(settings) if settings else self._own or self._default

    @property
    def pace(self) -> Pace:
        """Return the pace of all waits together. It begins anew with each other limit."""
        if (limit := self.limit) != self._pace.limit:
            self._pace = paced(limit, self.clock())
        return self._pace

    @property
    def is_known(self) -> bool:
        """Whether what Responsys says is the account's own limit has been read."""
        return self._own is not None

    def join(self, setting: float | None = None) -> "Share":
        """Return the share of one more wait, whose connection has *setting* as its limit, or none."""
        share = Share(self, setting)
        share.served = self.reached
        self._shares.add(share)
        if setting:
            self._setting.add(share)
        return share

    def use(self, limit: float) -> bool:
        """Take *limit* as the account's own; return whether the waits keep to another limit than before."""
        before, self._own = self.limit, limit
        return self.limit != before

    def turns(self, share: "Share", now: float) -> int:
        """Return how many polls *share* may send before it is another one's turn."""
        others = [other for other in self._shares if other is not share and other.is_waiting(now)]
        return max(0, 1 + min(other.served for other in others) - share.served) if others else 1_000_000

    def catch_up(self, share: "Share") -> None:
        """Let *share*, which had nothing to send for a while, claim nothing for that time."""
        share.served = max(share.served, self.reached)


class Share:
    """One wait's part of a `SharedLimit`, used as a `Pace`."""

    def __init__(self, of: SharedLimit, setting: float | None = None) -> None:
        self._of = of
        self.setting = setting
        self.served = 0
        """Polls sent, or left out for want of any that was due."""
        self._wants_at = inf
        self._heard_at = -inf

    @property
    def limit(self) -> float:
        """Return how many polls a minute all waits may send."""
        return self._of.limit

    @property
    def pace(self) -> Pace:
        """Return the pace of all waits together."""
        return self._of.pace

    @property
    def due(self) -> float:
        """Return when this wait may send its next poll, if the others send theirs."""
        now = self._of.clock()
        if self._of.turns(self, now) > 0:
            return self._of.pace.due
        return max(self._of.pace.due, now) + self._of.pace.spacing

    def wants(self, at: float) -> None:
        """Take note of when this wait has its next poll to send: infinity where it has none."""
        now = self._of.clock()
        if at <= now and self._wants_at > self._heard_at:  # it had nothing to send when it was last heard of
            self._of.catch_up(self)
        self._wants_at, self._heard_at = at, now

    def is_waiting(self, now: float) -> bool:
        """Tell whether this wait has a poll to send *now*."""
        # Of a wait whose turn it is not yet, nothing is heard for as long as a poll takes to become due.
        silence = max(UNHEARD_OF, 2 * self._of.pace.spacing)
        return self._wants_at <= now and now - max(self._heard_at, self._wants_at) < silence

    def slots(self, now: float) -> int:
        """Return how many polls may leave at once *now*."""
        self._heard_at = now
        return min(self._of.pace.slots(now), self._of.turns(self, now))

    def take(self, now: float) -> None:
        """Count a poll that leaves *now*."""
        self._of.reached = max(self._of.reached, self.served)
        self.served += 1
        self._of.pace.take(now)

    def refused(self, sent: float, now: float) -> None:
        """Wait, all together: the limit was run into by the poll that left at *sent*."""
        self._of.pace.refused(sent, now)

    def accepted(self, sent: float, now: float) -> None:
        """Count the answer to the poll that left at *sent*."""
        self._of.pace.accepted(sent, now)

    def use(self, limit: float) -> bool:
        """Take *limit* as the account's own; return whether the waits keep to another limit than before."""
        return self._of.use(limit)


class Limits:
    """The shared limits of this process, by account."""

    def __init__(self) -> None:
        self._by_account: dict[str, SharedLimit] = {}

    def of(self, account: str, default: float, *, clock: Callable[[], float]) -> SharedLimit:
        """Return the limit of *account*, which is *default* a minute until more is known of it."""
        if (shared := self._by_account.get(account)) is None:
            shared = self._by_account[account] = SharedLimit(default, clock)
        return shared
