"""What the sender does next. Pure: events and the time in, actions out.

A batch is claimed, posted, and then one of four things has happened to it:

* accepted: its claim is settled;
* certainly not accepted, for a reason that may pass: its claim is released,
  and the batch is claimed again when the trouble is over;
* certainly not accepted, for good: its claim is released;
* in doubt: nothing is written, because a claim without a settlement says it.

So a claim stands exactly as long as its request may be out, and a crash leaves in
doubt no more than what was in flight. `Fate` names what `failed` makes of a batch.
"""

import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from airflow_provider_responsys.errors import (
    Fenced,
    InDoubt,
    InvalidSettings,
    LimitExceeded,
    LoginExpired,
    NoAnswer,
    NotAccepted,
    NotAllSent,
    NotSent,
    ResponsysError,
    SendRefused,
    TooManyInDoubt,
    TryLater,
)
from airflow_provider_responsys.ledger.interface import Accepted, Released, Settlement
from airflow_provider_responsys.protocol.codes import (
    NO_ANSWER_REPEATS,
    NO_ANSWER_WAIT,
    UNRECOVERABLE_RETRIES,
    UNRECOVERABLE_WAIT,
)
from airflow_provider_responsys.protocol.pace import Pace
from airflow_provider_responsys.sending.budget import Budget

FIRST_WINDOW = 4
"""Requests in flight before the first answer tells how long one takes."""

SPREAD = 1.5
"""How much longer than the average an answer may take without holding up the pace."""

LOST_IN_A_ROW = 3
"""Answers lost in a row, a harmless read succeeding after each, until the sender gives up:
otherwise a server that answers everything but pushes would turn a whole campaign into doubt."""

SOUND = 10
"""Requests accepted in a row after which what earlier tries lost no longer holds the sender back."""

WRITE_WITHIN = 0.1
"""Seconds that an answer may wait to be written together with the next claim, and a claim together with others."""

BACKOFF = (1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0)
"""Seconds to wait after the first, second, … trouble in a row."""


class Delivery(StrEnum):
    """What to do about a batch that may have been accepted."""

    AT_MOST_ONCE = "at_most_once"
    AT_LEAST_ONCE = "at_least_once"


class Fate(StrEnum):
    """What happens to a batch that was not accepted."""

    REPEAT = "repeat"
    """It is in doubt, and will be posted again (at least once only)."""
    RECLAIM = "reclaim"
    """It is released, and will be claimed again."""
    REJECTED = "rejected"
    """It is released, and refused for good."""
    IN_DOUBT = "in doubt"
    """Its claim stands: it may have been accepted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How far the sender goes: *retry_for* and *grace* in seconds, *deadline* and *end* on its clock.

    *grace* is how long a sender that was told to stop waits for answers, and *end* is when it no longer does.
    """

    max_in_flight: int = 64
    retry_for: float = 3600.0
    grace: float = 90.0
    deadline: float = math.inf
    end: float = math.inf
    delivery: Delivery = Delivery.AT_MOST_ONCE


@dataclass(frozen=True, slots=True)
class Commit:
    """Write *settle* and claim up to *claim* batches in one durable step; tell `claimed`."""

    settle: tuple[Settlement, ...]
    claim: int


@dataclass(frozen=True, slots=True)
class Post:
    """Send these claimed batches; tell `accepted` or `failed` of each."""

    numbers: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Probe:
    """Read something harmless; tell `probed`."""


@dataclass(frozen=True, slots=True)
class Recall:
    """Let no request leave any more; tell `recalled` which of those in flight had not left."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Wait for an event, at most until *until*."""

    until: float


@dataclass(frozen=True, slots=True)
class Done:
    """Nothing more will be done; what is in flight now stays in doubt."""


Action = Commit | Post | Probe | Recall | Wait | Done


