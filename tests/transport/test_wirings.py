"""What really goes over a wire, and what its failures are called. Each test runs on both drivers."""

import asyncio
import gzip
import json
import socket
import ssl
import threading
import tracemalloc
import zlib
from dataclasses import replace
from pathlib import Path

import pytest

from airflow_provider_responsys.errors import InDoubt, LoginFailed, NoAnswer, NotSent, ResponsysError
from airflow_provider_responsys.protocol.account import Account
from airflow_provider_responsys.protocol.call import authorized, call, sent
from airflow_provider_responsys.protocol.polling import poll_request
from airflow_provider_responsys.protocol.push import Push, submit
from airflow_provider_responsys.protocol.wire import Conversation, Pause, Request, Response, Token
from airflow_provider_responsys.transport import aio, sync
from airflow_provider_responsys.transport.limits import LOGIN_SPREADS, login_waits
from tests.support.lines import Line, OpenLine
from tests.support.plans import Act, Certificate, Drip, Serve, Server, Sip

PUSH = Request(
    "POST",
    "/rest/haAsyncApi/v1.3/campaigns/%5BA%5D%20b%3D/push",
    body=b'{"recipientData":[]}',
    headers=(("Content-Type", "application/json"),),
    fresh=True,
)
READ = Request("GET", "/rest/api/ratelimit")


def whole(status: str, body: bytes = b"{}", *headers: str) -> bytes:
    """Return a whole answer."""
    head = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body


def login(value: str = "E1") -> bytes:
    """Return the answer to a login."""
    return whole("200 OK", json.dumps({"authToken": value}).encode())


OK = whole("200 OK")


def push(host: str) -> Conversation[Response]:
    """Send the push to *host*, signed."""
    return sent(PUSH.signed(Token(value="E-token"), host))


def read(host: str) -> Conversation[Response]:
    """Read something from *host*, signed."""
    return sent(READ.signed(Token(value="E-token"), host))


def test_a_request_arrives_as_it_was_meant(serve: "Serve", line: "OpenLine") -> None:
    """Every byte of path and body, the raw token, our name; and nothing of anybody else's."""
    ids = ("X-CorrelationID: Id-ccd6245caf83d0861a5c8007 0", "X-Request-Id: 4711")
    server = serve([whole("202 Accepted", b'{"a":1}', *ids, "Set-Cookie: a=b; Path=/"), OK])
    opened = line()
    host = server.url.replace("127.0.0.1", "localhost")  # an address would get no cookies from anybody

    response = opened.run(push(host))
    opened.run(read(host))

    assert response == Response(202, b'{"a":1}', correlation_id="Id-ccd6245caf83d0861a5c8007 0", tracking_id="4711")
    head, _, body = server.requests[0].partition(b"\r\n\r\n")
    first, *headers = head.decode().split("\r\n")
    assert first == f"POST {PUSH.path} HTTP/1.1"
    assert body == PUSH.body
    named = {name.lower(): value for name, value in (header.split(": ", 1) for header in headers)}
    assert {name: named[name] for name in ("authorization", "user-agent", "content-type", "accept")} == {
        "authorization": "E-token",
        "user-agent": "tests/1 airflow/3",
        "content-type": "application/json",
        "accept": "application/json",
    }
    assert b"cookie" not in server.requests[1].lower()
    assert server.connections == 1


@pytest.mark.parametrize("status", ["200 OK", "400 Bad", "401 No", "404 Gone", "429 Slow", "500 Oops", "503 Down"])
def test_any_whole_answer_is_an_answer(serve: "Serve", line: "OpenLine", status: str) -> None:
    """What it means is not for a driver to say."""
    server = serve([whole(status, b"<html>")])

    assert line().run(push(server.url)) == Response(int(status[:3]), b"<html>")


def test_an_answer_may_be_packed_or_in_pieces(serve: "Serve", line: "OpenLine") -> None:
    """It is unpacked and put together."""
    packed = whole("200 OK", gzip.compress(b'{"a":1}'), "Content-Encoding: gzip")
    pieces = b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n{"a\r\n4\r\n":1}\r\n0\r\n\r\n'
    server = serve([packed, pieces])
    opened = line()

    assert [opened.run(push(server.url)).body for _ in range(2)] == [b'{"a":1}'] * 2


