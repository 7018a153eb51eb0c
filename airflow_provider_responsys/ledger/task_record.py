"""What the task state ledger writes: keys that are written once, and how they are read back together.

A task instance may be tried several times, and one try may be started twice: Airflow
lets the same host and process number begin it again. Each such *start* has keys of
its own, and never writes a key with another content. So a write that is repeated, or
is done late, changes nothing that another write says::

    <prefix>/try/<try>/<start>            JSON: `Start`
    <prefix>/people/<try>/<start>/<n>     `People`: the fingerprints of up to 25 batches, written before any of them
                                          is claimed; alone they claim nothing
    <prefix>/log/<try>/<start>/<n>        `Entries`: what one commit claimed, settled and released
    <prefix>/sum/<try>/<start>/<n>        `Entries`: those of about 25 commits, so that fewer keys are read back

Values are compact strings, because Airflow validates nested JSON twice.
"""

import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import IntEnum
from typing import NamedTuple, Self
from urllib.parse import quote, unquote

from airflow_provider_responsys.errors import LedgerFailed
from airflow_provider_responsys.ledger.interface import FINGERPRINT_BYTES

VERSION = 2
"""Of the keys and their values. Version 1, which was never released, wrote some keys several times."""

MAX_BATCHES = 25
"""Batches whose fingerprints stand in one key: more would make the write in which they are claimed first dearer."""

MAX_VALUE = 65_000  # Airflow: [state_store] max_value_storage_bytes is 65,535, counted with JSON's quotes

MAX_COMMITS = 25
"""Commits that are summed up in one key: so many are read back one by one at the most."""

MAX_SUM = 40_000
"""Characters after which fewer commits are summed up: a sum stays below `MAX_VALUE` with one more commit."""

UNREADABLE = "What Airflow's task state store holds of an earlier try can't be read"


class Where(NamedTuple):
    """A *start* of a try, counted from 0; sorts by age."""

    try_number: int
    start: int

    def key(self, prefix: str, kind: str, number: int | None = None) -> str:
        """Return the key of one of its values."""
        key = f"{prefix}/{kind}/{self.try_number}/{self.start}"
        return key if number is None else f"{key}/{number}"


NEVER = Where(0, 0)
"""Before every start."""


@dataclass(frozen=True, slots=True)
class Start:
    """That a try began: *key* and *identity* are what it fingerprints with, *seen* the earlier starts with claims.

    What starts before *since* claimed was forgotten by a restart; without one, it is `NEVER`.
    """

    key: str
    identity: Mapping[str, str]
    max_tries: int
    since: Where
    seen: Sequence[Where] = ()
    version: int = VERSION

    def write(self) -> str:
        """Return this as text."""
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def read(cls, text: str) -> Self:
        """Read what `write` wrote."""
        try:
            kept = json.loads(text)
            if kept["version"] != VERSION:
                raise LedgerFailed(
                    f"The record of this send has version {kept['version']}; this provider reads {VERSION}"
                )
            return cls(**kept | {"since": Where(*kept["since"]), "seen": tuple(Where(*one) for one in kept["seen"])})
        except (TypeError, ValueError, KeyError) as error:
            raise LedgerFailed("What Airflow's task state store holds of this send can't be read") from error


@dataclass(frozen=True, slots=True)
class People:
    """Fingerprints of batches, by their place. *key* and *identity* are again what they were made with."""

    key: str
    identity: Mapping[str, str]
    packed: Sequence[str] = field(repr=False)

    def write(self) -> str:
        """Return this as text."""
        head = json.dumps({"key": self.key, "identity": self.identity}, separators=(",", ":"))
        return "\n".join((head, *self.packed))

    @classmethod
    def read(cls, text: str) -> Self:
        """Read what `write` wrote."""
        try:
            head, *packed = text.split("\n")
            kept = json.loads(head)
            return cls(kept["key"], kept["identity"], packed)
        except (TypeError, ValueError, KeyError) as error:
            raise LedgerFailed(UNREADABLE) from error

    def batch(self, place: int) -> list[bytes]:
        """Return the fingerprints at *place*."""
        try:
            together = unpack(self.packed[place])
        except (ValueError, IndexError) as error:
            raise LedgerFailed(UNREADABLE) from error
        return [together[start : start + FINGERPRINT_BYTES] for start in range(0, len(together), FINGERPRINT_BYTES)]


