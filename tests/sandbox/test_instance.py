import json
import os
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_responsys import sandbox as package
from airflow_provider_responsys.errors import InvalidSettings
from airflow_provider_responsys.sandbox import Clock, Fault, Kind, Sandbox, Settings
from airflow_provider_responsys.sandbox.bodies import MAGIC_WORDS
from airflow_provider_responsys.sandbox.fixtures import responsys_sandbox
from airflow_provider_responsys.sandbox.tally import CompactTally, ExactTally
from tests.support.client import NOON, Client, Start, device, recipient

__all__ = ["responsys_sandbox"]


def test_it_listens_on_a_free_port_of_this_machine() -> None:
    """Two at once, out of others' reach."""
    with Sandbox() as one, Sandbox() as other:
        assert one.port != other.port
        assert one.url == f"http://127.0.0.1:{one.port}"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "example.com", ""])  # noqa: S104 -- what is refused
def test_others_reach_it_only_if_asked_for(host: str) -> None:
    """A sandbox believes everybody, and shows who was pushed."""
    with pytest.raises(InvalidSettings, match="allow_remote"):
        Sandbox(host=host)


def test_it_may_be_reachable(start: Start) -> None:
    """If that is meant."""
    sandbox, client = start(host="0.0.0.0", allow_remote=True)  # noqa: S104 -- what is tried

    assert client.push(recipient()).status == 202
    assert sandbox.url.startswith("http://0.0.0.0:")


def test_it_listens_on_ipv6() -> None:
    """The other loopback address."""
    sandbox = Sandbox(host="::1")
    try:
        sandbox.start()
    except OSError:
        pytest.skip("this machine has no IPv6")

    assert sandbox.url == f"http://[::1]:{sandbox.port}"
    sandbox.stop()


def test_it_has_no_address_before_it_starts() -> None:
    """A port of 0 would mislead."""
    with pytest.raises(InvalidSettings, match="not been started"):
        _ = Sandbox().url


def test_a_stopped_sandbox_comes_back_as_it_was(start: Start) -> None:
    """An outage: nobody listens, then the same account at the same address."""
    sandbox, client = start()
    client.push(recipient())
    port = sandbox.port

    sandbox.stop()
    client.connection.close()
    with pytest.raises(ConnectionRefusedError):
        client.push(recipient(value="C2"))
    sandbox.start()

    assert sandbox.port == port
    assert client.push(recipient(value="C2")).status == 202
    assert len(sandbox.pushes) == 2


def test_a_connection_for_airflow(start: Start) -> None:
    """As JSON, extras included."""
    sandbox, _ = start(api_user="api_user", password="sandbox-password")

    assert sandbox.connection(api="asyncApi", timeout=2) == {
        "conn_type": "responsys",
        "host": "127.0.0.1",
        "port": sandbox.port,
        "schema": "http",
        "login": "api_user",
        "password": "sandbox-password",
        "extra": {"api": "asyncApi", "timeout": 2},
    }


def test_the_fixture_is_a_running_sandbox(responsys_sandbox: Sandbox) -> None:
    """The connection responsys_default leads to it."""
    client = Client(responsys_sandbox)
    client.log_in()

    assert client.push(recipient()).status == 202
    assert json.loads(os.environ["AIRFLOW_CONN_RESPONSYS_DEFAULT"]) == responsys_sandbox.connection()
    client.connection.close()


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"colour": "red"}, "no setting colour"),
        ({"latency": -1}, "latency must be a number"),
        ({"latency": True}, "latency must be a number"),
        ({"latency": float("nan")}, "latency must be a number"),
        ({"push_limit": 1.5}, "push_limit must be a whole number"),
        ({"push_limit": -1}, "push_limit must be a whole number"),
        ({"push_taken": None}, "push_taken must be a whole number"),
        ({"password": 1}, "password must be a text"),
        ({"campaigns": "Summer_Push"}, "campaigns must be a list"),
        ({"campaigns": (1,)}, "campaigns must be a list"),
        ({"failed_over": 1}, "failed_over must be true or false"),
        ({"window": "rolling"}, "window is one of fixed, sliding"),
        ({"limit_status": 403}, "limit_status is one of 400, 401, 429"),
        ({"ratelimit_rows": (1,)}, "ratelimit_rows must be a list"),
    ],
)
def test_wrong_settings_are_refused(changes: dict[str, Any], problem: str) -> None:
    """At once, and by name."""
    with pytest.raises(InvalidSettings, match=problem):
        Sandbox(**changes)


@pytest.mark.parametrize("name", ["exact", "seed", "log_length"])
def test_some_settings_stay(start: Start, name: str) -> None:
    """What a run began with can't be changed under it."""
    sandbox, _ = start()

    with pytest.raises(InvalidSettings, match="can't be changed"):
        sandbox.change(**{name: 1})


