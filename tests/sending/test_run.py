"""The shell around the engine: real threads, a real spool, scripted answers."""

import itertools
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from datetime import UTC, datetime
from queue import SimpleQueue

import pytest

from airflow_provider_responsys.errors import (
    Fenced,
    LedgerFailed,
    LimitExceeded,
    NoAnswer,
    NotAllSent,
    NotSent,
    Refused,
    ResponsysError,
    SendRefused,
    SourceFailed,
)
from airflow_provider_responsys.ledger.interface import Accepted, Claim, Earlier, Holder, Released, Settlement, Wanted
from airflow_provider_responsys.ledger.memory import MemoryLedger
from airflow_provider_responsys.protocol.pace import Pace
from airflow_provider_responsys.protocol.push import Acceptance
from airflow_provider_responsys.protocol.wire import Authorize, Conversation, Request, Send, Token
from airflow_provider_responsys.recipients.fields import FieldSettings
from airflow_provider_responsys.recipients.rows import from_sequence
from airflow_provider_responsys.recipients.spool import Batch, Spool
from airflow_provider_responsys.sending import run as shell
from airflow_provider_responsys.sending.engine import Delivery, Engine, Limits
from airflow_provider_responsys.sending.gate import Gate
from airflow_provider_responsys.sending.progress import Observer, Progress
from airflow_provider_responsys.sending.queue import Due, Queue
from airflow_provider_responsys.sending.run import Event, Halt, Inbox, Report, Run
from airflow_provider_responsys.threads import Pool

Answer = str | BaseException


class QuickInbox(SimpleQueue[Event]):
    """Waits a thousandth of the time."""

    def get(self, block: bool = True, timeout: float | None = None) -> Event:
        """Return the next event."""
        return super().get(block, None if timeout is None else timeout / 1_000)


class Ledger(MemoryLedger):
    """Remembers what it was told; *lost* says who cannot be claimed, *errors* which commits fail."""

    def __init__(self) -> None:
        super().__init__(try_number=1)
        self.lost: dict[int, dict[int, Holder]] = {}
        self.errors: dict[int, LedgerFailed] = {}
        self.commits = 0
        self.settled: list[Settlement] = []
        self.doubts: list[tuple[int, Earlier]] = []
        self.thread = threading.get_ident()

    def commit(
        self, settled: Sequence[Settlement], wanted: Sequence[Wanted], upcoming: Sequence[Sequence[bytes]] = ()
    ) -> list[Claim]:
        """Record, or fail as planned."""
        assert threading.get_ident() == self.thread, "a ledger is used from one thread"
        self.commits += 1
        if error := self.errors.get(self.commits):
            raise error
        self.settled += settled
        self.doubts += [(want.number, want.doubt) for want in wanted if want.doubt]
        return [Claim(want.number, self.lost.get(want.number, {})) for want in wanted]


