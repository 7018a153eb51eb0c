import re
import socket
import threading
import time

import pytest

from airflow_provider_responsys.sandbox import Fault, Sandbox
from tests.support.client import HA, PUSH, Client, Start, recipient


def raw(sandbox: Sandbox, *pieces: bytes) -> bytes:
    """Send *pieces* on a connection of their own and return all that comes back."""
    with socket.create_connection(("127.0.0.1", sandbox.port), timeout=5) as connection:
        for piece in pieces:
            connection.sendall(piece)
        connection.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: connection.recv(65536), b""))


def test_a_connection_serves_many_requests(start: Start) -> None:
    """Keep-alive, as HTTP/1.1 has it by default."""
    _, client = start()
    first = client.connection.sock

    for n in range(3):
        client.push(recipient(value=f"C{n}"))

    assert client.connection.sock is first


CORRELATION = re.compile(r"Id-([0-9a-f]{8})[0-9a-f]{16} 0")


def test_every_answer_has_an_id_as_recorded(start: Start) -> None:
    """Twenty-four digits, a space and a zero; the first eight are the seconds, the lowest byte first."""
    _, client = start()
    before = int(time.time())

    ids = [client.push(recipient(value=f"C{n}")).headers["X-CorrelationID"] for n in range(3)]

    found = [CORRELATION.fullmatch(each) for each in ids]
    assert len(set(ids)) == 3
    assert all(each and before <= int.from_bytes(bytes.fromhex(each[1]), "little") <= time.time() for each in found)


@pytest.mark.parametrize("echoes", [True, False])
def test_a_requests_own_id_comes_back(start: Start, *, echoes: bool) -> None:
    """With acceptances, refusals and polls, since 26C; not with what has no such id."""
    _, client = start(echo_request_id=echoes)

    accepted = client.push(recipient(), X_Request_Id="4711")
    refused = client.push(recipient(value=""), X_Request_Id="4712")
    polled = client.ask("GET", f"{HA}/requests/{accepted.json['requestId']}", X_Request_Id="4713")
    nameless = client.push(recipient(value="C2"))

    ids = [reply.headers.get("X-Request-Id") for reply in (accepted, refused, polled, nameless)]
    assert ids == (["4711", "4712", "4713", None] if echoes else [None] * 4)


def test_answers_may_end_as_recorded(start: Start) -> None:
    """Without a length, where the connection closes; also a gateway's page."""
    sandbox, client = start(framing="close")
    sandbox.plan(Fault("push", "html_503", nth=2))

    replies = [client.push(recipient(value=f"C{n}")) for n in range(3)]

    assert [reply.status for reply in replies] == [202, 503, 202]
    assert not any("Content-Length" in reply.headers for reply in replies)


def test_a_connection_ends_when_the_client_says_so(start: Start) -> None:
    """The answer comes first."""
    sandbox, _ = start()

    answer = raw(sandbox, b"GET /rest/api/ratelimit HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")

    assert answer.startswith(b"HTTP/1.1 401 Unauthorized\r\n")


def test_an_unused_connection_is_closed(start: Start) -> None:
    """Unannounced, as load balancers do."""
    sandbox, client = start()
    sandbox.change(idle_timeout=0.05)

    client.poll("x")

    assert client.connection.sock.recv(1) == b""


@pytest.mark.parametrize(
    "request_line",
    [
        b"GET /rest/api/ratelimit HTTP/1.0\r\n\r\n",
        b"GET /rest/api/ratelimit\r\n\r\n",
        b"GET http://x/ HTTP/1.1\r\n\r\n",
        b"GET /a b HTTP/1.1\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\n\r\n",
        b"GET /[a] HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ],
)
def test_what_is_not_http_is_refused(start: Start, request_line: bytes) -> None:
    """By the gateway's page, not by Responsys' envelope."""
    sandbox, _ = start()

    answer = raw(sandbox, request_line)

    assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert b"text/html" in answer


def test_a_client_may_wait_for_a_go_ahead(start: Start) -> None:
    """Some do, before a large body."""
    sandbox, _ = start()
    head = f"POST {PUSH} HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n"

    answer = raw(sandbox, head.encode(), b"{}")

    assert answer.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 401 ")


@pytest.mark.parametrize("piece", [b"", b"GET / HT", b"POST / HTTP/1.1\r\nContent-Length: 10\r\n\r\n{"])
def test_a_client_may_go_away(start: Start, piece: bytes) -> None:
    """In the middle of anything; nothing comes of it."""
    sandbox, client = start()

    assert raw(sandbox, piece) == b""
    assert client.push(recipient()).status == 202


def test_other_methods_and_paths_are_refused(start: Start) -> None:
    """As the error table has it."""
    _, client = start()

    assert client.ask("GET", PUSH).code == "METHOD_NOT_SUPPORTED"
    assert client.ask("DELETE", f"{HA}/requests/x").code == "METHOD_NOT_SUPPORTED"
    assert client.ask("GET", "/").code == "RESOURCE_NOT_FOUND"
    assert client.ask("GET", "/rest/api/v1.3/lists").json == []


def test_the_log_knows_no_secret(start: Start) -> None:
    """Neither the token nor a login's body; bodies of pushes only if asked for."""
    sandbox, client = start(keep_bodies=True)
    client.push(recipient(), X_Trace="1")

    login, push = sandbox.requests_seen

    assert (login.endpoint, login.method, login.path) == ("login", "POST", "/rest/api/v1.3/auth/token")
    assert (push.endpoint, push.method, push.path, push.time) == ("push", "POST", PUSH, sandbox.clock())
    assert (push.headers["x-trace"], push.size) == ("1", len(push.body))
    assert b"recipientData" in push.body
    assert "authorization" not in push.headers
    assert not login.body
    sandbox.change(keep_bodies=False)
    client.push(recipient())
    assert not sandbox.requests_seen[-1].body


def test_the_log_forgets_the_oldest(start: Start) -> None:
    """It must not grow with a benchmark."""
    sandbox, client = start(log_length=2)
    for _ in range(3):
        client.poll("x")

    assert len(sandbox.requests_seen) == 2


def test_requests_wait_side_by_side(start: Start) -> None:
    """Latency is each request's own: as many wait as there are connections."""
    sandbox, client = start(latency=0.3)
    ready = threading.Barrier(16)

    def push(number: int) -> None:
        mine = Client(sandbox)
        mine.token = client.token
        ready.wait()
        mine.push(recipient(value=f"C{number}"))
        mine.connection.close()

    threads = [threading.Thread(target=push, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sandbox.report()["pushes"] == 16
    assert sandbox.report()["most_in_flight"] > 1