@pytest.mark.parametrize("status", ["301", "302", "303", "307", "308"])
def test_a_redirect_is_not_followed(
    serve: "Serve", line: "OpenLine", status: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A 307 would repeat the push; where it leads is nobody's business."""
    monkeypatch.setenv("NETRC", str(netrc(tmp_path)))
    elsewhere = serve([OK])
    server = serve([whole(f"{status} Moved", b"moved", f"Location: {elsewhere.url}/x")])

    response = line().run(push(server.url))

    assert response == Response(int(status), b"moved")
    assert (len(server.requests), elsewhere.connections) == (1, 0)


@pytest.mark.parametrize("location", ["http://[nowhere", "http://" + "a" * 70 + ".invalid", "?", "\x80"])
def test_a_redirect_to_nowhere_is_an_answer(serve: "Serve", line: "OpenLine", location: str) -> None:
    """Nobody looks at where it leads: a complaint about that would hide that the push has left."""
    server = serve([whole("307 Moved", b"moved", f"Location: {location}")])

    assert line().run(push(server.url)) == Response(307, b"moved")


def netrc(folder: Path) -> Path:
    """Return a netrc that would replace our token."""
    path = folder / "netrc"
    path.write_text("default login somebody password else\n")
    path.chmod(0o600)
    return path


def test_netrc_is_not_read(serve: "Serve", line: "OpenLine", tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It replaces an Authorization header, and adds one where there is none."""
    monkeypatch.setenv("NETRC", str(netrc(tmp_path)))
    server = serve([OK, OK])
    opened = line()

    opened.run(push(server.url))
    opened.run(sent(Request("POST", "/rest/api/v1.3/auth/token", body=b"a=b", host=server.url)))

    assert b"\r\nAuthorization: E-token\r\n" in server.requests[0]
    assert b"authorization" not in server.requests[1].lower()


def test_a_proxy_of_the_environment_is_used(serve: "Serve", line: "OpenLine", monkeypatch: pytest.MonkeyPatch) -> None:
    """It gets the whole address; netrc stays out of this, too."""
    proxy = serve([OK])
    monkeypatch.setenv("HTTP_PROXY", "")
    monkeypatch.setenv("http_proxy", proxy.url)

    line().run(push("http://responsys.invalid"))

    assert proxy.requests[0].startswith(f"POST http://responsys.invalid{PUSH.path} HTTP/1.1\r\n".encode())
    assert b"\r\nAuthorization: E-token\r\n" in proxy.requests[0]


def test_a_proxy_may_be_named_without_a_scheme(
    serve: "Serve", line: "OpenLine", monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many environments do."""
    proxy = serve([OK])
    monkeypatch.setenv("ALL_PROXY", f"127.0.0.1:{proxy.port}")

    line().run(push("http://responsys.invalid"))

    assert len(proxy.requests) == 1


@pytest.mark.parametrize("exempt", ["127.0.0.1", "*"])
def test_no_proxy_is_honoured(serve: "Serve", line: "OpenLine", monkeypatch: pytest.MonkeyPatch, exempt: str) -> None:
    """The environment says whom not to ask for, as well."""
    server, proxy = serve([OK]), serve([OK])
    monkeypatch.setenv("http_proxy", proxy.url)
    monkeypatch.setenv("no_proxy", exempt)

    line().run(push(server.url))

    assert (len(server.requests), len(proxy.requests)) == (1, 0)


def closed_port() -> int:
    """Return a port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


def is_not_sent(line: "OpenLine", host: str) -> str:
    """Check that nothing leaves for *host*; return the sentence."""
    with pytest.raises(NotSent) as caught:
        line(timeout=0.5).run(push(host))
    assert str(caught.value).startswith(f"{host}: ")
    return str(caught.value)


def test_nobody_listens(line: "OpenLine") -> None:
    """Nothing was sent."""
    is_not_sent(line, f"http://127.0.0.1:{closed_port()}")


def test_no_such_host(line: "OpenLine") -> None:
    """Nothing was sent."""
    is_not_sent(line, "https://nowhere.invalid")


def test_no_room_for_a_connection(line: "OpenLine", monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that does not come in time was never there."""
    for driver in (sync, aio):
        monkeypatch.setattr(driver, "CONNECT_TIMEOUT", 0.2)
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        port = listener.getsockname()[1]
        waiting = [socket.socket() for _ in range(4)]
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(("127.0.0.1", port))

        is_not_sent(line, f"http://127.0.0.1:{port}")

        for one in waiting:
            one.close()


def test_a_certificate_that_nobody_trusts(serve: "Serve", line: "OpenLine", certificate: "Certificate") -> None:
    """Trust comes before the request."""
    server = serve([OK], tls=certificate.context())

    sentence = is_not_sent(line, server.url)

    assert "certificate verify failed" in sentence
    assert server.requests == []


def test_a_server_without_tls(serve: "Serve", line: "OpenLine") -> None:
    """The handshake fails, and nothing was sent."""
    server = serve([whole("400 Bad Request")])

    is_not_sent(line, server.url.replace("http:", "https:"))


def test_a_handshake_that_breaks(line: "OpenLine") -> None:
    """Not even the beginning of trust."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(5)
        port = listener.getsockname()[1]

        def hang_up() -> None:
            listener.accept()[0].close()

        thread = threading.Thread(target=hang_up)
        thread.start()

        is_not_sent(line, f"https://127.0.0.1:{port}")

        thread.join()


def test_a_proxy_that_is_not_there(line: "OpenLine", monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody took the request."""
    proxy = f"http://127.0.0.1:{closed_port()}"
    monkeypatch.setenv("http_proxy", proxy)
    monkeypatch.setenv("https_proxy", proxy)

    is_not_sent(line, "http://responsys.invalid")
    is_not_sent(line, "https://responsys.invalid")


def test_a_proxy_that_opens_no_tunnel(serve: "Serve", line: "OpenLine", monkeypatch: pytest.MonkeyPatch) -> None:
    """The proxy saw a host's name, and no more."""
    proxy = serve([whole("403 Forbidden", b"", "Connection: close")])
    monkeypatch.setenv("https_proxy", proxy.url)

    is_not_sent(line, "https://responsys.invalid")

    assert proxy.requests[0].startswith(b"CONNECT responsys.invalid:443 ")
    assert b"E-token" not in proxy.requests[0]


def test_certificates_that_are_not_there(line: "OpenLine", monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is sent on a guess whom to trust."""
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/no/such/bundle.pem")

    with pytest.raises(NotSent, match="/no/such/bundle"):
        line().run(push("https://127.0.0.1:1"))


def test_a_bundle_of_the_environment_is_trusted(
    serve: "Serve", line: "OpenLine", certificate: "Certificate", monkeypatch: pytest.MonkeyPatch
) -> None:
    """Companies have certificates of their own."""
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate.path))
    server = serve([OK], tls=certificate.context())

    assert line().run(push(server.url)).status == 200


def test_a_folder_of_certificates_is_taken(
    serve: "Serve", line: "OpenLine", certificate: "Certificate", monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both drivers look into it; a certificate that is not filed there as OpenSSL wants it is not trusted."""
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate.path.parent))
    server = serve([OK], tls=certificate.context())

    assert "certificate verify failed" in is_not_sent(line, server.url)


CUT_SHORT = b"HTTP/1.1 202 Accepted\r\nContent-Length: 90\r\nConnection: close\r\n\r\n" + b'{"requestId": "abc"}'
CUT_PIECES = b"HTTP/1.1 202 Accepted\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n14\r\n"
BAD_PIECES = b"HTTP/1.1 202 Accepted\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\nzz\r\n{}\r\n0\r\n\r\n"


@pytest.mark.parametrize(
    "answer",
    [
        CUT_SHORT,
        CUT_PIECES,
        CUT_PIECES + b'{"requestId": "abcd"}\r\n',
        BAD_PIECES,
        whole("202 Accepted", b"not packed", "Content-Encoding: gzip", "Connection: close"),
        b"SSH-2.0-OpenSSH\r\nConnection: close\r\n\r\n",
    ],
    ids=["cut short", "no piece", "no last piece", "bad piece", "not packed", "not http"],
)
def test_half_an_answer_is_none(serve: "Serve", line: "OpenLine", answer: bytes) -> None:
    """The request left; whether it was accepted is unknown."""
    is_lost(line, serve([answer]))


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 404 Not Found\r\nConnection: close",
        b'HTTP/1.1 404 Not Found\r\nConnection: close\r\n\r\n{"errorCode": "CAMPAIGN_NOT_FOU',
        b'HTTP/1.1 202 Accepted\r\nConnection: close\r\n\r\n{"requestId": "abc',
    ],
    ids=["half a head", "half a refusal", "half an acceptance"],
)
def test_what_can_not_be_seen_to_be_cut_short_is_in_doubt(serve: "Serve", line: "OpenLine", answer: bytes) -> None:
    """Without a length the end of the connection is the end of the answer; then its words must be whole."""
    server = serve([login(), answer], [answer])
    opened = line(server.url)

    with pytest.raises(InDoubt):
        opened.run(submit(opened.account, Push("Summer"), ["{}"]))