class Notes(Observer):
    """Keeps what it is told, on one thread only."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, int | str]] = []
        self.told: list[Progress] = []
        self.thread = threading.get_ident()

    def accepted(self, recipients: int) -> None:
        self._note("accepted", recipients)

    def rejected(self, recipients: int, code: str) -> None:
        self._note(f"rejected {code}", recipients)

    def in_doubt(self, recipients: int) -> None:
        self._note("in doubt", recipients)

    def put_off(self, error: ResponsysError) -> None:
        self._note("put off", type(error).__name__)

    def progress(self, progress: Progress) -> None:
        assert threading.get_ident() == self.thread
        self.told.append(progress)

    def _note(self, what: str, value: int | str) -> None:
        assert threading.get_ident() == self.thread
        self.requests.append((what, value))


class Sender:
    """A run over *count* recipients, ten a batch, whose n-th request is answered by the n-th of *answers*."""

    def __init__(self, spool: Spool, *answers: Answer, repeats: Sequence[Due] = (), **limits: float | Delivery) -> None:
        self.answers = iter(answers)
        self.ledger = Ledger()
        self.sent: Counter[str] = Counter()
        self.inbox: Inbox = QuickInbox()
        self.notes = Notes()
        self.ids = itertools.count(1)
        self.lock = threading.Lock()
        self.probes = 0
        self.probe_error: Callable[[int], BaseException | None] = lambda _: None
        self.clock_offset = 0.0
        settings = Limits(**{"max_in_flight": 1, **limits})  # type: ignore[arg-type]  # each test's own
        self.run = Run(
            Engine(limits=settings, pace=Pace.at(60_000_000, self.clock())),
            spool.batches(max_recipients=10, max_bytes=100_000),
            len(spool) - sum(len(due.batch) for due in repeats),
            repeats=repeats,
            ledger=self.ledger,
            post=self.post,
            probe=self.probe,
            inbox=self.inbox,
            observer=self.notes,
            clock=self.clock,
        )

    def clock(self) -> float:
        """Return a time that runs a thousand times as fast as the real one."""
        return time.monotonic() * 1_000

    def post(self, _: int, bodies: tuple[str, ...]) -> Acceptance:
        """Answer as scripted, then with acceptances."""
        with self.lock:
            answer = next(self.answers, "")
            if isinstance(answer, BaseException):
                raise answer
            self.sent.update(bodies)
            return Acceptance(answer or f"id-{next(self.ids)}")

    def probe(self) -> None:
        """Count the harmless read."""
        self.probes += 1
        if error := self.probe_error(self.probes):
            raise error


@pytest.fixture
def spool() -> Iterator[Spool]:
    """Give a spool of fifty recipients."""
    with Spool() as spool:
        rows = [{"customerId": f"c{number}"} for number in range(50)]
        spool.fill(from_sequence(rows), FieldSettings(), lambda identity: identity.encode()[-9:].rjust(9))
        yield spool


def check(report: Report) -> None:
    """Nobody is missing from *report*."""
    held = report.held.total()
    accounted = report.accepted + report.rejected.total() + report.in_doubt + report.not_sent + held
    assert accounted == report.total


def test_everybody_is_sent_to_once(spool: Spool) -> None:
    """Five batches, five ids, each settled."""
    sender = Sender(spool, max_in_flight=4)

    report = sender.run.to_end()

    assert report.accepted == 50
    assert len(report.request_ids) == len(sender.ledger.settled) == 5
    assert set(sender.sent.values()) == {1}
    check(report)


@pytest.mark.parametrize("error", [NotSent("no route"), LimitExceeded("limit", wait=60.0)])
def test_what_was_not_accepted_is_sent_again_to_the_same_people(spool: Spool, error: ResponsysError) -> None:
    """The batch goes back, and is claimed under a new number."""
    sender = Sender(spool, error)

    report = sender.run.to_end()

    assert report.accepted == 50
    assert set(sender.sent.values()) == {1}
    check(report)


def test_refused_batches_are_counted_by_code(spool: Spool) -> None:
    """By Responsys' own code where there is one."""
    sender = Sender(spool, Refused("no", code="INVALID_PARAMETER"), Refused("no"))

    report = sender.run.to_end()

    assert report.rejected == {"INVALID_PARAMETER": 10, "Refused": 10}
    assert report.accepted == 30
    check(report)


def test_a_refused_send_leaves_the_rest_not_sent(spool: Spool) -> None:
    """The batch that was refused is rejected, the others are not sent."""
    sender = Sender(spool, "id-a", SendRefused("no such campaign", code="CAMPAIGN_NOT_FOUND"))

    report = sender.run.to_end()

    assert (report.accepted, report.rejected.total(), report.not_sent) == (10, 10, 30)
    assert isinstance(report.stopped, SendRefused)
    check(report)


@pytest.mark.parametrize("error", [NoAnswer("read timed out"), RuntimeError("a defect"), SystemExit()])
def test_whatever_else_happens_to_a_request_is_doubt(spool: Spool, error: BaseException) -> None:
    """A defect of ours on a thread may come after the request left."""
    sender = Sender(spool, error)

    report = sender.run.to_end()

    assert [doubt.size for doubt in report.doubts] == [10]
    assert report.accepted == 40
    assert sender.probes == 1
    check(report)


