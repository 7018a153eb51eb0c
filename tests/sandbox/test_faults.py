import http.client
import json
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from airflow_provider_responsys.errors import InvalidSettings
from airflow_provider_responsys.sandbox import Endpoint, Fault, FaultPlan, Kind
from airflow_provider_responsys.sandbox.answers import CODES
from airflow_provider_responsys.sandbox.faults import ONLY_AFTER, ONLY_BEFORE, RESULT_KINDS
from tests.support.client import HA, PUSH, Reply, Start, recipient

NO_ANSWER = (OSError, http.client.HTTPException)


@pytest.mark.parametrize(("when", "pushed"), [("before", 0), ("after", 1)])
@pytest.mark.parametrize("kind", ["lost", "reset"])
def test_an_answer_is_lost_before_or_after_the_effect(start: Start, kind: str, when: str, pushed: int) -> None:
    """The client can't tell the two apart; the sandbox can."""
    sandbox, client = start(faults=[Fault("push", kind, when=when, times=1)])

    with pytest.raises(NO_ANSWER):
        client.push(recipient())

    assert sandbox.times_pushed("PROFILE", "customerId", "C1") == pushed
    assert client.push(recipient(value="C2")).status == 202
    assert sandbox.faults_happened == {kind: 1}


def test_a_reset_is_a_reset(start: Start) -> None:
    """The client's socket says so, not only its HTTP."""
    _, client = start(faults=[Fault("push", "reset")])

    with pytest.raises(ConnectionResetError) as caught:
        client.push(recipient())

    assert caught.type is ConnectionResetError


@pytest.mark.parametrize(("when", "pushed"), [("before", 0), ("after", 1)])
def test_a_hang_ends_with_the_client_patience(start: Start, when: str, pushed: int) -> None:
    """No answer comes, and the connection stays."""
    sandbox, client = start(faults=[Fault("push", "hang", when=when)])

    client.connection.sock.settimeout(0.1)
    with pytest.raises(TimeoutError):
        client.push(recipient())

    assert sandbox.report()["pushes"] == pushed


def test_a_hang_may_end_without_an_answer(start: Start) -> None:
    """After its seconds the connection is closed."""
    _, client = start(faults=[Fault("push", "hang", seconds=0.05)])

    with pytest.raises(http.client.RemoteDisconnected):
        client.push(recipient())


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(
    ("kind", "status", "content"),
    [
        ("unlisted", 500, "SOMETHING_NO_PAGE_LISTS"),
        ("bad_gateway", 502, "Bad Gateway"),
        ("html_503", 503, "Service Temporarily Unavailable"),
        ("gateway_timeout", 504, "Gateway Timeout"),
        ("bare_503", 503, "Service Unavailable"),
        ("UNRECOVERABLE_EXCEPTION", 500, "UNRECOVERABLE_EXCEPTION"),
        ("UNEXPECTED_EXCEPTION", 500, "UNEXPECTED_EXCEPTION"),
    ],
)
def test_a_wrong_answer_comes_before_or_after_the_effect(
    start: Start, kind: str, status: int, content: str, when: str
) -> None:
    """An answer that leaves the client in doubt, rightly."""
    sandbox, client = start(faults=[Fault("push", kind, when=when)])

    reply = client.push(recipient())

    assert reply.status == status
    assert content in reply.body.decode()
    assert sandbox.report()["pushes"] == (when == "after")


@pytest.mark.parametrize("code", sorted(code for code, words in CODES.items() if words.nothing_queued))
def test_a_code_that_says_nothing_was_queued_is_true(start: Start, code: str) -> None:
    """It comes before the effect only: the plan refuses it after."""
    sandbox, client = start(faults=[Fault("push", code)])

    reply = client.push(recipient())

    assert (reply.status, reply.code) == (CODES[code].status, code)
    assert not sandbox.pushes
    with pytest.raises(InvalidSettings, match="can't come after the effect"):
        Fault("push", code, when="after")


def test_a_code_may_come_with_another_status(start: Start) -> None:
    """The pages name three for the limit."""
    _, client = start(faults=[Fault("push", "API_LIMIT_EXCEEDED", status=429)])

    assert client.push(recipient()).status == 429


