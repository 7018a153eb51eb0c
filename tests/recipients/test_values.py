import datetime as dt
import enum
import uuid
from decimal import Decimal
from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_responsys.protocol.recipient import Unfit
from airflow_provider_responsys.recipients.values import (
    EXACT_FLOATS,
    identifying_number,
    identifying_text,
    is_blank,
    is_missing,
    optional_text,
)

UUID = uuid.UUID("5d4f1d6e-6f6e-4a52-9d0e-111111111111")


class NAType:
    """Compares as pandas.NA does."""

    __hash__: ClassVar[None]  # type: ignore[assignment]  # what defines __eq__ has no hash

    def __eq__(self, other: object) -> bool:
        raise TypeError("boolean value of NA is ambiguous")


class NaT(dt.datetime):
    """Compares as pandas.NaT does: a datetime that does not equal itself."""

    __hash__: ClassVar[None]  # type: ignore[assignment]  # what defines __eq__ has no hash

    def __eq__(self, other: object) -> bool:
        return False

    def __ne__(self, other: object) -> bool:
        return True


class Colour(enum.StrEnum):
    RED = "red"


def labelled(value: object) -> str:
    """Return a short name for a case: some values are thousands of digits long."""
    size = f"{value.bit_length()} bits" if isinstance(value, int) else f"{value!s:.12}"
    return f"{type(value).__name__} {size}"


MISSING = [None, float("nan"), Decimal("NaN"), Decimal("sNaN"), NAType(), NaT(2026, 1, 1)]


@pytest.mark.parametrize("value", MISSING, ids=labelled)
def test_what_is_missing(value: object) -> None:
    """NULL has many names, and all mean that nothing is there."""
    assert is_missing(value)
    assert is_blank(value)
    assert identifying_text(value) is None
    assert identifying_number(value) is None
    assert optional_text(value) is None


@pytest.mark.parametrize("value", ["", " ", "\t\n", "\u00a0"])
def test_blanks_identify_nobody(value: str) -> None:
    """A text of blanks is a missing identifier, and a datum like any other."""
    assert is_blank(value)
    assert identifying_text(value) is None
    assert identifying_number(value) is None
    assert optional_text(value) == value


@pytest.mark.parametrize("value", [0, False, "0", "x", [], 0.0], ids=labelled)
def test_what_is_there(value: object) -> None:
    """False, zero and an empty list are no NULL."""
    assert not is_missing(value)
    assert not is_blank(value)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("C 1", "C 1"),
        (" C1", " C1"),
        (123, "123"),
        (Decimal(123), "123"),
        (Decimal("123.0"), "123"),
        (Decimal("1.2E+3"), "1200"),
        (123.0, "123"),
        (UUID, str(UUID)),
        (Colour.RED, "red"),
    ],
)
def test_identifying_texts(value: object, text: str) -> None:
    """A customer id from a numeric column is its digits, never 123.0."""
    assert identifying_text(value) == text


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (3_738_409_741, 3_738_409_741),
        ("3738409741", 3_738_409_741),
        (" 0042 ", 42),
        (Decimal("3738409741.00"), 3_738_409_741),
        (float(EXACT_FLOATS - 1), EXACT_FLOATS - 1),
        (2**70, 2**70),
    ],
    ids=labelled,
)
def test_identifying_numbers(value: object, number: int) -> None:
    """Whole numbers are taken in whatever type a database or a file gives them."""
    found = identifying_number(value)

    assert found == number
    assert type(found) is int


@pytest.mark.parametrize(
    "value",
    [
        True,
        1.5,
        float(EXACT_FLOATS),
        float("inf"),
        Decimal("1.5"),
        Decimal("Infinity"),
        Decimal("1E+2000"),
        10**2000,
        "1.0",
        "1_000",
        "+1",
        "1e3",
        "\u0661\u0662",
        "9" * 5000,
        b"1",
        dt.date(2026, 1, 1),
        [1],
    ],
    ids=labelled,
)
def test_what_is_no_whole_number(value: object) -> None:
    """Truth is no number, and what is not known exactly could name somebody else."""
    with pytest.raises(Unfit) as error:
        identifying_number(value)

    assert str(value)[:100] not in str(error.value)


@pytest.mark.parametrize("value", [True, 1.5, Decimal("1.5"), b"C1", bytearray(b"C1"), dt.date(2026, 1, 1), ["C1"], {}])
def test_what_is_no_identifying_text(value: object) -> None:
    """What needs an opinion to become a text can't identify anybody."""
    with pytest.raises(Unfit):
        identifying_text(value)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("Zoë", "Zoë"),
        (Colour.RED, "red"),
        (True, "true"),
        (False, "false"),
        (0, "0"),
        (-7, "-7"),
        (1.5, "1.5"),
        (1e22, "1e+22"),
        (Decimal("1E+3"), "1000"),
        (Decimal("0.00000001"), "0.00000001"),
        (Decimal("10.50"), "10.50"),
        (dt.date(2026, 2, 3), "2026-02-03"),
        (dt.datetime(2026, 2, 3, 4, 5, tzinfo=dt.UTC), "2026-02-03T04:05:00+00:00"),
        (dt.time(4, 5), "04:05:00"),
        (UUID, str(UUID)),
    ],
)
def test_optional_texts(value: object, text: str) -> None:
    """Each type has one way to be written, whatever the machine or the locale."""
    assert optional_text(value) == text


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b"x", "bytes"),
        ({"a": 1}, "dict"),
        ([1], "list"),
        (object(), "object"),
        (dt.timedelta(1), "timedelta"),
        (float("inf"), "infinite"),
        (Decimal("-Infinity"), "infinite"),
        (Decimal("1E+999999"), "infinite"),
        (10**5000, "digits"),
    ],
    ids=labelled,
)
def test_what_is_no_optional_text(value: object, reason: str) -> None:
    """What has no one way to be written is refused, not guessed."""
    with pytest.raises(Unfit, match=reason):
        optional_text(value)


@given(st.decimals(allow_nan=False, allow_infinity=False, min_value=-(10**30), max_value=10**30))
def test_decimals_are_exact(number: Decimal) -> None:
    """An amount arrives as it is in the table, without an exponent."""
    text = optional_text(number)

    assert text is not None
    assert Decimal(text) == number
    assert "E" not in text


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_floats_are_exact(number: float) -> None:
    """A float reads back as the same float."""
    assert float(optional_text(number) or "") == number
