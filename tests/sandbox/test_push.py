import base64
import http.client
import json
import re
from typing import Any

import pytest

from tests.support.client import ASYNC, HA, NOON, PUSH, Start, device, recipient

SEED_SAMPLE = {
    "recipientData": [
        recipient(
            "recipientId",
            riid,
            deviceId="",
            apiKey="",
            optionalData=[{"name": "CUSTOM1", "value": value}, {"name": "CUSTOM2", "value": "COUPON"}],
        )
        for riid, value in ((131006807, "WELCOME10"), (100007327, "DISCOUNT10"))
    ]
}
"""Sample request body of the Trigger Push Message page (HA Async)."""


def test_acceptance_looks_as_on_the_page(start: Start) -> None:
    """202, and the acceptance of the page's sample, whose body is taken as it is."""
    sandbox, client = start()

    reply = client.push(*SEED_SAMPLE["recipientData"])

    request_id = reply.json["requestId"]
    assert reply.status == 202
    assert reply.json == {
        "requestId": request_id,
        "apiName": "HaAsyncTriggerPush",
        "status": "REQUEST_ACCEPTED",
        "links": [
            {"rel": "self", "href": PUSH, "method": "POST"},
            {"rel": "asyncResponse", "href": f"{HA}/requests/{request_id}", "method": "GET"},
        ],
    }
    assert sandbox.request_ids == [request_id]
    assert sandbox.pushes == {("PROFILE", "recipientId", 131006807): 1, ("PROFILE", "recipientId", 100007327): 1}


def test_a_request_id_holds_six_characters_and_the_time(start: Start) -> None:
    """As all well-formed ids of the samples do."""
    _, client = start()

    request_id = client.push(recipient()).json["requestId"]

    assert re.fullmatch(rb"[A-Za-z0-9]{6}::1800000000", base64.b64decode(request_id))


def test_acceptance_may_be_200(start: Start) -> None:
    """The pages differ about the status."""
    _, client = start(accept_status=200)

    assert client.push(recipient()).status == 200


def test_pushes_are_counted_by_normalised_recipient(start: Start) -> None:
    """The same person in another spelling is pushed twice, and that is found."""
    sandbox, client = start()

    client.push(recipient("emailAddress", " Ann@Example.com "), recipient("emailMD5Hash", "AB12"), recipient())
    client.push(recipient("emailAddress", "ann@example.com"), recipient(value="c1"), device(), device(api_key="K2"))

    assert sandbox.pushes == {
        ("PROFILE", "emailAddress", "ann@example.com"): 2,
        ("PROFILE", "emailMD5Hash", "ab12"): 1,
        ("PROFILE", "customerId", "C1"): 1,
        ("PROFILE", "customerId", "c1"): 1,
        ("PUSH", "D1", "K1"): 1,
        ("PUSH", "D1", "K2"): 1,
    }
    assert sandbox.times_pushed("PROFILE", "emailAddress", "ann@example.com") == 2
    with pytest.raises(AssertionError, match="1 recipients were pushed more than once"):
        sandbox.assert_no_duplicates()


def test_nobody_twice_is_no_failure(start: Start) -> None:
    """The assertion that users put at the end of their tests."""
    sandbox, client = start()

    client.push(recipient(), recipient(value="C2"))

    sandbox.assert_no_duplicates()


