"""A cell of a row, as text or as a number, whatever type its source gives it."""

import datetime as dt
import math
import uuid
from decimal import Decimal
from numbers import Integral

from airflow_provider_responsys.protocol.recipient import Unfit

EXACT_FLOATS = 2**53
"""From here on a float may stand for several whole numbers."""

MANY_DIGITS = 1000
"""No number that anybody means is this long, and some are cheap to hold but not to write out."""


def identifying_text(value: object) -> str | None:
    """Return the text that identifies a recipient, None where it is missing, or raise `Unfit`."""
    if isinstance(value, str):
        return None if not value or value.isspace() else value
    if isinstance(value, uuid.UUID):
        return str(value)
    number = _whole_number(value)
    return None if number is None else str(number)


def identifying_number(value: object) -> int | None:
    """Return the whole number that identifies a recipient, None where it is missing, or raise `Unfit`."""
    return _number_in(value) if isinstance(value, str) else _whole_number(value)


def optional_text(value: object) -> str | None:
    """Return an optional datum as text, None where it is NULL, or raise `Unfit`.

    Dates and times are written in ISO 8601, truth as ``true`` and ``false``, a
    `Decimal` without an exponent, and an empty text stays one.
    """
    if isinstance(value, str):
        return value
    if is_missing(value):
        return None
    match value:
        case bool():
            return "true" if value else "false"
        case uuid.UUID():
            return str(value)
        case dt.date() | dt.time():  # a datetime is a date
            return value.isoformat()
        case _:
            return _number_text(value)


def is_missing(value: object) -> bool:
    """Return whether *value* stands for nothing: None, or what does not equal itself, as NaN."""
    if value is None:
        return True
    if isinstance(value, Decimal):
        return value.is_nan()
    try:
        return bool(value != value)  # noqa: PLR0124 -- that is how NaN and NaT are told
    except (TypeError, ValueError):
        # pandas.NA is neither equal nor unequal to itself; an array is both.
        return type(value).__name__ == "NAType"


def is_blank(value: object) -> bool:
    """Return whether *value* is missing or a text of nothing but blanks."""
    return not value or value.isspace() if isinstance(value, str) else is_missing(value)


def _number_in(text: str) -> int | None:
    digits = text.strip()
    if not digits:
        return None
    # Python's own reading of numbers takes 1_000 and digits of other scripts as well.
    if digits.isascii() and digits.isdigit() and len(digits) < MANY_DIGITS:
        return int(digits)
    raise Unfit("is not a whole number")


def _whole_number(value: object) -> int | None:
    if isinstance(value, bool):
        raise Unfit("is true or false, which names no recipient")
    if is_missing(value):
        return None
    match value:
        case Integral():
            return _bounded(int(value))
        case Decimal() if _is_short(value) and value == value.to_integral_value():
            return int(value)
        case float() if value.is_integer() and abs(value) < EXACT_FLOATS:
            return int(value)
        case Decimal() | float():
            raise Unfit("is not a whole number that is known exactly")
        case _:
            raise Unfit(f"is of type {type(value).__name__}, not a text or a whole number")


def _number_text(value: object) -> str:
    match value:
        case Integral():
            return str(_bounded(int(value)))
        case Decimal() if _is_short(value):
            return format(value, "f")
        case float() if math.isfinite(value):
            return repr(float(value))
        case Decimal() | float():
            raise Unfit("is infinite, or nearly so")
        case _:
            raise Unfit(f"is of type {type(value).__name__}: turn it into text first")


def _bounded(number: int) -> int:
    # Ten bits are a little more than three digits.
    if number.bit_length() > MANY_DIGITS * 10 // 3:
        raise Unfit(f"has more than {MANY_DIGITS} digits")
    return number


def _is_short(number: Decimal) -> bool:
    return number.is_finite() and abs(number.adjusted()) < MANY_DIGITS
