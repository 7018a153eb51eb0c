import json
from contextlib import suppress
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_provider_responsys.errors import InvalidSettings
from airflow_provider_responsys.protocol.recipient import KEYS, Identifier
from airflow_provider_responsys.recipients.fields import MEANINGS, FieldSettings, meaning, recipient_maker
from airflow_provider_responsys.recipients.optional import InvalidRow

PROFILE = FieldSettings()
PUSH = FieldSettings(list_type="PUSH", api_key="K")
SHA256, MD5 = "aB" * 32, "aB" * 16


def body(row: dict[str, Any], settings: FieldSettings = PROFILE, *, is_table: bool = False) -> dict[str, Any]:
    """Return what *row* becomes on the wire."""
    made = recipient_maker(tuple(row), settings, is_table=is_table)(tuple(row.values()))
    parsed: dict[str, Any] = json.loads(made.body)
    return parsed


def said(row: dict[str, Any], settings: FieldSettings = PROFILE) -> dict[str, Any]:
    """Return what of it is not null."""
    return {key: value for key, value in body(row, settings).items() if value not in (None, [])}


def identity(row: dict[str, Any], settings: FieldSettings = PROFILE) -> str:
    """Return whom *row* identifies."""
    return recipient_maker(tuple(row), settings)(tuple(row.values())).identity


@pytest.mark.parametrize(
    ("column", "means"),
    [
        *((name, "customerId") for name in ("customerId", "customer_id", "CUSTOMER_ID_", "CustomerID", "CUSTOMERID")),
        *((name, "recipientId") for name in ("recipientId", "RIID_", "riid", "RIID", "recipient_id")),
        *((name, "emailAddress") for name in ("emailAddress", "EMAIL_ADDRESS_", "email_address")),
        *((name, "mobileNumber") for name in ("mobileNumber", "MOBILE_NUMBER_", "mobile_number")),
        *((name, "emailSHA256Hash") for name in ("emailSHA256Hash", "EMAIL_SHA256_HASH_", "email_sha256_hash")),
        *((name, "emailMD5Hash") for name in ("emailMD5Hash", "EMAIL_MD5_HASH_")),
        *((name, "deviceId") for name in ("deviceId", "device_id", "DEVICE_ID_")),
        *((name, "apiKey") for name in ("apiKey", "api_key", "API_KEY_")),
        *((name, "listType") for name in ("listType", "list_type")),
        *((name, "optionalData") for name in ("optionalData", "optional_data")),
        *((name, None) for name in ("email", "id", "customer", "city", "")),
    ],
)
def test_what_columns_mean(column: str, means: str | None) -> None:
    """Responsys' names in any spelling; every other name is optional data."""
    assert meaning(column) == means


def test_every_key_has_a_name() -> None:
    """There is a column for whatever can be sent."""
    assert set(MEANINGS.values()) == set(KEYS)


@pytest.mark.parametrize(
    ("column", "value", "key", "sent"),
    [
        ("customer_id", 7, "customerId", "7"),
        ("CUSTOMER_ID_", Decimal(7), "customerId", "7"),
        ("email_address", " Ann@Example.com ", "emailAddress", "Ann@Example.com"),
        ("RIID_", "3738409741", "recipientId", 3738409741),
        ("riid", 3738409741.0, "recipientId", 3738409741),
        ("MOBILE_NUMBER_", 15551234567, "mobileNumber", "15551234567"),
        ("EMAIL_SHA256_HASH_", SHA256, "emailSHA256Hash", SHA256),
        ("EMAIL_MD5_HASH_", MD5, "emailMD5Hash", MD5),
    ],
)
def test_a_flat_row_is_enough(column: str, value: object, key: str, sent: object) -> None:
    """One column identifies, the others are optional data, and all ten keys are there."""
    row = {column: value, "CITY": "São Paulo", "points": 12, "none": None}

    assert body(row) == dict.fromkeys(KEYS) | {
        key: sent,
        "listType": "PROFILE",
        "optionalData": [{"name": "CITY", "value": "São Paulo"}, {"name": "points", "value": "12"}],
    }


def test_a_device() -> None:
    """A device is looked up by its id and its app, with every profile identifier null."""
    row = {"device_id": "D1", "api_key": "A", "list_type": "push", "CITY": "Rome"}

    assert body(row) == dict.fromkeys(KEYS) | {
        "deviceId": "D1",
        "apiKey": "A",
        "listType": "PUSH",
        "optionalData": [{"name": "CITY", "value": "Rome"}],
    }