@pytest.mark.parametrize(
    ("wrong", "detail"),
    [
        (recipient("emailAddress", "a@b.c", customerId="C1"), "exactly one identifier"),
        (recipient(value=None), "exactly one identifier"),
        (recipient(value=""), "customerId must be a text that is not blank"),
        (recipient(value="  "), "customerId must be a text that is not blank"),
        (recipient(value=17), "customerId must be a text"),
        (recipient("recipientId", "131006807"), "recipientId must be a whole number"),
        (recipient("recipientId", 1.5), "recipientId must be a whole number"),
        (recipient("recipientId", True), "recipientId must be a whole number"),
        (recipient("recipientId", 2**63), "recipientId must be a whole number"),
        (recipient(deviceId="D1"), "deviceId belongs to listType PUSH"),
        (recipient(apiKey=7), "apiKey must be text or null"),
        (recipient(listType="push"), "listType must be PUSH or PROFILE"),
        (recipient(listType=None), "listType must be PUSH or PROFILE"),
        (device(customerId="C1"), "customerId must be null for listType PUSH"),
        (device(api_key=""), "listType PUSH needs deviceId and apiKey"),
        (recipient("deviceId", "D1", listType="PUSH"), "listType PUSH needs deviceId and apiKey"),
        (recipient(optionalData=None), "optionalData must be a list"),
        (recipient(optionalData={"A": "B"}), "optionalData must be a list"),
        (recipient(optionalData=[{"name": "A"}]), "a name and a value"),
        (recipient(optionalData=[{"name": "A", "value": "B", "type": "C"}]), "a name and a value"),
        (recipient(optionalData=[{"name": "A", "value": 1}]), "must have text"),
        (recipient(optionalData=[{"name": "A", "value": None}]), "must have text"),
        (recipient(optionalData=[{"name": "", "value": "B"}]), "must have text"),
        (recipient(optionalData=[{"name": "MOBILE_NUMBER_", "value": "B"}]), "must not name a system field"),
        (recipient(surname="S"), "unknown member surname"),
        ({name: value for name, value in recipient().items() if name != "apiKey"}, "apiKey is missing"),
        ("C1", "a recipient must be an object"),
    ],
)
def test_a_wrong_recipient_refuses_the_request(start: Start, wrong: Any, detail: str) -> None:
    """One wrong record refuses all; its position is told, its data is not."""
    sandbox, client = start()

    reply = client.push(recipient(), wrong)

    assert (reply.status, reply.code) == (400, "INVALID_PARAMETER")
    assert reply.json["detail"].startswith("Record 1 = ")
    assert detail in reply.json["detail"]
    assert not sandbox.pushes


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (json.dumps({"recipientData": [recipient(value="é")]}, ensure_ascii=False), "INVALID_REQUEST_CONTENT"),
        ('{"recipientData": [', "INVALID_REQUEST_CONTENT"),
        ('{"recipientData": NaN}', "INVALID_REQUEST_CONTENT"),
        ("", "INVALID_REQUEST_CONTENT"),
        ("[]", "INVALID_PARAMETER"),
        ("{}", "INVALID_PARAMETER"),
        ('{"recipientData": []}', "INVALID_PARAMETER"),
        (json.dumps({"recipientData": [recipient()], "listName": "L"}), "INVALID_PARAMETER"),
        (json.dumps({"recipientData": [recipient()], "referenceData": 7}), "INVALID_PARAMETER"),
        (json.dumps({"recipientData": [recipient(value=f"C{n}") for n in range(201)]}), "RECIPIENT_LIMIT_EXCEEDED"),
    ],
)
def test_a_wrong_body_is_refused(start: Start, body: str, code: str) -> None:
    """Nothing of it is pushed."""
    sandbox, client = start()

    reply = client.ask("POST", PUSH, body.encode(), Content_Type="application/json")

    assert (reply.status, reply.code) == (400, code)
    assert not sandbox.pushes
    assert sandbox.refusals == {code: 1}


def test_two_hundred_recipients_and_escaped_names_are_taken(start: Start) -> None:
    """The limit itself, and what a name in another script must look like on the wire."""
    sandbox, client = start()
    options = [{"name": "NAME", "value": "Zoë 東京"}]

    reply = client.push(*(recipient(value=f"C{n}", optionalData=options) for n in range(200)))

    assert reply.status == 202
    assert len(sandbox.pushes) == 200


def test_the_content_type_must_be_json(start: Start) -> None:
    """As the page asks; a charset may follow."""
    _, client = start()

    assert client.push(recipient(), Content_Type="text/plain").code == "INVALID_REQUEST_CONTENT"
    assert client.push(recipient(), Content_Type="application/json; charset=utf-8").status == 202