def is_lost(line: "OpenLine", server: "Server", timeout: float = 5.0) -> None:
    """Check that neither a push nor a read gets an answer, and that each is sent once."""
    server.plans.append(server.plans[0] if server.plans else [])
    with pytest.raises(NoAnswer) as caught:
        line(timeout=timeout).run(push(server.url))
    assert str(caught.value).startswith(f"{server.url}: the request left, ")
    with pytest.raises(NoAnswer):
        line(timeout=timeout).run(read(server.url))
    assert [request[:4] for request in server.requests] == [b"POST", b"GET "]


@pytest.mark.parametrize("name", ["CLOSE", "RESET"])
def test_a_connection_that_breaks_is_no_answer(serve: "Serve", line: "OpenLine", act: "type[Act]", name: str) -> None:
    """The request left, and not even a read is repeated by the transport."""
    is_lost(line, serve([act[name]], [act[name]]))


def test_silence_is_no_answer(serve: "Serve", line: "OpenLine", act: "type[Act]") -> None:
    """The request left; the timeout is the account's."""
    is_lost(line, serve([act.HANG], [act.HANG]), timeout=0.2)


def test_silence_in_the_middle_is_no_answer(serve: "Serve", line: "OpenLine") -> None:
    """The timeout holds for the body as well."""
    half = b"HTTP/1.1 202 Accepted\r\nContent-Length: 90\r\n\r\n{"

    is_lost(line, serve([half], [half]), timeout=0.2)