@dataclass(slots=True, kw_only=True)
class Engine:
    """The sender's state between two events."""

    limits: Limits
    pace: Pace
    budget: Budget = field(default_factory=Budget)
    more: bool = True
    """Whether the source has batches left to claim."""
    ready: deque[int] = field(default_factory=deque)
    """Claimed, not yet posted."""
    flight: dict[int, float] = field(default_factory=dict)
    """Posted and unanswered, with the time of the post."""
    again: list[tuple[float, int]] = field(default_factory=list)
    """In doubt and to be sent again (at least once only), with the time to do so."""
    answers: list[Settlement] = field(default_factory=list)
    """Answered, not yet written."""
    tries: dict[int, int] = field(default_factory=dict)
    """How often each batch in doubt was sent, or is about to be."""
    sizes: dict[int, int] = field(default_factory=dict)
    """Recipients of each batch that is claimed and not answered for good."""
    largest: int = 1
    """Recipients of the largest batch so far."""
    stopped: ResponsysError | None = None
    give_up: float = math.inf
    """When a stopped sender no longer waits for answers."""
    recalling: bool = False
    """Whether a stopped sender lets no request leave any more."""
    hold: float = -math.inf
    """Nothing is claimed or posted before this time."""
    must_probe: bool = False
    """An answer was lost: nothing new until a harmless read succeeds."""
    probing: bool = False
    probe_at: float = -math.inf
    clear_at: float = -math.inf
    """When the last harmless read succeeded."""
    probe_failure: str = ""
    """Why the last harmless read failed."""
    replaced: bool = False
    """Whether the ledger said that another try has begun; it may still take settlements."""
    ledger_down: bool = False
    last_write: bool = False
    """Whether what a failed write left unwritten has been tried once more."""
    cautious: bool = False
    """One request at a time, until one is accepted."""
    troubled_since: float | None = None
    troubles: int = 0
    lost: int = 0
    in_a_row: int = 0
    """Requests accepted since an answer was lost."""
    latency: float | None = None

    # Events

    def claimed(
        self, numbers: Sequence[int], *, more: bool, again: Iterable[int] = (), sizes: Iterable[int] = ()
    ) -> None:
        """Take note of what a `Commit` won, of *sizes* recipients; *more* says whether the source has any left.

        Those of them in *again* were sent before, by an earlier try, and are in doubt.
        """
        self.ready.extend(numbers)
        self.tries.update(dict.fromkeys(again, 2))
        self.sizes.update(zip(numbers, sizes, strict=False))
        self.largest = max(self.largest, *self.sizes.values(), 1)
        self.more = more

    def accepted(self, number: int, request_id: str, now: float, correlation_id: str = "") -> None:
        """Responsys queued *number*: the sky is clear."""
        posted = self.flight.pop(number)
        took = now - posted
        # Of accepted requests alone: what a lost answer took says nothing about how many may be out.
        self.latency = took if self.latency is None else self.latency + 0.1 * (took - self.latency)
        size = self.sizes.pop(number, 1)
        if number in self.tries:
            self.budget.remove(number, size)
        self.answers.append(Accepted(number, request_id, correlation_id))
        self.pace.accepted(posted, now)
        self.cautious = False
        self.troubled_since = None
        self.troubles = self.lost = 0
        self.in_a_row += 1

    def failed(self, number: int, error: ResponsysError, now: float) -> Fate:
        """Take note of why *number* was not accepted; return what happens to it."""
        posted = self.flight.pop(number)
        if isinstance(error, NotAccepted):
            return self._not_accepted(number, error, posted, now)
        return self._in_doubt(number, error, posted, now)

    def recalled(self, numbers: Iterable[int]) -> list[int]:
        """Take note that *numbers* had not left, and can't any more; return which of them are released."""
        released = []
        for number in numbers:
            del self.flight[number]
            if number not in self.tries:  # an earlier request of the others may be accepted
                self.answers.append(Released(number))
                released.append(number)
        return released

    def probed(self, error: ResponsysError | None, now: float) -> None:
        """Take note of a harmless read: it succeeded, or failed with *error*."""
        self.probing = False
        if error is None:
            self.must_probe = False
            self.clear_at = now
            self.probe_failure = ""
        elif isinstance(error, (SendRefused, InvalidSettings)):
            self.stop(error, now)
        else:
            self.probe_failure = str(error)
            self.probe_at = now + self._backoff()
            self.troubles += 1

    def unwritten(
        self, settled: Sequence[Settlement], error: ResponsysError, now: float, *, for_good: bool = False
    ) -> None:
        """Take note that a `Commit` failed: nothing it claimed is sent, what it settled is tried once more.

        A ledger that refuses this try's claims because another one has begun may take its settlements.
        *for_good* says that the ledger can't be called any more.
        """
        self.answers[:0] = settled
        if isinstance(error, Fenced) and not self.replaced:
            self.replaced = True
        else:
            self.last_write = self.ledger_down or isinstance(error, Fenced) or for_good
            self.ledger_down = True
        self.stop(error, now)

    def stop(self, reason: ResponsysError, now: float, *, grace: float | None = None) -> None:
        """Claim and post nothing more, for *reason*; wait *grace* seconds for what is in flight."""
        self.stopped = self.stopped or reason
        waited = now + (self.limits.grace if grace is None else grace)
        self.give_up = min(self.give_up, waited, self.limits.end)

    # Decisions

    def decide(self, now: float) -> Action:
        """Return the next thing to do. Waiting and asking again is always harmless."""
        self._lose_patience(now)
        if self.stopped:
            return self._wind_down(now)
        return self._look_around(now) if self.must_probe else self._go_on(now)

    def is_patient(self, now: float) -> bool:
        """Return whether a call that is under way may be waited for; notice a deadline meanwhile."""
        self._lose_patience(now)
        return now < self.give_up

    def is_in_flight(self, number: int) -> bool:
        """Return whether *number* is posted, and not answered."""
        return number in self.flight

    def may_be_out(self, number: int) -> bool:
        """Return whether a request of *number* may have been accepted without an answer."""
        return number in self.flight or number in self.tries

    @property
    def unrecorded(self) -> int:
        """Return how many acceptances are not written."""
        return sum(isinstance(answer, Accepted) for answer in self.answers)

    @property
    def window(self) -> int:
        """Return how many requests may be in flight: rate x latency, bounded, also by the room for doubt."""
        if self.cautious:
            return 1
        if not self.budget.in_doubt:
            return self._span
        # Where answers are lost, each one that is not makes room for one more: a brown-out never fills a window.
        most: float = min(self._span, 1 + self.in_a_row) * self.largest
        if self.budget.lost or self.in_a_row < SOUND:
            most = min(most, self.budget.limit(self._span * self.largest) - self.budget.in_doubt)
        return max(1, int(most // self.largest))

    @property
    def free(self) -> int:
        """Return how many batches may be claimed, in the write that settles what is answered."""
        return self.window - len(self.flight) - len(self.ready) - len(self.again)

    @property
    def _span(self) -> int:
        """Return how many requests are in flight at the account's limit, where nothing is in the way."""
        wanted = FIRST_WINDOW if self.latency is None else 2 + math.ceil(SPREAD * self.latency / self.pace.spacing)
        return min(wanted, self.limits.max_in_flight)

    # What follows from an event

    def _not_accepted(self, number: int, error: NotAccepted, posted: float, now: float) -> Fate:
        passes = self._rides_out(error, posted, now)
        if number in self.tries:
            # An earlier request of this batch is in doubt: that this one was refused does not undo it.
            if passes:
                self._repeat(number, now)
            return Fate.REPEAT if passes else Fate.IN_DOUBT
        self.sizes.pop(number, None)
        self.answers.append(Released(number))
        self.lost = 0
        self.more = self.more or passes
        return Fate.RECLAIM if passes else Fate.REJECTED

    def _rides_out(self, error: NotAccepted, posted: float, now: float) -> bool:
        """Wait as *error* demands; return whether what was refused may be accepted later."""
        match error:
            case LimitExceeded():
                self.pace.refused(posted, now)
                self._take_care(now)
            case TryLater():
                self._trouble(now, error.wait)
            case NotSent() | LoginExpired():
                self._trouble(now, 0.0)
            case SendRefused():
                self.stop(error, now)
                return False
            case _:
                return False
        return True

    def _in_doubt(self, number: int, error: ResponsysError, posted: float, now: float) -> Fate:
        if not self.must_probe and posted >= self.clear_at:
            self.lost += 1  # those that were in flight together are lost together, and count once
        self._trouble(now, 0.0)
        self.must_probe = True
        self.in_a_row = 0
        self.budget.add(number, self.sizes.get(number, 1), was_found=number in self.tries)
        fate = self._posts_again(number, error, now)
        limit = self.budget.limit(self._span * self.largest)
        if self.budget.in_doubt >= limit:
            self.stop(
                TooManyInDoubt(
                    f"{self.budget.in_doubt:,} recipients are in doubt, and max_in_doubt allows for {limit:,.0f}; "
                    f"the last answer was lost so: {error}. Find out what loses answers, then clear the task: it goes "
                    "on with those who are not sent to"
                ),
                now,
            )
        elif self.lost >= LOST_IN_A_ROW:
            self.stop(NotAllSent(f"{self.lost} answers in a row were lost, the last one: {error}"), now)
        return fate

    def _posts_again(self, number: int, error: ResponsysError, now: float) -> Fate:
        """Post *number* again later where that was asked for; return what happens to it."""
        if self.limits.delivery is not Delivery.AT_LEAST_ONCE:
            return Fate.IN_DOUBT
        unrecoverable = isinstance(error, InDoubt) and error.code == "UNRECOVERABLE_EXCEPTION"
        wait, most = NO_ANSWER_WAIT, NO_ANSWER_REPEATS
        if unrecoverable:
            wait, most = UNRECOVERABLE_WAIT, UNRECOVERABLE_RETRIES
        posts = self.tries.get(number, 1)
        if not (unrecoverable or isinstance(error, NoAnswer)) or posts > most:
            return Fate.IN_DOUBT
        self.tries[number] = posts + 1
        self._repeat(number, now + wait)
        return Fate.REPEAT

    def _repeat(self, number: int, at: float) -> None:
        self.again.append((at, number))
        self.again.sort()

    def _trouble(self, now: float, wait: float) -> None:
        """Hold everything back for *wait* seconds or the next backoff, whichever is longer."""
        self._take_care(now)
        if now >= self.hold:  # those that were in flight together are in trouble together, and count once
            self.troubles += 1
        self.hold = max(self.hold, now + max(wait, self._backoff()))

    def _take_care(self, now: float) -> None:
        """Send one request at a time until one is accepted, and be patient only for so long."""
        if self.troubled_since is None:
            self.troubled_since = now
        self.cautious = True

    def _backoff(self) -> float:
        return BACKOFF[min(max(self.troubles - 1, 0), len(BACKOFF) - 1)]

    # What follows from the time

    def _lose_patience(self, now: float) -> None:
        if self.stopped:
            return
        if now >= self.limits.deadline:
            self.stop(NotAllSent("the task's execution_timeout is near"), now)
        elif self.troubled_since is not None and now - self.troubled_since >= self.limits.retry_for:
            why = f"; the harmless read after a lost answer fails: {self.probe_failure}" if self.must_probe else ""
            self.stop(NotAllSent(f"nothing was accepted for {self.limits.retry_for:.0f} s (retry_for){why}"), now)

    def _go_on(self, now: float) -> Action:
        while self.again and self.again[0][0] <= now and len(self.flight) + len(self.ready) < self.window:
            self.ready.append(self.again.pop(0)[1])
        slots = self.pace.slots(now) if now >= self.hold else 0
        if self.ready and (posts := min(slots, len(self.ready), self.window - len(self.flight))) > 0:
            return Post(self._take(posts, now))
        if self.more and not self.ready and (claims := min(slots, self.free)) > 0 and now >= self._gathered(slots):
            return Commit(self._written(), claims)
        if self.answers and not self._claims_soon(now):
            return Commit(self._written(), 0)
        if not (self.more or self.ready or self.flight or self.again):
            return Done()
        return Wait(self._next_time(now))

    def _wind_down(self, now: float) -> Action:
        if self.flight and not self.recalling:
            self.recalling = True
            return Recall()
        self.answers.extend(Released(number) for number in self.ready if number not in self.tries)
        self.ready.clear()
        self.again.clear()
        self.more = False
        if self.answers and not self.ledger_down:
            return Commit(self._written(), 0)
        if self.flight and now < self.give_up:
            return Wait(self.give_up)
        if self.answers and not self.last_write:
            self.last_write = True
            return Commit(self._written(), 0)
        return Done()

    def _look_around(self, now: float) -> Action:
        if self.answers:
            return Commit(self._written(), 0)
        if self.probing:
            return Wait(self._patience())
        if now < self.probe_at:
            return Wait(min(self.probe_at, self._patience()))
        self.probing = True
        return Probe()

    def _gathered(self, slots: int) -> float:
        """Return when to claim what is free: where the pace leaves room for more, a write for each is too dear."""
        if 2 * self.free >= min(slots, self.window):
            return -math.inf
        last_post = next(reversed(self.flight.values()), -math.inf)
        return last_post + WRITE_WITHIN

    def _claims_soon(self, now: float) -> bool:
        return self.more and self.free > 0 and max(self.pace.earliest(), self.hold) - now <= WRITE_WITHIN

    def _take(self, posts: int, now: float) -> tuple[int, ...]:
        numbers = tuple(self.ready.popleft() for _ in range(posts))
        for number in numbers:
            self.pace.take(now)
            self.flight[number] = now
        return numbers

    def _written(self) -> tuple[Settlement, ...]:
        settled = tuple(self.answers)
        self.answers.clear()
        return settled

    def _next_time(self, now: float) -> float:
        times = [self._patience()]
        if self.again and len(self.flight) + len(self.ready) < self.window:
            times.append(max(self.again[0][0], self.hold))
        if self.ready and len(self.flight) < self.window:
            times.append(max(self.pace.earliest(), self.hold))
        elif self.more and self.free > 0:
            times.append(max(self.pace.earliest(), self.hold, self._gathered(self.pace.slots(now))))
        return max(now, min(times))

    def _patience(self) -> float:
        troubled = math.inf if self.troubled_since is None else self.troubled_since + self.limits.retry_for
        return min(troubled, self.limits.deadline)
