"""The engine's decisions, without a clock, a thread or a network."""

import math
import random
from collections import deque
from collections.abc import Callable

import pytest

from airflow_provider_responsys.errors import (
    FailedOver,
    Fenced,
    InDoubt,
    InvalidAnswer,
    InvalidSettings,
    LedgerFailed,
    LimitExceeded,
    LoginExpired,
    NoAnswer,
    NotAccepted,
    NotAllSent,
    NotSent,
    Refused,
    ResponsysError,
    TooManyInDoubt,
    TryLater,
)
from airflow_provider_responsys.ledger.interface import Accepted, Released
from airflow_provider_responsys.protocol.pace import SCOUT, Pace
from airflow_provider_responsys.sandbox.limits import Windows
from airflow_provider_responsys.sending import engine
from airflow_provider_responsys.sending.budget import Budget
from airflow_provider_responsys.sending.engine import (
    LOST_IN_A_ROW,
    Action,
    Commit,
    Delivery,
    Done,
    Engine,
    Fate,
    Limits,
    Post,
    Probe,
    Recall,
    Wait,
)

Answer = str | ResponsysError


class World:
    """Plays ledger, wire and clock for an engine, and keeps what it did.

    Every request is answered *latency* seconds later by the next of *answers*,
    which ends with acceptances for ever.
    """

    def __init__(
        self,
        batches: int,
        answers: list[Answer] | None = None,
        *,
        per_minute: float = 6_000,
        latency: float = 0.5,
        limits: Limits | None = None,
        probes: list[ResponsysError | None] | None = None,
        size: int = 1,
    ) -> None:
        self.now = 0.0
        self.until = math.inf
        self.engine = Engine(limits=limits or Limits(), pace=Pace.at(per_minute, 0.0), more=batches > 0)
        self.left = batches
        self.numbers = iter(range(1, 10_000))
        self.answers = deque(answers or [])
        self.probes = deque(probes or [])
        self.latency = latency
        self.size = size
        self.out: list[tuple[float, int]] = []
        self.posts: list[tuple[float, int]] = []
        self.answered: list[tuple[float, Answer]] = []
        self.commits: list[Commit] = []
        self.probed: list[float] = []
        self.claimed: set[int] = set()
        self.waiting: set[int] = set()
        """Those posted whose request has not left."""
        self.settled: dict[int, Accepted | Released] = {}
        self.most_out = 0
        self.most_in_doubt = 0
        self.ledger_error: Callable[[Commit], ResponsysError | None] = lambda _: None

    def run(self, *, until: float = math.inf) -> Action:
        """Follow the engine until it is done, or the clock passes *until*."""
        self.until = until
        for _ in range(100_000):
            action = self.engine.decide(self.now)
            if isinstance(action, Done):
                return action
            self._do(action)
            if self.now >= until:
                return action
        raise AssertionError("the engine does not come to an end")

    def _do(self, action: Action) -> None:
        match action:
            case Commit(settle, claim):
                self._commit(action, settle, claim)
            case Post(numbers):
                assert set(numbers) <= self.claimed - set(self.settled), "posted without a claim"
                self.posts += [(self.now, number) for number in numbers]
                self.out += [(self.now + self.latency, number) for number in numbers]
                self.most_out = max(self.most_out, len(self.out))
            case Probe():
                self.probed.append(self.now)
                self.engine.probed(self.probes.popleft() if self.probes else None, self.now)
            case Recall():
                self._recall()
            case Wait(until):
                self._wait(until)
            case Done():
                raise AssertionError("run returns it")

    def _commit(self, action: Commit, settle: tuple[Accepted | Released, ...], claim: int) -> None:
        self.commits.append(action)
        if error := self.ledger_error(action):
            self.engine.unwritten(settle, error, self.now)
            return
        self.settled |= {each.number: each for each in settle}
        numbers = [next(self.numbers) for _ in range(min(claim, self.left))]
        self.left -= len(numbers)
        self.claimed |= set(numbers)
        self.most_in_doubt = max(self.most_in_doubt, len(self.in_doubt))
        self.engine.claimed(numbers, more=self.left > 0, sizes=[self.size] * len(numbers))

    def _recall(self) -> None:
        kept = [number for _, number in self.out if number in self.waiting]
        self.out = [(at, number) for at, number in self.out if number not in self.waiting]
        self.left += len(self.engine.recalled(kept))

    def _wait(self, until: float) -> None:
        self.out.sort()
        if min(until, self.out[0][0] if self.out else math.inf) > self.until:
            self.now = self.until
        elif self.out and self.out[0][0] <= until:
            self.now, number = self.out.pop(0)
            answer = self._answer(number)
            self.answered.append((self.now, answer))
            if isinstance(answer, str):
                self.engine.accepted(number, answer, self.now)
            elif self.engine.failed(number, answer, self.now) is Fate.RECLAIM:
                self.left += 1
        else:
            assert until < math.inf, "waits for ever"
            assert until > self.now, "waits for a time that has passed"
            self.now = until

    def _answer(self, number: int) -> Answer:
        return self.answers.popleft() if self.answers else f"id-{number}"

    @property
    def accepted(self) -> set[int]:
        """Return the batches whose acceptance is written."""
        return {number for number, how in self.settled.items() if isinstance(how, Accepted)}

    @property
    def in_doubt(self) -> set[int]:
        """Return the batches that the ledger holds as claimed and not settled."""
        return self.claimed - set(self.settled)


