"""A world for the waiting engine: answers that are late, purged, refused or out of number, and pollers that die.

Everything is drawn from one seed, on a clock of its own, so that a schedule can be
played again. The rules that must hold whatever is drawn are checked as it goes.
"""

import heapq
import random
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import count

from airflow_provider_responsys.errors import LimitExceeded, NoAnswer, Refused, ResponsysError, TryLater
from airflow_provider_responsys.protocol.polling import (
    PURGED,
    UNANSWERED,
    Failed,
    Finished,
    Gone,
    Outcome,
    Processing,
    Unclear,
)
from airflow_provider_responsys.protocol.results import Results
from airflow_provider_responsys.waiting import engine as module
from airflow_provider_responsys.waiting.engine import WaitEngine
from airflow_provider_responsys.waiting.schedule import paced
from airflow_provider_responsys.waiting.state import WaitState

INTERVAL = 10.0
DEADLINE = 20_000.0
QUIET_AFTER = 6_000.0
"""When nothing goes wrong any more, so that every wait can come to its end."""

MOST_POLLS = 1_200
"""For each request and poller: more would be a loop."""


class Broken(AssertionError):
    """A rule does not hold."""


@dataclass(slots=True)
class Truth:
    """A request, and what becomes of it *at* some time."""

    name: str
    size: int
    at: float
    outcome: Outcome
    is_refused: bool = False


class Ledger:
    """What the pollers share: outcomes that were written, while it can be reached."""

    def __init__(self, truths: dict[str, Truth]) -> None:
        self.sizes = {name: truth.size for name, truth in truths.items()}
        self.accepted_at: dict[str, datetime] = {}
        self.ended: dict[str, Outcome] = {}

    def knows(self, request_id: str) -> bool:
        """Every request is in it."""
        return request_id in self.sizes

    def outcome_of(self, request_id: str) -> Outcome | None:
        """Return what was written."""
        return self.ended.get(request_id)


@dataclass(slots=True)
class Poller:
    """One triggerer's wait."""

    engine: WaitEngine
    has_read: bool
    unwritten: dict[str, Outcome] = field(default_factory=dict)
    counted: Counter[str] = field(default_factory=Counter)
    polls: int = 0
    is_alive: bool = True
    ended: bool = False