@pytest.mark.parametrize("error", [NoAnswer("down"), RuntimeError("a defect")])
def test_a_read_that_fails_is_repeated(spool: Spool, error: BaseException) -> None:
    """Nothing is claimed until one succeeds."""
    sender = Sender(spool, NoAnswer("lost"))
    sender.probe_error = lambda number: error if number < 3 else None

    report = sender.run.to_end()

    assert sender.probes == 3
    assert report.accepted == 40
    check(report)


def test_recipients_that_others_hold_are_left_out(spool: Spool) -> None:
    """The request goes out with those that the claim won."""
    sender = Sender(spool)
    sender.ledger.lost = {
        1: {0: Holder.OTHER, 9: Holder.ACCEPTED},
        2: dict.fromkeys(range(10), Holder.OTHER),
    }

    report = sender.run.to_end()

    assert report.held == {Holder.OTHER: 11, Holder.ACCEPTED: 1}
    assert report.accepted == 38
    assert len(report.request_ids) == 4
    check(report)


def test_at_least_once_sends_a_lost_batch_again(spool: Spool) -> None:
    """And counts it as accepted when it is."""
    sender = Sender(spool, NoAnswer("lost"), delivery=Delivery.AT_LEAST_ONCE, max_in_flight=2)

    report = sender.run.to_end()

    assert report.accepted == 50
    assert not report.doubts
    check(report)


def in_doubt(spool: Spool, count: int = 2) -> list[Due]:
    """Return the first *count* batches of *spool* as what an earlier try left in doubt."""
    batches = list(spool.batches(max_recipients=10, max_bytes=100_000))[:count]
    for batch in batches:
        spool.exclude(batch.fingerprints)
    since = datetime(2026, 11, 23, tzinfo=UTC)
    return [
        Due(batch, Earlier(batch.fingerprints, None, since, f"try 1, batch {number}"))
        for number, batch in enumerate(batches, 1)
    ]


def test_what_an_earlier_try_left_in_doubt_is_sent_first(spool: Spool) -> None:
    """It is taken out of its doubt, sent once, and counted like all else."""
    repeats = in_doubt(spool)
    sender = Sender(spool, repeats=repeats, delivery=Delivery.AT_LEAST_ONCE)

    report = sender.run.to_end()

    assert sender.ledger.doubts == [(1, repeats[0].doubt), (2, repeats[1].doubt)]
    assert (report.total, report.accepted) == (50, 50)
    assert set(sender.sent.values()) == {1}
    assert list(sender.sent)[:10] == list(repeats[0].batch.bodies)
    check(report)


def test_a_repetition_that_is_refused_stays_in_doubt(spool: Spool) -> None:
    """The earlier try's request may have been accepted: its claim is never given back."""
    sender = Sender(spool, Refused("no"), repeats=in_doubt(spool), delivery=Delivery.AT_LEAST_ONCE)

    report = sender.run.to_end()

    assert (report.accepted, report.in_doubt, report.rejected.total()) == (40, 10, 0)
    assert "refused this time: no" in report.doubts[0].reason
    assert [type(answer) for answer in sender.ledger.settled] == [Accepted] * 4
    check(report)


def test_a_repetition_that_the_limit_refuses_is_sent_later(spool: Spool) -> None:
    """It is what was asked for: at least once."""
    sender = Sender(spool, LimitExceeded("full"), repeats=in_doubt(spool), delivery=Delivery.AT_LEAST_ONCE)

    report = sender.run.to_end()

    assert (report.accepted, report.to_repeat) == (50, 0)
    assert [type(answer) for answer in sender.ledger.settled] == [Accepted] * 5
    assert ("put off", "LimitExceeded") in sender.notes.requests
    check(report)