def test_a_redirect_leads_to_the_same_place(start: Start) -> None:
    """Nothing was pushed; a client that follows it would push."""
    sandbox, client = start(faults=[Fault("push", "redirect")])

    reply = client.push(recipient())

    assert (reply.status, reply.headers["Location"]) == (307, sandbox.url + PUSH)
    assert not sandbox.pushes


def test_truncated_json_has_a_right_length(start: Start) -> None:
    """A whole HTTP answer whose text can't be read; its push went out."""
    sandbox, client = start(faults=[Fault("push", "truncated")])

    reply = client.push(recipient())

    assert reply.status == 202
    with pytest.raises(ValueError, match=r"Unterminated|Expecting"):
        json.loads(reply.body)
    assert sandbox.report()["pushes"] == 1


def test_an_empty_answer_has_a_right_status(start: Start) -> None:
    """Accepted, and no request id to ask for."""
    sandbox, client = start(faults=[Fault("push", "empty")])

    reply = client.push(recipient())

    assert (reply.status, reply.body) == (202, b"")
    assert sandbox.report()["pushes"] == 1


def test_a_wrong_length_cuts_the_answer_short(start: Start) -> None:
    """The connection ends before what was promised has come."""
    sandbox, client = start(faults=[Fault("push", "wrong_length")])

    with pytest.raises(http.client.IncompleteRead):
        client.push(recipient())

    assert sandbox.report()["pushes"] == 1


def test_a_slow_answer_arrives_whole(start: Start) -> None:
    """In pieces, and right in the end."""
    _, client = start(faults=[Fault("push", "slow", seconds=0.1)])

    reply = client.push(recipient())

    assert reply.json["status"] == "REQUEST_ACCEPTED"


@pytest.mark.parametrize(("kind", "status"), [("bare_413", 413), ("bare_429", 429)])
def test_a_gateway_keeps_a_request_out(start: Start, kind: str, status: int) -> None:
    """In plain text, without a name, and before the effect only."""
    sandbox, client = start(faults=[Fault("push", kind)])

    reply = client.push(recipient(), X_Request_Id="4711")

    assert (reply.status, reply.headers["Content-Type"]) == (status, "text/plain")
    assert "X-Request-Id" not in reply.headers
    assert not sandbox.pushes
    with pytest.raises(InvalidSettings, match="can't come after"):
        Fault("push", kind, when="after")


@pytest.mark.parametrize(("kind", "whole"), [("no_length", True), ("cut", False)])
def test_an_answer_may_end_with_its_connection(start: Start, kind: str, whole: bool) -> None:
    """As recorded; cut or whole, HTTP does not tell."""
    sandbox, client = start(faults=[Fault("push", kind)])

    reply = client.push(recipient())

    assert reply.status == 202
    assert "Content-Length" not in reply.headers
    assert reply.headers["Connection"] == "close"
    assert reply.body.endswith(b"}]}") is whole
    assert sandbox.report()["pushes"] == 1


def test_an_answer_may_drip(start: Start) -> None:
    """A byte at a time from the first one on; it is right in the end, if anybody waits that long."""
    sandbox, client = start(faults=[Fault("push", "drip", seconds=0.0, nth=1), Fault("push", "drip", nth=2)])

    reply = client.push(recipient())
    client.connection.sock.settimeout(0.2)
    with pytest.raises(TimeoutError):
        client.push(recipient(value="C2"))

    assert reply.json["status"] == "REQUEST_ACCEPTED"
    assert sandbox.report()["pushes"] == 2


def test_a_connection_closes_unannounced(start: Start) -> None:
    """The answer is right; the next request on this connection may be lost."""
    _, client = start(faults=[Fault("push", "close", times=1)])

    reply = client.push(recipient())

    assert reply.status == 202
    assert "Connection" not in reply.headers
    assert client.connection.sock.recv(1) == b""


