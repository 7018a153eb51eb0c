"""The pace: evenly spaced, never above the limit; after a refusal, as fast as others leave room for."""

import heapq
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_provider_responsys.protocol.pace import LEAST, SCOUT, WINDOW, Pace
from airflow_provider_responsys.sandbox.limits import Windows

LIMITS = 200, 400, 1_000
LATENCIES = 0.1, 0.5, 1.0
SETTLED = 2 * WINDOW
"""Seconds that the pace may take to find out what is left."""

Taken = Callable[[float], float]


@dataclass(kw_only=True)
class Model:
    """A sender that does as its pace says, and a server that counts a limit of which another program takes a part.

    The server's minutes begin *phase* seconds before the sender does. A request
    arrives after half its latency.
    """

    limit: float
    sliding: bool = False
    phase: float = 0.0
    latency: float = 0.5
    jitter: float = 0.0
    taken: Taken = lambda _: 0.0
    accepted: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    paces: list[tuple[float, float]] = field(default_factory=list)
    """The pace after each answer, with the answer's time."""
    turns: list[float] = field(default_factory=list)
    """When a first acceptance after refusals came in."""
    most_held: int = 0

    def __post_init__(self) -> None:
        self.pace = Pace.at(self.limit, 0.0)
        self.counted = Windows()
        self._order = itertools.count()
        self._chance = random.Random(1)  # noqa: S311 -- no secret: the same delays in every run
        self._out: list[tuple[float, int, float, bool | None]] = []
        self._quiet_until = 0.0
        self._now = 0.0

    def run(self, *, until: float) -> "Model":
        """Send until then."""
        while True:
            leaves = self.pace.earliest()
            if self._out and self._out[0][0] <= leaves:
                now, _, sent, answer = heapq.heappop(self._out)
                if answer is None:
                    self._arrive(now, sent)
                else:
                    self._answer(now, sent, was_accepted=answer)
            elif leaves >= until:
                return self
            else:
                self._send(leaves)

    def share(self, since: float, until: float) -> float:
        """Return which part of what was left then was accepted."""
        left = sum(self.limit - self.taken(second) for second in range(int(since), int(until))) / WINDOW
        return sum(since <= at < until for at in self.accepted) / left

    def _send(self, leaves: float) -> None:
        now = max(leaves, self._now)
        assert now >= self._quiet_until, "a refusal was not waited out"
        self.pace.take(now)
        took = self.latency + self._chance.uniform(0.0, self.jitter)
        heapq.heappush(self._out, (now + took / 2, next(self._order), now, None))

    def _arrive(self, now: float, sent: float) -> None:
        clock = now + self.phase
        left = max(int(self.limit - self.taken(now)), 0)
        was_accepted = self.counted.admit("push", left, now=clock, span=WINDOW, sliding=self.sliding)
        (self.accepted if was_accepted else self.refused).append(now)
        heapq.heappush(self._out, (now + (now - sent), next(self._order), sent, was_accepted))

    def _answer(self, now: float, sent: float, *, was_accepted: bool) -> None:
        self._now = now
        scouts = self.pace.refused_since is not None
        if was_accepted:
            self.pace.accepted(sent, now)
        else:
            self.pace.refused(sent, now)
            self._quiet_until = now + SCOUT
        if scouts and self.pace.refused_since is None:
            self.turns.append(now)
        self.paces.append((now, self.pace.rate))
        self.most_held = max(self.most_held, len(self.pace.held))


def both_windows() -> pytest.MarkDecorator:
    """Run a test for either way to count a minute."""
    return pytest.mark.parametrize("sliding", [pytest.param(False, id="fixed"), pytest.param(True, id="sliding")])


def departures(pace: Pace, until: float, late_by: float = 0.0) -> list[float]:
    """Send as fast as *pace* allows, *late_by* seconds after each time it names."""
    times = []
    now = pace.due
    while now < until:
        now = max(now, pace.earliest()) + late_by
        pace.take(now)
        times.append(now)
    return times


@pytest.mark.parametrize("limit", [1, 10, 200, 1_000])
@pytest.mark.parametrize("late_by", [0.0, 0.02])
def test_no_minute_holds_more_requests_than_the_limit(limit: int, late_by: float) -> None:
    """Fixed or sliding, any window of 60 seconds holds at most the limit."""
    times = departures(Pace.at(limit, now=100.0), until=400.0, late_by=late_by)

    busiest = max(sum(start <= time < start + WINDOW for time in times) for start in times)
    assert busiest <= limit


@pytest.mark.parametrize("limit", LIMITS)
def test_a_prompt_sender_uses_98_percent_of_the_limit(limit: int) -> None:
    """Headroom for clocks that differ costs at most two requests in a hundred."""
    times = departures(Pace.at(limit, now=0.0), until=300.0)

    assert len(times) >= 0.98 * limit * 5