@pytest.mark.parametrize("answers", [0, 1])
def test_repetitions_that_a_stopped_sender_did_not_come_to_are_in_doubt(spool: Spool, answers: int) -> None:
    """Never "not sent": the earlier try may have pushed them. Another try sends to them again."""
    sender = Sender(spool, repeats=in_doubt(spool), delivery=Delivery.AT_LEAST_ONCE)
    answer = sender.run._post

    def post(batch_id: int, bodies: tuple[str, ...]) -> Acceptance:
        acceptance = answer(batch_id, bodies)
        sender.inbox.put(Halt(NotAllSent("killed"), 100.0))
        return acceptance

    sender.run._post = post
    if not answers:
        sender.inbox.put(Halt(NotAllSent("killed"), 100.0))

    report = sender.run.to_end()

    assert (report.accepted, report.not_sent) == (10 * answers, 30)
    assert report.in_doubt == report.to_repeat == 20 - 10 * answers
    assert [doubt.label for doubt in report.doubts] == ["try 1, batch 1", "try 1, batch 2"][answers:]
    assert not [what for what, _ in sender.notes.requests if what == "in doubt"]
    check(report)


def test_a_repetition_that_was_taken_over_and_not_sent_is_in_doubt(spool: Spool) -> None:
    """The signal came between the claim and the request."""
    sender = Sender(spool, repeats=in_doubt(spool), delivery=Delivery.AT_LEAST_ONCE)
    commit = sender.ledger.commit

    def interrupted(
        settled: Sequence[Settlement], wanted: Sequence[Wanted], upcoming: Sequence[Sequence[bytes]] = ()
    ) -> list[Claim]:
        sender.inbox.put(Halt(NotAllSent("killed"), 100.0))
        return commit(settled, wanted, upcoming)

    sender.ledger.commit = interrupted  # type: ignore[method-assign]  # a signal comes when it comes

    report = sender.run.to_end()

    assert not sender.sent
    assert (report.in_doubt, report.to_repeat, report.not_sent) == (20, 20, 30)
    assert [doubt.label for doubt in report.doubts] == ["batch 1", "try 1, batch 2"]
    assert not sender.ledger.settled
    check(report)


def test_a_repetition_that_could_not_be_taken_over_is_in_doubt(spool: Spool) -> None:
    """The ledger is down: nothing is sent, and nothing is certain of them."""
    sender = Sender(spool, repeats=in_doubt(spool), delivery=Delivery.AT_LEAST_ONCE)
    sender.ledger.errors = {1: LedgerFailed("down")}

    report = sender.run.to_end()

    assert (report.in_doubt, report.to_repeat, report.not_sent) == (20, 20, 30)
    check(report)


def test_a_repetition_whose_answer_is_lost_is_sent_once_more(spool: Spool) -> None:
    """Its request counts as the second of three: an earlier try sent the first."""
    lost = NoAnswer("lost")
    sender = Sender(spool, lost, lost, repeats=in_doubt(spool, 1), delivery=Delivery.AT_LEAST_ONCE)

    report = sender.run.to_end()

    assert (report.accepted, report.in_doubt, report.to_repeat) == (40, 10, 0)
    assert [doubt.label for doubt in report.doubts] == ["batch 1"]
    check(report)


def test_a_halt_settles_what_came_back_and_leaves_the_rest(spool: Spool) -> None:
    """A killed task claims nothing more."""
    sender = Sender(spool, "id-a")
    answer = sender.run._post

    def post(batch_id: int, bodies: tuple[str, ...]) -> Acceptance:
        acceptance = answer(batch_id, bodies)
        sender.inbox.put(Halt(NotAllSent("killed"), 100.0))
        return acceptance

    sender.run._post = post

    report = sender.run.to_end()

    assert (report.accepted, report.not_sent) == (10, 40)
    assert sender.ledger.settled == [Accepted(1, "id-a")]
    check(report)


def test_a_halt_that_came_before_the_first_claim_claims_nothing(spool: Spool) -> None:
    """The task was killed while it read its source."""
    sender = Sender(spool)
    sender.inbox.put(Halt(NotAllSent("killed"), 100.0))

    report = sender.run.to_end()

    assert sender.ledger.commits == 0
    assert report.not_sent == 50


def test_what_does_not_answer_before_the_end_is_in_doubt(spool: Spool) -> None:
    """The grace of a halt is over while a request is out."""
    answered = threading.Event()
    sender = Sender(spool)

    def post(batch_id: int, bodies: tuple[str, ...]) -> Acceptance:
        sender.inbox.put(Halt(NotAllSent("killed"), 100.0))
        answered.wait(10)
        return Acceptance("too late")

    sender.run._post = post

    report = sender.run.to_end()
    answered.set()

    assert (report.in_doubt, report.not_sent) == (10, 40)
    assert "before its answer" in report.doubts[0].reason
    check(report)


