import math
import statistics
from typing import Any

import pytest

from tests.support.client import ASYNC, Client, Start, device, recipient

ASYNC_PUSH = f"{ASYNC}/campaigns/Summer_Push/push"


def accept(client: Client, *recipients: Any, **more: Any) -> str:
    """Push and return the request id."""
    return str(client.push(*recipients or (recipient(),), **more).json["requestId"])


def test_a_finished_request_looks_as_on_the_page(start: Start) -> None:
    """One row a recipient, in order, and the frame of the sample."""
    _, client = start()
    request_id = accept(client, recipient("recipientId", 39001321), recipient(value="NODEVICE1"))

    reply = client.poll(request_id)

    assert reply.status == 200
    assert reply.json == {
        "response": [
            {"recipientId": 39001321, "success": True, "errorMessage": None},
            {"recipientId": -1, "success": False, "errorMessage": "NO_RECIPIENT_FOUND: Recipient Not Found"},
        ],
        "requestId": request_id,
        "apiName": "HaAsyncTriggerPush",
        "timeZone": "India Standard Time",
        "requestTime": "2027-01-15T13:30:00.000",
        "requestProcessedTime": "2027-01-15T08:00:00.000",
        "status": "SUCCESS",
    }


def test_a_poll_may_answer_202(start: Start) -> None:
    """The pages differ about the status."""
    _, client = start(poll_status=202)

    assert client.poll(accept(client)).status == 202


@pytest.mark.parametrize("reference", ["sample_ID : 173289739", {"key": "value"}])
def test_reference_data_comes_back(start: Start, reference: Any) -> None:
    """As it was sent: a text, or an object."""
    _, client = start()

    assert client.poll(accept(client, reference=reference)).json["referenceData"] == reference


@pytest.mark.parametrize(
    ("who", "code"),
    [
        (recipient("recipientId", 404_000_001), "NO_RECIPIENT_FOUND"),
        (recipient("recipientId", 410_999_999), "RECIPIENT_STATUS_UNDELIVERABLE"),
        (recipient("recipientId", 424_000_000), "PROFILE_LIST_NOT_FOUND"),
        (recipient("emailAddress", "undeliverable@example.com"), "RECIPIENT_STATUS_UNDELIVERABLE"),
        (recipient("mobileNumber", "+49NODEVICE"), "NO_RECIPIENT_FOUND"),
        (device("d-nodevice-1"), "NO_RECIPIENT_FOUND"),
        (recipient(value="nolist"), "PROFILE_LIST_NOT_FOUND"),
        (recipient(value="ambiguous"), "MULTIPLE_RECIPIENTS_FOUND"),
        (recipient(value="blocked"), "USER_BLOCKED"),
        (recipient(value="broken"), "FAILURE"),
    ],
)
def test_magic_recipients_fail(start: Start, who: dict[str, Any], code: str) -> None:
    """The recipient says what comes of it; the others are well."""
    _, client = start()

    rows = client.poll(accept(client, recipient(), who)).json["response"]

    assert [row["success"] for row in rows] == [True, False]
    assert rows[1]["errorMessage"].partition(":")[0] == code
    assert rows[1]["recipientId"] == -1


def test_processing_takes_its_time(start: Start) -> None:
    """Until then: PROCESSING_REQUEST in a frame, errorDetails a text."""
    sandbox, client = start(processing_time=60)
    request_id = accept(client)

    sandbox.clock.advance(59.5)
    reply = client.poll(request_id)

    assert (reply.status, reply.json["status"]) == (200, "IN_PROGRESS")
    assert reply.json["response"] == {
        "type": "",
        "title": "Still processing request",
        "errorCode": "PROCESSING_REQUEST",
        "detail": "Processing Request",
        "errorDetails": "[]",
    }
    sandbox.clock.advance(0.5)
    assert client.poll(request_id).json["status"] == "SUCCESS"


def test_processing_times_may_be_log_normal(start: Start) -> None:
    """Median and sigma as set, and the same again for the same seed."""
    times = []
    for _ in range(2):
        sandbox, client = start(processing_time=60, processing_sigma=0.5, seed=7)
        for n in range(400):
            accept(client, recipient(value=f"C{n}"))
        queue = sandbox._account.queue
        times.append([each.processed - each.submitted for each in queue._accepted.values()])

    assert times[0] == times[1]
    assert statistics.median(times[0]) == pytest.approx(60, rel=0.1)
    assert statistics.stdev(map(math.log, times[0])) == pytest.approx(0.5, rel=0.1)