def test_the_shape_of_the_api() -> None:
    """What Oracle's guide shows as a recipient can be given as a row."""
    row = dict.fromkeys(KEYS) | {
        "recipientId": 131006807,
        "deviceId": "",
        "apiKey": "",
        "listType": "PROFILE",
        "optionalData": [{"name": "CUSTOM1", "value": "WELCOME10"}],
    }

    assert body(row) == row | {"deviceId": None, "apiKey": None}


@pytest.mark.parametrize("nested", [{"B": 2, "C": None}, [{"name": "B", "value": 2}], ({"value": 2, "name": "B"},)])
def test_optional_data_beside_columns(nested: object) -> None:
    """A list, or a mapping, alone or with columns of their own."""
    assert body({"customer_id": "7", "A": 1, "optional_data": nested})["optionalData"] == [
        {"name": "A", "value": "1"},
        {"name": "B", "value": "2"},
    ]
    assert body({"customer_id": "7", "optionalData": nested})["optionalData"] == [{"name": "B", "value": "2"}]
    assert body({"customer_id": "7", "A": None, "optionalData": nested})["optionalData"] == [
        {"name": "B", "value": "2"}
    ]


def test_names_clash_within_a_row_only() -> None:
    """Every row of a list brings the same names."""
    make = recipient_maker(("riid", "city", "optionalData"), PROFILE)

    assert make((1, "Rome", {"a": 1})).body.count('"a"') == make((2, "Oslo", {"a": 1})).body.count('"a"') == 1


@pytest.mark.parametrize("nested", [None, "", [], {}, float("nan")])
def test_no_optional_data(nested: object) -> None:
    """None is an empty list on the wire, which is the safe value."""
    assert body({"customer_id": "7", "optionalData": nested})["optionalData"] == []


@pytest.mark.parametrize(
    ("row", "field", "reason"),
    [
        ({"customer_id": "7", "optionalData": "[]"}, "optionalData", "neither a mapping nor a list"),
        ({"customer_id": "7", "optionalData": [1]}, "optionalData", "a name and a value"),
        ({"customer_id": "7", "optionalData": [{"name": "A"}]}, "optionalData", "a name and a value"),
        ({"customer_id": "7", "optionalData": [{"name": "A", "value": 1, "x": 1}]}, "optionalData", "nothing else"),
        ({"customer_id": "7", "optionalData": [{"name": 1, "value": 1}]}, "optionalData", "not a text"),
        ({"customer_id": "7", "optionalData": {1: 1}}, "optionalData", "not a text"),
        ({"customer_id": "7", "optionalData": {"": 1}}, "a column with an odd name", "no name"),
        ({"customer_id": "7", "optionalData": {"CITY_": 1}}, "CITY_", "system fields"),
        ({"customer_id": "7", "optionalData": {"A": b"x"}}, "A", "bytes"),
        ({"customer_id": "7", "optionalData": {"A": "x\0"}}, "A", "NUL"),
        ({"customer_id": "7", "a": 1, "optionalData": {"A": 1}}, "A", "twice"),
        ({"customer_id": "7", "a": None, "optionalData": {"A": None}}, "A", "twice"),
        ({"customer_id": "7", "optionalData": [{"name": "A", "value": 1}] * 2}, "A", "twice"),
        ({"customer_id": "7", "a": 1, "A": 1}, "A", "twice"),
        ({"customer_id": "7", "CITY_": 1}, "CITY_", "system fields"),
        ({"customer_id": "7", "": 1}, "a column with an odd name", "no name"),
        ({"customer_id": "7", "A": {"x": 1}}, "A", "dict"),
        ({"customer_id": "7", "A": "\ud800"}, "A", "surrogate"),
        ({"customer_id": "7", 5: 1}, "", "name is not a text"),
        ({"customer_id": "7", "CUSTOMER_ID_": "7"}, "CUSTOMER_ID_", "same as customer_id"),
        ({"RIID_": 7, "riid": None}, "riid", "same as RIID_"),
        ({"city": "Rome"}, "", "no column that identifies"),
        ({}, "", "no column that identifies"),
        ({"customer_id": None}, "customer_id", "missing"),
        ({"CUSTOMER_ID_": " "}, "CUSTOMER_ID_", "missing"),
        ({"customer_id": None, "riid": None}, "", "no identifier"),
        ({"customer_id": "x\0"}, "customer_id", "NUL"),
        ({"customer_id": True}, "customer_id", "true or false"),
        ({"RIID_": "x12"}, "RIID_", "whole number"),
        ({"RIID_": 0}, "RIID_", "RIID"),
        ({"email_address": "ann"}, "email_address", "no @"),
        ({"customer_id": "7", "riid": 7}, "", "several identifiers .customerId, recipientId.: say with match_on"),
        ({"customer_id": "7", "device_id": "D"}, "", "several identifiers"),
        ({"device_id": "D", "api_key": "K"}, "deviceId", "list type PUSH"),
        ({"device_id": "D", "list_type": "PUSH"}, "apiKey", "missing"),
        ({"device_id": "D", "list_type": "PUSH", "api_key": " "}, "apiKey", "missing"),
        ({"customer_id": "7", "api_key": b"K"}, "api_key", "bytes"),
        ({"customer_id": "7", "list_type": "EMAIL"}, "list_type", "neither PROFILE nor PUSH"),
        ({"customer_id": "7", "list_type": "PUSH"}, "customerId", "list type PROFILE"),
        ({"customer_id": "7", "device_id": "D", "api_key": "K", "list_type": "PUSH"}, "", "several identifiers"),
    ],
)
def test_a_wrong_row(row: dict[Any, Any], field: str, reason: str) -> None:
    """The field and the reason are told."""
    with pytest.raises(InvalidRow, match=reason) as error:
        body(row)

    assert error.value.field == field


