"""A client that knows nothing of our protocol layer: what it sends is written out."""

import http.client
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias
from urllib.parse import urlencode

from airflow_provider_responsys.sandbox import Sandbox

FORM = "application/x-www-form-urlencoded"
TOKEN = "/rest/api/v1.3/auth/token"
PASSWORD = "sandbox-password"
HA, ASYNC = "/rest/haAsyncApi/v1.3", "/rest/asyncApi/v1.3"
PUSH = f"{HA}/campaigns/Summer_Push/push"
NOON = 1_800_000_000.0
"""The start of a minute, and of ten."""


@dataclass
class Reply:
    """An answer, read to its end."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        return str(self.json["errorCode"])


class Client:
    """Talks to a sandbox, on one connection as long as that lives."""

    def __init__(self, sandbox: Sandbox) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", sandbox.port, timeout=5)
        self.token = ""

    def ask(self, method: str, path: str, body: bytes | str | None = None, **headers: str) -> Reply:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        try:
            self.connection.request(method, path, body, {"Authorization": self.token} | named)
            answer = self.connection.getresponse()
            return Reply(answer.status, dict(answer.headers), answer.read())
        except (OSError, http.client.HTTPException):
            self.connection.close()
            raise

    def log_in(self, password: str = PASSWORD, **fields: str) -> Reply:
        form = {"user_name": "api_user", "password": password, "auth_type": "password"} | fields
        reply = self.ask("POST", TOKEN, urlencode(form), Content_Type=FORM)
        if reply.status == 200:
            self.token = reply.json["authToken"]
        return reply

    def refresh(self) -> Reply:
        return self.ask("POST", TOKEN, "auth_type=token", Content_Type=FORM)

    def push(self, *recipients: Any, path: str = PUSH, reference: Any = None, **headers: str) -> Reply:
        body: dict[str, Any] = {"recipientData": list(recipients)}
        if reference is not None:
            body["referenceData"] = reference
        return self.ask("POST", path, json.dumps(body), **{"Content_Type": "application/json"} | headers)

    def poll(self, request_id: str, family: str = HA) -> Reply:
        return self.ask("GET", f"{family}/requests/{request_id}")

    def poll_many(self, ids: Sequence[str]) -> Reply:
        return self.ask("POST", f"{ASYNC}/requests", json.dumps({"requestIds": ids}), Content_Type="application/json")


def recipient(identifier: str = "customerId", value: Any = "C1", **changes: Any) -> dict[str, Any]:
    """Return a recipient as the Responsys page has it, every member present."""
    return {
        "customerId": None,
        "emailAddress": None,
        "recipientId": None,
        "mobileNumber": None,
        "emailSHA256Hash": None,
        "emailMD5Hash": None,
        "deviceId": None,
        "apiKey": None,
        "listType": "PROFILE",
        "optionalData": [{"name": "CUSTOM1", "value": "WELCOME10"}],
        identifier: value,
    } | changes


def device(device_id: str = "D1", api_key: str = "K1", **changes: Any) -> dict[str, Any]:
    """Return a recipient of the App Channel List."""
    return recipient("deviceId", device_id, apiKey=api_key, listType="PUSH", **changes)


Start: TypeAlias = Callable[..., tuple[Sandbox, Client]]
