import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft4Validator

from airflow_provider_responsys.protocol.recipient import (
    KEYS,
    MAX_RIID,
    NULL,
    SHAPES,
    Identifier,
    ListType,
    Recipient,
    Unfit,
    optional_front,
    wire_number,
    wire_text,
    writer,
)

TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0"))

# Trigger Push Message API (HA Async), sample request body, its first recipient.
SAMPLE: dict[str, Any] = {
    "customerId": None,
    "emailAddress": None,
    "recipientId": 131006807,
    "mobileNumber": None,
    "emailSHA256Hash": None,
    "emailMD5Hash": None,
    "deviceId": "",
    "apiKey": "",
    "listType": "PROFILE",
    "optionalData": [{"name": "CUSTOM1", "value": "WELCOME10"}, {"name": "CUSTOM2", "value": "COUPON"}],
}


def nullable(schema: Any) -> Any:
    """Return *schema* with null allowed in every place: the guide asks for it where its schema does not."""
    match schema:
        case {"type": str(kind), **rest}:
            return {"type": [kind, "null"], **{key: nullable(value) for key, value in rest.items()}}
        case dict():
            return {key: nullable(value) for key, value in schema.items()}
        case _:
            return schema


SWAGGER = json.loads((Path(__file__).parent / "push.swagger.json").read_text())
SCHEMA = Draft4Validator(nullable(SWAGGER["definitions"]["triggerPushMessage"]))


def optional(pairs: dict[str, str]) -> str:
    """Return optional data as the members of a JSON array."""
    return ",".join(f"{optional_front(name)}{wire_text(value)}}}" for name, value in pairs.items())


@pytest.mark.parametrize("api_key", ["", None])
def test_oracles_own_sample_is_valid(api_key: str | None) -> None:
    """The sample sends empty texts where the prose asks for null: both must pass."""
    SCHEMA.validate({"recipientData": [{**SAMPLE, "deviceId": api_key, "apiKey": api_key}]})


def test_the_schema_refuses_what_is_wrong() -> None:
    """A validator that lets everything pass would prove nothing."""
    assert not SCHEMA.is_valid({"recipientData": [{**SAMPLE, "recipientId": "131006807"}]})
    assert not SCHEMA.is_valid({"recipientData": [{**SAMPLE, "listType": "EMAIL"}]})


def test_the_keys_are_those_of_the_sample() -> None:
    """All of recipientData must be present, in the order that Oracle shows."""
    assert list(KEYS) == list(SAMPLE)


@settings(deadline=None)
@given(
    identifier=st.sampled_from([one for one in Identifier if one is not Identifier.RECIPIENT_ID]),
    value=TEXTS,
    api_key=st.none() | TEXTS,
    data=st.dictionaries(TEXTS.filter(lambda name: name.strip() and not name.endswith("_")), TEXTS, max_size=4),
)
def test_a_recipient_says_what_was_put_in(
    identifier: Identifier, value: str, api_key: str | None, data: dict[str, str]
) -> None:
    """Whatever the texts hold: one JSON object, pure ASCII, valid, every key there, unused ones null."""
    key = NULL if api_key is None else wire_text(api_key)

    made = writer(identifier)(wire_text(value), wire_text(value), key, optional(data))

    parsed = json.loads(made.body)
    SCHEMA.validate({"recipientData": [parsed]})
    assert made.body.isascii()
    assert made.identity.isascii()
    assert parsed == {
        **dict.fromkeys(KEYS),
        identifier: value,
        "apiKey": api_key,
        "listType": identifier.list_type,
        "optionalData": [{"name": name, "value": text} for name, text in data.items()],
    } | ({"deviceId": value} if identifier is Identifier.DEVICE_ID else {})
    assert list(parsed) == list(KEYS)


@settings(deadline=None)
@given(number=st.integers(1, MAX_RIID))
def test_a_riid_is_a_json_number(number: int) -> None:
    """The schema says number; RIIDs are beyond 2^31, and beyond what a float keeps."""
    made = writer(Identifier.RECIPIENT_ID)(wire_number(number), wire_number(number), NULL, "")

    assert json.loads(made.body) == {
        **dict.fromkeys(KEYS),
        "recipientId": number,
        "listType": "PROFILE",
        "optionalData": [],
    }


@pytest.mark.parametrize("number", [0, -1, MAX_RIID + 1])
def test_no_riid(number: int) -> None:
    """A RIID is a positive integer of 64 bits."""
    with pytest.raises(Unfit, match="RIID"):
        wire_number(number)


PEOPLE = st.tuples(st.sampled_from([one for one in Identifier if one is not Identifier.RECIPIENT_ID]), TEXTS, TEXTS)