def test_a_ledger_that_fails_before_a_request_sends_nothing(spool: Spool) -> None:
    """The batch that could not be claimed is not sent."""
    sender = Sender(spool)
    sender.ledger.errors = {1: LedgerFailed("down")}

    report = sender.run.to_end()

    assert not sender.sent
    assert report.not_sent == 50
    assert isinstance(report.stopped, LedgerFailed)
    check(report)


def test_a_ledger_that_fails_after_a_request_is_asked_once_more(spool: Spool) -> None:
    """The acceptance is known, reported, and in the end recorded."""
    sender = Sender(spool)
    sender.ledger.errors = {2: LedgerFailed("down")}

    report = sender.run.to_end()

    assert (report.accepted, report.unwritten) == (10, 0)
    assert len(sender.ledger.settled) == 1
    check(report)


@pytest.mark.parametrize("error", [LedgerFailed("down"), Fenced("replaced")])
def test_answers_that_no_ledger_took_are_counted(spool: Spool, error: LedgerFailed) -> None:
    """The next try will call them in doubt; this one knows better and says so."""
    sender = Sender(spool)
    sender.ledger.errors = dict.fromkeys(range(2, 9), error)

    report = sender.run.to_end()

    assert (report.accepted, report.unwritten) == (10, 1)
    assert report.stopped is error
    check(report)


def test_a_spool_that_fails_in_the_middle_settles_what_is_out(spool: Spool) -> None:
    """The disk broke: what was read before is sent and recorded, the rest is not sent."""
    sender = Sender(spool, max_in_flight=4)
    sender.run._queue = Queue(broken_after(spool, 3), ())

    report = sender.run.to_end()

    assert (report.accepted, report.not_sent) == (30, 20)
    assert isinstance(report.stopped, SourceFailed)
    assert len(sender.ledger.settled) == 3
    check(report)


def broken_after(spool: Spool, count: int) -> Generator[Batch]:
    """Yield *count* batches of *spool*, then fail as a disk does."""
    yield from itertools.islice(spool.batches(max_recipients=10, max_bytes=100_000), count)
    raise SourceFailed("the disk is broken")


@pytest.mark.parametrize("looks_ahead", [True, False])
def test_a_ledger_that_looks_ahead_is_told_of_the_batches_that_come_next(spool: Spool, looks_ahead: bool) -> None:
    """In the order in which they are claimed: what is to be claimed again, then the source."""
    sender = Sender(spool, NotSent("no route"))
    sender.ledger.looks_ahead = looks_ahead
    commit, told = sender.ledger.commit, []

    def noting(
        settled: Sequence[Settlement], wanted: Sequence[Wanted], upcoming: Sequence[Sequence[bytes]] = ()
    ) -> list[Claim]:
        if wanted:
            told.append(([tuple(want.fingerprints) for want in wanted], [tuple(each) for each in upcoming]))
        return commit(settled, wanted, upcoming)

    sender.ledger.commit = noting  # type: ignore[method-assign]  # to see what it is told

    sender.run.to_end()

    batches = [batch.fingerprints for batch in spool.batches(max_recipients=10, max_bytes=100_000)]
    assert told[0] == (batches[:1], batches[1:] if looks_ahead else [])
    assert told[1] == (batches[:1], batches[1:] if looks_ahead else [])  # it comes back before the source
    assert told[-1] == (batches[4:], [])


class Aside(Ledger):
    """A ledger that is called on one thread, which is not the sender's; its *hanging* commit waits to be released."""

    def __init__(self, hanging: int = 0) -> None:
        super().__init__()
        self.hanging = hanging
        self.hangs = threading.Event()
        self.released = threading.Event()
        self.threads: set[int] = set()

    def commit(
        self, settled: Sequence[Settlement], wanted: Sequence[Wanted], upcoming: Sequence[Sequence[bytes]] = ()
    ) -> list[Claim]:
        """Record on whatever thread this is."""
        self.thread = threading.get_ident()
        self.threads.add(self.thread)
        if self.commits + 1 == self.hanging:
            self.hangs.set()
            self.released.wait(10)
        return super().commit(settled, wanted, upcoming)