def test_a_late_sender_catches_up_only_a_little() -> None:
    """A pause of ten seconds is not made good by a burst."""
    pace = Pace.at(1_000, now=0.0)
    pace.take(0.0)

    slots = pace.slots(10.0)
    for _ in range(slots):
        pace.take(10.0)

    assert slots == 1 + 5  # five are half a percent of the limit
    assert pace.earliest() > 10.0
    assert Pace(limit=1_000, rate=100).slots(10.0) == 1


def test_slots_before_the_time_are_none() -> None:
    """Nothing leaves early."""
    pace = Pace.at(60, now=0.0)
    pace.take(0.0)

    assert pace.slots(pace.earliest() - 0.01) == 0
    assert pace.slots(pace.earliest()) == 1


@both_windows()
@given(
    limit=st.sampled_from(LIMITS),
    latency=st.sampled_from(LATENCIES),
    jitter=st.floats(0.0, 0.25),
    phase=st.floats(0.0, WINDOW),
)
@settings(deadline=None, max_examples=20)
def test_whoever_is_alone_is_never_refused(
    sliding: bool, limit: int, latency: float, jitter: float, phase: float
) -> None:
    """Whatever the latency, and whenever the server's minute begins: at least 98 % of the limit."""
    model = Model(limit=limit, sliding=sliding, phase=phase, latency=latency, jitter=jitter).run(until=200.0)

    assert model.refused == []
    assert model.share(60.0, 180.0) >= 0.98


@both_windows()
@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("latency", LATENCIES)
@pytest.mark.parametrize("tenths", [1, 3, 5, 7, 9])
def test_what_others_leave_is_found_in_two_minutes_and_used(
    sliding: bool, limit: int, latency: float, tenths: int
) -> None:
    """Another program begins in the middle of a minute and takes a part, untold."""
    begins = 70.0
    taken = limit * tenths // 10
    model = Model(limit=limit, sliding=sliding, latency=latency, taken=lambda at: taken if at >= begins else 0.0)

    model.run(until=begins + 14 * WINDOW)

    in_flight = limit * latency / WINDOW
    assert model.share(begins + SETTLED, begins + 13 * WINDOW) >= 0.94
    # Two windows are scouted, and then one request in a while runs into the limit.
    assert len(model.refused) <= 2 * (WINDOW / SCOUT + in_flight) + 14 * (1 + in_flight / 4)


@both_windows()
@given(
    limit=st.sampled_from(LIMITS),
    taken=st.floats(0.1, 0.9),
    latency=st.floats(0.05, 1.5),
    jitter=st.floats(0.0, 0.25),
    phase=st.floats(0.0, WINDOW),
    begins=st.floats(0.0, 2 * WINDOW),
)
@settings(deadline=None, max_examples=25)
def test_any_part_taken_at_any_moment_leaves_nine_tenths_of_the_rest(
    *, sliding: bool, limit: int, taken: float, latency: float, jitter: float, phase: float, begins: float
) -> None:
    """From the third minute on, in whatever way the moments fall."""
    part = int(taken * limit)
    model = Model(
        limit=limit,
        sliding=sliding,
        phase=phase,
        latency=latency,
        jitter=jitter,
        taken=lambda at: part if at >= begins else 0.0,
    )

    model.run(until=begins + 6 * WINDOW)

    assert model.share(begins + SETTLED, begins + 5 * WINDOW) >= 0.9


@both_windows()
@pytest.mark.parametrize("part", [0.1, 0.5, 0.9, 1.0])
def test_it_finds_back_to_the_whole_limit(sliding: bool, part: float) -> None:
    """The other program has ended: about ten minutes later, all of the limit is used, and nothing is refused."""
    ends = 10 * WINDOW
    taken = 400 * part
    model = Model(limit=400, sliding=sliding, phase=20.0, taken=lambda at: taken if 70.0 <= at < ends else 0.0)

    model.run(until=ends + 14 * WINDOW)

    assert model.share(ends + 11 * WINDOW, ends + 13 * WINDOW) >= 0.98
    assert all(at < ends + WINDOW for at in model.refused)


def test_it_rises_slowly() -> None:
    """Three minutes as fast as was found, then a little more each minute."""
    taken = 500.0
    model = Model(limit=1_000, taken=lambda at: taken if at >= 70.0 else 0.0).run(until=10 * WINDOW)

    rises = [(at, after / before) for (_, before), (at, after) in itertools.pairwise(model.paces) if after > before]
    assert rises
    assert max(by for _, by in rises) < 1.3
    assert all(at - max(turn for turn in model.turns if turn < at) >= 3 * WINDOW for at, _ in rises)


@both_windows()
@pytest.mark.parametrize("earlier", [150, 250, 400])
def test_what_left_before_the_sender_began_does_not_slow_it_down(sliding: bool, earlier: int) -> None:
    """The task before this one used the minute, or a part of it: that is no other program, and the next is all ours."""
    model = Model(limit=400, sliding=sliding, phase=10.0)
    for _ in range(earlier):
        model.counted.admit("push", 400, now=9.9, span=WINDOW, sliding=sliding)

    model.run(until=5 * WINDOW)

    assert model.refused
    assert model.pace.rate == 400
    assert model.share(2 * WINDOW, 4 * WINDOW) >= 0.98