class State(IntEnum):
    """How far a batch is. It only moves forward: the greatest state that any key tells is the batch's."""

    CLAIMED = 1
    RELEASED = 2
    ACCEPTED = 3


@dataclass(slots=True)
class Batch:
    """One batch of a start, as far as its keys tell: *key* and *place* lead to its fingerprints.

    *moved_from* is the doubt, as start and number, whose recipients it took over.
    """

    number: int
    batch_id: int
    claimed_at: int
    key: int
    place: int
    moved_from: tuple[Where, int] | None = None
    state: State = State.CLAIMED
    request_id: str = ""

    def claim(self) -> str:
        """Return the text that claims it."""
        origin = "" if self.moved_from is None else "{0.try_number}.{0.start}.{1}".format(*self.moved_from)
        return f"c,{self.number},{self.batch_id:x},{self.claimed_at:x},{self.key},{self.place},{origin}"


def accept(number: int, request_id: str) -> str:
    """Return the text that says that batch *number* was accepted as *request_id*."""
    return f"a,{number},{quote(request_id, safe='')}"


def release(number: int) -> str:
    """Return the text that says that batch *number* was certainly not accepted, or never sent."""
    return f"r,{number}"


def announce(keys: int) -> str:
    """Return the text that says that the first *keys* keys hold all recipients that the start read."""
    return f"n,{keys}"


@dataclass(frozen=True, slots=True)
class Entries:
    """What the commits *first* to *last* say; *before* is the newest commit before them that was acknowledged."""

    first: int
    last: int
    before: int
    texts: Sequence[str] = field(repr=False)

    def write(self) -> str:
        """Return this as text."""
        return ";".join((f"{self.first},{self.last},{self.before}", *self.texts))

    @classmethod
    def read(cls, text: str) -> Self:
        """Read what `write` wrote."""
        head, *texts = text.split(";")
        try:
            first, last, before = map(int, head.split(","))
        except ValueError as error:
            raise LedgerFailed(UNREADABLE) from error
        return cls(first, last, before, texts)


@dataclass(slots=True)
class Story:
    """What one start wrote, put together: its batches by number, and how many keys were *announced*."""

    batches: dict[int, Batch] = field(default_factory=dict)
    announced: int = 0

    def add(self, texts: Iterable[str]) -> None:
        """Take in entries, in any order of commits, some of them perhaps repeated."""
        claims: list[Batch] = []
        later: list[tuple[int, State, str]] = []
        try:
            for text in texts:
                match text.split(","):
                    case ["c", number, batch_id, at, key, place, origin]:
                        claims.append(
                            Batch(int(number), int(batch_id, 16), int(at, 16), int(key), int(place), _origin(origin))
                        )
                    case ["a", number, request_id]:
                        later.append((int(number), State.ACCEPTED, unquote(request_id)))
                    case ["r", number]:
                        later.append((int(number), State.RELEASED, ""))
                    case ["n", keys]:
                        self.announced = int(keys)
                    case _:
                        raise LedgerFailed(UNREADABLE)
        except ValueError as error:
            raise LedgerFailed(UNREADABLE) from error
        self._take_in(claims, later)

    def _take_in(self, claims: Sequence[Batch], later: Sequence[tuple[int, State, str]]) -> None:
        for batch in claims:
            self.batches.setdefault(batch.number, batch)
        for number, state, request_id in later:
            known = self.batches.get(number)
            # What is released, but was never claimed, is of a commit that failed.
            if known is not None and state > known.state:
                known.state, known.request_id = state, request_id


def _origin(text: str) -> tuple[Where, int] | None:
    if not text:
        return None
    try_number, start, number = map(int, text.split("."))
    return Where(try_number, start), number


def pack(data: bytes) -> str:
    """Return *data* as text."""
    return urlsafe_b64encode(data).decode("ascii")


def unpack(text: str) -> bytes:
    """Return what `pack` packed."""
    return urlsafe_b64decode(text)
