import copy
import json
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_responsys.errors import (
    FailedOver,
    InDoubt,
    InvalidSettings,
    LimitExceeded,
    NoAnswer,
    NotSent,
    Refused,
    ResponsysError,
    SendRefused,
    TryLater,
)
from airflow_provider_responsys.protocol.account import ASYNC, HA_ASYNC, Account
from airflow_provider_responsys.protocol.push import (
    MAX_BODY,
    MAX_RECIPIENTS,
    Acceptance,
    Push,
    check_campaign,
    overhead,
    push_request,
    read_acceptance,
    submit,
)
from airflow_provider_responsys.protocol.wire import JSON, Response
from tests.support.scripted import Drive

SUMMER = Push("Summer_Push")
ONE = '{"customerId":"1"}'
ACCEPTED = Response(202, b'{"requestId": "YjN1aWowOjoxNjQzOTUyMjI0", "status": "REQUEST_ACCEPTED"}')
REFERENCES: list[Any] = [None, "sample_ID : 173289739", "", {"key": "välue", "n": [1, None]}, {}]


def refusal(code: str, status: int = 400, detail: str = "") -> Response:
    """Return an error as Responsys words it."""
    return Response(status, json.dumps({"errorCode": code, "detail": detail, "errorDetails": []}).encode())


def schema(swagger: dict[str, Any]) -> dict[str, Any]:
    """Return Oracle's schema of the body, with null allowed where the prose asks for it and referenceData added."""
    body: dict[str, Any] = copy.deepcopy(swagger["definitions"]["triggerPushMessage"])
    for member in body["properties"]["recipientData"]["items"]["properties"].values():
        if member["type"] in {"string", "number"} and "enum" not in member:
            member["type"] = [member["type"], "null"]
    return body


def recipient(**members: Any) -> dict[str, Any]:
    """Return a recipient with every member that the push page asks for."""
    unused = dict.fromkeys(
        ("customerId", "emailAddress", "recipientId", "mobileNumber", "emailSHA256Hash", "emailMD5Hash", "deviceId")
    )
    return {**unused, "apiKey": None, "listType": "PROFILE", "optionalData": []} | members


recipients = st.builds(
    recipient,
    recipientId=st.none() | st.integers(1, 2**63),
    customerId=st.none() | st.text(min_size=1),
    optionalData=st.lists(st.builds(lambda name, value: {"name": name, "value": value}, st.text(), st.text())),
)


def test_the_pages_own_body_comes_out(documented: dict[str, Any], swagger: dict[str, Any]) -> None:
    """The sample of the push page, recipient by recipient, is what we send, and fits Oracle's schema."""
    sample = documented["push body"]["body"]

    request = push_request(HA_ASYNC, SUMMER, [json.dumps(one) for one in sample["recipientData"]])

    assert json.loads(request.body) == sample
    jsonschema.validate(sample, schema(swagger))
    assert (request.method, request.path) == ("POST", "/rest/haAsyncApi/v1.3/campaigns/Summer_Push/push")
    assert request.headers == (("Content-Type", JSON),)


@given(st.lists(recipients, min_size=1, max_size=4), st.sampled_from(REFERENCES))
def test_whatever_is_sent_fits_the_schema_and_is_ascii(
    swagger: dict[str, Any], people: list[dict[str, Any]], reference: Any
) -> None:
    """Push page: characters beyond ASCII are escaped; what was meant comes out again."""
    push = Push("Summer Push", reference_data=reference)

    request = push_request(HA_ASYNC, push, [json.dumps(one) for one in people])

    assert request.body.isascii()
    body = json.loads(request.body)
    jsonschema.validate(body, schema(swagger))
    assert body["recipientData"] == people
    assert body.get("referenceData") == reference
    assert ("referenceData" in body) is (reference is not None)


@pytest.mark.parametrize("reference", REFERENCES)
@pytest.mark.parametrize("count", [1, 2, 200])
def test_the_size_of_a_body_is_known_before_it_is_built(reference: Any, count: int) -> None:
    """Batches are cut by it."""
    push = Push("Summer", reference_data=reference)

    body = push_request(HA_ASYNC, push, [ONE] * count).body

    assert len(body) == overhead(push) + count * len(ONE) + count - 1


@pytest.mark.parametrize("count", [0, MAX_RECIPIENTS + 1])
def test_a_request_has_one_to_two_hundred_recipients(count: int) -> None:
    """RECIPIENT_LIMIT_EXCEEDED is not for Responsys to say."""
    with pytest.raises(InvalidSettings, match=f"{count} recipients"):
        push_request(HA_ASYNC, SUMMER, [ONE] * count)


