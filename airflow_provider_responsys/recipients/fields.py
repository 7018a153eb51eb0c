"""Which column means what, and from there to one recipient a row."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Final, NamedTuple, TypeAlias

from airflow_provider_responsys.errors import InvalidSettings
from airflow_provider_responsys.protocol.recipient import (
    API_KEY,
    LIST_TYPE,
    NULL,
    OPTIONAL_DATA,
    SHAPES,
    Identifier,
    ListType,
    Recipient,
    Unfit,
    wire_number,
    wire_text,
    writer,
)
from airflow_provider_responsys.recipients.optional import InvalidRow, Row, optional_data, shown
from airflow_provider_responsys.recipients.values import identifying_number, identifying_text, is_blank

MakeRecipient: TypeAlias = Callable[[Row], Recipient]
"""Turns a row into a recipient, or raises `InvalidRow`."""

# A column's name in lower case and without underscores -> what it means to Responsys.
MEANINGS: Final[Mapping[str, str]] = {
    "customerid": Identifier.CUSTOMER_ID,
    "emailaddress": Identifier.EMAIL_ADDRESS,
    "recipientid": Identifier.RECIPIENT_ID,
    "riid": Identifier.RECIPIENT_ID,
    "mobilenumber": Identifier.MOBILE_NUMBER,
    "emailsha256hash": Identifier.EMAIL_SHA256_HASH,
    "emailmd5hash": Identifier.EMAIL_MD5_HASH,
    "deviceid": Identifier.DEVICE_ID,
    "apikey": API_KEY,
    "listtype": LIST_TYPE,
    "optionaldata": OPTIONAL_DATA,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldSettings:
    """What rows mean where they do not say.

    *match_on* is the identifier to use where rows carry several, under any of
    its names; *list_type* and *api_key* are for rows without their own.
    """

    list_type: str = ListType.PROFILE
    match_on: str | None = None
    api_key: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        """Raise `InvalidSettings` where one of them is none of what it may be."""
        _ = self.default_list_type, self.identifier, self.default_api_key

    @property
    def default_list_type(self) -> ListType:
        """Return the list that rows without a list type are looked up in."""
        try:
            return _list_type(self.list_type)
        except Unfit as error:
            raise InvalidSettings(f"list_type {error}.") from None

    @property
    def identifier(self) -> Identifier | None:
        """Return the identifier that *match_on* names."""
        if self.match_on is None:
            return None
        try:
            return Identifier(meaning(self.match_on) or "")
        except ValueError:
            raise InvalidSettings(f"match_on must be one of {', '.join(Identifier)}.") from None

    @property
    def default_api_key(self) -> str:
        """Return the API key of rows without one, as JSON."""
        try:
            found = _reader(API_KEY)(self.api_key)
        except Unfit as error:
            raise InvalidSettings(f"api_key {error}.") from None
        return found.wire if found else NULL

    def identity(self) -> dict[str, str]:
        """Return what decides whom a row identifies, in one spelling."""
        return {"list_type": str(self.default_list_type), "match_on": str(self.identifier or "")}


def meaning(column: str) -> str | None:
    """Return what a column named *column* means to Responsys, None if it is optional data."""
    return MEANINGS.get(column.replace("_", "").lower())


def recipient_maker(columns: Sequence[str], settings: FieldSettings, *, is_table: bool = False) -> MakeRecipient:
    """Return what turns a row of *columns* into a recipient.

    Raise `InvalidRow` if no row with these columns can be right. The columns of
    a table (*is_table*) were chosen for all rows: unlike those of a single row,
    they must not name several identifiers, even if most of their cells are empty.
    """
    layout = _layout(columns)
    extras = optional_data(layout.optional, layout.at.get(OPTIONAL_DATA))
    choose = _chooser(layout, settings, is_table=is_table)

    def make(row: Row) -> Recipient:
        return choose(row)(row, extras(row))

    return make


class _Value(NamedTuple):
    """What a cell says, as JSON: as it is sent, and as it is compared."""

    wire: str
    normal: str


_Read: TypeAlias = Callable[[object], _Value | None]
_Make: TypeAlias = Callable[[Row, str], Recipient]


class _Layout(NamedTuple):
    """What is where in a row."""

    columns: Sequence[str]
    at: Mapping[str, int]
    optional: Sequence[tuple[str, int]]


def _layout(columns: Sequence[str]) -> _Layout:
    at: dict[str, int] = {}
    optional: list[tuple[str, int]] = []
    for place, column in enumerate(columns):
        if not isinstance(column, str):
            raise InvalidRow("", "has a column whose name is not a text")
        what = meaning(column)
        if what is None:
            optional.append((column, place))
        elif what in at:
            raise InvalidRow(shown(column), f"says the same as {shown(columns[at[what]])}: leave one of them out")
        else:
            at[what] = place
    return _Layout(columns, at, optional)


def _chooser(layout: _Layout, settings: FieldSettings, *, is_table: bool) -> Callable[[Row], _Make]:
    """Return what finds the identifier of a row, and with it the way to make a recipient."""
    default, wanted = settings.default_list_type, settings.identifier
    places = [(identifier, layout.at[identifier]) for identifier in Identifier if identifier in layout.at]
    if not places:
        raise InvalidRow("", f"has no column that identifies a recipient (one of {', '.join(Identifier)})")

    @cache
    def maker(identifier: Identifier) -> _Make:
        return _maker(layout, identifier, settings)

    type_at = layout.at.get(LIST_TYPE)
    if type_at is None and (is_table or len(places) == 1):
        only = maker(_chosen(default, [identifier for identifier, _ in places], wanted))
        return lambda _: only

    def choose(row: Row) -> _Make:
        list_type = default
        if type_at is not None and not is_blank(row[type_at]):
            try:
                list_type = _list_type(row[type_at])
            except Unfit as error:
                raise InvalidRow(shown(layout.columns[type_at]), str(error)) from None
        present = [identifier for identifier, at in places if not is_blank(row[at])]
        return maker(_chosen(list_type, present, wanted))

    return choose


def _chosen(list_type: ListType, present: Sequence[Identifier], wanted: Identifier | None) -> Identifier:
    """Return which of the identifiers *present* is used, or raise `InvalidRow`.

    A device beside a person counts as a second identifier: with list type PROFILE
    Responsys would push to all devices of that person, so the task has to say
    with *wanted* that this is meant.
    """
    if wanted is not None and wanted.list_type is list_type:
        if wanted not in present:
            raise InvalidRow(wanted, "is missing, and match_on names it")
        return wanted
    if not present:
        raise InvalidRow("", "has no identifier: it names no recipient")
    if len(present) > 1:
        advice = (
            f"match_on says {wanted}, which {list_type} does not use" if wanted else "say with match_on which to use"
        )
        raise InvalidRow("", f"has several identifiers ({', '.join(present)}): {advice}")
    if present[0].list_type is not list_type:
        raise InvalidRow(present[0], f"is looked up with list type {present[0].list_type}, and this is {list_type}")
    return present[0]


def _maker(layout: _Layout, identifier: Identifier, settings: FieldSettings) -> _Make:
    """Return what makes recipients that are looked up by *identifier*."""
    read, at, key_at = _reader(identifier), layout.at[identifier], layout.at.get(API_KEY)
    column, write, default_key = shown(layout.columns[at]), writer(identifier), settings.default_api_key
    needs_key = identifier.list_type is ListType.PUSH
    if needs_key and key_at is None and default_key == NULL:
        raise InvalidRow(API_KEY, "is missing: list type PUSH needs the key of the app")
    read_key = _reader(API_KEY)

    def api_key(row: Row) -> str:
        if key_at is None:
            return default_key
        try:
            found = read_key(row[key_at])
        except Unfit as error:
            raise InvalidRow(shown(layout.columns[key_at]), str(error)) from None
        key = found.wire if found else default_key
        if needs_key and key == NULL:
            raise InvalidRow(API_KEY, "is missing: list type PUSH needs the key of the app")
        return key

    def make(row: Row, optional: str) -> Recipient:
        try:
            found = read(row[at])
        except Unfit as error:
            raise InvalidRow(column, str(error)) from None
        if found is None:
            raise InvalidRow(column, "is missing")
        return write(found.wire, found.normal, api_key(row), optional)

    return make


def _reader(what: str) -> _Read:
    """Return what reads *what* (an identifier, or the API key) from a cell: None where it is missing."""
    if what == Identifier.RECIPIENT_ID:
        return _read_number
    shape = SHAPES[what]

    def read_text(value: object) -> _Value | None:
        text = identifying_text(value)
        if text is None:
            return None
        fitting = shape.fit(text)
        wire = wire_text(fitting)
        return _Value(wire, wire_text(fitting.lower()) if shape.folded else wire)

    return read_text


def _read_number(value: object) -> _Value | None:
    number = identifying_number(value)
    if number is None:
        return None
    wire = wire_number(number)
    return _Value(wire, wire)


def _list_type(value: object) -> ListType:
    try:
        return ListType(str(value).strip().upper())
    except ValueError:
        raise Unfit(f"is neither {' nor '.join(ListType)}") from None