def test_a_body_above_ten_megabytes_drops_the_connection(start: Start) -> None:
    """The gateway sends no error: the client sees its socket break."""
    sandbox, client = start()

    with pytest.raises((OSError, http.client.HTTPException)):
        client.ask("POST", PUSH, b" " * 10_000_001, Content_Type="application/json")

    assert client.push(recipient()).status == 202
    assert sandbox.report()["too_large"] == 1


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/rest/haasyncapi/v1.3/campaigns/Summer_Push/push", 404, "RESOURCE_NOT_FOUND"),
        ("/rest/haAsyncApi/v1.1/campaigns/Summer_Push/push", 404, "RESOURCE_NOT_FOUND"),
        (f"{HA}/campaigns/summer_push/push", 404, "CAMPAIGN_NOT_FOUND"),
        (f"{HA}/campaigns/Summer%2FPush/push", 400, "CAMPAIGN_NAME_NOT_VALID"),
        (f"{HA}/campaigns/{'A' * 151}/push", 400, "CAMPAIGN_NAME_NOT_VALID"),
    ],
)
def test_paths_and_names_are_exact(start: Start, path: str, status: Any, code: str) -> None:
    """Case counts, and so do the characters of a campaign's name."""
    _, client = start()

    reply = client.push(recipient(), path=path)

    assert (reply.status, reply.code) == (status, code)


def test_a_campaign_name_is_percent_decoded(start: Start) -> None:
    """Names may hold spaces and brackets, which a path may not hold as they are."""
    _, client = start(campaigns=("[Test] {a}=@!",))

    assert client.push(recipient(), path=f"{HA}/campaigns/%5BTest%5D%20%7Ba%7D=@!/push").status == 202
    assert client.push(recipient(), path=f"{HA}/campaigns/[Test]/push").status == 400


def test_any_campaign_may_be_allowed(start: Start) -> None:
    """For those who try things and do not care about names."""
    _, client = start(campaigns=("*",))

    assert client.push(recipient(), path=f"{HA}/campaigns/Whatever/push").status == 202


def test_an_unknown_campaign_may_fail_when_polled(start: Start) -> None:
    """The other reading of the pages: accepted, then CAMPAIGN_IS_INVALID, and nobody pushed."""
    sandbox, client = start(unknown_campaign="at_poll")

    reply = client.push(recipient(), path=f"{HA}/campaigns/Nope/push")

    assert reply.status == 202
    assert client.poll(reply.json["requestId"]).json["response"]["errorCode"] == "CAMPAIGN_IS_INVALID"
    assert not sandbox.pushes


def test_in_failover_only_transactional_campaigns_go_out(start: Start) -> None:
    """Promotional ones run on the primary only; the refusal names the campaign."""
    sandbox, client = start(promotional_campaigns=("Sale",))
    promotional = f"{HA}/campaigns/Sale/push"
    assert client.push(recipient(), path=promotional).status == 202

    sandbox.change(failed_over=True)
    reply = client.push(recipient(value="C2"), path=promotional)

    assert (reply.status, reply.code) == (400, "INVALID_PARAMETER")
    assert reply.json["detail"].startswith("Sale must be ")
    assert client.push(recipient(value="C3")).status == 202


@pytest.mark.parametrize("path", ["/rest/api/ratelimit", "/rest/api/v1.3/lists", f"{ASYNC}/requests/x"])
def test_in_failover_standard_calls_are_not_allowed(start: Start, path: str) -> None:
    """401, which is no reason to log in again."""
    _, client = start(failed_over=True)

    reply = client.ask("GET", path)

    assert (reply.status, reply.code) == (401, "API_NOT_ALLOWED_IN_SECONDARY")


def test_a_bodyless_push_names_no_limit_of_time(start: Start) -> None:
    """Message-Expiration belongs to asyncApi: a wrong one is refused there, and not looked at here."""
    _, client = start()

    assert client.push(recipient(), Message_Expiration="soon").status == 202
    refused = client.push(recipient(), path=f"{ASYNC}/campaigns/Summer_Push/push", Message_Expiration="soon")
    assert refused.code == "INVALID_PARAMETER"


def test_issued_at_is_the_sandbox_time(start: Start) -> None:
    """The clock is one for tokens, windows and results."""
    sandbox, client = start()
    sandbox.clock.advance(5)

    assert client.refresh().json["issuedAt"] == (NOON + 5) * 1000
