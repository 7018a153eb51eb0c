"""The optional data of a row: from columns of their own, and in the API's own shape."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final, TypeAlias

from airflow_provider_responsys.protocol.recipient import (
    OPTIONAL_BACK,
    OPTIONAL_DATA,
    Unfit,
    optional_front,
    wire_text,
)
from airflow_provider_responsys.recipients.values import is_blank, optional_text

Row: TypeAlias = Sequence[object]
"""The cells of a row, in the order of its columns."""

NAME: Final = "name"
VALUE: Final = "value"

A_NAME = re.compile(r"[\w $#.?()\[\]-]{1,64}")
"""What is shown as a name. Anything else may be data that has strayed into a row's keys."""


class InvalidRow(ValueError):
    """A row that can't be sent to: which *field*, and the *reason*, never the data."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field} {reason}" if field else reason)
        self.field = field
        self.reason = reason

    def at(self, position: int) -> str:
        """Return what a person reads of the row at *position*, counted from 1."""
        return f"row {position}: {self}"


def shown(name: str) -> str:
    """Return *name* as a message may show it."""
    return name if A_NAME.fullmatch(name) else "a column with an odd name"


def optional_data(columns: Sequence[tuple[str, int]], nested_at: int | None) -> Callable[[Row], str]:
    """Return what reads a row's optional data as the members of a JSON array.

    It is in *columns* (names and places) of its own, and at *nested_at* in the
    API's shape or as a mapping.
    """
    fronts: list[tuple[str, int, str]] = []
    taken: set[str] = set()
    for name, at in columns:
        fronts.append((_front(name, taken), at, name))

    def flat(row: Row) -> str:
        return ",".join(
            [
                f"{front}{text}{OPTIONAL_BACK}"
                for front, at, name in fronts
                if (text := _wire(name, row[at])) is not None
            ]
        )

    def both(row: Row) -> str:
        seen = taken.copy()
        parts = [first] if (first := flat(row)) else []
        for name, value in _pairs(row[nested_at]) if nested_at is not None else ():
            front = _front(name, seen)
            if (text := _wire(name, value)) is not None:
                parts.append(f"{front}{text}{OPTIONAL_BACK}")
        return ",".join(parts)

    return flat if nested_at is None else both


def _front(name: str, taken: set[str]) -> str:
    """Return the text before the value of *name*, and take the name."""
    # Field-name rules: names are case-insensitive.
    if (folded := name.casefold()) in taken:
        raise InvalidRow(shown(name), "is given twice as optional data (capitals make no difference)")
    taken.add(folded)
    try:
        return optional_front(name)
    except Unfit as error:
        raise InvalidRow(shown(name), str(error)) from None


def _wire(name: str, value: object) -> str | None:
    try:
        if type(value) is str:
            return wire_text(value)
        text = optional_text(value)
        return None if text is None else wire_text(text)
    except Unfit as error:
        raise InvalidRow(shown(name), str(error)) from None


def _pairs(nested: object) -> Iterator[tuple[str, object]]:
    """Yield the names and values of optional data in the API's shape, or of a mapping."""
    pairs: Iterable[tuple[object, object]]
    if isinstance(nested, Mapping):
        pairs = nested.items()
    elif isinstance(nested, (list, tuple)):
        pairs = [_pair(item) for item in nested]
    elif is_blank(nested):
        return
    else:
        raise InvalidRow(OPTIONAL_DATA, "is neither a mapping nor a list of names and values")
    for name, value in pairs:
        if not isinstance(name, str):
            raise InvalidRow(OPTIONAL_DATA, "has a name that is not a text")
        yield name, value


def _pair(item: object) -> tuple[object, object]:
    if isinstance(item, Mapping) and set(item) == {NAME, VALUE}:
        return item[NAME], item[VALUE]
    raise InvalidRow(OPTIONAL_DATA, "is a list, so each of its items must have a name and a value and nothing else")