@pytest.mark.parametrize(
    ("kind", "status", "rows"),
    [
        ("endless", "IN_PROGRESS", None),
        ("purged", "UNKNOWN", None),
        ("unknown_status", "PARKED", None),
        ("expired", "ERROR", None),
        ("row_missing", "SUCCESS", 1),
        ("row_too_many", "SUCCESS", 3),
    ],
)
def test_a_result_is_spoiled_for_a_request_or_for_a_poll(start: Start, kind: str, status: Any, rows: Any) -> None:
    """On a push: whenever it is polled. On a poll: this once."""
    sandbox, client = start(faults=[Fault("push", kind, nth=1), Fault("poll", kind, nth=3)])
    spoiled, healthy = (
        client.push(recipient(value=f"{n}a"), recipient(value=f"{n}b")).json["requestId"] for n in range(2)
    )

    frames = [client.poll(each).json for each in (spoiled, spoiled, healthy, healthy)]

    assert [frame["status"] for frame in frames] == [status, status, status, "SUCCESS"]
    assert len(frames[3]["response"]) == 2
    if rows:
        assert len(frames[0]["response"]) == rows
    assert sandbox.faults_happened == {kind: 2}


def test_nobody_of_an_expired_push_is_pushed(start: Start) -> None:
    """It waited too long in the queue and was never processed."""
    sandbox, client = start(faults=[Fault("push", "expired")])

    client.push(recipient())

    assert not sandbox.pushes


@pytest.mark.parametrize(
    ("which", "hit"),
    [
        ({"nth": 2}, [2]),
        ({"nth": [1, 4]}, [1, 4]),
        ({"every": 3}, [3, 6]),
        ({"every": 2, "times": 2}, [2, 4]),
        ({"times": 1}, [1]),
        ({"recipient": "STUCK"}, [5]),
        ({"recipient": "STUCK", "nth": 4}, []),
        ({"probability": 0}, []),
        ({}, [1, 2, 3, 4, 5, 6]),
    ],
)
def test_a_plan_says_which(which: dict[str, Any], hit: list[int]) -> None:
    """All that is given must fit."""
    plan = FaultPlan([Fault("push", "lost", **which)])
    found = []

    for count in range(1, 7):
        body = b"STUCK" if count == 5 else b""
        plan.pick(Endpoint.POLL, body)
        if fault := plan.pick(Endpoint.PUSH, body):
            plan.record(fault)
            found.append(count)

    assert found == hit


def test_probability_is_seeded() -> None:
    """One seed, one course; about as many as asked."""
    courses = []
    for seed in (1, 1, 2):
        plan = FaultPlan([Fault("push", "lost", probability=0.1)], seed=seed)
        courses.append([plan.pick(Endpoint.PUSH, b"") is not None for _ in range(2000)])

    assert courses[0] == courses[1] != courses[2]
    assert 150 < sum(courses[0]) < 250


def test_the_first_fault_that_fits_happens() -> None:
    """An earlier one hides a later one, until it is used up."""
    plan = FaultPlan([Fault("push", "lost", times=1), Fault("push", "reset", times=1)])
    kinds = []

    for _ in range(3):
        fault = plan.pick(Endpoint.PUSH, b"")
        kinds.append(fault and fault.kind)
        if fault:
            plan.record(fault)

    assert kinds == ["lost", "reset", None]


def test_a_refusal_leaves_no_effect_to_come_after(start: Start) -> None:
    """The refusal is answered, and the fault stays for the next."""
    sandbox, client = start(faults=[Fault("push", "lost", when="after", times=1)])

    assert client.push(recipient(value="")).code == "INVALID_PARAMETER"
    assert not sandbox.faults_happened
    with pytest.raises(NO_ANSWER):
        client.push(recipient())