@settings(deadline=None)
@given(one=PEOPLE, other=PEOPLE)
def test_identities_are_unambiguous(one: tuple[Identifier, str, str], other: tuple[Identifier, str, str]) -> None:
    """Two identities are the same text exactly if they say the same."""

    def said(who: tuple[Identifier, str, str]) -> tuple[str, ...]:
        return who if who[0].list_type is ListType.PUSH else who[:2]

    def identity(who: tuple[Identifier, str, str]) -> str:
        return writer(who[0])(wire_text(who[1]), wire_text(who[1]), wire_text(who[2]), "").identity

    assert (identity(one) == identity(other)) == (said(one) == said(other))


def test_the_app_is_part_of_a_device_but_not_of_a_person() -> None:
    """A person is the same person in every app; a device id means something within its app only."""
    device, person = writer(Identifier.DEVICE_ID), writer(Identifier.CUSTOMER_ID)

    assert device('"D"', '"D"', '"A"', "").identity != device('"D"', '"D"', '"B"', "").identity
    assert person('"C"', '"C"', '"A"', "").identity == person('"C"', '"C"', '"B"', "").identity


def test_the_identity_is_made_of_the_normal_form() -> None:
    """What is sent is as it was written; what is compared is not."""
    made = writer(Identifier.EMAIL_ADDRESS)('"Ann@x.y"', '"ann@x.y"', NULL, "")

    assert made.identity == '["PROFILE","emailAddress","ann@x.y"]'
    assert json.loads(made.body)["emailAddress"] == "Ann@x.y"


@pytest.mark.parametrize(
    ("what", "good"),
    [
        ("customerId", "C" * 255),
        ("emailAddress", "a@" + "b" * 498),
        ("mobileNumber", "+" + "1" * 49),
        ("emailSHA256Hash", "aF" * 32),
        ("emailMD5Hash", "0A" * 16),
        ("deviceId", "d" * 4096),
        ("apiKey", "k" * 4096),
    ],
)
def test_what_fits(what: str, good: str) -> None:
    """Only what Oracle documents is checked, up to its very length."""
    assert SHAPES[what].fit(good) == good


@pytest.mark.parametrize(
    ("what", "bad", "reason"),
    [
        ("customerId", "C" * 256, "255 characters"),
        ("emailAddress", "a@" + "b" * 499, "500 characters"),
        ("emailAddress", "ann.example.com", "no @"),
        ("emailAddress", "@example.com", "no @"),
        ("emailAddress", "ann@", "no @"),
        ("mobileNumber", "1" * 51, "50 characters"),
        ("emailSHA256Hash", "a" * 63, "64 hexadecimal"),
        ("emailSHA256Hash", "g" * 64, "64 hexadecimal"),
        ("emailMD5Hash", "a" * 33, "32 hexadecimal"),
    ],
)
def test_what_does_not_fit(what: str, bad: str, reason: str) -> None:
    """The reason is told, the value is not."""
    with pytest.raises(Unfit, match=reason) as error:
        SHAPES[what].fit(bad)

    assert bad not in str(error.value)


@pytest.mark.parametrize(("what", "kept"), [("customerId", " 7 "), ("emailAddress", "a@b"), ("deviceId", "7")])
def test_blanks_around_an_identifier(what: str, kept: str) -> None:
    """They mean nothing but in a customer id, which is exactly what its owner says."""
    assert SHAPES[what].fit(f" {kept.strip()} ") == kept


@pytest.mark.parametrize("text", ["a\0b", "\ud800", "x\udfff"])
def test_what_is_no_text(text: str) -> None:
    """NUL and half a character would not arrive as they are."""
    with pytest.raises(Unfit, match="contains"):
        wire_text(text)


def test_the_escapes_of_the_guide() -> None:
    """The guide's own examples of how accented characters must be written."""
    assert wire_text("\u20ac\u00a5\u00fc\u00e9") == r'"\u20ac\u00a5\u00fc\u00e9"'


@pytest.mark.parametrize("name", ["MOBILE_NUMBER_", "city_", "_"])
def test_system_fields_are_no_optional_data(name: str) -> None:
    """The guide forbids them, and the error says why."""
    with pytest.raises(Unfit, match="system fields"):
        optional_front(name)


@pytest.mark.parametrize("name", ["", " "])
def test_optional_data_has_a_name(name: str) -> None:
    """A datum without a name can't be used by a campaign."""
    with pytest.raises(Unfit, match="no name"):
        optional_front(name)


def test_a_recipient_shows_nobody() -> None:
    """It may stand in a traceback or a log."""
    assert repr(Recipient("ann", "ann")) == "<recipient>"