class Limited(World):
    """The same, with a limit of requests a minute, of which another program takes *taken* from *since* on."""

    def __init__(
        self, *, limit: int, taken: int = 0, since: float = 70.0, sliding: bool = False, latency: float = 0.5
    ) -> None:
        super().__init__(batches=100_000, per_minute=limit, latency=latency)
        self.limit = limit
        self.taken = taken
        self.since = since
        self.sliding = sliding
        self.counted = Windows()

    def _answer(self, number: int) -> Answer:
        left = self.limit - (self.taken if self.now >= self.since else 0)
        if self.counted.admit("push", left, now=self.now, span=60.0, sliding=self.sliding):
            return f"id-{number}"
        return LimitExceeded("limit", wait=60.0)

    @property
    def refusals(self) -> list[float]:
        """Return when something was refused."""
        return [at for at, answer in self.answered if not isinstance(answer, str)]

    def per_minute(self, since: float, until: float) -> float:
        """Return how many requests a minute were accepted then."""
        return (
            sum(since <= at < until and isinstance(answer, str) for at, answer in self.answered) / (until - since) * 60
        )


def test_everything_is_claimed_sent_and_settled() -> None:
    """The plain case: each batch once, and nothing left open."""
    world = World(batches=40)

    world.run()

    assert world.accepted == set(range(1, 41))
    assert len(world.posts) == 40


def test_nothing_to_send_is_done_at_once() -> None:
    """An empty source needs no ledger and no request."""
    world = World(batches=0)

    world.run()

    assert not world.commits


def test_claims_never_run_ahead_of_free_slots() -> None:
    """What is claimed and unsettled is bounded, so that a kill leaves little in doubt."""
    world = World(batches=100, per_minute=60_000, latency=2.0, limits=Limits(max_in_flight=8))

    world.run()

    assert world.most_out == 8
    assert all(commit.claim <= 8 for commit in world.commits)
    assert len(world.accepted) == 100


def test_in_flight_follows_rate_times_latency() -> None:
    """A slow Responsys needs many requests at a time, a quick one few."""
    slow = World(batches=200, per_minute=1_000, latency=1.0)
    quick = World(batches=200, per_minute=1_000, latency=0.05)

    slow.run()
    quick.run()

    assert 17 <= slow.most_out <= 30
    assert quick.most_out <= 4


@pytest.mark.parametrize("sliding", [False, True])
@pytest.mark.parametrize("limit", [200, 400, 1_000])
@pytest.mark.parametrize("latency", [0.1, 0.5, 1.0])
def test_the_limit_is_reached_whatever_the_latency(limit: int, latency: float, sliding: bool) -> None:
    """After the first minute, at least 98 % of the limit, with as many requests in flight as that takes."""
    world = Limited(limit=limit, latency=latency, sliding=sliding)

    world.run(until=190.0)

    assert world.per_minute(60.0, 180.0) >= 0.98 * limit
    assert not world.refusals
    assert world.most_out <= 24  # 17, and what may catch up at once


def test_an_answer_is_written_with_the_next_claim_or_soon() -> None:
    """Grouping writes must not leave an acceptance unwritten for long."""
    world = World(batches=3, per_minute=60, latency=0.1)

    world.run()

    assert [(len(commit.settle), commit.claim) for commit in world.commits] == [
        (0, 1),
        (1, 0),
        (0, 1),
        (1, 0),
        (0, 1),
        (1, 0),
    ]


