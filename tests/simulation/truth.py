"""What really happened, and the rules that it must obey after every step and at the end."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from airflow_provider_responsys.errors import ResponsysError
from airflow_provider_responsys.recipients.spool import Spool
from airflow_provider_responsys.sending.engine import NO_ANSWER_TRIES, Delivery
from airflow_provider_responsys.sending.outcome import Resumed, Sent
from airflow_provider_responsys.sending.run import Report
from tests.simulation.attempt import Attempt, Flight, Outcome

if TYPE_CHECKING:
    from tests.simulation.world import World


INSTANTS = 3
"""Waits for no time at all, in a row, that are no busy loop yet: sums of times are rounded."""


class Broken(BaseException):
    """A schedule broke *rule*. No part of the provider may handle it, so it is no `Exception`."""

    def __init__(self, rule: str, story: str) -> None:
        super().__init__(f"{rule}: {story}")
        self.rule = rule


class Truth:
    """Knows what no part of the provider can know: who was pushed.

    Of a request without an answer, it knows no more than anybody: each rule
    holds whether that took effect or not.
    """

    def __init__(self, world: "World") -> None:
        self._world = world
        self.pushed: dict[int, list[Attempt]] = {}
        """Who was pushed for certain, and by which tries."""
        self.maybe: dict[int, tuple[Attempt, int]] = {}
        """Who may have been pushed, by which batch last: all who were posted to and not certainly refused."""
        self.troubles = 0
        """Answers lost, processes killed or replaced, ledgers that failed."""

    # What happens

    def posted(self, attempt: Attempt, flight: Flight) -> None:
        """Note that a request leaves: its claim must be on disk, and nobody in it out already."""
        number = flight.number or 0
        recipients = flight.recipients
        self._check_claim(attempt, number, recipients)
        again = attempt.posts[number] = attempt.posts.get(number, 0) + 1
        for recipient in recipients:
            other, batch = self.maybe.get(recipient, (None, 0))
            if other is None or other.archived:
                self.maybe[recipient] = attempt, number
            elif self._forgotten(attempt):
                continue
            elif other.task is attempt.task and self._may_repeat(other, batch) and again <= NO_ANSWER_TRIES:
                if other is not attempt:
                    attempt.doubted.add(number)  # a refusal does not undo what the other may have done
                self.maybe[recipient] = attempt, number
            else:
                raise Broken("at most once", f"{attempt.name} posts {recipient}, as did {other.name}")

    def accepted(self, attempt: Attempt, flight: Flight) -> None:
        """Note that Responsys queued a request."""
        if not attempt.archived:
            for recipient in flight.recipients:
                pushers = self.pushed.setdefault(recipient, [])
                if attempt not in pushers:
                    pushers.append(attempt)

    def refused(self, attempt: Attempt, flight: Flight) -> None:
        """Note that Responsys certainly did not queue a request."""
        attempt.posts[flight.number or 0] -= 1
        if flight.number not in attempt.doubted:
            for recipient in flight.recipients:
                if self.maybe.get(recipient) == (attempt, flight.number):
                    del self.maybe[recipient]

    def lost(self, attempt: Attempt, flight: Flight) -> None:
        """Note that an answer is lost."""
        attempt.lost += 1
        self.troubles += 1
        attempt.doubted.add(flight.number or 0)

    def waits(self, attempt: Attempt, until: float) -> None:
        """Check that a wait comes to an end."""
        if attempt.instants >= INSTANTS and not (self._world.spins and attempt.spins):
            raise Broken("the task ends", f"{attempt.name} waits for a time that has passed")
        if until == math.inf and not attempt.flights:
            raise Broken("the task ends", f"{attempt.name} waits for ever")

    # The rules

    def check_ledger(self, attempt: Attempt) -> None:
        """Check what is on disk of *attempt*: acceptances are true, and few are in doubt."""
        is_open = 0
        for number, held in attempt.held.items():
            if not held.settled:
                is_open += 1
            elif not attempt.archived:
                for fingerprint in held.fingerprints:
                    recipient = self._world.recipient(fingerprint)
                    if recipient not in self.pushed:
                        raise Broken("accepted means pushed", f"{attempt.name}, batch {number}: {recipient} was not")
        spare = self._world.setup.max_in_flight if self._may_leave(attempt) else 0
        spare += len(attempt.resumed.repeats) if attempt.resumed else 0
        if is_open > attempt.lost + spare:
            raise Broken(
                "few in doubt", f"{attempt.name} leaves {is_open} requests open after {attempt.lost} lost answers"
            )

    def check_newest(self, attempt: Attempt) -> None:
        """Check that nobody shuts the newest try out."""
        if attempt.current and attempt.fenced:
            raise Broken("the newest goes on", f"{attempt.name} is told that another try has begun")

    def add_up(self, attempt: Attempt, rows: Spool, resumed: Resumed, report: Report) -> Sent:
        """Return what *attempt* reports: its buckets add up to the rows read."""
        try:
            return Sent.of(rows, resumed, report)
        except ResponsysError as error:
            raise Broken("the buckets add up", f"{attempt.name}: {error}") from error

    def check_report(self, attempt: Attempt) -> None:
        """Check the buckets of a try that ended by itself and speaks for its task."""
        if attempt.sent is None or attempt.archived or not attempt.current:
            return
        buckets = attempt.sent.buckets
        pushed = sum(any(_counts(attempt, other) for other in pushers) for pushers in self.pushed.values())
        maybe = sum(_counts(attempt, other) for other, _ in self.maybe.values())
        if buckets.accepted > pushed or maybe > buckets.accepted + buckets.in_doubt:
            story = (
                f"{attempt.name}: {pushed} pushed and {maybe - pushed} maybe; "
                f"reported {buckets.accepted} accepted, {buckets.in_doubt} in doubt"
            )
            raise Broken("nobody forgotten", story)
        if attempt.ledger_failed or not attempt.alone:
            return
        settled, is_open = self._recorded(attempt)
        if (settled, is_open) != (buckets.accepted, buckets.in_doubt):
            raise Broken(
                "the report is the record",
                f"{attempt.name}: {buckets.accepted} accepted, {buckets.in_doubt} in doubt; "
                f"on disk {settled} and {is_open}",
            )

    def check_end(self) -> None:
        """Check each recipient when every task has ended."""
        world = self._world
        claimed = {
            world.recipient(fingerprint)
            for task in world.tasks
            for attempt in task.attempts
            for held in attempt.held.values()
            for fingerprint in held.fingerprints
        }
        calm = all(task.outcome is Outcome.SUCCESS for task in world.tasks)
        for task in world.tasks:
            last = task.attempts[-1]
            if task.outcome is Outcome.SUCCESS and calm:
                forgotten = [each for each in last.source if each not in claimed and self._still_wanted(each)]
                if forgotten and last.alone and not last.ledger_failed:
                    raise Broken("nobody forgotten", f"{task.name} succeeds without {forgotten}")
        self._check_calm()
        bound = self.troubles * world.setup.max_in_flight * world.setup.size
        left = sum(
            len(held.fingerprints)
            for task in world.tasks
            for each in task.attempts
            for held in each.held.values()
            if not held.settled
        )
        if left > bound:
            raise Broken("few in doubt", f"{left} recipients at the end, {self.troubles} troubles")

    def _still_wanted(self, recipient: int) -> bool:
        """Tell whether each task that had *recipient* still has.

        One that had may have claimed it, another one counted a duplicate, and the first given it up with its rows.
        """
        return all(
            recipient in task.attempts[-1].source
            for task in self._world.tasks
            if any(recipient in attempt.source for attempt in task.attempts)
        )

    def _check_calm(self) -> None:
        """Check that everybody is pushed, in one try, where nothing went wrong."""
        world = self._world
        if world.faults_used or world.setup.execution_timeout < math.inf:
            return
        if len(self.pushed) != len({recipient for source in world.setup.sources for recipient in source}):
            raise Broken("no trouble without a fault", f"{len(self.pushed)} pushed")
        for task in world.tasks:
            if task.outcome is not Outcome.SUCCESS or len(task.attempts) > 1:
                raise Broken("no trouble without a fault", f"{task.name}: {task.outcome}")

    def _check_claim(self, attempt: Attempt, number: int, recipients: Sequence[int]) -> None:
        if self._forgotten(attempt):
            return
        held = attempt.held.get(number)
        if held is None:
            raise Broken("no post without a claim", f"{attempt.name} posts batch {number}")
        if held.settled or {self._world.recipient(each) for each in held.fingerprints} != set(recipients):
            raise Broken("no post without a claim", f"{attempt.name} posts batch {number}, settled or another's")

    def _forgotten(self, attempt: Attempt) -> bool:
        """Tell whether *attempt*'s claims were forgotten, or taken over, while it was alive.

        A person's restart does the first, the next try of a send that was asked for at least once the second.
        """
        return attempt.archived or (not attempt.current and self._world.setup.delivery is Delivery.AT_LEAST_ONCE)

    def _may_repeat(self, other: Attempt, batch: int) -> bool:
        """Tell whether whoever was in *other*'s *batch* may be pushed again."""
        if self._world.setup.delivery is Delivery.AT_MOST_ONCE:
            return False
        held = other.held.get(batch)
        return held is None or not held.settled

    def _may_leave(self, attempt: Attempt) -> bool:
        """Tell whether *attempt* may have requests open that it did not lose the answers to."""
        return (
            attempt.outcome in (None, Outcome.KILLED) or attempt.halted or attempt.ledger_failed or not attempt.current
        )

    def _recorded(self, attempt: Attempt) -> tuple[int, int]:
        """Return how many recipients the tries of a task hold on disk: settled, and open."""
        counts = [0, 0]
        for each in attempt.task.attempts:
            if not each.archived:
                for held in each.held.values():
                    counts[not held.settled] += len(held.fingerprints)
        return counts[0], counts[1]


def _counts(attempt: Attempt, other: Attempt) -> bool:
    """Tell whether what *other* pushed counts for *attempt*: the same task, and no person restarted it since."""
    return other.task is attempt.task and not other.archived
