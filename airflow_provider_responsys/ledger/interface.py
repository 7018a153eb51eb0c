"""What a ledger promises: who has been sent what, remembered across crashes.

A batch is *claimed* durably before its request leaves and *settled* after the
answer. A claim without a settlement is the doubt: a crash, a kill and a lost
answer all leave that same, true record, without a further write.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from secrets import randbits
from typing import Protocol

FINGERPRINT_BYTES = 9
"""Of a keyed hash: two of ten million recipients share one with a chance of 1 in 10^8."""


def new_batch_id() -> int:
    """Return an id for a batch, drawn at random: no other batch of any send has it."""
    return randbits(62)


class Holder(StrEnum):
    """Why a recipient could not be claimed."""

    ACCEPTED = "accepted"
    """An earlier try of this task got it accepted."""
    IN_DOUBT = "in_doubt"
    """An earlier try of this task claimed it and never learned the answer."""
    OTHER = "other"
    """Another task with the same send key has claimed it."""


@dataclass(frozen=True, slots=True)
class Claim:
    """What came of a `Wanted`: the recipients at *lost* (index -> holder) must not be sent to."""

    number: int
    lost: Mapping[int, Holder] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Accepted:
    """Responsys queued batch *number* as *request_id*."""

    number: int
    request_id: str
    correlation_id: str = ""
    """Responsys' own id of the answer, for its support; empty if the answer had none."""


@dataclass(frozen=True, slots=True)
class Released:
    """Responsys certainly did not queue batch *number*: its claim is released."""

    number: int


Settlement = Accepted | Released


@dataclass(frozen=True, slots=True)
class Earlier:
    """A batch of an earlier try. Without a *request_id* (None) it is in doubt, *since* its claim.

    An empty one says that a person found out that it was sent: there is nothing to poll.
    """

    fingerprints: Sequence[bytes] = field(repr=False)
    request_id: str | None
    since: datetime
    label: str
    """How a person finds it in the ledger, such as ``try 1, batch 17``."""
    place: object = None
    """How the ledger finds it again."""
    batch_id: int = 0
    """What its request carried as ``X-Request-Id``; 0 if that is not known."""
    try_number: int = 0
    """The try that claimed it; 0 if that is not known."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A batch about to be sent: its *number* in this try and whom it is for.

    For a send that was asked for at least once, they may be in *doubt*, which is
    a batch that an earlier try left so: they leave it for this one.
    """

    number: int
    fingerprints: Sequence[bytes] = field(repr=False)
    doubt: Earlier | None = None
    batch_id: int = field(default_factory=new_batch_id)
    """What the batch is called outside of this try: its request's ``X-Request-Id``, and the id that people see."""


class Source(Protocol):
    """All recipients that a try read."""

    def fingerprints(self) -> Iterable[Sequence[bytes]]:
        """Yield the fingerprints of all of them, batch by batch as they may be sent."""

    def strangers(self, known: Iterable[Sequence[bytes]]) -> int:
        """Return how many of them are not among those *known*."""


class Ledger(Protocol):
    """One send's record, seen from one try. Used from one thread."""

    durable: bool
    """Whether another try will find what this one wrote."""
    resumes: bool
    """Whether, as `begin` found, earlier tries of this task left claims that count."""
    looks_ahead: bool
    """Whether `commit` writes what is upcoming in advance: reading it costs memory."""

    def begin(self, identity: Mapping[str, str]) -> bytes:
        """Record durably that this try began; return the key to fingerprint recipients with.

        The first act of a try, before its source is read. *identity* holds the
        settings that make a recipient's identity (``campaign_name``,
        ``list_type``, ``match_on``); raise `SettingsChanged` when an earlier try
        had others, `StateLost` when an earlier try must have left a record and
        there is none.
        """

    def compare(self, source: Source) -> None:
        """Raise `SettingsChanged` where the record may be of another shard than *source*, all that this try read.

        Called once, before `earlier` and the first claim.
        """

    def earlier(self) -> Iterable[Earlier]:
        """Yield every batch that earlier tries of this send left claimed, oldest first."""

    def commit(
        self, settled: Sequence[Settlement], wanted: Sequence[Wanted], upcoming: Sequence[Sequence[bytes]] = ()
    ) -> list[Claim]:
        """Record the answers *settled*, then claim *wanted*, durably; return what was won.

        A batch that is released may be wanted again, under a new number, in the same call.
        Who is wanted out of a doubt is at each moment in one batch, which says that they may have
        been pushed: that one is never released. Where a person has resolved the doubt meanwhile,
        they are claimed like others.

        *upcoming* are the fingerprints of the batches that will probably be wanted next: a ledger
        that `looks_ahead` writes them in advance. They are no claims.

        On return all of it is on disk; when it raises, none of *wanted* may be
        sent, and each of *settled* may or may not have been recorded. Where the
        error is a `LedgerFailed`, its `moved` says who left a doubt all the same.
        """

    def name_answer(self, number: int, correlation_id: str) -> None:
        """Keep *correlation_id*, of the answer that left batch *number* in doubt, where people look doubts up."""

    def close(self) -> None:
        """Release what the ledger holds open. Harmless to repeat."""