def test_results_are_purged_after_a_day(start: Start) -> None:
    """Counted from the submission, the stricter of the two pages."""
    sandbox, client = start()
    request_id = accept(client)

    sandbox.clock.advance(86_399)
    client.log_in()
    assert client.poll(request_id).json["status"] == "SUCCESS"
    sandbox.clock.advance(1)

    reply = client.poll(request_id)
    assert (reply.json["status"], reply.json["response"]["errorCode"]) == ("UNKNOWN", "RESPONSE_PURGED")


@pytest.mark.parametrize("request_id", ["nonsense", "YjN1aWowOjoxNjQzOTUyMjI0"])
def test_an_id_never_given_out_is_invalid(start: Start, request_id: str) -> None:
    """HTTP 200 and a frame, the detail with its trailing space."""
    _, client = start()

    reply = client.poll(request_id)

    assert reply.status == 200
    assert reply.json["response"]["errorCode"] == "INVALID_REQUEST_ID"
    assert reply.json["response"]["detail"] == "Request Id is not valid "


def test_the_failover_family_takes_one_id(start: Start) -> None:
    """Two, joined, are one that nobody knows; and there is no polling by POST."""
    _, client = start()
    ids = [accept(client), accept(client, recipient(value="C2"))]

    assert client.poll(",".join(ids)).json["response"]["errorCode"] == "INVALID_REQUEST_ID"
    assert client.ask("POST", "/rest/haAsyncApi/v1.3/requests", "{}", Content_Type="application/json").status == 404


def test_an_id_belongs_to_its_family(start: Start) -> None:
    """The one family does not know the other's requests."""
    _, client = start()
    request_id = accept(client, path=ASYNC_PUSH)

    assert client.poll(request_id).json["response"]["errorCode"] == "INVALID_REQUEST_ID"
    assert client.poll(request_id, family=ASYNC).json["apiName"] == "AsyncTriggerPush"


def test_async_polls_several_ids(start: Start) -> None:
    """Ten in the path, two hundred in a body; a list of frames in the order asked."""
    _, client = start()
    ids = [accept(client, recipient(value=f"C{n}"), path=ASYNC_PUSH) for n in range(11)]

    assert [frame["requestId"] for frame in client.poll(",".join(ids[:10]), family=ASYNC).json] == ids[:10]
    assert client.poll(",".join(ids), family=ASYNC).code == "INVALID_PARAMETER"
    assert [frame["requestId"] for frame in client.poll_many(ids).json] == ids
    assert [frame["status"] for frame in client.poll_many(["nonsense"]).json] == ["UNKNOWN"]
    assert client.poll_many(ids * 18).status == 200
    assert client.poll_many(ids * 19).code == "INVALID_PARAMETER"


@pytest.mark.parametrize("body", ["{}", '{"requestIds": []}', '{"requestIds": [1]}', '{"requestIds": ["a"], "b": 1}'])
def test_a_wrong_list_of_ids_is_refused(start: Start, body: str) -> None:
    """The list is read strictly."""
    _, client = start()

    reply = client.ask("POST", f"{ASYNC}/requests", body, Content_Type="application/json")

    assert reply.code == "INVALID_PARAMETER"
    assert client.ask("POST", f"{ASYNC}/requests", body).code == "INVALID_REQUEST_CONTENT"


@pytest.mark.parametrize(("header", "seconds"), [({}, 3600), ({"Message_Expiration": "30"}, 30)])
def test_an_async_request_expires_in_the_queue(start: Start, header: dict[str, str], seconds: int) -> None:
    """`responseMessage` for `response`, no time zone, and nobody is pushed."""
    sandbox, client = start(processing_time=7000)
    request_id = accept(client, path=ASYNC_PUSH, **header)

    sandbox.clock.advance(seconds - 1)
    assert client.poll(request_id, family=ASYNC).json["status"] == "IN_PROGRESS"
    sandbox.clock.advance(1)
    frame = client.poll(request_id, family=ASYNC).json

    assert frame["status"] == "ERROR"
    assert frame["responseMessage"]["errorCode"] == "ASYNC_REQUEST_EXPIRED"
    assert "response" not in frame
    assert "timeZone" not in frame
    assert not sandbox.pushes


def test_the_failover_family_does_not_expire(start: Start) -> None:
    """It has no Message-Expiration."""
    sandbox, client = start(processing_time=7000)
    request_id = accept(client, Message_Expiration="30")

    sandbox.clock.advance(7000)

    assert client.poll(request_id).json["status"] == "SUCCESS"
    assert len(sandbox.pushes) == 1