def test_one_write_settles_and_claims_for_several() -> None:
    """Where the pace leaves room for all that is free, a write for each answer would be too dear."""
    world = World(batches=100, per_minute=60_000, latency=0.01, limits=Limits(max_in_flight=8))

    world.run()

    assert len(world.accepted) == 100
    assert sum(commit.claim > 0 for commit in world.commits) <= 100 / 4
    assert world.most_in_doubt == 8


def test_what_is_free_waits_a_tenth_of_a_second_for_more() -> None:
    """Fewer writes must not mean fewer requests in flight where answers come slowly."""
    world = World(batches=20, per_minute=60_000, latency=10.0, limits=Limits(max_in_flight=8))

    world.run()

    assert [round(at, 3) for at, _ in world.posts[:12]] == [0.0] * 4 + [10.0] * 5 + [10.1] * 3


@pytest.mark.parametrize("error", [NotSent("no route"), LoginExpired("token"), TryLater("full", wait=30)])
def test_what_was_certainly_not_accepted_is_given_back_and_claimed_again(error: NotAccepted) -> None:
    """A claim stands only while its request may be out."""
    world = World(batches=3, answers=[error], limits=Limits(max_in_flight=1))

    world.run()

    assert isinstance(world.settled[1], Released)
    assert len(world.accepted) == 3
    assert not world.in_doubt


def test_try_later_waits_at_least_as_long_as_responsys_asks() -> None:
    """Ten minutes for the capacity limit are ten minutes."""
    world = World(batches=2, answers=[TryLater("capacity", wait=600)], limits=Limits(max_in_flight=1))

    world.run()

    assert world.posts[1][0] >= 600
    assert len(world.accepted) == 2


def test_trouble_backs_off_and_goes_on_one_at_a_time() -> None:
    """After a failed connection a single request feels the way."""
    errors: list[Answer] = [NotSent("no route")] * 6
    world = World(batches=30, answers=errors, per_minute=60_000)

    world.run()

    waits = [later - sooner for (sooner, _), (later, _) in zip(world.posts[4:6], world.posts[5:7], strict=True)]
    assert waits == sorted(waits)
    assert waits[0] >= 1.0
    assert len(world.accepted) == 30


@pytest.mark.parametrize("sliding", [False, True])
@pytest.mark.parametrize("limit", [200, 1_000])
@pytest.mark.parametrize("taken", [0.3, 0.7])
def test_a_limit_that_is_shared_is_used_as_far_as_others_leave_it(limit: int, taken: float, sliding: bool) -> None:
    """Nine tenths of what is left from the third minute on; what was refused is sent later, and nothing twice."""
    world = Limited(limit=limit, taken=int(limit * taken), sliding=sliding)

    world.run(until=500.0)

    assert world.per_minute(190.0, 490.0) >= 0.9 * (limit - world.taken)
    assert world.refusals
    assert all(not at < post < at + SCOUT for at in world.refusals for post, _ in world.posts)
    assert len(world.in_doubt) <= world.most_out
    assert world.engine.stopped is None


def test_a_limit_that_others_use_up_ends_the_patience() -> None:
    """A scout every few seconds is no acceptance."""
    world = World(batches=2, answers=[LimitExceeded("limit", wait=60)] * 1_000, limits=Limits(retry_for=300))

    world.run()

    assert isinstance(world.engine.stopped, NotAllSent)
    assert 300 <= world.now <= 302
    assert not world.in_doubt


def test_scouts_leave_the_backoff_alone() -> None:
    """A connection that fails after twenty refusals is the first trouble of its kind."""
    errors: list[Answer] = [*[LimitExceeded("limit", wait=60)] * 20, NotSent("no route")]
    world = World(batches=2, answers=errors, limits=Limits(max_in_flight=1), latency=0.1)

    world.run()

    (failed, _), (again, _) = world.posts[20:22]
    assert again - failed <= SCOUT + 0.1
    assert len(world.accepted) == 2


def test_a_refused_repetition_waits_for_the_limit_too() -> None:
    """At least once: the limit is run into by the second request of a batch in doubt."""
    limits = Limits(delivery=Delivery.AT_LEAST_ONCE, max_in_flight=1)
    world = World(batches=2, answers=["ok", NoAnswer("lost"), LimitExceeded("limit", wait=60)], limits=limits)

    world.run()

    assert world.engine.pace.last_refused == world.posts[2][0]
    assert world.accepted == {1, 2}


