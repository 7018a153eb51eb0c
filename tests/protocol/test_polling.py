import json
from typing import Any

import pytest

from airflow_provider_responsys.errors import (
    FailedOver,
    InvalidAnswer,
    LimitExceeded,
    LoginExpired,
    LoginFailed,
    Refused,
    ResponsysError,
    SendRefused,
)
from airflow_provider_responsys.protocol import codes, polling
from airflow_provider_responsys.protocol.account import ASYNC, HA_ASYNC, Account
from airflow_provider_responsys.protocol.naming import MAX_CODES, UNNAMED
from airflow_provider_responsys.protocol.polling import (
    UNANSWERED,
    Failed,
    Finished,
    Gone,
    Outcome,
    Processing,
    Unclear,
    poll,
    read_outcomes,
)
from airflow_provider_responsys.protocol.wire import Response
from tests.support.scripted import Drive

ID = "YjN1aWowOjoxNjQzOTUyMjI0"
OTHER_ID = "UGpCVnBCOjoxNTQwNTQ2MzQ5"


def answer(body: Any, status: int = 200) -> Response:
    """Return *body* as Responsys sends it."""
    return Response(status, json.dumps(body).encode())


def frame(response: Any, status: Any = "SUCCESS", **members: Any) -> dict[str, Any]:
    """Return a poll's answer about the request."""
    return {"response": response, "requestId": ID, "apiName": "", "timeZone": None, "status": status} | members


def error(code: str, detail: str = "") -> dict[str, Any]:
    """Return an envelope as it comes inside a frame."""
    return {"type": "", "title": "…", "errorCode": code, "detail": detail, "errorDetails": "[]"}


def row(message: Any = None, **members: Any) -> dict[str, Any]:
    """Return a recipient's result: a success, unless there is a message."""
    return {"errorMessage": message, "success": message is None, "recipientId": -1} | members


@pytest.fixture
def many(account: Account) -> Account:
    """Give an account of asyncApi."""
    return Account(host=account.host, login="u", password="p", family=ASYNC)


DOCUMENTED: list[tuple[str, Outcome]] = [
    ("finished", Finished(2)),
    ("processing", Processing()),
    ("purged", Gone("RESPONSE_PURGED")),
    (
        "invalid campaign",
        Failed(
            "CAMPAIGN_IS_INVALID",
            "An error has occurred and the system is unable to process your request at this time. "
            "Please contact Responsys Support",
        ),
    ),
    ("expired", Failed("ASYNC_REQUEST_EXPIRED", "Async request expired while processing.")),
    ("invalid id", Failed("INVALID_REQUEST_ID", "Request Id is not valid")),
]


@pytest.mark.parametrize(("name", "expected"), DOCUMENTED)
def test_the_pages_own_answers_are_read(
    drive: "Drive", account: Account, documented: dict[str, Any], name: str, expected: Outcome
) -> None:
    """Every shape on the polling pages; success has 202 by one and 200 by the other, and the body decides."""
    body = documented[name]["body"]
    line = drive(answer(body, 200), answer(body, 202))

    outcomes = [line.run(poll(account, [body["requestId"]])) for _ in range(2)]

    assert outcomes == [{body["requestId"]: expected}] * 2


def test_one_id_is_asked_for_in_the_path(drive: "Drive", account: Account) -> None:
    """AFTM polling page: a GET, several ids are not supported."""
    line = drive(answer(frame([])))

    line.run(poll(account, [ID]))

    (request,) = line.script.asked
    assert (request.method, request.path) == ("GET", f"/rest/haAsyncApi/v1.3/requests/{ID}")
    assert (request.body, request.fresh) == (b"", False)


def test_many_ids_are_asked_for_in_the_body(drive: "Drive", many: Account) -> None:
    """Multiple polling page: a POST with up to 200 ids, answered by a list of frames."""
    frames = [
        frame([row()], requestId=OTHER_ID),
        frame(error("PROCESSING_REQUEST"), "IN_PROGRESS"),
        frame([row()], requestId="not asked for"),
    ]
    line = drive(answer(frames), at=many)

    outcomes = line.run(poll(many, [ID, OTHER_ID, "never heard of"]))

    assert outcomes == {ID: Processing(), OTHER_ID: Finished(1), "never heard of": Unclear("not answered")}
    (request,) = line.script.asked
    assert (request.method, request.path) == ("POST", "/rest/asyncApi/v1.3/requests")
    assert json.loads(request.body) == {"requestIds": [ID, OTHER_ID, "never heard of"]}