def test_stray_data_is_not_shown_as_a_name() -> None:
    """A row that is not what it should be may have people where names belong."""
    with pytest.raises(InvalidRow) as error:
        body({"customer_id": "7", "ann@example.com": b""})

    assert "ann" not in str(error.value)


@pytest.mark.parametrize(
    ("row", "api_key"),
    [
        ({"customer_id": "7"}, "K"),
        ({"customer_id": "7", "api_key": None}, "K"),
        ({"customer_id": "7", "api_key": " "}, "K"),
        ({"customer_id": "7", "api_key": " A "}, "A"),
    ],
)
def test_the_rows_own_api_key_wins(row: dict[str, Any], api_key: str) -> None:
    """The setting is for rows that don't say."""
    assert body(row, FieldSettings(api_key="K"))["apiKey"] == api_key


def test_the_rows_own_list_type_wins() -> None:
    """One table may hold people and devices."""
    row = {"customer_id": "7", "device_id": None, "list_type": "Profile"}

    assert said(row, PUSH) == {"customerId": "7", "apiKey": "K", "listType": "PROFILE"}
    assert said({"customer_id": "", "device_id": "D", "list_type": None}, PUSH) == {
        "deviceId": "D",
        "apiKey": "K",
        "listType": "PUSH",
    }


@pytest.mark.parametrize("match_on", ["customerId", "CUSTOMER_ID_", "customer_id"])
def test_match_on_drops_the_other_identifiers(match_on: str) -> None:
    """Exactly one identifies, and the others are not sent as anything else."""
    row = {"RIID_": 7, "CUSTOMER_ID_": "C", "EMAIL_ADDRESS_": "not checked", "device_id": "D", "city": "Rome"}

    assert body(row, FieldSettings(match_on=match_on), is_table=True) == dict.fromkeys(KEYS) | {
        "customerId": "C",
        "listType": "PROFILE",
        "optionalData": [{"name": "city", "value": "Rome"}],
    }


def test_match_on_a_device() -> None:
    """A table of devices may name their owners."""
    row = {"RIID_": 7, "device_id": "D", "api_key": "A"}

    assert said(row, FieldSettings(list_type="PUSH", match_on="device_id")) == {
        "deviceId": "D",
        "apiKey": "A",
        "listType": "PUSH",
    }


@pytest.mark.parametrize(
    ("row", "settings", "reason"),
    [
        ({"customer_id": None, "riid": 7}, FieldSettings(match_on="customerId"), "missing, and match_on"),
        ({"riid": 7}, FieldSettings(match_on="customerId"), "missing, and match_on"),
        ({"riid": 7, "device_id": "D"}, FieldSettings(match_on="deviceId"), "match_on names, is none of them|deviceId"),
        (
            {"riid": 7, "device_id": "D"},
            FieldSettings(match_on="riid", list_type="PUSH", api_key="K"),
            "recipientId, which",
        ),
    ],
)
def test_match_on_that_does_not_match(row: dict[str, Any], settings: FieldSettings, reason: str) -> None:
    """Nobody is matched on what was not asked for."""
    with pytest.raises(InvalidRow, match=reason):
        body(row, settings)


