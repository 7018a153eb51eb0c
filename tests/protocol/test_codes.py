import json
from typing import Any

import pytest

from airflow_provider_responsys.errors import (
    FailedOver,
    InDoubt,
    InvalidAnswer,
    LimitExceeded,
    LoginExpired,
    LoginFailed,
    NoAnswer,
    NotAccepted,
    Refused,
    ResponsysError,
    SendRefused,
    TryLater,
)
from airflow_provider_responsys.protocol import codes
from airflow_provider_responsys.protocol.codes import (
    CODES,
    Verdict,
    decoded,
    envelope_of,
    read_error,
    submission_error,
)
from airflow_provider_responsys.protocol.naming import UNNAMED, is_code
from airflow_provider_responsys.protocol.wire import Response

EXACTLY: dict[Verdict, type[ResponsysError]] = {
    Verdict.LATER: TryLater,
    Verdict.LIMIT: LimitExceeded,
    Verdict.LOGIN: LoginExpired,
    Verdict.BATCH: Refused,
    Verdict.SEND: SendRefused,
    Verdict.LOGIN_FAILED: LoginFailed,
    Verdict.FAILED_OVER: FailedOver,
    Verdict.DOUBT: InDoubt,
}

CORRELATION = "Id-ccd6245caf83d0861a5c8007 0"
"""As on a recorded answer."""

HTML_503 = b"<html><body><h1>Service Temporarily Unavailable</h1></body></html>"


def refusal(code: str, status: int = 400, detail: str = "", **members: Any) -> Response:
    """Return an error as Responsys words it."""
    envelope = {"type": "", "title": "…", "errorCode": code, "detail": detail, "errorDetails": []} | members
    return Response(status, json.dumps(envelope).encode())


@pytest.mark.parametrize("code", CODES)
def test_every_listed_code_has_its_class(code: str) -> None:
    """The table decides, and what it says of a submission it says with the code and the status."""
    error = submission_error(refusal(code))

    assert type(error) is EXACTLY[CODES[code].verdict]
    assert (error.code, error.status) == (code, 400)
    assert CODES[code].advice in str(error)
    assert CODES[code].source
    assert isinstance(error, NotAccepted) is (CODES[code].verdict is not Verdict.DOUBT)


@pytest.mark.parametrize(
    ("code", "wait"),
    [
        ("API_LIMIT_EXCEEDED", 60.0),
        ("INTERNAL_CAPACITY_LIMIT_EXCEEDED", 600.0),
        ("UNABLE_TO_SUBMIT_ASYNC_REQUEST", 30.0),
        ("SERVICE_UNAVAILABLE", 60.0),
    ],
)
def test_what_may_pass_says_when(code: str, wait: float) -> None:
    """A minute's window, the ten minutes of the capacity budget, a queue that drains."""
    error = submission_error(refusal(code))

    assert isinstance(error, TryLater)
    assert error.wait == wait


@pytest.mark.parametrize("status", [400, 401, 429])
def test_the_limit_is_told_by_its_code(status: int) -> None:
    """Oracle's pages give it three statuses."""
    assert type(submission_error(refusal("API_LIMIT_EXCEEDED", status))) is LimitExceeded


@pytest.mark.parametrize(
    "response",
    [
        Response(503, HTML_503),
        Response(503, b""),
        Response(503, b"{}"),
        Response(502, b"[]"),
        Response(504, b'"SERVICE_UNAVAILABLE"'),
        Response(500, b'{"errorCode": "SERVICE_UNAVAILABLE"'),
        Response(500, b'{"errorCode": null}'),
        Response(500, b'{"errorCode": ["SERVICE_UNAVAILABLE"]}'),
        Response(500, b'{"errorCode": "somebody@example.com"}'),
        Response(500, b"\xff\xfe{}"),
        Response(500, b"[" * 100_000),
        Response(500, b'{"n": ' + b"9" * 5000 + b"}"),
        Response(400, HTML_503),
        Response(307, b""),
        Response(200, b"OK"),
    ],
)
def test_what_is_no_envelope_leaves_a_submission_in_doubt(response: Response) -> None:
    """Only Responsys itself can say that nothing was queued."""
    error = submission_error(response)

    assert type(error) is InDoubt
    assert (error.code, error.status) == (None, response.status)


@pytest.mark.parametrize("status", [200, 202, 302, 400, 401, 404, 500, 503])
def test_an_unlisted_code_leaves_a_submission_in_doubt(status: int) -> None:
    """Whatever the status: nobody has said what it means."""
    error = submission_error(refusal("SOMETHING_NEW", status))

    assert type(error) is InDoubt
    assert error.code == "SOMETHING_NEW"


def test_a_refusal_with_a_request_id_is_in_doubt() -> None:
    """It says both; the worse of the two counts."""
    assert type(submission_error(refusal("CAMPAIGN_NOT_FOUND", 202, requestId="abc"))) is InDoubt
    assert type(submission_error(refusal("CAMPAIGN_NOT_FOUND", 404, requestId=""))) is SendRefused