@pytest.mark.parametrize(
    ("fault", "problem"),
    [
        ({"on": "pull", "kind": "lost"}, "on is one of login"),
        ({"on": "push", "kind": "explode"}, "kind .* is one of lost"),
        ({"on": "push", "kind": "lost", "when": "during"}, "when is one of before, after"),
        ({"on": "push", "kind": "redirect", "when": "after"}, "can't come after"),
        ({"on": "push", "kind": "SERVICE_UNAVAILABLE", "when": "after"}, "can't come after"),
        ({"on": "push", "kind": "slow", "when": "before"}, "can't come before"),
        ({"on": "push", "kind": "row_missing", "when": "before"}, "can't come before"),
        ({"on": "login", "kind": "endless"}, "a fault of a push or a poll"),
        ({"on": "poll", "kind": "lost", "recipient": "X"}, "only a push has recipients"),
        ({"on": "push", "kind": "lost", "probability": 2}, "from 0 to 1"),
        ({"on": "push", "kind": "lost", "nth": 0}, "counts from 1"),
        ({"on": "push", "kind": "lost", "nth": ["2"]}, "counts from 1"),
        ({"on": "push", "kind": "lost", "every": -1}, "every is"),
        ({"on": "push"}, "an object with on and kind"),
        ({"on": "push", "kind": "lost", "whom": "me"}, "an object with on and kind"),
        ("lost", "an object with on and kind"),
    ],
)
def test_a_wrong_fault_is_refused(fault: Any, problem: str) -> None:
    """A plan that would not do what it says is refused when it is made."""
    with pytest.raises(InvalidSettings, match=problem):
        FaultPlan.from_json([fault])


@pytest.mark.parametrize("plan", ["{", "7", '{"fault": []}', '{"faults": [], "sed": 1}'])
def test_a_wrong_plan_is_refused(plan: str) -> None:
    """JSON, a list or an object with faults and a seed."""
    with pytest.raises(InvalidSettings, match="plan"):
        FaultPlan.from_json(plan)


def test_a_plan_is_read_from_json() -> None:
    """What the command line and the control address take."""
    plan = FaultPlan.from_json('{"faults": [{"on": "push", "kind": "lost", "when": "after", "nth": 3}], "seed": 5}')

    assert plan.faults == (Fault("push", "lost", when="after", nth=(3,)),)
    assert plan.seed == 5


def test_every_kind_can_be_planned() -> None:
    """Each kind has a side of the effect that it may come on."""
    faults = [Fault("push", kind) for kind in Kind]

    assert [fault.when for fault in faults] == ["after" if kind in ONLY_AFTER else "before" for kind in Kind]
    assert RESULT_KINDS < ONLY_AFTER
    assert not ONLY_AFTER & ONLY_BEFORE


@pytest.mark.parametrize("endpoint", ["login", "ratelimit", "poll", "other"])
def test_faults_are_for_every_endpoint(start: Start, endpoint: str) -> None:
    """A read can fail as a push can."""
    sandbox, client = start()
    sandbox.plan(Fault(endpoint, "html_503"))
    asks: dict[str, Callable[[], Reply]] = {
        "login": client.log_in,
        "ratelimit": lambda: client.ask("GET", "/rest/api/ratelimit"),
        "poll": lambda: client.ask("GET", f"{HA}/requests/x"),
        "other": lambda: client.ask("GET", "/rest/api/v1.3/lists"),
    }
    ask = asks[endpoint]

    assert ask().status == 503
    sandbox.plan()
    assert ask().status == 200


def test_others_go_on_while_one_hangs(start: Start) -> None:
    """A hang holds its own connection only."""
    sandbox, client = start(faults=[Fault("push", "hang", nth=1)])
    hung = socket.create_connection(("127.0.0.1", sandbox.port))
    head = f"POST {PUSH} HTTP/1.1\r\nHost: x\r\nAuthorization: {client.token}\r\nContent-Length: 0\r\n\r\n"

    hung.sendall(head.encode())
    while not sandbox.counts["push"]:
        time.sleep(0.005)

    assert client.push(recipient()).status == 202
    hung.close()


def test_a_sandbox_stops_while_requests_hang(start: Start) -> None:
    """Nothing keeps a test's end waiting."""
    sandbox, client = start(faults=[Fault("push", "hang")])
    failed = threading.Event()

    def push() -> None:
        try:
            client.push(recipient())
        except NO_ANSWER:
            failed.set()

    thread = threading.Thread(target=push)
    thread.start()
    while not sandbox.counts["push"]:
        time.sleep(0.005)
    sandbox.stop()

    thread.join(5)
    assert failed.is_set()