def test_one_id_of_asyncapi_is_asked_for_alone(drive: "Drive", many: Account) -> None:
    """A list around the only frame is taken as well."""
    line = drive(answer([frame([row()])]), at=many)

    assert line.run(poll(many, [ID])) == {ID: Finished(1)}
    assert line.script.paths == [f"/rest/asyncApi/v1.3/requests/{ID}"]


@pytest.mark.parametrize(("family", "count"), [(HA_ASYNC, 0), (HA_ASYNC, 2), (ASYNC, 0), (ASYNC, 201)])
def test_a_poll_has_as_many_ids_as_the_family_takes(family: Any, count: int) -> None:
    """Anything else is a mistake of ours."""
    account = Account(host="https://h", login="u", password="p", family=family)

    with pytest.raises(ValueError, match=f"{count} ids"):
        next(poll(account, ["x"] * count))


def test_rows_match_recipients_by_position() -> None:
    """A failed row names nobody: its place in the list does."""
    rows = [
        row(),
        row("NO_RECIPIENT_FOUND: Recipient Not Found"),
        row(),
        row("PROFILE_LIST_NOT_FOUND"),
        row("NO_RECIPIENT_FOUND"),
    ]

    outcome = read_outcomes(answer(frame(rows, referenceData={"k": "v"})), [ID])[ID]

    assert outcome == Finished(
        5, {"NO_RECIPIENT_FOUND": (1, 4), "PROFILE_LIST_NOT_FOUND": (3,)}, reference_data={"k": "v"}
    )
    assert isinstance(outcome, Finished)
    assert outcome.failures == 3


def test_only_so_many_codes_are_told_apart() -> None:
    """Forty thousand different ones are no codes; the documented ones are never among the unnamed, and places stay."""
    words = [f"NO_{chr(65 + n // 26 % 26)}{chr(65 + n % 26)}" for n in range(300)]
    rows = [*map(row, words), row("NO_RECIPIENT_FOUND: …"), row(), row(words[0])]

    outcome = read_outcomes(answer(frame(rows)), [ID])[ID]

    assert isinstance(outcome, Finished)
    assert set(outcome.failed) == {*words[:MAX_CODES], "NO_RECIPIENT_FOUND", UNNAMED}
    assert outcome.failed[words[0]] == (0, 302)
    assert outcome.failed["NO_RECIPIENT_FOUND"] == (300,)
    assert outcome.failed[UNNAMED] == tuple(range(MAX_CODES, 300))


def test_recorded_rows_are_read(recorded: list[dict[str, Any]]) -> None:
    """Real rows, as they came from the calls that answer at once."""
    lists = [sample["response"] for sample in recorded if isinstance(sample["response"], list)]

    outcomes = [read_outcomes(answer(frame(rows)), [ID])[ID] for rows in lists]

    assert [dict(outcome.failed) for outcome in outcomes if isinstance(outcome, Finished)] == [
        {"NO_RECIPIENT_FOUND": (0,)},
        {},
        {},
        {"RECIPIENT_STATUS_UNDELIVERABLE": (0,)},
        {"PROFILE_LIST_NOT_FOUND": (0,)},
        {},
    ]


