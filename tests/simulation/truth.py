"""What really happened, and the rules that it must obey after every step and at the end."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from airflow_provider_responsys.errors import ResponsysError
from airflow_provider_responsys.ledger.interface import Accepted, Earlier, Settlement
from airflow_provider_responsys.protocol.codes import NO_ANSWER_REPEATS
from airflow_provider_responsys.recipients.spool import Spool
from airflow_provider_responsys.sending.engine import Delivery
from airflow_provider_responsys.sending.outcome import Buckets, Resumed, Sent
from airflow_provider_responsys.sending.run import Report
from tests.simulation.attempt import Attempt, Flight, Outcome

if TYPE_CHECKING:
    from tests.simulation.airflow import Task
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
        self.requests: dict[str, frozenset[int]] = {}
        """Whom Responsys queued under each of its ids."""
        self.unclaimed: set[tuple[int, str]] = set()
        """Recipients whose claims a put-back database lost, and the task that had them."""
        self.troubles = 0
        """Answers lost, processes killed or replaced, ledgers that failed."""

    # What happens

    def posted(self, attempt: Attempt, flight: Flight) -> None:
        """Note that a request leaves: its claim must be on disk, and nobody in it out already."""
        number = flight.number or 0
        recipients = flight.recipients
        self._check_claim(attempt, flight)
        again = attempt.posts[number] = attempt.posts.get(number, 0) + 1
        for recipient in recipients:
            other, batch = self.maybe.get(recipient, (None, 0))
            if other is None or other.archived:
                self.maybe[recipient] = attempt, number
            elif self._forgotten(attempt) or self._untold(attempt, other, recipient):
                continue
            elif (
                other.task is attempt.task
                and self._may_repeat(other, batch, recipient)
                and again <= 1 + NO_ANSWER_REPEATS
            ):
                if other is not attempt:
                    attempt.doubted.add(number)  # a refusal does not undo what the other may have done
                self.maybe[recipient] = attempt, number
            else:
                raise Broken("at most once", f"{attempt.name} posts {recipient}, as did {other.name}")

    def accepted(self, attempt: Attempt, flight: Flight) -> None:
        """Note that Responsys queued a request."""
        self.requests[attempt.request_id(flight)] = frozenset(flight.recipients)
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

    # What passes through the interface of a ledger

    def settles(self, attempt: Attempt, settled: Sequence[Settlement]) -> None:
        """Check what *attempt* is about to record: each acceptance is true, and this batch's."""
        for answer in settled:
            noted = attempt.noted.get(answer.number)
            if isinstance(answer, Accepted) and noted is not None:
                self._check_accepted(f"{attempt.name}, batch {answer.number}", answer.request_id, noted.fingerprints)

    def committed(self, attempt: Attempt) -> None:
        """Check what a ledger says that it has written: it is what another try would find."""
        self.check_ledger(attempt)
        self.check_record(attempt.task)

    def looked_back(self, attempt: Attempt, found: Sequence[Earlier]) -> None:
        """Check what *attempt* finds of the tries before it."""
        if attempt.current and attempt.alone:
            self._check_found(attempt.task, found, but=attempt)

    # The rules

    def check_record(self, task: "Task") -> None:
        """Check that what is on disk of *task* holds every acknowledged claim, and every acknowledged answer."""
        if not self._is_told(task):
            return
        found = self._world.store.read(task)
        if found is not None:
            self._check_found(task, found)

    def _check_found(self, task: "Task", found: Sequence[Earlier], but: Attempt | None = None) -> None:
        for batch in found:
            if batch.request_id:
                self._check_accepted(f"{task.name}, {batch.label}", batch.request_id, batch.fingerprints)
        if not self._is_told(task):
            return
        there = {one for batch in found for one in batch.fingerprints}
        accepted = {one for batch in found if batch.request_id for one in batch.fingerprints}
        for attempt in task.attempts:
            if attempt.archived or attempt is but:
                continue
            for number, noted in attempt.noted.items():
                if not there.issuperset(noted.fingerprints):
                    raise Broken("no claim missing", f"{attempt.name}, batch {number} is not in the record")
                missing = set(noted.fingerprints) - accepted - self._moved(attempt)
                if noted.request_id and missing:
                    raise Broken("no answer missing", f"{attempt.name}, batch {number} is in doubt in the record")

    def _moved(self, attempt: Attempt) -> set[bytes]:
        """Return whom a later try than *attempt* may have moved into a batch of its own, to send again."""
        later = attempt.task.attempts[attempt.task.attempts.index(attempt) + 1 :]
        return {one for other in later for one in other.moving}

    def _check_accepted(self, name: str, request_id: str, whom: Sequence[bytes]) -> None:
        pushed = self.requests.get(request_id, frozenset())
        missing = [recipient for recipient in map(self._world.recipient, whom) if recipient not in pushed]
        if missing:
            raise Broken("accepted means pushed", f"{name}: {missing} was not, as {request_id}")

    def check_ledger(self, attempt: Attempt) -> None:
        """Check that *attempt* leaves few in doubt."""
        is_open = sum(noted.request_id is None for noted in attempt.noted.values())
        spare = self._world.setup.max_in_flight if self._may_leave(attempt) else 0
        spare += len(attempt.resumed.repeats) if attempt.resumed else 0
        if is_open > attempt.lost + spare:
            raise Broken(
                "few in doubt", f"{attempt.name} leaves {is_open} requests open after {attempt.lost} lost answers"
            )

    def _check_budget(self, attempt: Attempt, in_doubt: int) -> None:
        """Check that a try stops when as many are in doubt as may be: beyond that, only what was in flight then."""
        setup = self._world.setup
        most = setup.max_in_doubt + setup.max_in_flight * setup.size
        if in_doubt > most:
            raise Broken("doubts have a budget", f"{attempt.name} puts {in_doubt} recipients in doubt")

    def check_newest(self, attempt: Attempt) -> None:
        """Check that nobody shuts the newest try out. A database that was put back may lack its beginning."""
        if attempt.current and attempt.fenced and not self._world.put_backs:
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
        self._check_budget(attempt, attempt.sent.report.in_doubt)
        if self._is_told(attempt.task):
            self._check_counts(attempt, attempt.sent.buckets)

    def _check_counts(self, attempt: Attempt, buckets: Buckets) -> None:
        pushed = sum(any(_counts(attempt, other) for other in pushers) for pushers in self.pushed.values())
        maybe = sum(_counts(attempt, other) for other, _ in self.maybe.values())
        if buckets.accepted > pushed or maybe > buckets.accepted + buckets.in_doubt:
            story = (
                f"{attempt.name}: {pushed} pushed and {maybe - pushed} maybe; "
                f"reported {buckets.accepted} accepted, {buckets.in_doubt} in doubt"
            )
            raise Broken("nobody forgotten", story)
        if attempt.ledger_failed or not attempt.alone or attempt.overtaken:
            return
        recorded = self._recorded(attempt.task)
        if recorded is not None and recorded != (buckets.accepted, buckets.in_doubt):
            settled, is_open = recorded
            raise Broken(
                "the report is the record",
                f"{attempt.name}: {buckets.accepted} accepted, {buckets.in_doubt} in doubt; "
                f"on disk {settled} and {is_open}",
            )

    def check_end(self) -> None:
        """Check each recipient when every task has ended."""
        world = self._world
        for task in world.tasks:
            self.check_record(task)
        calm = all(task.outcome is Outcome.SUCCESS and self._is_told(task) for task in world.tasks)
        if calm:
            records = [world.store.read(task) or () for task in world.tasks]
            claimed = {world.recipient(one) for found in records for batch in found for one in batch.fingerprints}
            for task in world.tasks:
                last = task.attempts[-1]
                # A late write may release what the last try had to report as in doubt.
                told = claimed | self._in_doubt(last)
                forgotten = [each for each in last.source if each not in told and self._still_wanted(each)]
                if forgotten and last.alone and not last.ledger_failed:
                    raise Broken("nobody forgotten", f"{task.name} succeeds without {forgotten}")
        self._check_calm()
        bound = self.troubles * world.setup.max_in_flight * world.setup.size
        left = sum((self._recorded(task) or (0, 0))[1] for task in world.tasks)
        if left > bound and not world.put_backs:
            raise Broken("few in doubt", f"{left} recipients at the end, {self.troubles} troubles")

    def _in_doubt(self, attempt: Attempt) -> set[int]:
        """Return the recipients that *attempt* reported as in doubt."""
        doubts = attempt.sent.doubts if attempt.sent else []
        return {self._world.recipient(one) for doubt in doubts for one in doubt.fingerprints}

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
        if world.faults_used or world.setup.brown_out or world.setup.execution_timeout < math.inf:
            return
        if len(self.pushed) != len({recipient for source in world.setup.sources for recipient in source}):
            raise Broken("no trouble without a fault", f"{len(self.pushed)} pushed")
        for task in world.tasks:
            if task.outcome is not Outcome.SUCCESS or len(task.attempts) > 1:
                raise Broken("no trouble without a fault", f"{task.name}: {task.outcome}")

    def _check_claim(self, attempt: Attempt, flight: Flight) -> None:
        if self._forgotten(attempt):
            return
        noted = attempt.noted.get(flight.number or 0)
        name = f"{attempt.name} posts batch {flight.number}"
        if noted is None:
            raise Broken("no post without a claim", name)
        whom = {self._world.recipient(each) for each in noted.fingerprints}
        if noted.request_id is not None or whom != set(flight.recipients):
            raise Broken("no post without a claim", f"{name}, settled or another's")
        if noted.batch_id != flight.batch_id:
            raise Broken("no post without a claim", f"{name} under another id than it was claimed with")

    def _forgotten(self, attempt: Attempt) -> bool:
        """Tell whether *attempt*'s claims were forgotten, or taken over, while it was alive.

        A person's restart does the first, the next try of a send that was asked for at least once the second.
        """
        return attempt.archived or (not attempt.current and self._world.setup.delivery is Delivery.AT_LEAST_ONCE)

    def _may_repeat(self, other: Attempt, batch: int, recipient: int) -> bool:
        """Tell whether *recipient*, who was in *other*'s *batch*, may be pushed again."""
        if self._world.setup.delivery is Delivery.AT_MOST_ONCE:
            return False
        noted = other.noted.get(batch)
        # A database that was put back may have lost an answer and no claim: that is a doubt again.
        if noted is None or noted.request_id is None or self._world.put_backs:
            return True
        # Moved before that answer came: where the try that moved it ends, it is in doubt again.
        return recipient in map(self._world.recipient, self._moved(other))

    def _untold(self, attempt: Attempt, other: Attempt, recipient: int) -> bool:
        """Tell whether nothing could tell *attempt* that *other* had claimed *recipient*.

        No mark tells of the claims of another task under the same send key that a
        put-back database lost, whichever posts first: each task's marks are its own. And a task whose record
        and whose marks are both gone looks, on its automatic second try, like one that
        never began.
        """
        if other.task is attempt.task:
            return self._is_blind(attempt.task)
        return not self.unclaimed.isdisjoint(((recipient, other.task.name), (recipient, attempt.task.name)))

    def _is_blind(self, task: "Task") -> bool:
        """Tell whether *task* lost its record and its marks, as far as an automatic second try goes."""
        retries = self._world.setup.retries
        return task.lost and any(
            not attempt.left and attempt.number <= 2 and attempt.max_tries == retries for attempt in task.attempts[1:]
        )

    def _is_told(self, task: "Task") -> bool:
        """Tell whether the record of *task* is as the tries left it."""
        return not task.lost and not self._world.put_backs

    def _may_leave(self, attempt: Attempt) -> bool:
        """Tell whether *attempt* may have requests open that it did not lose the answers to."""
        return (
            attempt.outcome in (None, Outcome.KILLED) or attempt.halted or attempt.ledger_failed or not attempt.current
        )

    def _recorded(self, task: "Task") -> tuple[int, int] | None:
        """Return how many recipients the record of *task* has: accepted, and in doubt; None if it can't be read."""
        found = self._world.store.read(task)
        if found is None:
            return None
        accepted = {one for batch in found if batch.request_id is not None for one in batch.fingerprints}
        claimed = {one for batch in found for one in batch.fingerprints}
        return len(accepted), len(claimed - accepted)


def _counts(attempt: Attempt, other: Attempt) -> bool:
    """Tell whether what *other* pushed counts for *attempt*: the same task, and no person restarted it since."""
    return other.task is attempt.task and not other.archived