def test_a_refused_batch_does_not_stop_the_others() -> None:
    """One batch's wrong data is not the other batches' fault."""
    world = World(batches=3, answers=[Refused("invalid", code="INVALID_PARAMETER")], limits=Limits(max_in_flight=1))

    world.run()

    assert isinstance(world.settled[1], Released)
    assert world.accepted == {2, 3}


def test_a_refused_send_stops_everything() -> None:
    """A campaign that does not exist will not exist for the next batch either."""
    world = World(batches=100, answers=[FailedOver("secondary")], limits=Limits(max_in_flight=1))

    world.run()

    assert len(world.posts) == 1
    assert isinstance(world.engine.stopped, FailedOver)
    assert not world.in_doubt


@pytest.mark.parametrize("error", [NoAnswer("read timed out"), InDoubt("html 503"), ResponsysError("unheard of")])
def test_a_lost_answer_is_never_posted_again(error: ResponsysError) -> None:
    """The push may have gone out: sending it again is not ours to decide."""
    world = World(batches=3, answers=[error], limits=Limits(max_in_flight=1))

    world.run()

    assert [number for _, number in world.posts] == [1, 2, 3]
    assert world.in_doubt == {1}
    assert world.accepted == {2, 3}


def test_nothing_is_claimed_after_a_lost_answer_until_a_read_succeeds() -> None:
    """An outage must not turn a campaign into doubt."""
    down = NoAnswer("still down")
    world = World(batches=5, answers=[NoAnswer("lost")], probes=[down, down, None], limits=Limits(max_in_flight=1))

    world.run()

    assert len(world.probed) == 3
    assert world.posts[1][0] >= world.probed[2]
    assert world.in_doubt == {1}
    assert len(world.accepted) == 4


def test_requests_lost_together_count_once() -> None:
    """One outage with many requests in flight is one outage."""
    answers: list[Answer] = ["ok"] * 20 + [NoAnswer("lost")] * 10
    world = World(batches=100, answers=answers, per_minute=1_200, latency=1.0)

    world.run()

    assert world.engine.stopped is None
    assert len(world.in_doubt) == 10
    assert len(world.accepted) == 90


def test_a_server_that_loses_every_push_is_given_up() -> None:
    """It answers reads but no push: going on would put everybody in doubt, one batch at a time."""
    world = World(batches=100, answers=[NoAnswer("lost")] * 100, limits=Limits(max_in_flight=1))

    world.run()

    assert len(world.posts) == len(world.in_doubt) == LOST_IN_A_ROW
    assert isinstance(world.engine.stopped, NotAllSent)


@pytest.mark.parametrize("error", [NotSent("down"), TryLater("full", wait=1)])
def test_patience_ends(error: NotAccepted) -> None:
    """What was not accepted within retry_for is left for another try."""
    world = World(batches=2, answers=[error] * 10_000, limits=Limits(retry_for=300))

    world.run()

    assert isinstance(world.engine.stopped, NotAllSent)
    assert 300 <= world.now <= 302
    assert not world.in_doubt


def test_patience_ends_while_no_read_succeeds() -> None:
    """The same with an answer lost and Responsys gone."""
    down: list[ResponsysError | None] = [NoAnswer("down")] * 1_000
    world = World(batches=2, answers=[NoAnswer("lost")], probes=down, limits=Limits(retry_for=300, max_in_flight=1))

    world.run()

    assert isinstance(world.engine.stopped, NotAllSent)
    assert world.in_doubt == {1}


def test_an_acceptance_renews_the_patience() -> None:
    """A limit shared with others refuses now and then for hours."""
    answers: list[Answer] = [LimitExceeded("limit", wait=60), "ok"] * 20
    world = World(batches=20, answers=answers, limits=Limits(retry_for=100, max_in_flight=1))

    world.run()

    assert world.engine.stopped is None
    assert len(world.accepted) == 20


def test_a_read_that_is_refused_for_good_stops_the_send() -> None:
    """A user that was disabled meanwhile will not be enabled by waiting."""
    world = World(batches=5, answers=[NoAnswer("lost")], probes=[FailedOver("x")], limits=Limits(max_in_flight=1))

    world.run()

    assert isinstance(world.engine.stopped, FailedOver)
    assert len(world.posts) == 1