@pytest.mark.parametrize(
    ("odd", "code"),
    [
        (row("FAILURE: could not attach"), "FAILURE"),
        (row(" SPACED_OUT : far"), "SPACED_OUT"),
        (row("CUST0012345"), UNNAMED),
        (row("CUST_0012345: no"), UNNAMED),
        (row("JaneDoe1975: no device"), UNNAMED),
        (row("ANNA"), UNNAMED),
        (row("no_device"), UNNAMED),
        (row("_DEVICE: none"), UNNAMED),
        (row("A" * 30 + "_" + "B" * 30), UNNAMED),
        (row("A" * 30 + "_" + "B" * 29), "A" * 30 + "_" + "B" * 29),
        (row("somebody@example.com is not valid"), UNNAMED),
        (row("Bad sentence"), UNNAMED),
        (row("", success=False), UNNAMED),
        (row(None, success=False), UNNAMED),
        (row(17, success=False), UNNAMED),
        (row(None, success="true"), UNNAMED),
        (row("ODD_CODE: sentence", success=None), "ODD_CODE"),
        ("SUCCESS", UNNAMED),
        (None, UNNAMED),
    ],
)
def test_an_odd_row_is_a_failure(odd: Any, code: str) -> None:
    """Only true is a success; what is no code is not passed on, it may be a recipient's name or id."""
    outcome = read_outcomes(answer(frame([row(), odd])), [ID])[ID]

    assert outcome == Finished(2, {code: (1,)})


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (frame([]), Finished(0)),
        (frame([row()], "SOMETHING_NEW"), Finished(1)),
        (frame([row()], None), Finished(1)),
        (frame([], "IN_PROGRESS"), Processing()),
        (frame(None, "REQUEST_ACCEPTED"), Processing()),
        (frame(None, "IN_PROGRESS"), Processing()),
        (frame([], "UNKNOWN"), Unclear("UNKNOWN")),
        (frame(None), Unclear("SUCCESS")),
        (frame({}, "FAILURE"), Unclear("FAILURE")),
        (frame(None, "somebody@example.com"), Unclear("")),
        (frame(None, "JaneDoe1975"), Unclear("")),
        (frame(None, "PARKED"), Unclear("")),
        (frame(None, "PARKED_FOR_GOOD"), Unclear("PARKED_FOR_GOOD")),
        (frame(error("JaneDoe1975")), Failed(UNNAMED)),
        (frame(None, 17), Unclear("")),
        ({}, Unclear("")),
        (frame(error("SOMETHING_NEW", " why ")), Failed("SOMETHING_NEW", "why")),
        (frame(error("CAMPAIGN_NOT_FOUND"), "SUCCESS"), Failed("CAMPAIGN_NOT_FOUND")),
        (frame(error("SERVICE_UNAVAILABLE"), "ERROR"), Unclear("SERVICE_UNAVAILABLE")),
        (frame(error("PROCESSING_REQUEST"), "SUCCESS"), Processing()),
        (frame(error("RESPONSE_PURGED") | {"errorDetails": []}, "SUCCESS"), Gone()),
        (frame([row()], requestId=""), Finished(1)),
        (frame([row()], requestId=None), Finished(1)),
        (error("RESPONSE_PURGED"), Gone()),
        (error("PROCESSING_REQUEST"), Processing()),
        (error("INVALID_REQUEST_ID"), Failed("INVALID_REQUEST_ID")),
    ],
)
def test_the_code_decides_then_the_rows_then_the_status(
    drive: "Drive", account: Account, body: Any, expected: Outcome
) -> None:
    """What nobody has described is not an end, until the deadline."""
    line = drive(answer(body))

    assert line.run(poll(account, [ID])) == {ID: expected}


@pytest.mark.parametrize("status", [400, 404, 500])
def test_a_bare_answer_about_the_request_counts_with_any_status(drive: "Drive", account: Account, status: int) -> None:
    """The code answers the question."""
    line = drive(answer(error("INVALID_REQUEST_ID", "Request Id is not valid "), status))

    assert line.run(poll(account, [ID])) == {ID: Failed("INVALID_REQUEST_ID", "Request Id is not valid")}


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("API_LIMIT_EXCEEDED", LimitExceeded),
        ("INVALID_USER_NAME_PASSWORD", LoginFailed),
        ("API_NOT_ALLOWED_IN_SECONDARY", FailedOver),
    ],
)
@pytest.mark.parametrize("framed", [True, False])
def test_an_answer_about_the_account_is_none_about_the_request(
    drive: "Drive", account: Account, code: str, expected: type[ResponsysError], framed: bool
) -> None:
    """It says nothing of what became of anybody, so it may be asked again."""
    line = drive(answer(frame(error(code)) if framed else error(code)))

    with pytest.raises(expected, match=account.host):
        line.run(poll(account, [ID]))


def test_the_pages_own_disabled_user_is_an_error(drive: "Drive", account: Account, documented: dict[str, Any]) -> None:
    """AFTM polling errors page: a bare envelope, with HTTP 200."""
    line = drive(answer(documented["disabled"]["body"]))

    with pytest.raises(SendRefused, match="ASYNC_API_DISABLED_FOR_USER"):
        line.run(poll(account, [ID]))


def test_a_token_refused_inside_a_frame_is_an_expired_login(drive: "Drive", account: Account) -> None:
    """Rare, and harmless to ask again."""
    line = drive(answer(frame(error("INVALID_TOKEN"))))

    with pytest.raises(LoginExpired):
        line.run(poll(account, [ID]))