@pytest.mark.parametrize("detail", ["Not a valid authentication token", "  not a VALID authentication token. "])
def test_a_500_that_names_the_token_is_an_expired_login(detail: str) -> None:
    """Throttling page: the same cause as INVALID_TOKEN."""
    assert type(submission_error(refusal("UNEXPECTED_EXCEPTION", 500, detail))) is LoginExpired
    assert type(read_error(refusal("UNEXPECTED_EXCEPTION", 500, detail))) is LoginExpired


@pytest.mark.parametrize(("status", "detail"), [(500, "Out of memory"), (502, "Not a valid authentication token")])
def test_another_500_is_in_doubt(status: int, detail: str) -> None:
    """That status and that detail, or nothing is certain."""
    assert type(submission_error(refusal("UNEXPECTED_EXCEPTION", status, detail))) is InDoubt


@pytest.mark.parametrize(
    "detail", ["<Campaign Name> must be a transactional campaign", "Summer Push must be a transactional campaign"]
)
def test_a_promotional_campaign_during_failover_ends_the_send(detail: str) -> None:
    """AFTM error page: it comes as a wrong parameter, but no other batch will fare better."""
    error = submission_error(refusal("INVALID_PARAMETER", 400, detail), campaign="Summer Push")

    assert type(error) is SendRefused
    assert "failover" in str(error)


@pytest.mark.parametrize(("detail", "campaign"), [("Summer Pushes", "Summer Push"), (" must be", ""), ("x", "y")])
def test_another_wrong_parameter_ends_the_batch_only(detail: str, campaign: str) -> None:
    """A name inside a longer word is none."""
    assert type(submission_error(refusal("INVALID_PARAMETER", 400, detail), campaign=campaign)) is Refused


@pytest.mark.parametrize(
    ("details", "detail"), [("[]", "x"), ([], "x"), (["a"], ""), (None, None), (0, 0), ({"a": 1}, ["x"])]
)
def test_an_envelope_may_be_odd(details: Any, detail: Any) -> None:
    """The code decides; errorDetails comes as a text and as a list, and members may be missing."""
    full = refusal("TOKEN_EXPIRED", 401, detail, errorDetails=details)
    bare = Response(401, b'{"errorCode": " TOKEN_EXPIRED "}')

    assert type(submission_error(full)) is type(submission_error(bare)) is LoginExpired


def test_recorded_refusals_are_understood(recorded: list[dict[str, Any]]) -> None:
    """Real answers, as they came."""
    seen = {
        (sample["status"], sample["response"]["errorCode"]): type(
            submission_error(Response(sample["status"], json.dumps(sample["response"]).encode()))
        )
        for sample in recorded
        if sample["status"] >= 400
    }

    assert seen == {
        (401, "INVALID_TOKEN"): LoginExpired,
        (400, "INVALID_USER_NAME_PASSWORD"): LoginFailed,
        (400, "INVALID_PARAMETER"): Refused,
        (404, "RESOURCE_NOT_FOUND"): SendRefused,
    }


def test_messages_name_the_place_and_nobody() -> None:
    """What Responsys repeats of the request is not shown; its own id for its support is."""
    sent = refusal("INVALID_PARAMETER", 400, "Record 0 = somebody@example.com is bad")
    answered = Response(sent.status, sent.body, correlation_id=CORRELATION, tracking_id="4711")

    text = str(submission_error(answered, what="https://h: the push of campaign 'Summer'"))

    assert text.startswith(
        "https://h: the push of campaign 'Summer' was answered with INVALID_PARAMETER (HTTP 400) "
        f"[X-Request-Id 4711, correlation {CORRELATION}]: "
    )
    assert "somebody" not in text


@pytest.mark.parametrize("odd", ["<a b>", " a", "a ", "a  b", "a\nb", "a" * 81, "ä"])
def test_an_odd_id_is_not_shown(odd: str) -> None:
    """It comes from outside."""
    error = submission_error(Response(500, b"", correlation_id=odd, tracking_id=odd))

    assert "[" not in str(error)
    assert error.correlation_id == ""


def test_recorded_answers_can_be_named_to_support(recorded: list[dict[str, Any]]) -> None:
    """Each had an id with a space in it: an error shows and carries it, whatever it says of the request."""
    answers = [
        Response(sample["status"], json.dumps(sample["response"]).encode(), correlation_id=CORRELATION)
        for sample in recorded
        if sample["correlation_id"]
    ]

    errors = [make(each) for make in (submission_error, read_error) for each in answers]

    assert len(errors) == 2 * len(recorded)
    assert all(f"[correlation {CORRELATION}]" in str(error) for error in errors)
    assert {error.correlation_id for error in errors} == {CORRELATION}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html><h1>Too Many Requests</h1></html>",
        b"slow down",
        b"[]",
        b'{"message": "rate"}',
        b'{"errorCode": "Slow"}',
    ],
)
def test_a_bare_429_is_the_limit(body: bytes) -> None:
    """A gateway's own refusal: nothing was queued, and a minute later it is."""
    for error in (submission_error(Response(429, body)), read_error(Response(429, body))):
        assert type(error) is LimitExceeded
        assert (error.wait, error.status) == (60.0, 429)


