"""A server that says what it is told to, byte by byte, and a line to it for each driver."""

import asyncio
import datetime as dt
import ipaddress
import ssl
from collections.abc import Iterator
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from airflow_provider_responsys.protocol.account import Account
from airflow_provider_responsys.transport import aio, sync
from tests.support.lines import Line, OpenLine
from tests.support.plans import Act, Answer, Certificate, Drip, Serve, Server, Sip


@pytest.fixture
def drip() -> type[Drip]:
    """Give an answer that comes a byte at a time."""
    return Drip


@pytest.fixture
def sip() -> type[Sip]:
    """Give a server that reads a request a little at a time."""
    return Sip


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Give what starts a server."""
    servers: list[Server] = []

    def start(*plans: list[Answer], tls: ssl.SSLContext | None = None) -> Server:
        servers.append(Server(*plans, tls=tls))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture(params=["plain", "tls"])
def layer(
    request: pytest.FixtureRequest, certificate: Certificate, monkeypatch: pytest.MonkeyPatch
) -> ssl.SSLContext | None:
    """Give what a server is to speak: TLS that is trusted, or none."""
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate.path))
    return certificate.context() if request.param == "tls" else None


@pytest.fixture
def act() -> type[Act]:
    """Give what a server may do instead of answering."""
    return Act


@pytest.fixture(params=["sync", "aio"])
def line(request: pytest.FixtureRequest) -> Iterator[OpenLine]:
    """Give what opens a line with each driver."""
    lines: list[Line] = []
    with asyncio.Runner() as runner:

        def start(host: str = "http://127.0.0.1", timeout: float = 5.0, **options: Any) -> Line:
            account = Account(host=host, login="u", password="p", timeout=timeout)
            driver: Any = {"sync": sync.Responsys, "aio": aio.Responsys}[request.param]
            options = {"user_agent": "tests/1 airflow/3", "login_waits": lambda: iter(())} | options
            lines.append(Line(request.param, driver(account, **options), runner))
            return lines[-1]

        yield start
        for opened in lines:
            opened.close()


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the surroundings of the tests out of them."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "requests_ca_bundle", "curl_ca_bundle"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    """Give a certificate made for these tests."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = dt.datetime.now(dt.UTC)
    day = dt.timedelta(days=1)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - day)
        .not_valid_after(now + day)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "certificate.pem"
    path.write_bytes(
        made.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return Certificate(path)