class World:
    """Some requests, one or two pollers, and what is drawn from *seed*."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)  # noqa: S311 -- to be drawn again
        self.now = 0.0
        self.group = self.random.choice([1, 1, 3, 200])
        self.truths = {truth.name: truth for truth in map(self._truth, range(self.random.randint(1, 6)))}
        self.ledger = Ledger(self.truths) if self.random.random() < 0.6 else None
        self.sizes = {name: truth.size for name, truth in self.truths.items()}
        if not self.ledger and self.random.random() < 0.3:
            self.sizes = {}  # ids alone
        self.ledger_is_up = True
        self.pollers: list[Poller] = []
        self._agenda: list[tuple[float, int, str, Poller, tuple[list[str], float] | None]] = []
        self._order = count()
        self._asked = 0

    def _truth(self, number: int) -> Truth:
        size = self.random.randint(1, 5)
        at = self.random.choice([0.0, 5.0, 300.0, 3_000.0])
        kinds: list[Outcome] = [
            Finished(size),
            Finished(size, {"NO_RECIPIENT_FOUND": (0,)}),
            Finished(size + 1),
            Failed("CAMPAIGN_IS_INVALID"),
            Gone(PURGED),
        ]
        refused = self.random.random() < 0.1
        return Truth(f"r{number}", size, at, Failed("POISONED") if refused else self.random.choice(kinds), refused)

    def play(self) -> None:
        """Let everything happen, and check the rules."""
        for _ in range(self.random.choice([1, 1, 2])):
            self._start()
        while self._agenda:
            self.now, _, what, poller, poll = heapq.heappop(self._agenda)
            if self.now > DEADLINE:
                break
            self._shake()
            if not poller.is_alive:
                continue
            if what == "answer" and poll:
                self._answer(poller, *poll)
            elif what == "ledger":
                self._read(poller)
            self._look(poller)
        for poller in self.pollers:
            if poller.is_alive and not poller.ended:
                raise Broken(f"a wait did not end: {poller.engine.state.results.summary()['requests']}")

    # What happens

    def _start(self) -> None:
        state = WaitState.on(self.truths, sizes=self.sizes)
        if self.ledger and self.ledger_is_up:
            state.learn(self.ledger)  # type: ignore[arg-type]  # as much of the records as a state uses
        engine = WaitEngine(
            state,
            pace=paced(600, self.now),
            poll_interval=INTERVAL,
            ids_per_poll=self.group,
            max_in_flight=self.random.choice([1, 2, 40]),
            first_at=self.now,
            now=datetime(2026, 11, 24, tzinfo=UTC),
        )
        poller = Poller(engine, has_read=bool(self.ledger and self.ledger_is_up))
        self.pollers.append(poller)
        self._look(poller)

    def _shake(self) -> None:
        """Let the ledger go away or come back, and pollers die: another one begins at once."""
        if self.now > QUIET_AFTER:
            self.ledger_is_up = True
            return
        if self.random.random() < 0.1:
            self.ledger_is_up = not self.ledger_is_up
        if self.random.random() < 0.03:
            alive = [poller for poller in self.pollers if poller.is_alive and not poller.ended]
            if alive:
                self.random.choice(alive).is_alive = False
                self._start()

    def _look(self, poller: Poller) -> None:
        engine = poller.engine
        for ids in engine.take(self.now):
            poller.polls += 1
            if closed := [name for name in ids if name not in engine.state.open]:
                raise Broken(f"{closed} polled after their end")
            if poller.polls > MOST_POLLS * len(self.truths):
                raise Broken("polled without an end")
            latency = self.random.choice([0.1, 0.1, 2.0, 40.0])
            self._later(latency, "answer", poller, (ids, self.now))
        if engine.ended:
            self._end(poller)
        elif engine.next_at < DEADLINE * 2:
            self._later(max(engine.next_at - self.now, 0.01), "look", poller)
        if self.ledger and not poller.has_read:
            self._later(30.0, "ledger", poller)

    def _later(self, seconds: float, what: str, poller: Poller, poll: tuple[list[str], float] | None = None) -> None:
        entry = (self.now + seconds, next(self._order), what, poller, poll)
        # One look at a time is enough, whatever asks for it.
        if what == "answer" or not any(other[2] == what and other[3] is poller for other in self._agenda):
            heapq.heappush(self._agenda, entry)

    def _answer(self, poller: Poller, ids: list[str], sent: float) -> None:
        engine = poller.engine
        answer = self._drawn(ids)
        if isinstance(answer, ResponsysError):
            counted = engine.failed(ids, answer, sent, self.now)
        else:
            counted = engine.answered(answer, sent, self.now)
        poller.counted.update(list(counted.final))
        poller.unwritten.update(counted.final)
        if self.ledger and self.ledger_is_up:
            self.ledger.ended.update(poller.unwritten)
            poller.unwritten.clear()

    def _read(self, poller: Poller) -> None:
        if self.ledger and self.ledger_is_up and not poller.has_read:
            poller.engine.state.learn(self.ledger)  # type: ignore[arg-type]  # as above
            poller.has_read = True

    def _drawn(self, ids: list[str]) -> dict[str, Outcome] | ResponsysError:
        """Return what Responsys says of *ids* now."""
        self._asked += 1
        if self.now < QUIET_AFTER and self.random.random() < 0.25:
            return self.random.choice(
                [NoAnswer("lost"), LimitExceeded("limit"), TryLater("later", wait=self.random.choice([0.0, 60.0]))]
            )
        poisoned = [name for name in ids if self.truths[name].is_refused]
        if poisoned and self._asked % 2:
            return Refused("poisoned", code="POISONED")
        return {name: self._outcome(name, among=len(ids)) for name in ids}

    def _outcome(self, name: str, *, among: int) -> Outcome:
        truth = self.truths[name]
        early = self.random.random()
        if self.now < QUIET_AFTER:
            if among > 1 and early < 0.1:
                return UNANSWERED
            if early < 0.15:
                return Gone(PURGED)  # a server that has just taken over
            if early < 0.2:
                return Failed("INVALID_REQUEST_ID")
            if early < 0.25:
                return Unclear("UNKNOWN")
        if truth.is_refused and among == 1:
            return Failed("POISONED")
        return truth.outcome if self.now >= truth.at and not truth.is_refused else Processing()

    # The rules

    def _end(self, poller: Poller) -> None:
        if poller.ended:
            return
        poller.ended = True
        results = poller.engine.state.results
        if results.pending or poller.engine.state.open:
            raise Broken("the wait ended with requests open")
        if twice := [name for name, times in poller.counted.items() if times > 1]:
            raise Broken(f"{twice} counted twice")
        expected = Results(total=len(self.truths))
        sizes = poller.engine.state.sizes
        for name, truth in self.truths.items():
            expected.add(truth.outcome, sizes.get(name))
        if results != expected:
            raise Broken(f"counted {results}, and true is {expected}")


def play(seed: int) -> None:
    """Play the schedule of *seed*; raise `Broken` where a rule does not hold."""
    # Nothing that is said too early is believed before all is quiet.
    module.NOT_BELIEVED = (5.0,) * 150  # type: ignore[assignment]  # of another length
    World(seed).play()