def test_a_ledger_on_a_thread_of_its_own_is_called_there_alone(spool: Spool) -> None:
    """Its connection may not change threads."""
    sender = Sender(spool, max_in_flight=4)
    ledger = sender.run._ledger = Aside()
    sender.run._aside = Pool(1, "ledger")

    report = sender.run.to_end()

    assert report.accepted == 50
    assert len(ledger.settled) == 5
    assert len(ledger.threads) == 1
    assert threading.get_ident() not in ledger.threads
    check(report)


def test_a_stop_is_noticed_while_the_ledger_hangs(spool: Spool) -> None:
    """A commit that does not return is left behind, and what it claimed is posted never."""
    sender = Sender(spool)
    ledger = sender.run._ledger = Aside(hanging=3)
    sender.run._aside = Pool(1, "ledger")

    def stop() -> None:
        ledger.hangs.wait(10)
        sender.inbox.put(Halt(NotAllSent("killed"), 10.0))

    halt = threading.Thread(target=stop)
    halt.start()

    report = sender.run.to_end()
    posted = sum(sender.sent.values())
    ledger.released.set()
    halt.join()

    assert (report.accepted, report.not_sent, report.in_doubt) == (20, 30, 0)
    assert report.unwritten == 1
    assert str(report.stopped) == "killed"
    assert posted == sum(sender.sent.values()) == 20
    check(report)


def test_a_deadline_is_noticed_while_the_ledger_hangs(spool: Spool) -> None:
    """Its grace begins then; Airflow's own timeout would come later."""
    sender = Sender(spool, deadline=time.monotonic() * 1_000 + 500.0, grace=100.0)
    ledger = sender.run._ledger = Aside(hanging=3)
    sender.run._aside = Pool(1, "ledger")

    report = sender.run.to_end()
    ledger.released.set()

    assert "execution_timeout is near" in str(report.stopped)
    assert report.accepted <= 20
    check(report)


def test_an_unexpected_error_settles_what_comes_back(spool: Spool) -> None:
    """Also an error in what is told: accepted is accepted, and another try goes on."""
    sender = Sender(spool, max_in_flight=2)
    accepted = sender.notes.accepted

    def failing(recipients: int) -> None:
        accepted(recipients)
        if len(sender.notes.requests) == 2:
            raise RuntimeError("a defect")

    sender.notes.accepted = failing  # type: ignore[method-assign]  # no defect of that kind is known

    report = sender.run.to_end()

    assert report.accepted == sum(sender.sent.values()) >= 20
    settled = [answer for answer in sender.ledger.settled if isinstance(answer, Accepted)]
    assert len(settled) == len(report.request_ids)
    assert "unexpected error (RuntimeError)" in str(report.stopped)
    check(report)


def test_nothing_is_kept_of_batches_that_are_settled(spool: Spool) -> None:
    """A send to five million recipients has 25,000 of them."""
    sender = Sender(spool, "", Refused("no"), "", NoAnswer("lost"))
    gate = Gate()
    sender.run._gate = gate

    sender.run.to_end()

    assert not sender.run._ids
    assert not sender.run._claimed
    assert not gate._out