def test_a_429_that_says_otherwise_is_in_doubt() -> None:
    """A code that no page lists, and a request id, are not bare."""
    unlisted = submission_error(refusal("SOMETHING_NEW", 429))
    queued = submission_error(Response(429, b'{"requestId": "YjN1aWowOjoxNjQzOTUyMjI0"}'))

    assert (type(unlisted), type(queued)) == (InDoubt, InDoubt)


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("NO_RECIPIENT_FOUND", 404),
        ("MULTIPLE_RECIPIENTS_FOUND", 400),
        ("PROFILE_LIST_NOT_FOUND", 404),
        ("PROFILE_LIST_NOT_FOUND_IN_FOLDER", 404),
        ("RECIPIENT_STATUS_UNDELIVERABLE", 200),
    ],
)
def test_a_refused_batch_is_no_refused_send(code: str, status: int) -> None:
    """Documented with these statuses: the next batch has other recipients."""
    assert type(submission_error(refusal(code, status))) is Refused


def test_what_is_no_code_is_not_shown() -> None:
    """A name may stand where a code is expected; the verdict is that of any other unlisted code."""
    submitted, asked = (make(refusal("JaneDoe1975")) for make in (submission_error, read_error))

    assert (type(submitted), type(asked)) == (InDoubt, Refused)
    assert {submitted.code, asked.code} == {UNNAMED}
    assert "Jane" not in f"{submitted} {asked}"


def test_every_listed_code_is_a_code() -> None:
    """Otherwise its error would be shown without it."""
    assert [code for code in CODES if not is_code(code)] == []


def test_an_answer_of_too_many_values_is_not_parsed() -> None:
    """A megabyte of empty lists would be half a million objects; a megabyte of results is not many."""
    row = {"errorMessage": None, "success": True, "recipientId": 39001321}
    results = json.dumps({"response": [row] * 12_000}, separators=(",", ":")).encode()

    assert decoded(Response(200, b"[" + b"[]," * 300_000 + b"0]")) is None
    assert decoded(Response(200, b"{" + b'"a":1,' * 100_000 + b'"a":1}')) is None
    assert len(decoded(Response(200, results))["response"]) == 12_000
    assert decoded(Response(200, b"[[],[],[]]")) == [[], [], []]


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        (Response(503, HTML_503), TryLater),
        (Response(500, b""), TryLater),
        (refusal("SOMETHING_NEW", 500), TryLater),
        (refusal("UNRECOVERABLE_EXCEPTION", 500), TryLater),
        (refusal("DUPLICATE_API_REQUEST", 400), TryLater),
        (refusal("SOMETHING_NEW", 400), Refused),
        (refusal("SOMETHING_NEW", 200), Refused),
        (refusal("API_LIMIT_EXCEEDED", 401), LimitExceeded),
        (refusal("API_NOT_ALLOWED_IN_SECONDARY", 401), FailedOver),
        (Response(404, b"<html>"), InvalidAnswer),
        (Response(302, b""), InvalidAnswer),
        (Response(200, b"<html>"), InvalidAnswer),
    ],
)
def test_a_read_can_be_repeated(response: Response, expected: type[ResponsysError]) -> None:
    """Nothing is in doubt about a question: an outage passes, a refusal stays, the rest is no answer."""
    error = read_error(response)

    assert type(error) is expected
    assert not isinstance(error, InDoubt | NoAnswer)


def test_a_read_waits_as_long_as_the_page_says() -> None:
    """AFTM error page: about thirty seconds after UNRECOVERABLE_EXCEPTION; an outage gets a minute."""
    broken, outage = read_error(refusal("UNRECOVERABLE_EXCEPTION", 500)), read_error(Response(503, HTML_503))

    assert isinstance(broken, TryLater)
    assert isinstance(outage, TryLater)
    assert (broken.wait, outage.wait) == (30.0, 60.0)


@pytest.mark.parametrize(("start", "reads"), [("", 1), (" \r\n", 1), ("[", 0), (" \n[", 0)])
def test_many_results_are_not_read_twice(start: str, reads: int, mocker: Any) -> None:
    """An envelope is an object; a list of results may take a tenth of a second to read, and have error codes in it."""
    decoded = mocker.spy(codes, "decoded")
    body = f'{start}{{"errorCode": "TOKEN_EXPIRED"}}{"]" * ("[" in start)}'

    envelope = envelope_of(Response(200, body.encode()))

    assert (envelope is not None) == bool(reads)
    assert decoded.call_count == reads