@pytest.mark.parametrize(
    "response",
    [
        Response(200, b"<html>"),
        Response(200, b""),
        Response(200, b"17"),
        Response(200, b'[{"requestId": "x"}, 17]'),
        Response(404, b"<html>"),
        Response(302, b""),
        answer(frame([row()], requestId=OTHER_ID)),
        answer([frame([row()], requestId="")] * 2),
    ],
)
def test_an_unreadable_answer_is_none(drive: "Drive", account: Account, response: Response) -> None:
    """Nor is one about a request that was not asked about."""
    line = drive(response)

    with pytest.raises(InvalidAnswer):
        line.run(poll(account, [ID]))


def test_a_bare_answer_about_one_of_many_is_about_none_of_them(drive: "Drive", many: Account) -> None:
    """It does not say which: each has to be asked for by itself."""
    line = drive(answer(error("INVALID_REQUEST_ID")), at=many)

    assert line.run(poll(many, [ID, OTHER_ID])) == {ID: UNANSWERED, OTHER_ID: UNANSWERED}


def test_a_frame_without_its_id_spoils_only_itself(drive: "Drive", many: Account) -> None:
    """The others of the same answer are read."""
    line = drive(answer([frame([row()], requestId=None), frame([row(), row()], requestId=OTHER_ID)]), at=many)

    assert line.run(poll(many, [ID, OTHER_ID])) == {ID: UNANSWERED, OTHER_ID: Finished(2)}


@pytest.mark.parametrize("status", ["IN_PROGRESS", "REQUEST_ACCEPTED"])
def test_rows_of_a_request_in_progress_are_not_its_results(status: str, drive: "Drive", account: Account) -> None:
    """More of them may come."""
    line = drive(answer(frame([row()], status=status)))

    assert line.run(poll(account, [ID])) == {ID: Processing()}


def test_a_poll_rides_out_what_passes(drive: "Drive", account: Account) -> None:
    """A question may be asked again."""
    line = drive(Response(503, b"<html>"), answer(frame([row()])))

    assert line.run(poll(account, [ID], waits=(1.0,))) == {ID: Finished(1)}
    assert line.script.pauses == [61.0]


def test_an_unknown_refusal_is_an_error(drive: "Drive", account: Account) -> None:
    """Its code says nothing of the request."""
    with pytest.raises(Refused):
        drive(answer(error("SOMETHING_NEW"), 400)).run(poll(account, [ID]))


def test_a_poll_has_its_own_name_and_bound(drive: "Drive", many: Account) -> None:
    """Its X-Request-Id is the caller's; its answer may be as long as what is asked for needs."""
    line = drive(answer(frame([])), answer([frame([])]), at=many)

    line.run(poll(many, [ID], tracking_id="4711"))
    line.run(poll(many, [ID, OTHER_ID]))

    alone, two = line.script.asked
    assert ("X-Request-Id", "4711") in alone.headers
    assert "X-Request-Id" not in dict(two.headers)
    assert 200 * 5 * 100 < alone.max_answer < two.max_answer < 1_000_000


def test_a_bare_429_is_the_limit_of_polls(drive: "Drive", account: Account) -> None:
    """Whatever its page says, the poll is repeated after a minute."""
    line = drive(Response(429, b"<html>"), answer(frame([row()])))

    assert line.run(poll(account, [ID], waits=(1.0,))) == {ID: Finished(1)}
    assert line.script.pauses == [61.0]


def test_rows_without_failure_take_no_memory(mocker: Any) -> None:
    """Forty thousand of them come in one answer: they are one object, and the counts are the same."""
    decoded = mocker.patch.object(polling, "decoded", side_effect=codes.decoded)
    rows = [row(recipientId=number) for number in range(3)]
    rows.insert(1, row("USER_BLOCKED: …", recipientId=9))

    outcome = read_outcomes(answer(frame(rows)), [ID])[ID]

    assert outcome == Finished(4, {"USER_BLOCKED": (1,)})
    (kept,) = [codes.decoded(*call.args)["response"] for call in decoded.call_args_list]
    assert kept[0] is kept[2] is kept[3]


def test_a_frame_is_never_taken_for_a_row() -> None:
    """Whatever members Responsys may add to it."""
    outcomes = read_outcomes(answer([frame([row()], success=True)]), [ID, OTHER_ID])

    assert outcomes[ID] == Finished(1)