def test_a_request_has_ten_megabytes_at_most() -> None:
    """Error page: above that the connection is dropped, and the answer with it."""
    room = MAX_BODY - overhead(SUMMER)

    assert len(push_request(HA_ASYNC, SUMMER, ["1" * room]).body) == MAX_BODY
    with pytest.raises(InvalidSettings, match="10000001 bytes"):
        push_request(HA_ASYNC, SUMMER, ["1" * (room + 1)])


def test_a_body_that_is_not_escaped_is_not_sent() -> None:
    """It would be INVALID_REQUEST_CONTENT; its text stays out of the message."""
    with pytest.raises(InvalidSettings, match="not escaped") as caught:
        push_request(HA_ASYNC, SUMMER, ['{"customerId":"é"}'])

    assert "é" not in str(caught.value)


def test_a_push_never_leaves_on_a_connection_that_idled() -> None:
    """A stale connection would turn it into a doubt."""
    assert push_request(HA_ASYNC, SUMMER, [ONE]).fresh


@pytest.mark.parametrize("name", ["Summer_Push", "[TEST] a-b=c@d!{e}", "a" * 150])
def test_a_campaign_may_be_named(name: str) -> None:
    """Campaign wizard page: letters, digits, space ! - = @ _ [ ] { }, 150 at most."""
    check_campaign(name)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("", "empty"),
        (" ", "empty"),
        ("a" * 151, "151 characters"),
        ("a/b", "allows"),
        ("é", "allows"),
        ("a\n", "allows"),
    ],
)
def test_a_campaign_can_not_be_named(name: str, words: str) -> None:
    """What no campaign can be called is not asked for."""
    with pytest.raises(InvalidSettings, match=f"campaign_name.*{words}"):
        push_request(HA_ASYNC, Push(name), [ONE])


@pytest.mark.parametrize("reference", [float("nan"), object(), {"a": {1}}])
def test_reference_data_must_be_json(reference: Any) -> None:
    """It is sent along, and comes back when polled."""
    with pytest.raises(InvalidSettings, match="reference_data"):
        overhead(Push("Summer", reference_data=reference))


def test_an_expiration_is_a_header_of_asyncapi() -> None:
    """Async push page; the AFTM page knows none."""
    push = Push("Summer", message_expiration=600)

    assert ("Message-Expiration", "600") in push_request(ASYNC, push, [ONE]).headers
    with pytest.raises(InvalidSettings, match="no expiration for haAsyncApi"):
        push_request(HA_ASYNC, push, [ONE])
    with pytest.raises(InvalidSettings, match="it must be a second or more"):
        push_request(ASYNC, Push("Summer", message_expiration=0), [ONE])


@pytest.mark.parametrize("status", [200, 202])
def test_the_pages_own_acceptance_is_read(documented: dict[str, Any], status: int) -> None:
    """202 by the page, 200 by others."""
    body = json.dumps(documented["acceptance"]["body"]).encode()

    assert read_acceptance(Response(status, body)).request_id == "YjN1aWowOjoxNjQzOTUyMjI0"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"[]",
        b"{}",
        b'{"requestId": ""}',
        b'{"requestId": null}',
        b'{"requestId": 17}',
        b'{"requestId": "a b"}',
        b'{"requestId": "abc", "sta',
        b'{"requestId": "abc", "errorCode": "CAMPAIGN_NOT_FOUND"}',
    ],
)
def test_an_acceptance_without_a_usable_id_is_in_doubt(drive: "Drive", account: Account, body: bytes) -> None:
    """It may have been queued, and can't be asked about."""
    line = drive(Response(202, body))

    with pytest.raises(InDoubt) as caught:
        line.run(submit(account, SUMMER, [ONE]))

    assert caught.value.status == 202
    with pytest.raises(InDoubt):
        read_acceptance(Response(202, body))


def test_a_submission_returns_the_request_id(drive: "Drive", account: Account) -> None:
    """One request, signed, on the account's host."""
    line = drive(ACCEPTED)

    acceptance = line.run(submit(account, SUMMER, [ONE]))

    assert acceptance.request_id == "YjN1aWowOjoxNjQzOTUyMjI0"
    (request,) = line.script.asked
    assert request.url == f"{account.host}/rest/haAsyncApi/v1.3/campaigns/Summer_Push/push"
    assert request.authorization == "E0"


