"""Decides which requests are polled when, and what an answer means for them; does nothing itself.

A shell asks `take` for the polls that leave now, tells `answered` or `failed` what
came of each, and looks again at `next_at`. All times are of one clock, in seconds.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from airflow_provider_responsys.errors import LimitExceeded, Refused, ResponsysError, SendRefused, TryLater, code_of
from airflow_provider_responsys.protocol.pace import Pace
from airflow_provider_responsys.protocol.polling import KEPT, UNANSWERED, Failed, Gone, Outcome
from airflow_provider_responsys.protocol.results import Results
from airflow_provider_responsys.waiting.schedule import PASSING, Patience, Schedule, paced
from airflow_provider_responsys.waiting.sharing import Share
from airflow_provider_responsys.waiting.state import WaitState

EARLY = 0.1
"""How much of the poll interval a request may be polled early, in a poll that has room for it."""

NOT_BELIEVED = (1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
"""Poll intervals until a request is polled again whose results are said to be gone, or its id to be none, too early:
a server that has taken over from another one may say so (AFTM page on errors)."""

NO_SUCH_REQUEST = "INVALID_REQUEST_ID"
NO_SUCH_RESOURCE = "RESOURCE_NOT_FOUND"


@dataclass(frozen=True, slots=True)
class Counted:
    """What an answer added to the counts, and the outcomes that were *final*."""

    found: Results
    final: Mapping[str, Outcome]


class WaitEngine:
    """Polls the open requests of *state* at *pace*, the first at *first_at*, again each *poll_interval* seconds.

    A poll takes up to *ids_per_poll* requests, and *max_in_flight* polls may be in
    flight. *waited* is for how many seconds the wait went on before.
    """

    def __init__(
        self,
        state: WaitState,
        *,
        pace: Pace | Share,
        poll_interval: float,
        ids_per_poll: int,
        max_in_flight: int,
        first_at: float,
        waited: float = 0.0,
        now: datetime | None = None,
    ) -> None:
        self.state = state
        self.pace = pace
        self.patience = Patience()
        self.schedule = Schedule(state.open, first_at)
        self.in_flight = 0
        self._poll_interval = poll_interval
        self._ids_per_poll = ids_per_poll
        self._max_in_flight = max_in_flight
        self._alone: set[str] = set()
        """Requests that are polled by themselves: a poll of several did not answer for them."""
        self._answered = state.results.finished > 0
        """Whether Responsys has said anything of any request, this wait's earlier parts included."""
        self._not_found: set[str] = set()
        self._not_believed: dict[str, int] = {}
        self._believes_all = waited >= sum(NOT_BELIEVED) * poll_interval
        before = (now or datetime.now(UTC)) - KEPT
        self._old = {request_id for request_id, at in state.accepted_at.items() if at <= before}

    @property
    def ended(self) -> bool:
        """Whether nothing is open, and nothing in flight."""
        # What the ledger has told of stays in the schedule until it would be polled.
        return not (self.in_flight or (self.schedule and self.state.open))

    @property
    def next_at(self) -> float:
        """Return when the next poll may leave: infinity where an answer has to come first."""
        return max(self._ready_at, self.pace.due)

    @property
    def _ready_at(self) -> float:
        """Return when there is a poll to send, whether or not the limit has room for it."""
        if not self.schedule or self.in_flight >= self._max_in_flight:
            return math.inf
        return max(self.schedule.due, self.patience.quiet_until)

    def _tell_ready(self) -> None:
        if isinstance(self.pace, Share):
            self.pace.wants(self._ready_at)

    def take(self, now: float, most: int | None = None) -> list[list[str]]:
        """Return the polls that leave *now*, at most *most*, as the requests that each is for.

        As many leave at once as the pace allows: to be woken for each costs more than to send it.
        """
        polls: list[list[str]] = []
        self._tell_ready()
        if self.next_at > now:
            return polls
        room = min(self.pace.slots(now), self._max_in_flight - self.in_flight)
        for _ in range(room if most is None else min(room, most)):
            if not (ids := self._take(now)):
                break
            self.pace.take(now)
            self.state.polls.update(ids)
            self.in_flight += 1
            polls.append(ids)
        self._tell_ready()
        return polls

    def _take(self, now: float) -> list[str]:
        """Return the requests of one poll. Those that the ledger knew to have ended are dropped."""
        while ids := self.schedule.take(now, self._ids_per_poll, self._poll_interval * EARLY, alone=self._alone):
            if still_open := [request_id for request_id in ids if request_id in self.state.open]:
                return still_open
        return []

    def answered(self, outcomes: Mapping[str, Outcome], sent: float, now: float) -> Counted:
        """Count *outcomes*, the answer to a poll that left at *sent*, and let what is open be polled again."""
        self.in_flight -= 1
        self._answered = True
        self.patience.answered()
        self.pace.accepted(sent, now)
        final: dict[str, Outcome] = {}
        for request_id, outcome in outcomes.items():
            if (wait := self._wait_before_believing(request_id, outcome)) is not None:
                self.schedule.put_back([request_id], now + wait)
            else:
                final[request_id] = outcome
                if len(outcomes) > 1 and outcome == UNANSWERED:
                    self._alone.add(request_id)
        counted = self._counted(final, now)
        self._tell_ready()
        return counted

    def failed(self, ids: Sequence[str], error: ResponsysError, sent: float, now: float) -> Counted:
        """Take in that the poll of *ids*, sent at *sent*, failed with *error*; raise it where no poll does better."""
        self.in_flight -= 1
        if isinstance(error, PASSING):
            self._ride_out(ids, error, sent, now)
            return Counted(Results(), {})
        if not isinstance(error, Refused) or isinstance(error, SendRefused):
            raise error
        self.pace.accepted(sent, now)
        if len(ids) > 1:  # one of them is refused, and which is found out one by one
            self._alone.update(ids)
            self.schedule.put_back(ids, -math.inf)
            return Counted(Results(), {})
        if error.code == NO_SUCH_RESOURCE and not self._answered:
            self._wait_for_another_answer(ids[0], error, now)
            return Counted(Results(), {})
        return self._counted({ids[0]: Failed(code_of(error))}, now)

    def lost(self, polls: int = 1) -> None:
        """Forget *polls* that were given up."""
        self.in_flight -= polls

    def use_limit(self, limit: int, now: float) -> bool:
        """Poll at most *limit* times a minute from now on; return whether that is another limit than before."""
        if isinstance(self.pace, Share):
            return self.pace.use(limit)
        if limit == self.pace.limit:
            return False
        self.pace = paced(limit, now)
        return True

    def _counted(self, outcomes: Mapping[str, Outcome], now: float) -> Counted:
        # The ledger may have told of others meanwhile: what is answered of those is neither counted nor written.
        open_ones = {name: outcome for name, outcome in outcomes.items() if name in self.state.open}
        found = self.state.count(open_ones)
        self.schedule.put_back([name for name in open_ones if name in self.state.open], now + self._poll_interval)
        return Counted(found, {name: outcome for name, outcome in open_ones.items() if name not in self.state.open})

    def _wait_before_believing(self, request_id: str, outcome: Outcome) -> float | None:
        """Return in how many seconds to ask again where *outcome* can't be true yet, None where it may be."""
        too_early = isinstance(outcome, Gone) or (isinstance(outcome, Failed) and outcome.code == NO_SUCH_REQUEST)
        if not too_early or self._believes_all or request_id in self._old or request_id not in self.state.open:
            return None
        times = self._not_believed.get(request_id, 0)
        if times == len(NOT_BELIEVED):
            return None
        self._not_believed[request_id] = times + 1
        return NOT_BELIEVED[times] * self._poll_interval

    def _wait_for_another_answer(self, request_id: str, error: ResponsysError, now: float) -> None:
        """Poll *request_id* again, unless no request at all is found: then it is the path that is wrong."""
        self._not_found.add(request_id)
        if self._not_found.issuperset(self.state.open):
            raise error
        self.schedule.put_back([request_id], now + self._poll_interval)

    def _ride_out(self, ids: Iterable[str], error: ResponsysError, sent: float, now: float) -> None:
        if isinstance(error, LimitExceeded):
            self.schedule.put_back(ids, now)
            self.pace.refused(sent, now)  # which waits, and finds out for how long
            self.patience.troubles += 1
        else:
            self.schedule.put_back(ids, now + self._poll_interval)
            self.patience.trouble(now, error.wait if isinstance(error, TryLater) else 0.0)
