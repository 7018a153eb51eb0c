"""Reads the body of a push, as strictly as any Oracle page asks for.

Written apart from `protocol`, so that a mistake there is not mirrored here.
"""

import json
from typing import NamedTuple, NoReturn, TypeAlias
from zlib import crc32

from airflow_provider_responsys.sandbox.answers import Refusal
from airflow_provider_responsys.sandbox.tally import Key

MAX_RECIPIENTS = 200  # Async guide: RECIPIENT_LIMIT_EXCEEDED
MAX_BODY = 10_000_000  # "10 MB", in its smaller reading
MAX_INTEGER = 2**63 - 1

PROFILE_IDENTIFIERS = (
    "recipientId",
    "customerId",
    "emailAddress",
    "mobileNumber",
    "emailSHA256Hash",
    "emailMD5Hash",
)
MEMBERS = frozenset({*PROFILE_IDENTIFIERS, "deviceId", "apiKey", "listType", "optionalData"})
LOWERED = frozenset({"emailAddress", "emailSHA256Hash", "emailMD5Hash"})

# The word in an identifier, in any case -> what its row says. Forms recorded or documented, except where "guessed".
MAGIC_WORDS = {
    "NODEVICE": "NO_RECIPIENT_FOUND: Recipient Not Found",
    "UNDELIVERABLE": "RECIPIENT_STATUS_UNDELIVERABLE: Recipient deliverability status is undeliverable",
    "NOLIST": "PROFILE_LIST_NOT_FOUND",
    "AMBIGUOUS": "MULTIPLE_RECIPIENTS_FOUND: Multiple recipients found",  # sentence guessed
    "BLOCKED": "USER_BLOCKED: User is blocked",  # sentence guessed
    "BROKEN": "FAILURE: The recipient could not be processed",  # sentence guessed
}
# A recipientId from 404,000,000 to 404,999,999 and so on does the same.
MAGIC_MILLIONS = {
    404: MAGIC_WORDS["NODEVICE"],
    410: MAGIC_WORDS["UNDELIVERABLE"],
    424: MAGIC_WORDS["NOLIST"],
    300: MAGIC_WORDS["AMBIGUOUS"],
    403: MAGIC_WORDS["BLOCKED"],
    500: MAGIC_WORDS["BROKEN"],
}

Json: TypeAlias = object


class Wrong(ValueError):
    """A record breaks a rule; the text says which one, and nothing of the record."""


class PushBody(NamedTuple):
    """What a push asks for: its recipients, in order, and its reference data."""

    recipients: list[Key]
    errors: dict[int, str]
    reference_data: Json


def read_json(body: bytes) -> Json:
    """Return *body*, which must be JSON in pure ASCII."""
    try:
        return DECODER.decode(body.decode("ascii"))
    except ValueError:
        raise Refusal("INVALID_REQUEST_CONTENT") from None


def read_push(body: bytes) -> PushBody:
    """Return the recipients of a push, or refuse it."""
    push = read_json(body)
    if not isinstance(push, dict) or not isinstance(items := push.get("recipientData"), list) or not items:
        raise Refusal("INVALID_PARAMETER", "Invalid parameter 'recipientData'")
    if unknown := push.keys() - {"recipientData", "referenceData"}:
        raise Refusal("INVALID_PARAMETER", f"Invalid parameter '{min(unknown)}'")
    if not isinstance(reference_data := push.get("referenceData"), str | dict | None):
        raise Refusal("INVALID_PARAMETER", "Invalid parameter 'referenceData'")
    if len(items) > MAX_RECIPIENTS:
        raise Refusal("RECIPIENT_LIMIT_EXCEEDED")
    recipients: list[Key] = []
    for position, item in enumerate(items):
        try:
            recipients.append(_key(item))
        except Wrong as wrong:
            raise Refusal("INVALID_PARAMETER", f"Record {position} = {wrong}\r\n") from None
    return PushBody(recipients, _magic(body, recipients), reference_data)


def riid(key: Key) -> int:
    """Return the RIID that the sandbox's list has for *key*; many are above 2^31."""
    return key[2] if isinstance(key[2], int) else 1 + crc32(repr(key).encode())


def _key(item: Json) -> Key:
    if not isinstance(item, dict):
        raise Wrong("a recipient must be an object")
    if item.keys() != MEMBERS:
        raise Wrong(_members(item))
    _check_optional_data(item["optionalData"])
    device_id, api_key = item["deviceId"], item["apiKey"]
    if not isinstance(device_id, str | None) or not isinstance(api_key, str | None):
        raise Wrong("deviceId and apiKey must be text or null")
    given = [name for name in PROFILE_IDENTIFIERS if item[name] is not None]
    match item["listType"]:
        case "PROFILE":
            if len(given) != 1:
                raise Wrong(f"exactly one identifier must be given, not {len(given)}")
            if device_id:
                raise Wrong("deviceId belongs to listType PUSH")
            return ("PROFILE", given[0], _value(given[0], item[given[0]]))
        case "PUSH":
            if given:
                raise Wrong(f"{given[0]} must be null for listType PUSH")
            if not device_id or not api_key:
                raise Wrong("listType PUSH needs deviceId and apiKey")
            return ("PUSH", device_id, api_key)
        case _:
            raise Wrong("listType must be PUSH or PROFILE")


def _members(item: dict[str, Json]) -> str:
    if missing := MEMBERS - item.keys():
        return f"{min(missing)} is missing"
    return f"unknown member {min(item.keys() - MEMBERS)}"


def _value(name: str, value: Json) -> str | int:
    if name == "recipientId":
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= MAX_INTEGER:
            raise Wrong("recipientId must be a whole number")
        return value
    if not isinstance(value, str) or not (trimmed := value.strip()):
        raise Wrong(f"{name} must be a text that is not blank")
    if name in LOWERED:
        return trimmed.lower()
    return value


def _check_optional_data(data: Json) -> None:
    if not isinstance(data, list):
        raise Wrong("optionalData must be a list")
    for each in data:
        if not isinstance(each, dict) or len(each) != 2:  # noqa: PLR2004 -- name and value
            raise Wrong("optionalData holds objects of a name and a value")
        name, value = each.get("name"), each.get("value")
        if not isinstance(name, str) or not name or not isinstance(value, str):
            raise Wrong("optionalData must have text for name and value")
        if name.endswith("_"):
            raise Wrong("optionalData must not name a system field")


def _magic(body: bytes, recipients: list[Key]) -> dict[int, str]:
    # Most bodies hold no magic word at all: one look at the whole is cheaper than one at each recipient.
    upper = body.upper()
    words = {word: text for word, text in MAGIC_WORDS.items() if word.encode() in upper}
    found: dict[int, str] = {}
    for position, key in enumerate(recipients):
        value = key[2] if key[0] == "PROFILE" else key[1]
        if isinstance(value, int):
            if text := MAGIC_MILLIONS.get(value // 1_000_000):
                found[position] = text
        elif words and (text := next((words[word] for word in words if word in value.upper()), None)):
            found[position] = text
    return found


def _no_constant(name: str) -> NoReturn:
    raise Wrong(f"{name} is not JSON")


DECODER = json.JSONDecoder(parse_constant=_no_constant)