def test_a_reused_connection_that_breaks_is_no_answer(serve: "Serve", line: "OpenLine", act: "type[Act]") -> None:
    """A second request on it is sent once, too."""
    server = serve([OK, act.CLOSE], [OK])
    opened = line()
    opened.run(read(server.url))

    with pytest.raises(NoAnswer):
        opened.run(read(server.url))

    assert (len(server.requests), server.connections) == (2, 1)


def test_trust_that_is_withdrawn_after_the_request_is_no_answer(
    serve: "Serve", line: "OpenLine", certificate: "Certificate", monkeypatch: pytest.MonkeyPatch
) -> None:
    """With TLS 1.3 a server may refuse us after the handshake, when the request has left already."""
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate.path))
    context = certificate.context()
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(certificate.path)
    server = serve([OK], tls=context)

    with pytest.raises(NoAnswer):
        line().run(push(server.url))


@pytest.mark.parametrize(
    "answer",
    [
        whole("202 Accepted", b"0" * 100_001),
        whole("202 Accepted", gzip.compress(b"0" * 1_000_000), "Content-Encoding: gzip"),
        whole("202 Accepted", zlib.compress(b"0" * 1_000_000), "Content-Encoding: deflate"),
        whole("202 Accepted", gzip.compress(b"0" * 60_000) * 2, "Content-Encoding: gzip"),
        b"HTTP/1.1 202 Accepted\r\nConnection: close\r\n\r\n" + b"0" * 100_001,
        b"HTTP/1.1 202 Accepted\r\nTransfer-Encoding: chunked\r\n\r\n" + b"2710\r\n" * 1 + b"0" * 10_000 + b"\r\n",
    ],
    ids=["plain", "gzip", "deflate", "two parts", "no length", "pieces"],
)
def test_an_answer_is_bounded_by_what_was_asked(serve: "Serve", line: "OpenLine", answer: bytes) -> None:
    """A packed one counts by what comes out of it; beyond the bound nothing is unpacked."""
    server = serve([answer])
    asked = replace(PUSH, max_answer=9_999 if b"2710" in answer else 100_000).signed(Token(value="E-token"), server.url)

    with pytest.raises(NoAnswer, match="longer than"):
        line().run(sent(asked))


