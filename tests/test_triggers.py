import asyncio
import importlib
import json
import logging
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
import requests
from airflow.providers.common.compat.sdk import AirflowNotFoundException
from airflow.sdk._shared.secrets_masker import _secrets_masker

from airflow_provider_responsys import hooks, metrics, triggers
from airflow_provider_responsys.hooks import ResponsysHook
from airflow_provider_responsys.observers import WaitObserver
from airflow_provider_responsys.protocol import auth, codes, pace, polling
from airflow_provider_responsys.protocol.results import Results
from airflow_provider_responsys.sandbox import Fault, Sandbox
from airflow_provider_responsys.transport import aio
from airflow_provider_responsys.triggers import Asking, PushRequestTrigger
from airflow_provider_responsys.waiting import engine, schedule, watch
from airflow_provider_responsys.waiting.engine import WaitEngine
from airflow_provider_responsys.waiting.event import Event, Status, pack
from airflow_provider_responsys.waiting.sharing import Limits
from airflow_provider_responsys.waiting.state import WaitState
from airflow_provider_responsys.waiting.watch import Watch, most_in_flight

CONNECTION = "AIRFLOW_CONN_RESPONSYS_DEFAULT"
CAMPAIGN = "Summer_Push"


@pytest.fixture
def sandbox(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sandbox]:
    """Give a Responsys that finishes requests at once, and polls without a limit worth waiting for."""
    with Sandbox(processing_time=0.0) as running:
        connect(monkeypatch, running)
        yield running


@pytest.fixture(autouse=True)
def no_long_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let trouble pass in no time."""
    monkeypatch.setattr(schedule, "TROUBLE_WAITS", (0.01,))
    monkeypatch.setattr(engine, "NOT_BELIEVED", ())


def connect(monkeypatch: pytest.MonkeyPatch, sandbox: Sandbox, **extra: Any) -> None:
    """Let the connection `responsys_default` lead to *sandbox*."""
    extra = {"poll_requests_per_minute": 60_000, **extra}
    monkeypatch.setenv(CONNECTION, json.dumps(sandbox.connection(**extra)))


def pushed(*batches: list[str]) -> list[str]:
    """Push each of *batches*, lists of customer ids, and return the request ids."""
    with ResponsysHook() as hook:
        return [hook.trigger_push(CAMPAIGN, [{"customer_id": name} for name in batch]) for batch in batches]


def trigger(ids: list[str], **changes: Any) -> PushRequestTrigger:
    """Return a trigger that waits for *ids*, impatiently."""
    arguments = {
        "responsys_conn_id": "responsys_default",
        "packed_ids": pack(ids),
        "poll_interval": 0.02,
        "deadline": time.time() + 20.0,
        "first_delay": 0.0,
    }
    waiting = PushRequestTrigger(**{**arguments, **changes})
    # Airflow's own logger writes past pytest's; this one does not.
    waiting._log = logging.getLogger("tests.trigger")  # type: ignore[assignment]  # Airflow says which class it expects
    return waiting


def run(waiting: PushRequestTrigger) -> Event:
    """Run *waiting* as the triggerer does, and return its one event, which has crossed a process.

    R11: what would block the event loop raises.
    """
    here = threading.get_ident()

    def unless_here(function: Any) -> Any:
        def checked(*arguments: Any, **options: Any) -> Any:
            assert threading.get_ident() != here, "it blocks the event loop"
            return function(*arguments, **options)

        return checked

    async def events() -> list[Any]:
        return [event.payload async for event in waiting.run()]

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(time, "sleep", unless_here(time.sleep))
        monkeypatch.setattr(requests.Session, "send", unless_here(requests.Session.send))
        (payload,) = asyncio.run(events())
    return Event.from_payload(json.loads(json.dumps(payload)))


@pytest.mark.parametrize("api", ["haAsyncApi", "asyncApi"])
def test_it_counts_what_became_of_everybody(api: str, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """It reads each request once, through either family, and counts its recipients by outcome and code."""
    connect(monkeypatch, sandbox, api=api)
    ids = pushed(["C1", "C2"], ["NODEVICE-1", "C3"], ["UNDELIVERABLE-1"])

    event = run(trigger(ids))

    assert event.status is Status.FINISHED
    assert event.results.summary() == {
        "requests": {"total": 3, "finished": 3, "failed": 0, "unknown": 0, "pending": 0},
        "recipients": {"succeeded": 3, "failed": 2, "unknown": 0},
        "errors": {"NO_RECIPIENT_FOUND": 1, "RECIPIENT_STATUS_UNDELIVERABLE": 1},
    }
    assert sandbox.counts["polled ids"] == 3
    assert sandbox.counts["poll"] == (3 if api == "haAsyncApi" else 1)


def test_it_never_pushes(sandbox: Sandbox) -> None:
    """A trigger that a restart runs twice must do nothing that counts: it logs in and reads."""
    ids = pushed(["C1"])

    first, second = run(trigger(ids)), run(trigger(ids))

    assert first == second
    assert {seen.endpoint for seen in sandbox.requests_seen[2:]} == {"login", "poll"}
    sandbox.assert_no_duplicates()


def test_it_asks_until_the_answer_is_there(sandbox: Sandbox) -> None:
    """A request that is not finished is asked about again."""
    sandbox.change(processing_time=0.2)
    ids = pushed(["C1"], ["C2"])

    event = run(trigger(ids))

    assert event.results.recipients_succeeded == 2
    assert sandbox.counts["poll"] > 2


def test_it_tells_how_far_it_is(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever looks at the log of a long wait sees counts."""
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(watch, "PROGRESS_EVERY", 0.05)
    ids = pushed(["C1", "NODEVICE-1"])
    sandbox.change(processing_time=1000.0)
    ids += pushed(["C2"])

    run(trigger(ids, deadline=time.time() + 3.0))

    assert (
        "1 of 2 requests have ended (0 without results); 1 recipients handed over to Responsys' queue, 1 failed"
        in caplog.text
    )


