"""What the task state ledger writes: compact strings, because Airflow validates nested JSON twice.

::

    meta       JSON: version, generation, fingerprint key, identity, tries, max_tries, segments
    a segment  up to 25 batches: try,batch,claimed at,request id,fingerprints;...

*segments* is how many there must be at least: what is read back with fewer has lost some.
"""

import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Self
from urllib.parse import quote, unquote

from airflow_provider_responsys.errors import LedgerFailed
from airflow_provider_responsys.ledger.interface import FINGERPRINT_BYTES, Earlier

VERSION = 1

MAX_BATCHES = 25
"""A segment is rewritten whole for each settlement in it: more batches would make each write dearer."""

MAX_VALUE = 65_000  # Airflow: [state_store] max_value_storage_bytes is 65,535, counted with JSON's quotes

REQUEST_ID_ROOM = 150  # kept free per batch until its answer is there; Responsys' ids have about 11 digits


@dataclass(frozen=True, slots=True)
class Batch:
    """One batch as it is kept; its fingerprints stay packed. No request id: in doubt."""

    try_number: int
    number: int
    claimed_at: int
    request_id: str
    packed: str = field(repr=False)

    def write(self) -> str:
        """Return the text of this batch."""
        request_id = quote(self.request_id, safe="")
        return f"{self.try_number},{self.number},{self.claimed_at},{request_id},{self.packed}"

    def room(self) -> int:
        """Return how many characters this batch may come to need, whether its answer is there or not."""
        return len(replace(self, request_id="").write()) + REQUEST_ID_ROOM + 1

    @property
    def fingerprints(self) -> list[bytes]:
        """Return whom it is for."""
        fingerprints = unpack(self.packed)
        return [
            fingerprints[start : start + FINGERPRINT_BYTES] for start in range(0, len(fingerprints), FINGERPRINT_BYTES)
        ]

    def without(self, others: Container[bytes]) -> Self:
        """Return this batch without *others*."""
        return replace(self, packed=pack(b"".join(one for one in self.fingerprints if one not in others)))

    def read(self, segment: int) -> Earlier:
        """Return this batch as a later try sees it, which finds it again in *segment*."""
        return Earlier(
            fingerprints=self.fingerprints,
            request_id=self.request_id or None,
            since=datetime.fromtimestamp(self.claimed_at, UTC),
            label=f"try {self.try_number}, batch {self.number}",
            place=(segment, self.try_number, self.number),
        )


@dataclass(frozen=True, slots=True)
class Meta:
    """What is kept beside the batches."""

    version: int
    generation: str
    key: str
    identity: Mapping[str, str]
    tries: Sequence[int]
    max_tries: int
    segments: int


Segment = Mapping[int, Batch]
"""Batches of one try by their number, those of others by numbers below 0."""


def write_meta(meta: Meta) -> str:
    """Return *meta* as text."""
    return json.dumps(asdict(meta), separators=(",", ":"))


def read_meta(text: str) -> Meta:
    """Read what `write_meta` wrote."""
    try:
        meta = Meta(**json.loads(text))
    except (TypeError, ValueError) as error:
        raise LedgerFailed("What Airflow's task state store holds of this send can't be read") from error
    if meta.version != VERSION:
        raise LedgerFailed(f"The record of this send has version {meta.version}; this provider reads {VERSION}")
    return meta


def write_segment(segment: Segment) -> str:
    """Return the batches of *segment* as text."""
    return ";".join(batch.write() for batch in segment.values())


def read_segment(text: str) -> Iterator[Batch]:
    """Yield the batches that `write_segment` wrote."""
    try:
        for written in filter(None, text.split(";")):
            try_number, number, claimed_at, request_id, packed = written.split(",")
            yield Batch(int(try_number), int(number), int(claimed_at), unquote(request_id), packed)
    except ValueError as error:
        raise LedgerFailed("What Airflow's task state store holds of an earlier try can't be read") from error


def has_room(segment: Segment, batch: Batch) -> bool:
    """Tell whether *batch* fits into *segment*, its answer included."""
    return len(segment) < MAX_BATCHES and sum(kept.room() for kept in segment.values()) + batch.room() <= MAX_VALUE


def pack(data: bytes) -> str:
    """Return *data* as text."""
    return urlsafe_b64encode(data).decode("ascii")


def unpack(text: str) -> bytes:
    """Return what `pack` packed."""
    return urlsafe_b64decode(text)