def test_a_packed_answer_within_its_bound_is_read(serve: "Serve", line: "OpenLine") -> None:
    """To the last byte of the bound, and in several parts."""
    packed = gzip.compress(b"0" * 60_000) + gzip.compress(b"1" * 40_000)
    server = serve([whole("200 OK", packed, "Content-Encoding: gzip")])

    response = line().run(sent(replace(PUSH, max_answer=100_000).signed(Token(value="E-token"), server.url)))

    assert response.body == b"0" * 60_000 + b"1" * 40_000


def test_a_small_answer_may_not_become_a_large_one(serve: "Serve", line: "OpenLine") -> None:
    """A quarter of a megabyte that unpacks to sixty: no more than the bound is ever made of it."""
    bomb = gzip.compress(b'{"response":[' + b'{"success":true},' * 3_600_000 + b"0]}")
    server = serve([whole("200 OK", bomb, "Content-Encoding: gzip")])
    account = Account(host=server.url, login="u", password="p")
    asked = poll_request(account, ["YjN1aWowOjoxNjQzOTUyMjI0"]).signed(Token(value="E-token"), server.url)
    tracemalloc.start()

    with pytest.raises(NoAnswer, match="longer than"):
        line().run(sent(asked))

    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 8_000_000


@pytest.mark.parametrize("encoding", ["br", "zstd", "gzip, gzip", "unheard-of"])
def test_what_was_not_asked_for_is_not_unpacked(serve: "Serve", line: "OpenLine", encoding: str) -> None:
    """Only what can be stopped at the bound is."""
    is_lost(line, serve([whole("202 Accepted", b"whatever", f"Content-Encoding: {encoding}")]))


def test_half_of_a_packed_answer_is_none(serve: "Serve", line: "OpenLine") -> None:
    """Where it ends with its connection, packed or not is all that tells."""
    packed = gzip.compress(b'{"requestId": "abc", "status": "REQUEST_ACCEPTED"}')
    head = b"HTTP/1.1 202 Accepted\r\nContent-Encoding: gzip\r\nConnection: close\r\n\r\n"

    is_lost(line, serve([head + packed[:-9]], [head + packed[:-9]]))
    assert line().run(push(serve([head + packed]).url)).status == 202


HURRY = 0.5


@pytest.fixture
def in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let an exchange end after a second, with a connection that may take half of it."""
    for driver in (sync, aio):
        monkeypatch.setattr(driver, "CONNECT_TIMEOUT", HURRY)


def ends(opened: "Line", server: "Server", conversation: Conversation[Response]) -> None:
    """Check that *conversation* with a server that is in no hurry is no answer."""
    with pytest.raises(NoAnswer):
        opened.run(conversation)
    server.close()  # otherwise the farewell of TLS takes as long
    opened.settle()


LONG = b'{"requestId": "' + b"a" * 600 + b'"}'
HEAD = f"HTTP/1.1 202 Accepted\r\nContent-Length: {len(LONG)}\r\n".encode()


@pytest.mark.parametrize(
    "said",
    [
        (b"", b"HTTP/1.1 202 " + b"a" * 600),
        (b"HTTP/1.1 202 Accepted\r\n", b"X-Padding: " + b"a" * 600),
        (HEAD + b"\r\n", LONG),
        (b"HTTP/1.1 202 Accepted\r\nConnection: close\r\n\r\n", LONG),
        (b"HTTP/1.1 202 Accepted\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\na\r\n" * 100),
    ],
    ids=["status", "header", "body", "body without a length", "pieces"],
)
@pytest.mark.usefixtures("in_a_hurry")
def test_an_answer_that_drips_is_none(
    serve: "Serve",
    line: "OpenLine",
    drip: "type[Drip]",
    layer: ssl.SSLContext | None,
    said: tuple[bytes, bytes],
) -> None:
    """Each byte comes in time, and the answer never: the exchange ends, half a minute before the server does."""
    before, text = said
    server = serve([drip(text, before)], tls=layer)

    ends(line(timeout=HURRY), server, push(server.url))

    assert 0 < server.dripped < len(text) - 100


@pytest.mark.usefixtures("in_a_hurry")
def test_a_drip_on_a_connection_that_is_used_again(
    serve: "Serve", line: "OpenLine", drip: "type[Drip]", layer: ssl.SSLContext | None
) -> None:
    """The deadline is the exchange's, not the connection's."""
    server = serve([OK, drip(LONG, HEAD + b"\r\n")], tls=layer)
    opened = line(timeout=HURRY)
    opened.run(push(server.url))

    ends(opened, server, push(server.url))

    assert server.connections == 1
    assert 0 < server.dripped < len(LONG) - 100


@pytest.mark.usefixtures("in_a_hurry")
@pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")  # of aiohttp: only this test sends one
def test_a_request_that_is_taken_too_slowly_is_lost(
    serve: "Serve", line: "OpenLine", sip: "type[Sip]", layer: ssl.SSLContext | None
) -> None:
    """Each piece is taken in time; the whole request would take half an hour."""
    server = serve([sip()], tls=layer)
    large = replace(PUSH, body=b" " * 32_000_000).signed(Token(value="E-token"), server.url)

    ends(line(timeout=HURRY), server, sent(large))

    assert 0 < server.dripped * 1024 < len(large.body)


@pytest.mark.usefixtures("in_a_hurry")
def test_a_tunnel_that_drips_is_no_connection(
    serve: "Serve", line: "OpenLine", drip: "type[Drip]", monkeypatch: pytest.MonkeyPatch
) -> None:
    """The request has not left: the proxy only ever heard a host's name."""
    proxy = serve([drip(b"HTTP/1.1 200 Connection established" + b"d" * 600)])
    monkeypatch.setenv("https_proxy", proxy.url)

    with pytest.raises(NotSent):
        line(timeout=HURRY).run(push("https://responsys.invalid"))

    assert 0 < proxy.dripped < 500