def test_a_window_that_held_nothing_of_ours_leaves_a_floor() -> None:
    """Somebody else used all of it: the pace is low afterwards, and not zero."""
    model = Model(limit=1_000, taken=lambda at: 1_000.0 if 70.0 <= at < 400.0 else 0.0).run(until=7.5 * WINDOW)

    assert model.pace.rate == 1_000 * LEAST


def test_refusals_without_end_are_asked_for_less_and_less_often() -> None:
    """Twenty questions in the first minute, and one a minute after twenty minutes."""
    model = Model(limit=1_000, latency=0.1, taken=lambda _: 1_000.0).run(until=3_600.0)

    first, last = (sum(start <= at < start + WINDOW for at in model.refused) for start in (SCOUT, 3_500.0))
    assert (first, last) == (20, 1)
    assert len(model.refused) < 130


def test_each_quiet_minute_doubles_the_rise() -> None:
    """Small steps where the limit may be near, and large ones when it is not; never beyond the whole limit."""
    pace = Pace(limit=1_000, rate=100, rise_at=180.0)

    rates = []
    for now in (179.0, 180.0, 239.0, 240.0, 300.0, 360.0, 420.0, 480.0, 540.0, 600.0):
        pace.accepted(now, now)
        rates.append(round(pace.rate))

    assert rates == [100, 103, 103, 109, 122, 152, 224, 440, 1_000, 1_000]


def test_a_refusal_begins_with_small_rises_again() -> None:
    """What was quiet before it counts no more."""
    pace = Pace(limit=1_000, rate=100, began=-WINDOW, rise=0.5, rise_at=0.0)
    pace.refused(100.0, now=100.5)
    pace.accepted(103.5, now=104.0)
    rate = pace.rate

    pace.accepted(283.9, now=283.9)
    before = pace.rate
    pace.accepted(284.0, now=284.0)

    assert before == rate
    assert pace.rate == pytest.approx(rate * 1.03)


def test_a_refusal_never_raises_the_pace() -> None:
    """More was accepted than the pace asks for: that was before."""
    pace = Pace(limit=1_000, rate=100, began=-WINDOW, rise_at=WINDOW)
    for sent in range(500):
        pace.accepted(sent / 10, now=sent / 10)

    pace.refused(50.0, now=50.0)
    pace.accepted(53.0, now=53.0)

    assert pace.rate == 100


def test_refusals_of_one_moment_count_once() -> None:
    """Requests refused together speak of one limit: the next one leaves a few seconds after the last of them."""
    pace = Pace.at(1_000, now=0.0)
    for sent in range(20):
        pace.refused(49.0 + sent / 20, now=50.0 + sent / 20)

    assert (pace.refused_since, pace.earliest()) == (50.0, 50.95 + SCOUT)
    assert pace.slots(50.95 + SCOUT - 0.01) == 0
    assert pace.slots(50.95 + SCOUT) == 1


def test_an_acceptance_of_what_left_before_the_refusal_says_nothing() -> None:
    """The window was full after that request, too."""
    pace = Pace.at(100, now=0.0)
    pace.refused(99.0, now=100.0)

    pace.accepted(99.5, now=100.5)

    assert pace.refused_since == 100.0
    assert pace.earliest() == 100.0 + SCOUT


def test_a_late_refusal_of_what_left_before_the_turn_is_waited_out_and_no_more() -> None:
    """The window has turned since; nothing new is learnt from it."""
    pace = Pace.at(100, now=0.0)
    pace.refused(99.0, now=100.0)
    pace.refused(299.0, now=300.0)  # for so long that ten seconds are waited
    pace.accepted(310.0, now=310.5)
    rate = pace.rate

    pace.refused(299.5, now=311.0)

    assert pace.refused_since is None
    assert pace.rate == rate
    assert pace.earliest() == 311.0 + SCOUT


def test_whoever_was_silent_for_a_window_learns_nothing_from_it() -> None:
    """After an outage others may have filled the minute: that few of ours were in it does not mean that few may be."""
    pace = Pace.at(100, now=0.0)
    pace.take(0.0)
    pace.take(700.0)
    pace.refused(700.0, now=700.5)
    pace.take(704.0)
    pace.accepted(704.0, now=704.5)

    assert pace.rate == 100


def test_the_first_acceptance_ends_the_scouting_at_once() -> None:
    """Whoever knows that the window has turned need not wait for the next scout's time."""
    pace = Pace.at(100, now=0.0)
    pace.refused(99.0, now=100.0)
    pace.take(103.0)

    pace.accepted(103.0, now=103.5)

    assert pace.earliest() <= 103.5


def test_no_more_than_a_minute_is_remembered() -> None:
    """Memory does not grow with the campaign."""
    model = Model(limit=1_000, taken=lambda at: 500.0 if at > 200.0 else 0.0).run(until=900.0)

    assert model.most_held <= 1_000
