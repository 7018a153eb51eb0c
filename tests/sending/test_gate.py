"""Which requests are out, at each moment."""

import pytest

from airflow_provider_responsys.errors import LoginExpired, NoAnswer, NotSent
from airflow_provider_responsys.protocol.wire import Authorize, Conversation, Pause, Request, Response, Send, Token
from airflow_provider_responsys.sending.gate import Gate

TOKEN = Token(value="token")


def push(first: Token | None = None) -> Conversation[str]:
    """Log in, send, log in again once and send again."""
    yield Authorize(first)
    try:
        yield Send(Request("POST", "/push"))
    except LoginExpired:
        yield Authorize(TOKEN)
        yield Send(Request("POST", "/push"))
    return "id"


def test_a_request_is_out_while_it_is_sent_and_not_while_it_waits() -> None:
    """Waiting for a login, first or again, nothing is out."""
    gate, out = Gate(), []
    guarded = gate.guard(7, push())
    out.append(frozenset(gate._out))
    next(guarded)
    out.append(frozenset(gate._out))
    guarded.send(TOKEN)
    out.append(frozenset(gate._out))
    step = guarded.throw(LoginExpired("expired"))
    out.append(frozenset(gate._out))

    assert out == [frozenset(), frozenset(), {7}, frozenset()]
    assert step == Authorize(TOKEN)


def test_what_is_out_when_the_gate_is_shut_gets_its_answer() -> None:
    """And is named as what may be out."""
    gate = Gate()
    guarded = gate.guard(7, push())
    next(guarded)
    guarded.send(TOKEN)

    out = gate.shut()

    with pytest.raises(StopIteration) as end:
        guarded.send(Response(202))
    assert out == {7}
    assert end.value.value == "id"


@pytest.mark.parametrize("steps", [0, 1])
def test_nothing_leaves_a_gate_that_is_shut(steps: int) -> None:
    """Not even a request whose login has just come."""
    gate = Gate()
    guarded = gate.guard(7, push())
    if steps:
        next(guarded)

    out = gate.shut()

    with pytest.raises(NotSent):
        guarded.send(TOKEN if steps else None)
    assert out == frozenset()


def test_what_is_refused_after_the_gate_was_shut_waits_for_no_login() -> None:
    """It was not accepted for certain, and ends at once."""
    gate = Gate()
    guarded = gate.guard(7, push())
    next(guarded)
    guarded.send(TOKEN)
    gate.shut()

    with pytest.raises(NotSent):
        guarded.throw(LoginExpired("expired"))

    assert gate.shut() == frozenset()


def test_a_pause_is_no_request() -> None:
    """A request that waits for its next attempt is not out; a lost answer passes through."""

    def patient() -> Conversation[str]:
        yield Pause(1.0)
        yield Send(Request("POST", "/push"))
        return "id"

    gate = Gate()
    guarded = gate.guard(7, patient())
    next(guarded)
    before = frozenset(gate._out)
    guarded.send(None)

    with pytest.raises(NoAnswer):
        guarded.throw(NoAnswer("lost"))
    assert before == frozenset()
    assert gate.shut() == {7}