def test_a_submission_survives_an_expired_token(drive: "Drive", account: Account) -> None:
    """Nothing was queued, so it is sent again, once."""
    login = Response(200, b'{"authToken": "E1"}')
    line = drive(refusal("TOKEN_EXPIRED", 401), login, ACCEPTED)

    line.run(submit(account, SUMMER, [ONE]))

    first, _, last = line.script.asked
    assert first.body == last.body
    assert (first.authorization, last.authorization) == ("E0", "E1")


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (refusal("UNABLE_TO_SUBMIT_ASYNC_REQUEST", 500), TryLater),
        (refusal("API_LIMIT_EXCEEDED", 401), LimitExceeded),
        (refusal("INVALID_REQUEST_CONTENT"), Refused),
        (refusal("CAMPAIGN_NOT_FOUND", 404), SendRefused),
        (refusal("CAMPAIGN_NOT_FOUND", 200), SendRefused),
        (refusal("INVALID_PARAMETER", 400, "Summer_Push must be transactional"), SendRefused),
        (refusal("API_NOT_ALLOWED_IN_SECONDARY", 401), FailedOver),
        (refusal("UNRECOVERABLE_EXCEPTION", 500), InDoubt),
        (Response(503, b"<html>Service Temporarily Unavailable</html>"), InDoubt),
        (Response(307, b""), InDoubt),
        (NotSent("no connection"), NotSent),
        (NoAnswer("read timed out"), NoAnswer),
    ],
)
def test_a_submission_is_sent_once(
    drive: "Drive", account: Account, answer: Response | ResponsysError, expected: type[ResponsysError]
) -> None:
    """Whatever comes back, whoever asked decides; the error says what may be done."""
    line = drive(answer)

    with pytest.raises(expected) as caught:
        line.run(submit(account, SUMMER, [ONE]))

    assert type(caught.value) is expected
    assert len(line.script.asked) == 1
    assert line.script.pauses == []


def test_a_refusal_names_host_and_campaign(drive: "Drive", account: Account) -> None:
    """A person reads it."""
    line = drive(refusal("CAMPAIGN_NOT_FOUND", 404))

    with pytest.raises(SendRefused) as caught:
        line.run(submit(account, SUMMER, [ONE]))

    assert str(caught.value) == (
        f"{account.host}: the push of campaign 'Summer_Push' was answered with CAMPAIGN_NOT_FOUND (HTTP 404): "
        "there is no such campaign: check its name and folder"
    )


def test_the_sample_that_we_sent_is_no_secret_kept(documented: dict[str, Any]) -> None:
    """A request and a push may be logged: they show nobody."""
    people = [json.dumps(one) for one in documented["push body"]["body"]["recipientData"]]

    request = push_request(HA_ASYNC, Push("Summer", reference_data="vip list"), people)

    assert "131006807" not in repr(request)
    assert "vip" not in repr(Push("Summer", reference_data="vip list"))


def test_a_request_has_its_own_name(drive: "Drive", account: Account) -> None:
    """What's new in 26C: the batch's id goes out as X-Request-Id; without one there is no such header."""
    line = drive(ACCEPTED, ACCEPTED)

    line.run(submit(account, SUMMER, [ONE], tracking_id="4711"))
    line.run(submit(account, SUMMER, [ONE]))

    named, unnamed = (dict(request.headers) for request in line.script.asked)
    assert named["X-Request-Id"] == "4711"
    assert "X-Request-Id" not in unnamed


@pytest.mark.parametrize(
    ("said", "kept"), [("Id-ccd6245caf83d0861a5c8007 0", "Id-ccd6245caf83d0861a5c8007 0"), ("<a>", ""), ("", "")]
)
def test_an_acceptance_keeps_the_answers_id(drive: "Drive", account: Account, said: str, kept: str) -> None:
    """As recorded, with a space in it; what is no such id is dropped, as it is stored and shown."""
    answered = Response(202, ACCEPTED.body, correlation_id=said)

    assert drive(answered).run(submit(account, SUMMER, [ONE])) == Acceptance("YjN1aWowOjoxNjQzOTUyMjI0", kept)


@pytest.mark.parametrize("status", [200, 202, 500, 503])
def test_a_doubt_names_the_answer_it_comes_from(drive: "Drive", account: Account, status: int) -> None:
    """For Oracle's support, beside our own id where it came back."""
    answered = Response(status, b"<html>", correlation_id="Id-ccd6245caf83d0861a5c8007 0", tracking_id="4711")

    with pytest.raises(InDoubt) as caught:
        drive(answered).run(submit(account, SUMMER, [ONE], tracking_id="4711"))

    assert caught.value.correlation_id == answered.correlation_id
    assert "[X-Request-Id 4711, correlation Id-ccd6245caf83d0861a5c8007 0]" in str(caught.value)


def test_a_bare_429_is_sent_again_and_a_bare_503_never(drive: "Drive", account: Account) -> None:
    """The one is the limit, whatever its page says; the other may hide an accepted push."""
    limited, down = drive(Response(429, b"<html>")), drive(Response(503, b"<html>"))

    with pytest.raises(LimitExceeded):
        limited.run(submit(account, SUMMER, [ONE]))
    with pytest.raises(InDoubt):
        down.run(submit(account, SUMMER, [ONE]))