@pytest.mark.usefixtures("in_a_hurry")
def test_many_drips_end_alike(serve: "Serve", line: "OpenLine", drip: "type[Drip]") -> None:
    """Each exchange has its own deadline, and a line goes on after it."""
    server = serve(*[[drip(LONG, HEAD + b"\r\n")]] * 6, [OK])
    opened = line(timeout=HURRY)

    results = opened.at_once(*(push(server.url) for _ in range(6)))

    assert [type(result) for result in results] == [NoAnswer] * 6
    assert opened.run(push(server.url)).status == 200


def test_an_earlier_failure_does_not_colour_a_later_one(serve: "Serve", line: "OpenLine", act: "type[Act]") -> None:
    """Who handles a request that was not sent by sending another must learn that this one was."""
    server = serve([act.CLOSE])
    opened = line()

    with pytest.raises(NoAnswer):  # noqa: PT012 -- the handling is what is tested
        try:
            opened.run(push(f"http://127.0.0.1:{closed_port()}"))
        except NotSent:
            opened.run(push(server.url))


def test_a_connection_is_kept(serve: "Serve", line: "OpenLine") -> None:
    """A thread, or a loop, has one as long as it is used."""
    server = serve([OK, OK, OK])
    opened = line()

    for _ in range(3):
        opened.run(push(server.url))

    assert server.connections == 1