def test_no_claim_after_the_deadline_and_answers_are_awaited() -> None:
    """The engine stops itself before Airflow stops it in the middle of something."""
    world = World(batches=1_000, per_minute=600, latency=2.0, limits=Limits(deadline=10.0, grace=5.0))

    world.run()

    assert all(at < 10.0 for at, _ in world.posts)
    assert not world.in_doubt
    assert isinstance(world.engine.stopped, NotAllSent)


def test_a_stop_waits_for_answers_only_as_long_as_it_may() -> None:
    """What has not answered by then stays in doubt, as the ledger says already."""
    world = World(batches=100, per_minute=600, latency=50.0)
    world.run(until=5.0)

    world.engine.stop(NotAllSent("killed"), world.now, grace=3.0)
    world.run()

    assert len(world.in_doubt) == len(world.posts)
    assert world.now <= 8.5


def test_a_claim_that_fails_sends_nothing() -> None:
    """The ledger is down before a request: nobody is pushed."""
    world = World(batches=5)
    world.ledger_error = lambda commit: LedgerFailed("down") if commit.claim else None

    world.run()

    assert not world.posts
    assert isinstance(world.engine.stopped, LedgerFailed)


def test_a_settlement_that_fails_is_tried_once_more_at_the_end() -> None:
    """The ledger was down for a moment after a request: the acceptance is not lost."""
    errors = iter([None, LedgerFailed("down")])
    world = World(batches=5, limits=Limits(max_in_flight=1))
    world.ledger_error = lambda _: next(errors, None)

    world.run()

    assert world.accepted == {1}
    assert len(world.posts) == 1


def test_a_ledger_that_stays_down_leaves_the_sent_in_doubt() -> None:
    """The ledger says what it knows: claimed, and no answer written."""
    world = World(batches=5, limits=Limits(max_in_flight=1))
    world.ledger_error = lambda commit: LedgerFailed("down") if commit.settle else None

    world.run()

    assert world.in_doubt == {1}
    assert len(world.commits) == 3


def test_a_replaced_try_writes_nothing_more_where_the_store_refuses_its_settlements() -> None:
    """It asks once more, without a claim: a second refusal is final."""
    world = World(batches=5, limits=Limits(max_in_flight=1))
    world.ledger_error = lambda commit: Fenced("replaced") if commit.settle else None

    world.run()

    assert [commit.claim for commit in world.commits] == [1, 1, 0]
    assert isinstance(world.engine.stopped, Fenced)
    assert world.engine.unrecorded == 1


def test_a_replaced_try_goes_on_settling_where_the_store_lets_it() -> None:
    """Its claims are refused, and each answer that comes back is recorded when it comes."""
    world = World(batches=5, latency=5.0, limits=Limits(max_in_flight=2), per_minute=60)
    world.ledger_error = lambda commit: Fenced("replaced") if commit.claim and world.posts else None

    world.run()

    assert isinstance(world.engine.stopped, Fenced)
    assert len(world.posts) == len(world.accepted) == 1
    assert world.engine.unrecorded == 0


def test_at_least_once_sends_an_unrecoverable_exception_again_once() -> None:
    """AFTM error page: wait about 30 seconds, send once more."""
    lost = InDoubt("500", code="UNRECOVERABLE_EXCEPTION")
    limits = Limits(delivery=Delivery.AT_LEAST_ONCE, max_in_flight=1)
    world = World(batches=1, answers=[lost, lost], limits=limits)

    world.run()

    assert [number for _, number in world.posts] == [1, 1]
    assert world.posts[1][0] - world.posts[0][0] >= 30
    assert world.in_doubt == {1}


def test_at_least_once_sends_what_was_not_answered_three_times_in_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """AFTM error page: at most three, two minutes apart, where other answers keep the sender going."""
    monkeypatch.setattr(engine, "LOST_IN_A_ROW", 99)
    limits = Limits(delivery=Delivery.AT_LEAST_ONCE, max_in_flight=1)
    world = World(batches=1, answers=[NoAnswer("lost")] * 9, limits=limits)

    world.run()

    assert len(world.posts) == 3
    assert all(later - sooner >= 120 for (sooner, _), (later, _) in zip(world.posts, world.posts[1:], strict=False))