def test_it_gives_up_at_the_deadline(sandbox: Sandbox) -> None:
    """What is known by then is told, and what is not is pending."""
    ids = pushed(["C1"])
    sandbox.change(processing_time=1000.0)
    ids += pushed(["C2"], ["C3"])

    event = run(trigger(ids, deadline=time.time() + 3.0))

    assert event.status is Status.TIMEOUT
    assert (event.results.finished, event.results.pending) == (1, 2)


def test_it_asks_nothing_at_first(sandbox: Sandbox) -> None:
    """A task that resumes right after it deferred may be marked failed by the scheduler."""
    event = run(trigger(["UGpC"], first_delay=1000.0, deadline=time.time() + 0.3))

    assert event.status is Status.TIMEOUT
    assert sandbox.requests_seen == []


def test_it_keeps_to_the_limit(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """At six polls a minute, three seconds have room for one."""
    connect(monkeypatch, sandbox, poll_requests_per_minute=6)

    run(trigger(["UGpC", "UGpD", "UGpE"], deadline=time.time() + 3.0))

    assert sandbox.counts["poll"] == 1


def test_without_a_setting_it_keeps_to_the_accounts_own_limit(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is read once, beside the first question, and told once."""
    caplog.set_level(logging.INFO)
    limits = Limits()
    monkeypatch.setattr(triggers, "LIMITS", limits)
    connect(monkeypatch, sandbox, poll_requests_per_minute=None)
    ids = pushed(*([f"C{number}"] for number in range(12)))
    sandbox.change(poll_limit=6_000)

    event = run(trigger(ids))

    assert event.results.recipients_succeeded == 12
    assert [shared.pace.limit for shared in limits._by_account.values()] == [6_000]
    assert sandbox.counts["ratelimit"] == 1
    assert caplog.text.count("Polling at most") == 1
    assert "Polling at most 6000 requests a minute (the account's limit)" in caplog.text


def test_a_setting_comes_first(sandbox: Sandbox) -> None:
    """Whoever sets a limit has shared it out: the account's is not asked for."""
    sandbox.change(processing_time=0.3)

    run(trigger(pushed(["C1"]), poll_interval=0.1))

    assert sandbox.counts["ratelimit"] == 0


NOT_TOLD: dict[str, dict[str, Any]] = {
    "off": {"ratelimit": "off"},
    "a role is missing": {"ratelimit": "refused"},
    "failed over": {"failed_over": True},
    "its own limit": {"ratelimit_limit": 0},
    "no row for polls": {"ratelimit_rows": ()},
}


@pytest.mark.parametrize("changes", NOT_TOLD.values(), ids=NOT_TOLD)
def test_a_limit_that_is_not_told_does_not_end_the_wait(
    changes: dict[str, Any], sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A guess serves, and the log says what it is and what to do."""
    caplog.set_level(logging.INFO)
    connect(monkeypatch, sandbox, poll_requests_per_minute=None)
    ids = pushed(["C1"], ["C2"])
    sandbox.change(**changes, processing_time=2.0)
    ids += pushed(["C3"])

    event = run(trigger(ids, poll_interval=0.2))

    assert event.status is Status.FINISHED, event.message
    assert event.results.recipients_succeeded == 3
    assert caplog.text.count("Polling at most 200 requests a minute (a default, as ") == 1
    assert "set poll_requests_per_minute in the connection" in caplog.text


@pytest.mark.parametrize("kind", ["lost", "html_503", "truncated", "API_NOT_ALLOWED_IN_SECONDARY"])
def test_a_limit_is_read_again_if_it_may_be_told_later(
    kind: Any, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A wait that begins in an outage does not go on by a guess for a day; what is no answer stays one."""
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(codes, "OUTAGE_WAIT", 0.01)
    connect(monkeypatch, sandbox, poll_requests_per_minute=None)
    sandbox.change(processing_time=1.0, poll_limit=6_000)
    ids = pushed(["C1"])
    sandbox.plan(Fault("ratelimit", kind, nth=[1, 2]))

    event = run(trigger(ids, poll_interval=0.1))

    told = kind != "truncated"
    assert event.status is Status.FINISHED, event.message
    assert sandbox.counts["ratelimit"] == (3 if told else 1)
    assert caplog.text.count("a default, as the account's limits can't be read") == 1
    assert ("Polling at most 6000 requests a minute (the account's limit)" in caplog.text) == told


def test_a_limit_that_never_comes_holds_up_nobody(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """The questions do not wait for it, and the end of the wait does not either; nothing of it goes on."""
    connect(monkeypatch, sandbox, poll_requests_per_minute=None)
    sandbox.change(processing_time=0.3)
    ids = pushed(["C1"])
    sandbox.plan(Fault("ratelimit", "hang"))

    async def scenario() -> tuple[Any, int]:
        event = await anext(aiter(trigger(ids, poll_interval=0.1).run()))
        return event.payload["status"], len(asyncio.all_tasks())

    assert asyncio.run(scenario()) == ("finished", 1)
    assert sandbox.counts["ratelimit"] == 1


def test_a_defect_in_reading_the_limit_does_not_end_the_wait(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, mocker: Any
) -> None:
    """It is told, and a guess serves."""
    connect(monkeypatch, sandbox, poll_requests_per_minute=None)
    sandbox.change(processing_time=0.3)
    mocker.patch.object(triggers, "poll_limit", side_effect=ZeroDivisionError)

    assert run(trigger(pushed(["C1"]), poll_interval=0.1)).status is Status.FINISHED
    assert "ZeroDivisionError" in caplog.text


def test_a_wrong_password_is_tried_once_for_the_limit_too(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five lock the account."""
    connect(monkeypatch, sandbox, poll_requests_per_minute=None)
    sandbox.change(password="changed")

    event = run(trigger(["UGpC", "UGpD"]))

    assert "login or password is wrong" in event.message
    assert sandbox.counts["login"] == 1


@pytest.mark.parametrize(("limit", "together"), [(1000, 17), (200, 4), (60, 1), (6, 1)])
def test_questions_leave_together(limit: int, together: int, sandbox: Sandbox) -> None:
    """One wake-up serves all that the limit has room for at once, and the next comes when it has as much room again."""

    async def scenario() -> tuple[int, float, int]:
        watch = unbegun(limit, now := asyncio.get_running_loop().time())
        until = watch._send(now)
        first = len(watch._polls)
        watch._send((now + until) / 2)
        asked = first, (until - now) * limit / 60, len(watch._polls)
        await watch.stop()
        return asked

    first, places, later = asyncio.run(scenario())

    assert first == later == together
    assert places == pytest.approx(together / schedule.HEADROOM)
    # Whatever sixty seconds are looked at, the limit is not run into.
    assert int(limit * schedule.HEADROOM) + together <= limit


def test_few_large_answers_come_at_once(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each may take megabytes of a memory that all triggers share."""
    connect(monkeypatch, sandbox, api="asyncApi")

    async def scenario() -> int:
        watch = unbegun(60_000, now := asyncio.get_running_loop().time())
        watch._send(now)
        asking = len(watch._polls)
        await watch.stop()
        return asking

    assert asyncio.run(scenario()) == 2


def test_questions_with_room_grow_together_again(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is due a little later goes with a question that leaves anyway; the next sweep costs fewer."""
    connect(monkeypatch, sandbox, api="asyncApi")

    async def scenario() -> tuple[int, float]:
        watch = unbegun(60_000, now := asyncio.get_running_loop().time())
        watch._engine.schedule.take(now, most=1000)
        watch._engine.schedule.put_back(["UGpC0"], now)
        watch._engine.schedule.put_back(["UGpC1"], now + 5.0)
        watch._engine.schedule.put_back(["UGpC2"], now + 50.0)
        watch._send(now)
        found = len(watch._polls), watch._engine.schedule.due - now
        await watch.stop()
        return found

    asked, due = asyncio.run(scenario())
    assert asked == 1
    assert due == pytest.approx(50.0)


def unbegun(limit: float, now: float) -> Watch:
    """Return a watch over a thousand requests, at *limit* questions a minute, that has not asked anything yet."""
    account = ResponsysHook().account()
    line = aio.Responsys(account, user_agent="")
    ids = [f"UGpC{number}" for number in range(1000)]
    size = account.family.ids_per_poll
    deciding = WaitEngine(
        WaitState.on(ids),
        pace=schedule.paced(limit, now),
        poll_interval=60.0,
        ids_per_poll=size,
        max_in_flight=most_in_flight(size),
        first_at=now,
    )
    return Watch(deciding, Asking(line, account).poll, log=logging.getLogger())


def test_it_asks_few_questions_at_once(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five thousand requests are not five thousand connections."""
    monkeypatch.setattr(watch, "MAX_IN_FLIGHT", 3)
    ids = pushed(*([f"C{number}"] for number in range(12)))
    sandbox.change(latency=0.02)
    watched = trigger(ids)
    most = 0

    async def counting() -> None:
        nonlocal most
        waiting = asyncio.ensure_future(anext(aiter(watched.run())))
        while not waiting.done():
            await asyncio.sleep(0.001)
            most = max(most, len(watched._watch._polls) if watched._watch else 0)

    asyncio.run(counting())

    assert most == 3


def test_it_goes_on_where_the_worker_stopped(sandbox: Sandbox) -> None:
    """The counts of what finished before the task deferred are in the event."""
    ids = pushed(["C1", "C2"])
    before = Results(total=4, finished=2, failed=1, recipients_succeeded=7)

    event = run(trigger(ids, results=before.to_event()))

    assert event.results.summary()["requests"] == {"total": 4, "finished": 3, "failed": 1, "unknown": 0, "pending": 0}
    assert event.results.recipients_succeeded == 9


def test_a_request_without_results(sandbox: Sandbox, caplog: pytest.LogCaptureFixture) -> None:
    """A failed request, and one whose answer is gone, end; the log names them."""
    ids = pushed(["C1"], ["C2"], ["C3"])
    sandbox.plan(Fault("poll", "purged", nth=1), Fault("poll", "expired", nth=2))

    event = run(trigger(ids))

    assert event.status is Status.FINISHED
    assert (event.results.finished, event.results.failed, event.results.unknown) == (1, 1, 1)
    assert event.results.request_errors == {"RESPONSE_PURGED": 1, "ASYNC_REQUEST_EXPIRED": 1}
    assert f"Request {ids[0]} ended without results: RESPONSE_PURGED" in caplog.text


@pytest.mark.parametrize("kind", ["lost", "reset", "bad_gateway", "html_503", "truncated", "empty", "unknown_status"])
def test_trouble_is_ridden_out(
    kind: Any, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An outage delays results; it does not lose them."""
    monkeypatch.setattr(codes, "OUTAGE_WAIT", 0.01)
    ids = pushed(["C1"], ["C2"])
    sandbox.plan(Fault("poll", kind, nth=[1, 2]))

    event = run(trigger(ids))

    assert event.status is Status.FINISHED, event.message
    assert event.results.recipients_succeeded == 2
    # Told once, not with every answer.
    assert caplog.text.count("No results at the moment") == (0 if kind == "unknown_status" else 1)


def test_a_limit_that_is_run_into_is_scouted(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another program uses a part of the limit: what was refused is asked again, one question at a time."""
    monkeypatch.setattr(pace, "SCOUT", 0.05)
    ids = pushed(["C1"], ["C2"], ["C3"])
    sandbox.plan(Fault("poll", "API_LIMIT_EXCEEDED", nth=[2, 3, 4]))

    # What is not answered is asked about again much later: that is not what a refusal is.
    event = run(trigger(ids, poll_interval=1000.0))

    assert event.status is Status.FINISHED
    assert event.results.recipients_succeeded == 3
    assert sandbox.counts["poll"] == 3 + 3


def test_a_password_that_is_changed_meanwhile_is_used(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection is read again before each login: the cached password is never sent once more."""
    ids = pushed(["C1"])
    sandbox.change(processing_time=1000.0)
    late = pushed(["C2"])
    waiting = trigger(ids + late)
    turned = threading.Event()

    def turn(*_: Any) -> None:
        if turned.is_set() or not sandbox.counts["polled ids"]:
            return
        turned.set()
        sandbox.change(password="rotated")
        sandbox.clock.advance(1000.0)
        monkeypatch.setenv(CONNECTION, json.dumps({**sandbox.connection(), "password": "rotated"}))
        sandbox.forget_tokens()

    monkeypatch.setattr(WaitObserver, "answered", turn)

    event = run(waiting)

    assert event.status is Status.FINISHED, event.message
    assert event.results.recipients_succeeded == 2
    assert sandbox.refusals["INVALID_USER_NAME_PASSWORD"] == 0
    assert sandbox.counts["login"] == 4


def test_waits_with_a_wrong_password_ask_once(sandbox: Sandbox) -> None:
    """Eight in one triggerer, or in many of one machine: five wrong passwords would lock the account."""
    ids = pushed(["C1"])
    sandbox.change(password="changed")
    asked = sandbox.counts["login"]

    events = [run(trigger(ids)) for _ in range(8)]

    assert {event.status for event in events} == {Status.ERROR}
    assert sandbox.counts["login"] - asked == 1
    assert all("press Test" in event.message for event in events[1:])


def test_each_poll_has_an_id_of_its_own(sandbox: Sandbox) -> None:
    """Oracle's support may find it by that."""
    run(trigger(pushed(["C1"], ["C2"])))

    names = [seen.headers["x-request-id"] for seen in sandbox.requests_seen if seen.endpoint == "poll"]

    assert len(set(names)) == len(names) == 2


def test_an_expired_token_is_renewed(sandbox: Sandbox) -> None:
    """A wait may be longer than a login lasts."""
    ids = pushed(["C1"], ["C2"])
    sandbox.plan(Fault("poll", "TOKEN_EXPIRED", nth=1))

    assert run(trigger(ids)).results.recipients_succeeded == 2


def test_a_refused_login_ends_it(sandbox: Sandbox) -> None:
    """A wrong password will not become right: one sentence says so, after one attempt."""
    sandbox.change(password="changed")

    event = run(trigger(["UGpC", "UGpD"]))

    assert event.status is Status.ERROR
    assert "login or password is wrong" in event.message
    assert event.results.pending == 2
    assert sandbox.counts["login"] == 1


def test_an_account_that_may_not_ask_ends_it(sandbox: Sandbox) -> None:
    """What only Oracle can change ends the wait at once."""
    ids = pushed(["C1"], ["C2"])
    sandbox.change(processing_time=1000.0)
    sandbox.plan(Fault("poll", "ASYNC_API_DISABLED_FOR_USER", nth=2))

    # The other request is asked about again much later: nobody waits for that.
    event = run(trigger(ids, poll_interval=1000.0))

    assert event.status is Status.ERROR
    assert "ASYNC_API_DISABLED_FOR_USER" in event.message


def test_nobody_waits_for_another_answer_then(sandbox: Sandbox) -> None:
    """Not even for one that will not come."""
    ids = pushed(["C1"], ["C2"])
    sandbox.plan(Fault("poll", "hang", nth=1, seconds=60.0), Fault("poll", "ASYNC_API_DISABLED_FOR_USER", nth=2))

    async def event() -> Any:
        return await asyncio.wait_for(anext(aiter(trigger(ids, poll_interval=1000.0).run())), 10.0)

    assert asyncio.run(event()).payload["status"] == "error"


def test_a_question_without_an_answer_holds_up_no_other(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others are asked about, and finish, in the meantime."""
    connect(monkeypatch, sandbox, timeout=4)
    sandbox.change(processing_time=0.2)
    ids = pushed(["C1"], ["C2"])
    sandbox.plan(Fault("poll", "hang", nth=1))

    event = run(trigger(ids))

    hung, *asked = [seen for seen in sandbox.requests_seen if seen.endpoint == "poll"]
    assert event.results.recipients_succeeded == 2
    assert asked[-1].path == hung.path
    assert all(seen.time < hung.time + 4 for seen in asked if seen.path != hung.path)


@pytest.mark.parametrize("error", [AirflowNotFoundException("sandbox-password"), OSError("sandbox-password")])
def test_a_connection_that_cannot_be_read_for_a_while_is_waited_for(
    error: Exception, sandbox: Sandbox, mocker: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """A secrets backend that is away says that there is no such connection."""
    real, failures = hooks.account_of, iter([error, error])

    async def account_of(conn_id: str) -> Any:
        if failure := next(failures, None):
            raise failure
        return await real(conn_id)

    ids = pushed(["C1"])
    mocker.patch.object(triggers, "account_of", account_of)

    event = run(trigger(ids))

    assert event.status is Status.FINISHED, event.message
    assert event.results.recipients_succeeded == 1
    assert caplog.text.count("Connection responsys_default can't be read at the moment") == 2
    assert "sandbox-password" not in caplog.text


def test_a_connection_that_cannot_be_read_at_all_is_a_timeout(sandbox: Sandbox, mocker: Any) -> None:
    """Nothing is known of the requests then, and nothing is said of them."""
    mocker.patch.object(triggers, "account_of", side_effect=AirflowNotFoundException("no such connection"))

    event = run(trigger(["UGpC"], deadline=time.time() + 0.3))

    assert (event.status, event.results.pending) == (Status.TIMEOUT, 1)


def test_a_connection_whose_look_up_hangs_is_a_timeout(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """A secrets backend may take a connection, and say nothing."""
    waiting = trigger(pushed(["C1"]), deadline=time.time() + 0.5)

    async def hangs(_: str) -> Any:
        await asyncio.sleep(3_600.0)

    async def scenario() -> Any:
        async with asyncio.timeout(20.0):
            return [event.payload async for event in waiting.run()]

    monkeypatch.setattr(triggers, "account_of", hangs)

    (payload,) = asyncio.run(scenario())

    assert Event.from_payload(payload).status is Status.TIMEOUT


def test_it_never_raises(sandbox: Sandbox, mocker: Any) -> None:
    """A trigger that raises fails its task without a reason; the text of an unknown error may hold secrets."""
    mocker.patch.object(triggers, "WaitEngine", side_effect=RuntimeError("sandbox-password"))

    event = run(trigger(["UGpC"]))

    assert event.status is Status.RETRY
    assert event.message == "the trigger failed with RuntimeError: see its log"
    assert event.results.pending == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"packed_ids": "nonsense"},
        {"packed_ids": 3},
        {"results": {"requests": 3}},
        {"results": Results(total=9).to_event()},
        {"packed_ids": ""},
        {"packed_ids": "", "ledger_conn_id": "ledger", "send_keys": ["autumn"]},
    ],
)
def test_arguments_that_cannot_be_are_an_event(changes: dict[str, Any], sandbox: Sandbox) -> None:
    """What crosses a process is checked; the task's next try makes the arguments anew."""
    event = run(trigger(["UGpC"], **changes))

    assert event.status is Status.RETRY
    assert sandbox.requests_seen == []


def test_a_failing_answer_is_not_swallowed(sandbox: Sandbox, mocker: Any) -> None:
    """A defect of ours, in the middle of it, ends the wait too: no request is left out silently."""
    ids = pushed(["C1"])
    mocker.patch.object(WaitState, "count", side_effect=ZeroDivisionError)

    assert "ZeroDivisionError" in run(trigger(ids)).message


def test_it_leaves_nothing_behind_when_it_is_stopped(sandbox: Sandbox) -> None:
    """A triggerer that restarts cancels its triggers: no connection stays open, no question goes on."""
    waiting = trigger(pushed(["C1"]))
    sandbox.change(latency=0.2)

    async def stopped() -> int:
        event = asyncio.ensure_future(anext(aiter(waiting.run())))
        while not (waiting._watch and waiting._watch._polls):  # noqa: ASYNC110 -- nothing tells when a poll leaves
            await asyncio.sleep(0.01)
        event.cancel()
        await asyncio.gather(event, return_exceptions=True)
        left = len(asyncio.all_tasks())
        await waiting.cleanup()
        await waiting.cleanup()
        return left

    assert asyncio.run(stopped()) == 1  # the one that counts


def test_nothing_secret_is_logged_or_told(sandbox: Sandbox, caplog: pytest.LogCaptureFixture, mocker: Any) -> None:
    """No recipient, token or password in logs, arguments or events, at any level, a defect's traceback among them."""
    caplog.set_level(logging.DEBUG)
    waiting = trigger(pushed(["C-secret-person"], ["C2"], ["C3"]))
    tokens = noted_tokens(mocker)
    sandbox.plan(Fault("poll", "TOKEN_EXPIRED", nth=1), Fault("poll", "lost", nth=2))
    mocker.patch.object(WaitState, "count", side_effect=ZeroDivisionError)

    event = run(waiting)

    told = caplog.text + json.dumps(event.to_payload()) + repr(waiting) + json.dumps(waiting.serialize())
    assert tokens
    assert "ZeroDivisionError" in caplog.text
    for secret in ("sandbox-password", "C-secret-person", *tokens):
        assert secret not in told


def noted_tokens(mocker: Any) -> set[str]:
    """Return a set that gets every token that a login gives."""
    tokens: set[str] = set()
    read = auth.read_token

    def noted(*arguments: Any) -> Any:
        token = read(*arguments)
        tokens.add(token.value)
        return token

    mocker.patch.object(auth, "read_token", noted)
    return tokens


def test_logins_add_nothing_to_airflows_masker(sandbox: Sandbox, mocker: Any) -> None:
    """A triggerer runs for months, and its masker looks for every secret that it was ever given in each log line."""
    ids = pushed(["C1"])
    run(trigger(ids))
    known = set(_secrets_masker().patterns)
    tokens = noted_tokens(mocker)

    for _ in range(12):
        run(trigger(ids))

    assert len(tokens) == 12
    assert set(_secrets_masker().patterns) == known


def test_nothing_occupies_the_event_loops_own_executor(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, mocker: Any
) -> None:
    """All triggers share its few threads: logins, name look-ups, large answers and counters have others."""
    extra = {**sandbox.connection(), "host": str(sandbox.connection()["host"]).replace("127.0.0.1", "localhost")}
    monkeypatch.setattr(aio, "LARGE", 100)
    ids = pushed(["C1"], ["C2", "C3"])
    monkeypatch.setenv(CONNECTION, json.dumps(extra))
    looked_up = mocker.spy(aio.NAMES.__class__, "call")
    used: list[Any] = []

    class Noting(ThreadPoolExecutor):
        def submit(self, *arguments: Any, **options: Any) -> Any:
            used.append(arguments)
            return super().submit(*arguments, **options)

    async def scenario() -> list[Any]:
        asyncio.get_running_loop().set_default_executor(Noting())
        return [event.payload async for event in trigger(ids).run()]

    (payload,) = asyncio.run(scenario())

    assert Event.from_payload(payload).results.recipients_succeeded == 3
    assert {call.args[0].name for call in looked_up.call_args_list} >= {"responsys-names", "responsys-answers"}
    assert not used


def test_a_monitoring_system_that_hangs_holds_up_no_wait(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its address may be looked up for minutes: the wait goes on, and counts nothing meanwhile."""
    over, threads = threading.Event(), set()

    def hangs(*_: Any, **__: Any) -> None:
        threads.add(threading.get_ident())
        over.wait(60.0)

    monkeypatch.setattr(metrics, "Stats", SimpleNamespace(incr=hangs))

    event = run(trigger(pushed(["C1"])))
    over.set()

    assert event.results.recipients_succeeded == 1
    assert threading.get_ident() not in threads


def test_it_survives_being_stored() -> None:
    """R12: the path imports back to the same class, and the arguments survive JSON."""
    waiting = trigger(["UGpC", "UGpD"], results=Results(total=2).to_event())

    path, arguments = waiting.serialize()
    module, _, name = path.rpartition(".")
    stored = json.loads(json.dumps(arguments))

    assert path == "airflow_provider_responsys.triggers.PushRequestTrigger"
    assert getattr(importlib.import_module(module), name) is PushRequestTrigger
    assert PushRequestTrigger(**stored).serialize() == (path, arguments)
    assert set(arguments) == {
        "responsys_conn_id",
        "packed_ids",
        "poll_interval",
        "deadline",
        "first_delay",
        "results",
        "ledger_conn_id",
        "send_keys",
        "packed_task_instances",
        "sizes",
    }


def test_what_an_older_version_stored_still_runs(sandbox: Sandbox) -> None:
    """A triggerer that is upgraded goes on with what waits: new arguments may be absent."""
    stored = trigger(pushed(["C1"])).serialize()[1]
    for name in ("ledger_conn_id", "send_keys", "packed_task_instances", "sizes"):
        assert stored.pop(name) is None

    event = run(PushRequestTrigger(**stored))

    assert event.results.recipients_succeeded == 1


def test_a_large_answer_is_read_beside_the_event_loop(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, mocker: Any
) -> None:
    """Two hundred requests of two hundred rows take a tenth of a second to read, and others share the loop."""
    monkeypatch.setattr(aio, "LARGE", 100)
    readers: set[int] = set()
    read = polling.read_outcomes

    def noted(*arguments: Any, **options: Any) -> Any:
        readers.add(threading.get_ident())
        return read(*arguments, **options)

    mocker.patch.object(polling, "read_outcomes", noted)

    event = run(trigger(pushed(["C1"], ["C2", "C3"])))

    assert event.results.recipients_succeeded == 3
    assert readers
    assert threading.get_ident() not in readers
