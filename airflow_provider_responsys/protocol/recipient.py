"""One recipient, as Responsys takes it and as we tell it from others."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from json.encoder import encode_basestring_ascii
from typing import Final, NamedTuple, TypeAlias


class ListType(StrEnum):
    """Where Responsys looks the recipient up."""

    PROFILE = "PROFILE"
    """In the Profile List: a known person, and through it every device of that person."""
    PUSH = "PUSH"
    """In the App Channel List: one device."""


class Identifier(StrEnum):
    """What a recipient is looked up by, under its name on the wire."""

    CUSTOMER_ID = "customerId"
    EMAIL_ADDRESS = "emailAddress"
    RECIPIENT_ID = "recipientId"
    MOBILE_NUMBER = "mobileNumber"
    EMAIL_SHA256_HASH = "emailSHA256Hash"
    EMAIL_MD5_HASH = "emailMD5Hash"
    DEVICE_ID = "deviceId"

    @property
    def list_type(self) -> ListType:
        """Return the list that this identifier is looked up in."""
        return ListType.PUSH if self is Identifier.DEVICE_ID else ListType.PROFILE


API_KEY: Final = "apiKey"
LIST_TYPE: Final = "listType"
OPTIONAL_DATA: Final = "optionalData"

# HA async guide, Trigger Push: all of recipientData must be present, in the order of its sample.
KEYS: Final = (*Identifier, API_KEY, LIST_TYPE, OPTIONAL_DATA)

SYSTEM_FIELD_ENDING: Final = (
    "_"  # Field-name rules: every system field ends with it, and optional data must not use one
)
MAX_RIID: Final = 2**63 - 1  # Profile List: RIID_ is an Integer, and samples pass 2^31: so 64 bits

SURROGATE = re.compile("[\ud800-\udfff]")


class Unfit(ValueError):
    """A value that Responsys does not take; the text says why and never what it is."""


class Recipient(NamedTuple):
    """A validated recipient.

    *identity* says who it is (list type, identifier, normalised value), for
    hashing; *body* is its JSON object on the wire, pure ASCII.
    """

    identity: str
    body: str

    def __repr__(self) -> str:
        """Return a text without the recipient."""
        return "<recipient>"


@dataclass(frozen=True, slots=True)
class Shape:
    """What the text of an identifier must look like, as far as Oracle says."""

    trimmed: bool = True
    """Whether blanks around it mean nothing."""
    folded: bool = False
    """Whether capitals mean nothing when two are compared."""
    longest: int | None = None
    pattern: re.Pattern[str] | None = None
    expected: str = ""

    def fit(self, text: str) -> str:
        """Return *text* as it is sent, or raise `Unfit`."""
        if self.trimmed:
            text = text.strip()
        if self.longest is not None and len(text) > self.longest:
            raise Unfit(f"is longer than the {self.longest} characters that Responsys keeps")
        if self.pattern is not None and not self.pattern.fullmatch(text):
            raise Unfit(self.expected)
        return text


SHAPES: Mapping[str, Shape] = {
    # Lengths: system fields of the Profile List. The hashes are hexadecimal MD5 and SHA-256 of the e-mail address.
    Identifier.CUSTOMER_ID: Shape(trimmed=False, longest=255),
    Identifier.EMAIL_ADDRESS: Shape(
        folded=True, longest=500, pattern=re.compile(r".+@.+", re.DOTALL), expected="is not an e-mail address (no @)"
    ),
    Identifier.MOBILE_NUMBER: Shape(longest=50),
    Identifier.EMAIL_SHA256_HASH: Shape(
        folded=True, pattern=re.compile(r"[0-9a-fA-F]{64}"), expected="is not a SHA-256 hash (64 hexadecimal digits)"
    ),
    Identifier.EMAIL_MD5_HASH: Shape(
        folded=True, pattern=re.compile(r"[0-9a-fA-F]{32}"), expected="is not an MD5 hash (32 hexadecimal digits)"
    ),
    Identifier.DEVICE_ID: Shape(),
    API_KEY: Shape(),
}
"""Every identifier that is a text. The other one, `Identifier.RECIPIENT_ID`, is a number."""


def wire_text(text: str) -> str:
    """Return *text* as a JSON string in pure ASCII, or raise `Unfit`.

    Half a surrogate pair is no character, and a NUL ends a text in much of what
    lies behind an API: neither can be meant, and neither arrives as it was.
    """
    if "\0" in text:
        raise Unfit("contains a NUL character")
    if not text.isascii() and SURROGATE.search(text):
        raise Unfit("contains half of a surrogate pair, which is no character")
    return encode_basestring_ascii(text)


def wire_number(number: int) -> str:
    """Return the RIID *number* as a JSON number, or raise `Unfit`."""
    if not 0 < number <= MAX_RIID:
        raise Unfit("is not a RIID (a whole number from 1 that fits 64 bits)")
    return str(number)


def optional_front(name: str) -> str:
    """Return the text of one optional datum up to its value, or raise `Unfit`."""
    if not name.strip():
        raise Unfit("has no name")
    if name.endswith(SYSTEM_FIELD_ENDING):
        raise Unfit(
            "ends in '_', as only the system fields of Responsys do: sent as optional data it would replace what "
            "Responsys knows about the person, so give it another name"
        )
    return f'{{"name":{wire_text(name)},"value":'


OPTIONAL_BACK: Final = "}"
NULL: Final = "null"

IDENTIFIED = re.compile(r'"(\w+)":(?:"((?:[^"\\]|\\.)*)"|(\d+))')
"""The first member of a body that is not null: its name, and what stands between its quotation marks, or its digits."""


def identified(body: str) -> tuple[str, str]:
    """Return the name and the value of the identifier in *body*, which a `writer` wrote."""
    name, text, number = IDENTIFIED.search(body).groups()  # type: ignore[union-attr]  # each body has an identifier
    if text is None:
        return name, number
    return name, json.loads(f'"{text}"') if "\\" in text else text


Writer: TypeAlias = Callable[[str, str, str, str], Recipient]
"""From an identifier's value, its normalised form, the API key and the optional data, all as JSON, to the recipient."""


def writer(identifier: Identifier) -> Writer:
    """Return what writes a recipient that is looked up by *identifier*."""
    at, key_at = KEYS.index(identifier), KEYS.index(API_KEY)
    head = "".join(("{", *(f'"{key}":{NULL},' for key in KEYS[:at]), f'"{identifier}":'))
    middle = "".join((*(f',"{key}":{NULL}' for key in KEYS[at + 1 : key_at]), f',"{API_KEY}":'))
    tail = f',"{LIST_TYPE}":"{identifier.list_type}","{OPTIONAL_DATA}":['
    who = f'["{identifier.list_type}","{identifier}",'

    def known(value: str, normal: str, api_key: str, optional: str) -> Recipient:
        return Recipient(f"{who}{normal}]", f"{head}{value}{middle}{api_key}{tail}{optional}]}}")

    def device(value: str, normal: str, api_key: str, optional: str) -> Recipient:
        # The key of the app belongs to a device's identity; a person is the same person in every app.
        return Recipient(f"{who}{normal},{api_key}]", f"{head}{value}{middle}{api_key}{tail}{optional}]}}")

    return known if identifier.list_type is ListType.PROFILE else device