def test_a_push_does_not_leave_on_a_connection_that_idled(
    serve: "Serve", line: "OpenLine", monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody on the way may have forgotten it, and the push with it."""
    monkeypatch.setattr(sync, "IDLE", 0.1)
    monkeypatch.setattr(aio, "IDLE", 0.1)
    server = serve([OK], [OK])
    opened = line()

    opened.run(push(server.url))
    threading.Event().wait(0.2)
    opened.run(push(server.url))

    assert server.connections == 2


def test_idling_is_counted_for_each_host(serve: "Serve") -> None:
    """That another host was just spoken to does not make this one's connection fresh."""
    one, other = serve([OK, OK], [OK]), serve([OK, OK])
    now = [0.0]
    account = Account(host=one.url, login="u", password="p")
    with sync.Responsys(account, user_agent="tests", clock=lambda: now[0]) as responsys:
        responsys.run(push(one.url))
        now[0] = 5.0
        responsys.run(push(one.url))  # exactly as old as allowed
        responsys.run(read(other.url))
        now[0] = 10.5
        responsys.run(read(other.url))  # a question may leave on an older one
        responsys.run(push(one.url))

    assert (one.connections, other.connections) == (2, 1)


def test_a_connection_that_the_server_closed_is_not_used(serve: "Serve", line: "OpenLine") -> None:
    """It is seen to be closed, and the push leaves on a new one."""
    server = serve([OK, None], [OK])
    opened = line()

    opened.run(push(server.url))
    opened.settle()
    opened.run(push(server.url))

    assert server.connections == 2


def test_a_line_may_be_closed_twice_and_used_again(serve: "Serve", line: "OpenLine") -> None:
    """Closing is harmless."""
    server = serve([OK], [OK])
    opened = line()

    opened.run(push(server.url))
    opened.close()
    opened.close()

    assert opened.run(push(server.url)).status == 200


def test_many_share_one_login(serve: "Serve", line: "OpenLine") -> None:
    """Whoever comes first logs in; the others wait for the token."""
    server = serve([login(), *[OK] * 8], *[[OK] * 8] * 8)
    opened = line(server.url)

    results = opened.at_once(*(call(opened.account, READ) for _ in range(8)))

    assert [isinstance(result, Response) for result in results] == [True] * 8
    assert sum(b"password=" in request for request in server.requests) == 1


def test_many_share_one_failed_login(serve: "Serve", line: "OpenLine") -> None:
    """Five wrong passwords would lock the account."""
    wrong = whole("400 Bad Request", b'{"errorCode": "INVALID_USER_NAME_PASSWORD"}')
    server = serve(*[[wrong]] * 8)
    opened = line(server.url)

    results = opened.at_once(*(authorized(None) for _ in range(8)))

    assert [type(result) for result in results] == [LoginFailed] * 8
    assert len(server.requests) == 1


def test_many_share_one_outage(serve: "Serve", line: "OpenLine") -> None:
    """Who waited while a login came to nothing does not knock again."""
    opened = line(f"http://127.0.0.1:{closed_port()}")

    results = opened.at_once(*(authorized(None) for _ in range(8)))

    assert [type(result) for result in results] == [NotSent] * 8


def test_a_line_closes_itself(serve: "Serve") -> None:
    """As a context manager, with either driver."""
    server = serve([OK], [OK])
    account = Account(host=server.url, login="u", password="p")

    async def hold() -> Response:
        async with aio.Responsys(account, user_agent="tests") as responsys:
            return await responsys.run(push(server.url))

    with sync.Responsys(account, user_agent="tests") as responsys:
        first = responsys.run(push(server.url))

    assert first == asyncio.run(hold()) == Response(200, b"{}")


def test_a_conversation_may_handle_what_is_thrown_in(line: "OpenLine") -> None:
    """It is told of a failure where it asked."""

    def careful(host: str) -> Conversation[str]:
        try:
            yield from push(host)
        except ResponsysError as error:
            return type(error).__name__
        return "sent"

    assert line().run(careful(f"http://127.0.0.1:{closed_port()}")) == "NotSent"


def test_a_pause_is_waited(line: "OpenLine") -> None:
    """By the driver: nobody else sleeps."""

    def patient() -> Conversation[str]:
        reply = yield Pause(0.01)
        return f"slept, {reply}"

    assert line().run(patient()) == "slept, None"


def test_logins_are_spread() -> None:
    """Fifty tasks that start together must not come back together."""
    waits = list(login_waits())

    assert len(set(waits)) == len(waits) == len(LOGIN_SPREADS)
    assert all(1 <= wait <= spread for wait, spread in zip(waits, LOGIN_SPREADS, strict=True))


@pytest.mark.parametrize(("seconds", "said"), [(10.0, ["Trying again in 10 s: too many logins"]), (9.0, [])])
def test_a_long_pause_says_why(
    line: "OpenLine",
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    seconds: float,
    said: list[str],
) -> None:
    """Who looks at the log learns that the task waits, and for what."""

    def patient() -> Conversation[None]:
        yield Pause(seconds, "too many logins")
        yield Pause(60.0)

    async def at_once(_: float) -> None:
        pass

    opened = line()
    monkeypatch.setattr(opened.driver, "_sleep", at_once if opened.kind == "aio" else lambda _: None)

    with caplog.at_level("INFO", logger="airflow_provider_responsys"):
        opened.run(patient())

    assert caplog.messages == said