@pytest.mark.parametrize("second", [Refused("no"), FailedOver("x")])
def test_a_repetition_that_is_refused_does_not_undo_the_doubt(second: NotAccepted) -> None:
    """The first request may still have been accepted: the claim stays."""
    limits = Limits(delivery=Delivery.AT_LEAST_ONCE, max_in_flight=1)
    world = World(batches=1, answers=[NoAnswer("lost"), second], limits=limits)

    world.run()

    assert world.in_doubt == {1}


@pytest.mark.parametrize("second", [TryLater("full", wait=5), NotSent("down"), LimitExceeded("full")])
def test_a_repetition_that_is_refused_in_passing_is_repeated(second: NotAccepted) -> None:
    """Its claim stays, and it goes out when the trouble is over."""
    limits = Limits(delivery=Delivery.AT_LEAST_ONCE, max_in_flight=1)
    world = World(batches=1, answers=[NoAnswer("lost"), second, second], limits=limits)

    world.run()

    assert world.accepted == {1}
    assert [number for _, number in world.posts] == [1, 1, 1, 1]
    assert len(world.commits) == 2  # its claim, and its acceptance


def test_a_repetition_that_is_due_waits_for_a_free_place() -> None:
    """Two lost batches are due again at once, and one request may be out: the second waits, and does not spin."""
    limits = Limits(delivery=Delivery.AT_LEAST_ONCE, max_in_flight=2)
    world = World(batches=2, answers=[NoAnswer("lost"), NoAnswer("lost")], limits=limits, latency=60.0)

    world.run()

    assert world.accepted == {1, 2}


def test_waiting_repetitions_count_as_in_flight_and_others_go_on() -> None:
    """Two minutes of waiting hold one slot, not the campaign."""
    limits = Limits(delivery=Delivery.AT_LEAST_ONCE, max_in_flight=4)
    world = World(batches=20, answers=["ok", NoAnswer("lost")], limits=limits)

    world.run()

    assert len(world.accepted) == 20
    assert len(world.posts) == 21


@pytest.mark.parametrize("seed", range(100))
def test_half_of_the_requests_lost_at_once_stop_the_send(seed: int) -> None:
    """At 1,000 requests a minute and 50 ms, 8,000 recipients leave at most 1,200 in doubt in all tries."""
    chance = random.Random(seed)  # noqa: S311 -- chance that can be repeated, no secrets
    left, found = 40, 0
    for _ in range(9):
        answers: list[Answer] = [NoAnswer("reset") if chance.random() < 0.5 else "id" for _ in range(1_000)]
        world = World(batches=left, answers=answers, per_minute=1_000, latency=0.05, size=200)
        world.engine.budget = Budget(most=0.05, recipients=8_000, found=found)

        world.run()

        left, found = world.left, found + 200 * len(world.in_doubt)
        if isinstance(world.engine.stopped, TooManyInDoubt):
            break
        assert isinstance(world.engine.stopped, NotAllSent)  # so many in a row that another try is made

    assert found <= 1_200
    assert left > 0


def test_a_count_of_recipients_stops_the_send_when_it_is_reached() -> None:
    """Two batches of ten, lost one at a time."""
    answers: list[Answer] = ["id", NoAnswer("lost")] * 9
    world = World(batches=9, answers=answers, limits=Limits(max_in_flight=1), size=10)
    world.engine.budget = Budget(most=20, recipients=90)

    world.run()

    assert len(world.in_doubt) == 2
    assert "20 recipients are in doubt, and max_in_doubt allows for 20" in str(world.engine.stopped)


def test_one_window_lost_at_once_never_exhausts_a_share() -> None:
    """One outage is no brown-out: a share has room for all that is in flight, whatever it is a share of."""
    lost: list[Answer] = [*["ok"] * 20, *[NoAnswer("lost")] * 8]
    world = World(batches=60, answers=lost, per_minute=1_000, latency=0.5, size=200)
    world.engine.budget = Budget(most=0.01, recipients=12_000)

    world.run()

    assert len(world.in_doubt) == 8
    assert world.engine.stopped is None
    assert len(world.accepted) == 52


def test_no_more_is_in_flight_than_the_budget_has_room_for() -> None:
    """Once something was lost; before, nothing slows the send down."""
    answers: list[Answer] = [*["ok"] * 30, NoAnswer("lost")]
    world = World(batches=100, answers=answers, per_minute=1_000, latency=1.0, size=200)
    world.engine.budget = Budget(most=1_000, recipients=20_000)
    lost_at = 0.0

    world.run()
    lost_at = next(at for at, answer in world.answered if not isinstance(answer, str))
    later = [at for at, _ in world.posts if at > lost_at]
    at_once = max(sum(at <= other < at + world.latency for other in later) for at in later)

    assert world.most_out > 10
    assert at_once <= 4
    assert len(world.accepted) == 99