def test_match_on_leaves_rows_alone_that_the_other_list_looks_up() -> None:
    """It decides between several identifiers, and this row has one."""
    row = {"customer_id": None, "device_id": "D", "list_type": "PUSH"}

    assert said(row, FieldSettings(match_on="customerId", api_key="K"))["deviceId"] == "D"


def test_a_table_has_one_identifier() -> None:
    """Its columns are one decision for all rows; a single row's may be empty, as in the API's own shape."""
    row = {"customer_id": "7", "riid": None}

    assert said(row) == {"customerId": "7", "listType": "PROFILE"}
    with pytest.raises(InvalidRow, match="several identifiers"):
        body(row, is_table=True)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"list_type": "EMAIL"}, "list_type is neither PROFILE nor PUSH"),
        ({"match_on": "email"}, "match_on must be one of customerId, "),
        ({"match_on": ""}, "match_on"),
        ({"match_on": "apiKey"}, "match_on"),
        ({"api_key": "\0"}, "api_key contains"),
    ],
)
def test_wrong_settings(settings: dict[str, str], reason: str) -> None:
    """They are refused before a row is read."""
    with pytest.raises(InvalidSettings, match=reason):
        FieldSettings(**settings)


def test_settings_have_one_spelling() -> None:
    """A ledger compares them between tries."""
    assert FieldSettings(list_type="push", match_on="DEVICE_ID").identity() == {
        "list_type": "PUSH",
        "match_on": "deviceId",
    }
    assert FieldSettings().identity() == {"list_type": "PROFILE", "match_on": ""}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"email_address": " Ann@Example.COM "}, {"EMAIL_ADDRESS_": "ann@example.com", "city": "Rome"}),
        ({"email_address": "ÉVE@x.y"}, {"email_address": "éve@x.y"}),
        ({"EMAIL_SHA256_HASH_": SHA256}, {"emailSHA256Hash": SHA256.lower()}),
        ({"EMAIL_MD5_HASH_": MD5}, {"emailMD5Hash": MD5.upper()}),
        ({"riid": "0007"}, {"RIID_": Decimal("7.0")}),
        ({"customer_id": 7}, {"customer_id": "7"}),
        ({"customer_id": "7", "api_key": "A"}, {"customer_id": "7", "api_key": "B"}),
    ],
)
def test_the_same_recipient(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Spelling does not make another person."""
    assert identity(one) == identity(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"customer_id": "7"}, {"riid": "7"}),
        ({"customer_id": "c7"}, {"customer_id": "C7"}),
        ({"customer_id": "7"}, {"customer_id": "07"}),
        ({"customer_id": "7"}, {"customer_id": " 7"}),
        (
            {"list_type": "PUSH", "device_id": "D", "api_key": "A"},
            {"list_type": "PUSH", "device_id": "D", "api_key": "B"},
        ),
    ],
)
def test_other_recipients(one: dict[str, Any], other: dict[str, Any]) -> None:
    """A customer id is exactly what its owner says, and a device belongs to an app."""
    assert identity(one) != identity(other)


CELLS = st.none() | st.text() | st.integers() | st.floats() | st.booleans() | st.decimals() | st.binary() | st.dates()


@settings(deadline=None)
@given(
    st.dictionaries(
        st.sampled_from([*KEYS, "RIID_", "city", "points"]) | st.text(), CELLS | st.dictionaries(st.text(), CELLS)
    ),
    st.sampled_from(
        [PROFILE, PUSH, FieldSettings(match_on="riid"), FieldSettings(list_type="PUSH", match_on="deviceId")]
    ),
    st.booleans(),
)
def test_any_row_is_right_or_wrong(row: dict[str, Any], settings: FieldSettings, is_table: bool) -> None:
    """Whatever is in a row: one recipient with one identifier, or an `InvalidRow`."""
    with suppress(InvalidRow):
        made = body(row, settings, is_table=is_table)

        assert list(made) == list(KEYS)
        assert sum(made[identifier] is not None for identifier in Identifier) == 1
        assert made["listType"] == ("PROFILE" if made["deviceId"] is None else "PUSH")
