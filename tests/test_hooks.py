import asyncio
import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from airflow import __version__ as airflow_version
from airflow.providers.common.compat.sdk import redact

from airflow_provider_responsys import __version__, hooks
from airflow_provider_responsys.errors import (
    InDoubt,
    InvalidRecipients,
    InvalidSettings,
    LimitExceeded,
    LoginFailed,
    NoAnswer,
    NotSent,
    ResponsysError,
    SendRefused,
)
from airflow_provider_responsys.hooks import ResponsysHook, account_of, observed, polls_per_minute
from airflow_provider_responsys.protocol.polling import Failed, Finished, Processing
from airflow_provider_responsys.protocol.probe import probe
from airflow_provider_responsys.protocol.wire import Conversation, Pause
from airflow_provider_responsys.sandbox import Fault, Sandbox
from airflow_provider_responsys.transport import sync

CONNECTION = "AIRFLOW_CONN_RESPONSYS_DEFAULT"
CAMPAIGN = "Summer_Push"
ANNA = {"customer_id": "C-anna", "FIRST_NAME": "Änna"}


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    """Give a Responsys that finishes requests at once."""
    with Sandbox(processing_time=0.0) as running:
        yield running


@pytest.fixture
def hook(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Iterator[ResponsysHook]:
    """Give a hook on the sandbox."""
    connect(monkeypatch, sandbox)
    with ResponsysHook() as opened:
        yield opened


def connect(monkeypatch: pytest.MonkeyPatch, sandbox: Sandbox, **extra: Any) -> None:
    """Let the connection `responsys_default` lead to *sandbox*."""
    monkeypatch.setenv(CONNECTION, json.dumps(sandbox.connection(**extra)))


@pytest.mark.parametrize("api", ["haAsyncApi", "asyncApi"])
def test_a_push_and_its_results(api: str, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """A push gives a request id, and that id its results, through either family."""
    connect(monkeypatch, sandbox, api=api)

    with ResponsysHook() as hook:
        first = hook.trigger_push(CAMPAIGN, [ANNA], reference_data="today")
        second = hook.trigger_push(CAMPAIGN, [{"customerId": "NODEVICE-1"}, {"customerId": "C2"}])
        outcomes = hook.get_requests([first, second, first])
        alone = hook.get_request(first)

    assert alone == outcomes[first] == Finished(rows=1, failed={}, reference_data="today")
    assert outcomes[second] == Finished(rows=2, failed={"NO_RECIPIENT_FOUND": (0,)})
    assert sandbox.times_pushed("PROFILE", "customerId", "C-anna") == 1
    assert sandbox.counts["logins"] == 1


def test_what_is_not_finished_yet(hook: ResponsysHook, sandbox: Sandbox) -> None:
    """A request in the queue, and one that does not exist, are answers, not errors."""
    sandbox.change(processing_time=1000.0)
    request_id = hook.trigger_push(CAMPAIGN, [ANNA])

    outcomes = hook.get_requests([request_id, "bm9uc2Vuc2U"])

    assert outcomes[request_id] == Processing()
    assert isinstance(outcomes["bm9uc2Vuc2U"], Failed)


def test_more_than_one_request_takes_is_refused(hook: ResponsysHook, sandbox: Sandbox) -> None:
    """The hook sends one request; cutting a campaign into batches is the operator's work."""
    with pytest.raises(InvalidRecipients, match="201 recipients"):
        hook.trigger_push(CAMPAIGN, [{"customer_id": f"C{number}"} for number in range(201)])

    assert sandbox.requests_seen == []


def test_a_wrong_row_is_named_without_its_data(hook: ResponsysHook, sandbox: Sandbox) -> None:
    """Position, field and reason, never the data; and nothing is sent."""
    with pytest.raises(InvalidRecipients, match="row 2: riid ") as failure:
        hook.trigger_push(CAMPAIGN, [ANNA, {"riid": "4711-secret"}])

    assert "4711" not in str(failure.value)
    assert sandbox.requests_seen == []


@pytest.mark.parametrize("recipients", [None, "C1", []])
def test_no_rows_are_refused(hook: ResponsysHook, sandbox: Sandbox, recipients: Any) -> None:
    """What is no list of rows is refused before anything is sent."""
    with pytest.raises(ValueError, match="recipients"):
        hook.trigger_push(CAMPAIGN, recipients)

    assert sandbox.counts["push"] == 0


def test_a_connection_for_dry_runs_pushes_nothing(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy of production must not push, whatever its DAGs do."""
    connect(monkeypatch, sandbox, dry_run=True)

    with ResponsysHook() as hook, pytest.raises(InvalidSettings, match="dry runs"):
        hook.trigger_push(CAMPAIGN, [ANNA])

    assert sandbox.requests_seen == []


def test_a_lost_answer_is_never_sent_again(hook: ResponsysHook, sandbox: Sandbox) -> None:
    """The push may have gone out: sending it again is not ours to decide."""
    sandbox.plan(Fault("push", "lost", when="after", nth=1))

    with pytest.raises(InDoubt):
        hook.trigger_push(CAMPAIGN, [ANNA])

    assert sandbox.times_pushed("PROFILE", "customerId", "C-anna") == 1
    assert sandbox.counts["push"] == 1


def test_a_refused_campaign(hook: ResponsysHook) -> None:
    """A campaign that is not there is final, and named."""
    with pytest.raises(SendRefused, match="Winter_Push"):
        hook.trigger_push("Winter_Push", [ANNA])


def test_the_accounts_limits(hook: ResponsysHook, sandbox: Sandbox) -> None:
    """The account's own limits are read from Responsys."""
    sandbox.change(push_limit=321)

    limits = hook.get_rate_limits()

    assert 321 in {limit.limit for limit in limits}


def test_every_token_is_masked(hook: ResponsysHook, sandbox: Sandbox) -> None:
    """The first token is masked when it is got, and so is the one after it."""
    hook.log_in()
    first = token(hook)
    sandbox.expire_tokens()
    hook.get_rate_limits()
    second = token(hook)

    assert first != second
    assert redact(f"{first} {second}", "message") == "*** ***"


def test_a_token_is_masked_once(hook: ResponsysHook, mocker: Any) -> None:
    """Masking asks Airflow's supervisor: once a token, not once a request."""
    mask = mocker.spy(hooks, "mask_token")

    for _ in range(3):
        hook.get_rate_limits()

    assert mask.call_count == 1


def test_a_failure_reaches_the_conversation() -> None:
    """Whoever looks at a conversation does not come between it and what it can deal with."""

    def conversation() -> Conversation[str]:
        try:
            yield Pause(0.0)
        except NotSent:
            return "dealt with"
        return "nothing happened"

    watched = observed(conversation(), print)
    next(watched)
    with pytest.raises(StopIteration) as end:
        watched.throw(NotSent("no connection"))

    assert end.value.value == "dealt with"


def token(hook: ResponsysHook) -> str:
    """Return the token that *hook* has."""
    found = hook.get_conn()._keyring.token
    assert found
    return found.value


def test_we_say_who_we_are(hook: ResponsysHook, sandbox: Sandbox) -> None:
    """Responsys' support, reading its log, finds us and the version of Airflow."""
    hook.log_in()

    expected = f"airflow-provider-responsys/{__version__} apache-airflow/{airflow_version}"
    assert {seen.headers["user-agent"] for seen in sandbox.requests_seen} == {expected}


def test_a_trigger_reads_the_same_connection(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the event loop and in a worker, a connection means the same."""
    connect(monkeypatch, sandbox, api="asyncApi", timeout="7", poll_requests_per_minute=30)

    account = asyncio.run(account_of("responsys_default"))

    assert account == ResponsysHook().account()
    assert (account.family.name, account.timeout, polls_per_minute(account)) == ("asyncApi", 7.0, 30)


def test_the_polls_without_a_setting(hook: ResponsysHook) -> None:
    """Two hundred polls a minute, unless the connection says otherwise."""
    assert polls_per_minute(hook.account()) == 200


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"host": ""}, "host is missing"),
        ({"login": ""}, "login is missing"),
        ({"extra": {"api": "ha"}}, "api is 'ha'"),
        ({"extra": {"auth_type": "certificate"}}, "auth_type 'certificate' is not supported yet"),
        ({"extra": [1]}, "extras are not a JSON object"),
    ],
)
def test_wrong_settings_name_the_connection(
    changes: dict[str, Any], words: str, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrong setting is told with its connection and field, before anything is sent."""
    monkeypatch.setenv(CONNECTION, json.dumps({**sandbox.connection(), **changes}))

    with pytest.raises(InvalidSettings, match=words) as failure:
        ResponsysHook().account()

    assert "'responsys_default'" in str(failure.value)


def test_the_test_logs_in(hook: ResponsysHook, sandbox: Sandbox) -> None:
    """The form's *Test* button really logs in, as whom and for what it says."""
    worked, text = hook.test_connection()

    assert worked, text
    assert text == f"Logged in to {sandbox.url} as api_user, for haAsyncApi"
    assert sandbox.counts["logins"] == 1


def test_the_test_tells_of_a_dry_run(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever tests the connection of a copy of production sees that it does not push."""
    connect(monkeypatch, sandbox, dry_run="true")

    assert "nothing is pushed" in ResponsysHook().test_connection()[1]


def test_the_test_with_a_wrong_password(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line says what is wrong, without the password, and one attempt is made: five lock the account."""
    monkeypatch.setenv(CONNECTION, json.dumps({**sandbox.connection(), "password": "not-the-password"}))

    worked, text = ResponsysHook().test_connection()

    assert not worked
    assert "login or password is wrong" in text
    assert "not-the-password" not in text
    assert "\n" not in text
    assert sandbox.counts["login"] == 1


def test_the_test_without_a_server(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """A person waits for the answer: an outage is told at once."""
    connect(monkeypatch, sandbox)
    sandbox.stop()

    worked, text = ResponsysHook().test_connection()

    assert not worked
    assert "no connection" in text


def test_the_test_without_a_connection(monkeypatch: pytest.MonkeyPatch, airflow_db: None) -> None:
    """A connection that is not there is named."""
    monkeypatch.delenv(CONNECTION, raising=False)

    worked, text = ResponsysHook("nowhere").test_connection()

    assert not worked
    assert "nowhere" in text


def test_the_test_never_raises(hook: ResponsysHook, mocker: Any) -> None:
    """Whatever happens, the form shows a sentence, without the text of an unknown error."""
    mocker.patch.object(hook, "get_connection", side_effect=RuntimeError("sandbox-password"))

    worked, text = hook.test_connection()

    assert not worked
    assert "RuntimeError" in text
    assert "sandbox-password" not in text


def test_a_wrong_password_is_tried_once(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hook whose login was refused does not ask again: five wrong passwords lock the account."""
    monkeypatch.setenv(CONNECTION, json.dumps({**sandbox.connection(), "password": "wrong"}))

    with ResponsysHook() as hook:
        for _ in range(3):
            with pytest.raises(LoginFailed):
                hook.get_rate_limits()

    assert sandbox.counts["login"] == 1


def test_a_closed_hook_opens_again(hook: ResponsysHook, sandbox: Sandbox) -> None:
    """Closing is harmless, also twice, and not the end."""
    hook.log_in()

    hook.close()
    hook.close()
    hook.log_in()

    assert sandbox.counts["logins"] == 2


def test_tasks_of_one_machine_share_a_refusal(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of these hooks is a task: the first one asks, the others are told when that was."""
    monkeypatch.setenv(CONNECTION, json.dumps({**sandbox.connection(), "password": "wrong"}))

    for _ in range(8):
        with ResponsysHook() as hook, pytest.raises(LoginFailed, match="INVALID_USER_NAME_PASSWORD"):
            hook.get_rate_limits()

    assert sandbox.counts["login"] == 1


def test_the_test_always_asks(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """A person has pressed it, perhaps because the password was mended at Responsys; then tasks get in as well."""
    monkeypatch.setenv(CONNECTION, json.dumps({**sandbox.connection(), "password": "mended"}))
    with ResponsysHook() as hook, pytest.raises(LoginFailed):
        hook.log_in()
    still_wrong, _ = ResponsysHook().test_connection()
    sandbox.change(password="mended")

    worked, text = ResponsysHook().test_connection()
    with ResponsysHook() as hook:
        hook.log_in()

    assert (still_wrong, worked) == (False, True), text
    assert sandbox.counts["login"] == 4


def test_a_changed_password_is_used_at_the_next_login(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hook has read the connection long before; the old password is not tried once more."""
    connect(monkeypatch, sandbox)
    with ResponsysHook() as hook:
        hook.log_in()
        sandbox.change(password="rotated")
        sandbox.expire_tokens()
        monkeypatch.setenv(CONNECTION, json.dumps({**sandbox.connection(), "password": "rotated"}))

        hook.get_rate_limits()

    assert (sandbox.counts["login"], sandbox.counts["logins"]) == (2, 2)


@pytest.mark.parametrize(("newer", "reads"), [(True, 2), (False, 1)])
def test_a_thread_asks_for_the_connection_where_it_may(
    hook: ResponsysHook, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, mocker: Any, *, newer: bool, reads: int
) -> None:
    """Before Airflow 3.3 two threads that ask the supervisor at once get each other's answers."""
    monkeypatch.setattr(hooks, "AIRFLOW_V_3_3_PLUS", newer)
    hook.account()
    read = mocker.spy(hook, "get_connection")
    hook.log_in()
    sandbox.expire_tokens()

    thread = threading.Thread(target=hook.get_rate_limits)
    thread.start()
    thread.join(30)

    assert (sandbox.counts["logins"], read.call_count) == (2, reads)


def test_every_request_has_an_id_of_its_own(hook: ResponsysHook, sandbox: Sandbox) -> None:
    """Pushes and polls; Oracle's support may find a request by it."""
    ids = [hook.trigger_push(CAMPAIGN, [{"customer_id": f"C{n}"}]) for n in range(2)]
    hook.get_requests(ids)

    names = [seen.headers["x-request-id"] for seen in sandbox.requests_seen if seen.endpoint in {"push", "poll"}]

    assert len(set(names)) == len(names) == 4


def test_a_doubt_shows_both_ids(hook: ResponsysHook, sandbox: Sandbox) -> None:
    """Ours, where it came back, and Responsys' own as recorded."""
    sandbox.plan(Fault("push", "UNRECOVERABLE_EXCEPTION", when="after"))

    with pytest.raises(InDoubt, match=r"\[X-Request-Id [0-9a-f]{32}, correlation Id-[0-9a-f]{24} 0\]") as caught:
        hook.trigger_push(CAMPAIGN, [ANNA])

    assert caught.value.correlation_id.startswith("Id-")


def test_a_bare_limit_is_certain_and_a_bare_outage_is_not(hook: ResponsysHook, sandbox: Sandbox) -> None:
    """A gateway's 429 kept the push out; its 503 may have let it through."""
    sandbox.plan(
        Fault("push", "bare_429", nth=1),
        Fault("push", "bare_503", nth=2),
        Fault("push", "bare_503", when="after", nth=3),
        Fault("push", "bare_413", nth=4),
    )
    found = []

    for number in range(4):
        try:
            hook.trigger_push(CAMPAIGN, [{"customer_id": f"C{number}"}])
        except ResponsysError as error:
            found.append(type(error))

    assert found == [LimitExceeded, InDoubt, InDoubt, InDoubt]
    assert [key[-1] for key in sandbox.pushes] == ["C2"]


@pytest.mark.parametrize("api", ["haAsyncApi", "asyncApi"])
def test_answers_framed_as_recorded_are_read(api: str, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a length, ending with their connection; one that is cut there is a doubt."""
    connect(monkeypatch, sandbox, api=api)
    sandbox.change(framing="close")
    sandbox.plan(Fault("push", "cut", nth=2))

    with ResponsysHook() as hook:
        request_id = hook.trigger_push(CAMPAIGN, [ANNA])
        with pytest.raises(InDoubt):
            hook.trigger_push(CAMPAIGN, [{"customer_id": "C2"}])
        outcome = hook.get_request(request_id)

    assert outcome == Finished(rows=1)


def test_an_answer_that_drips_is_in_doubt(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, hook: ResponsysHook
) -> None:
    """The whole exchange has one deadline, and not each byte of it."""
    monkeypatch.setattr(sync, "CONNECT_TIMEOUT", 0.5)
    connect(monkeypatch, sandbox, timeout=1)
    sandbox.plan(Fault("push", "drip", seconds=0.2, nth=1))  # two minutes, all in all

    with ResponsysHook() as impatient, pytest.raises(NoAnswer):
        impatient.trigger_push(CAMPAIGN, [ANNA])

    assert sandbox.times_pushed("PROFILE", "customerId", "C-anna") == 1


@pytest.mark.parametrize("ratelimit", ["on", "off", "refused", "page"])
def test_a_sign_of_life_needs_no_limits(hook: ResponsysHook, sandbox: Sandbox, ratelimit: str) -> None:
    """A host that answers for them with a page is asked about a request instead."""
    sandbox.change(ratelimit=ratelimit)

    hook.run(probe(hook.account()))

    assert sandbox.counts["poll"] == (ratelimit == "page")