def test_what_earlier_tries_left_in_doubt_counts_when_more_is_lost() -> None:
    """It does not stop a try in which nothing is lost: a kill leaves a window in doubt, and the next try goes on."""
    quiet = World(batches=9, limits=Limits(max_in_flight=1), size=10)
    quiet.engine.budget = Budget(most=30, recipients=90, found=50)
    lossy = World(batches=9, answers=["id", NoAnswer("lost")], limits=Limits(max_in_flight=1), size=10)
    lossy.engine.budget = Budget(most=30, recipients=90, found=20)

    quiet.run()
    lossy.run()

    assert len(quiet.accepted) == 9
    assert isinstance(lossy.engine.stopped, TooManyInDoubt)
    assert len(lossy.posts) == 2


def test_a_doubt_that_is_repeated_counts_until_it_is_accepted() -> None:
    """At least once: lost twice, it is one doubt; accepted, it is none."""
    limits = Limits(delivery=Delivery.AT_LEAST_ONCE, max_in_flight=1)
    world = World(batches=3, answers=[NoAnswer("lost"), NoAnswer("lost")], limits=limits, size=10)
    world.engine.budget = Budget(most=11, recipients=30)

    world.run()

    assert len(world.accepted) == 3
    assert world.engine.budget.in_doubt == 0


def test_what_has_not_left_is_not_waited_for() -> None:
    """Two requests wait for a login when the sender stops: they are released, and the others are waited for."""
    world = World(batches=10, latency=5.0, limits=Limits(max_in_flight=4), per_minute=60_000)
    world.run(until=1.0)
    world.waiting = {2, 4}

    world.engine.stop(NotAllSent("killed"), world.now, grace=60.0)
    world.run()

    assert world.accepted == {1, 3}
    assert {number for number, how in world.settled.items() if isinstance(how, Released)} == {2, 4}
    assert not world.in_doubt


def test_a_repetition_that_has_not_left_stays_in_doubt() -> None:
    """Its first request may have been accepted: it is not waited for, and not released."""
    limits = Limits(delivery=Delivery.AT_LEAST_ONCE, max_in_flight=1)
    world = World(batches=1, answers=[NoAnswer("lost")], limits=limits, latency=5.0)
    world.run(until=127.0)
    world.waiting = {1}

    world.engine.stop(NotAllSent("killed"), world.now, grace=60.0)
    world.run()

    assert len(world.posts) == 2
    assert world.in_doubt == {1}
    assert world.engine.may_be_out(1)


def test_a_stopped_sender_waits_no_longer_than_its_end() -> None:
    """Airflow's execution_timeout is harder than any grace."""
    world = World(batches=100, per_minute=600, latency=50.0, limits=Limits(deadline=10.0, grace=70.0, end=14.0))

    world.run()

    assert 10.0 <= world.now <= 14.0


def test_the_reason_names_the_read_that_kept_the_sender_back() -> None:
    """That nothing was accepted would be half of the truth."""
    down: list[ResponsysError | None] = [InvalidAnswer("HTTP 404 with a page")] * 1_000
    world = World(batches=2, answers=[NoAnswer("lost")], probes=down, limits=Limits(retry_for=300, max_in_flight=1))

    world.run()

    assert "the harmless read after a lost answer fails: HTTP 404 with a page" in str(world.engine.stopped)


def test_a_read_that_can_not_be_addressed_stops_the_send() -> None:
    """Waiting for retry_for would change no setting."""
    wrong = InvalidSettings("no such host")
    world = World(batches=5, answers=[NoAnswer("lost")], probes=[wrong], limits=Limits(max_in_flight=1))

    world.run()

    assert world.engine.stopped is wrong
    assert world.now < 60.0


def test_lost_answers_do_not_widen_the_window() -> None:
    """What takes a minute to be lost says nothing about how long an answer takes."""
    world = World(batches=50, answers=["ok"] * 10, per_minute=1_000, latency=0.1)
    world.run(until=1.0)
    before = world.engine.window

    world.engine.flight[99] = -60.0
    world.engine.failed(99, NoAnswer("read timed out"), world.now)
    world.engine.cautious = False
    world.engine.in_a_row = 1_000

    assert world.engine.window == before