def test_what_has_not_left_when_the_sender_stops_never_leaves(spool: Spool) -> None:
    """Three requests wait for a login: they are released, and the gate is shut when their login comes."""
    sender = Sender(spool, max_in_flight=3, grace=1_000.0)
    gate = sender.run._gate = Gate()
    waiting, log_in = threading.Semaphore(0), threading.Event()
    ended: list[BaseException] = []

    def push() -> Conversation[Acceptance]:
        yield Authorize()
        yield Send(Request("POST", "/push"))
        return Acceptance("id")

    def post(batch_id: int, _: tuple[str, ...]) -> Acceptance:
        conversation = gate.guard(batch_id, push())
        next(conversation)
        waiting.release()
        log_in.wait(10)
        try:
            conversation.send(Token(value="late"))
        except NotSent as error:
            ended.append(error)
            raise
        sender.sent["left"] += 1
        return Acceptance("id")

    def stop() -> None:
        for _ in range(3):
            waiting.acquire()
        sender.inbox.put(Halt(NotAllSent("killed"), 1_000.0))

    sender.run._post = post
    stopping = threading.Thread(target=stop)
    stopping.start()

    report = sender.run.to_end()
    log_in.set()
    stopping.join()

    assert (report.in_doubt, report.not_sent) == (0, 50)
    assert [type(answer) for answer in sender.ledger.settled] == [Released] * 3
    assert eventually(lambda: len(ended) == 3)
    assert not sender.sent
    check(report)


def eventually(holds: Callable[[], bool]) -> bool:
    """Wait up to ten seconds until something *holds*."""
    deadline = time.monotonic() + 10.0
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.01)
    return holds()


def test_progress_is_logged_in_counts(
    spool: Spool, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Accepted of total, rate against limit, time to go: what a person can use, and nobody's name."""
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(shell, "PROGRESS_EVERY", 0.0)
    sender = Sender(spool)

    sender.run.to_end()

    assert "Accepted 10 of 50 recipients in 1 requests" in caplog.text
    assert "min to go" in caplog.text
    assert "Accepted 50 of 50 recipients in 5 requests" in caplog.text
    assert "c1" not in caplog.text


def test_an_observer_is_told_what_becomes_of_each_request(spool: Spool) -> None:
    """As it happens, with numbers and codes and nobody's name."""
    sender = Sender(
        spool,
        LimitExceeded("too fast", wait=0.0),
        "id",
        Refused("no", code="INVALID_PARAMETER"),
        NoAnswer("reset"),
        Refused("no code"),
    )

    report = sender.run.to_end()

    assert sender.notes.requests == [
        ("put off", "LimitExceeded"),
        ("accepted", 10),
        ("rejected INVALID_PARAMETER", 10),
        ("in doubt", 10),
        ("rejected Refused", 10),
        ("accepted", 10),
    ]
    check(report)


def test_an_observer_is_told_whom_a_stop_leaves_in_doubt(spool: Spool) -> None:
    """What was in flight when the sender gave up waiting."""
    sender = Sender(spool, "id-1", grace=0.0)
    gone = threading.Event()
    post = sender.post

    def lost(batch_id: int, bodies: tuple[str, ...]) -> Acceptance:
        if sender.sent:
            sender.inbox.put(Halt(NotAllSent("told to stop"), 0.0))
            gone.wait(5)
        return post(batch_id, bodies)

    sender.run._post = lost

    report = sender.run.to_end()
    gone.set()

    assert sender.notes.requests == [("accepted", 10), ("in doubt", 10)]
    check(report)


def test_an_observer_is_told_how_far_it_is(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the beginning, so that a retry's numbers take the place of an earlier try's."""
    monkeypatch.setattr(shell, "PROGRESS_EVERY", 0.0)
    sender = Sender(spool, Refused("no"))

    sender.run.to_end()

    first, *others = sender.notes.told
    assert (first.total, first.accepted, first.left, first.requests, first.ends_at) == (50, 0, 50, 0, None)
    assert any((each.accepted, each.rejected, each.left, each.requests) == (10, 10, 30, 1) for each in others)
    assert all(each.ends_at > each.now for each in others if each.ends_at)
    assert any(each.ends_at for each in others)
    assert first.limit == 60_000_000


def test_the_last_line_is_about_everybody(spool: Spool, caplog: pytest.LogCaptureFixture) -> None:
    """Also those who will not be sent to."""
    caplog.set_level(logging.INFO)
    sender = Sender(spool, "id-1", SendRefused("no campaign"))

    sender.run.to_end()

    assert caplog.messages[-1].startswith("Accepted 10 of 50 recipients in 1 requests, ")
    assert caplog.messages[-1].endswith(" 0 in doubt, 10 rejected, 30 not sent")