def test_settings_may_come_as_one_value(start: Start) -> None:
    """And be changed by name on top."""
    sandbox, _ = start(settings=Settings(push_limit=5, poll_limit=6), poll_limit=7)

    assert (sandbox.settings.push_limit, sandbox.settings.poll_limit) == (5, 7)
    assert "sandbox-password" not in repr(sandbox.settings)


def test_a_clock_moves_forward_only() -> None:
    """Windows and tokens could not bear the other."""
    clock = Clock(frozen_at=NOON)

    clock.advance(1.5)

    assert clock() == NOON + 1.5
    with pytest.raises(InvalidSettings):
        clock.advance(-1)


def test_it_can_be_run_from_another_process(start: Start) -> None:
    """Everything that tests need, over HTTP."""
    sandbox, client = start()
    client.push(recipient(), device())

    def post(what: str, value: Any) -> None:
        reply = client.ask("POST", f"/sandbox/{what}", json.dumps(value))
        assert (reply.status, reply.json) == (200, None)

    report = client.ask("GET", "/sandbox/report").json
    assert report == json.loads(json.dumps(sandbox.report()))
    assert report["recipients"] == {"pushed": 2, "once": 2, "more_than_once": 0}
    assert report["requests"] == {"login": 1, "logins": 1, "push": 1, "accepted": 1}
    assert report["accepted_by_minute"] == {str(int(NOON // 60)): 1}
    pushes = client.ask("GET", "/sandbox/pushes").json
    assert pushes == [["PROFILE", "customerId", "C1", 1], ["PUSH", "D1", "K1", 1]]
    assert [seen["endpoint"] for seen in client.ask("GET", "/sandbox/requests").json] == ["login", "push"]

    post("settings", {"push_limit": 1, "campaigns": ["Other"]})
    told = client.ask("GET", "/sandbox/settings").json
    assert (told["push_limit"], told["campaigns"]) == (1, ["Other"])
    assert "password" not in told
    post("faults", [{"on": "poll", "kind": "html_503"}])
    assert client.poll("x").status == 503
    post("clock", {"advance": 60})
    assert sandbox.clock() == NOON + 60
    post("expire-tokens", None)
    post("faults", [])
    assert client.poll_many(["x"]).code == "TOKEN_EXPIRED"
    post("forget-tokens", None)
    assert client.poll_many(["x"]).code == "INVALID_TOKEN"


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("settings", '{"colour": "red"}', 400),
        ("settings", "[]", 400),
        ("settings", "{", 400),
        ("faults", "7", 400),
        ("clock", "{}", 400),
        ("clock", '{"advance": "1"}', 400),
        ("nothing", "{}", 404),
    ],
)
def test_wrong_control_is_refused(start: Start, path: str, body: str, status: Any) -> None:
    """With a sentence, and without effect."""
    sandbox, client = start()
    before = sandbox.settings

    assert client.ask("POST", f"/sandbox/{path}", body).status == status
    assert sandbox.settings == before


def test_a_plan_can_be_replaced(start: Start) -> None:
    """Its counts start anew."""
    sandbox, client = start(faults=[Fault("poll", "html_503", nth=1)])

    first = [client.poll("x").status for _ in range(2)]
    sandbox.plan_from_json('[{"on": "poll", "kind": "html_503", "nth": 2}]')
    second = [client.poll("x").status for _ in range(2)]

    assert first + second == [503, 200, 200, 503]


@pytest.mark.parametrize("tally", [ExactTally(), CompactTally()], ids=["exact", "compact"])
def test_both_tallies_count_alike(tally: Any) -> None:
    """Eight bytes a push know as much as names, but for the names."""
    keys = [("PROFILE", "customerId", f"C{n}") for n in range(1000)] + [("PROFILE", "recipientId", 7)]

    tally.add(keys)
    tally.add(keys[:10])
    tally.add(keys[:1])

    assert tally.totals() == (1012, 1001, 10)
    assert [tally.times(key) for key in (keys[0], keys[1], keys[10], keys[-1])] == [3, 2, 1, 1]
    assert tally.times(("PROFILE", "customerId", "nobody")) == 0


def test_a_compact_sandbox_knows_nobody_by_name(start: Start) -> None:
    """It still finds that somebody was pushed twice."""
    sandbox, client = start(exact=False)
    client.push(recipient())
    sandbox.assert_no_duplicates()

    client.push(recipient())

    assert sandbox.times_pushed("PROFILE", "customerId", "C1") == 2
    with pytest.raises(AssertionError, match="more than once"):
        sandbox.assert_no_duplicates()
    with pytest.raises(InvalidSettings, match="exact"):
        _ = sandbox.pushes


def test_the_readme_names_every_setting_kind_and_magic_word() -> None:
    """What it can do is found without reading its code."""
    text = (Path(package.__file__).parent / "README.md").read_text(encoding="utf-8")

    words = [*(each.name for each in fields(Settings)), *Kind, *MAGIC_WORDS]

    assert [word for word in words if f"`{word}`" not in text] == []
