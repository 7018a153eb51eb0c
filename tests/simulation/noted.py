"""The ledger at its interface: what it was told, and what it said in return, whatever it writes."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

from airflow_provider_responsys.errors import LedgerFailed
from airflow_provider_responsys.ledger.interface import Accepted, Claim, Earlier, Ledger, Released, Settlement, Wanted

if TYPE_CHECKING:
    from tests.simulation.attempt import Attempt
    from tests.simulation.world import World


@dataclass(slots=True)
class Noted:
    """A claim that the ledger acknowledged, and what it acknowledged of it since."""

    fingerprints: tuple[bytes, ...]
    batch_id: int
    """What its request has to carry."""
    request_id: str | None = None


class NotedLedger:
    """Tells the truth what *ledger* is told, and what it says."""

    def __init__(self, world: "World", attempt: "Attempt", ledger: Ledger) -> None:
        self._world = world
        self._attempt = attempt
        self._ledger = ledger
        self.durable = ledger.durable
        self.looks_ahead = ledger.looks_ahead
        self.resumes = False

    def begin(self, identity: Mapping[str, str]) -> bytes:
        """Let the ledger begin."""
        key = self._ledger.begin(identity)
        self.resumes = self._ledger.resumes
        return key

    def compare(self, source: object) -> None:
        """Let the ledger compare."""
        cast("Any", self._ledger).compare(source)

    def earlier(self) -> Iterator[Earlier]:
        """Yield what the ledger yields, all of which is checked."""
        found = []
        for batch in self._ledger.earlier():
            found.append(batch)
            yield batch
        self._world.truth.looked_back(self._attempt, found)

    def commit(
        self, settled: Sequence[Settlement], wanted: Sequence[Wanted], upcoming: Sequence[Sequence[bytes]] = ()
    ) -> list[Claim]:
        """Note what the ledger acknowledges. What is about to be released need not be there any more."""
        attempt, noted = self._attempt, self._attempt.noted
        self._world.truth.settles(attempt, settled)
        for answer in settled:
            if isinstance(answer, Released):
                noted.pop(answer.number, None)
        # An id that is drawn by chance would make each state another one.
        named = [replace(want, batch_id=attempt.id_of(want.number)) for want in wanted]
        attempt.moving.update(one for want in wanted if want.doubt for one in want.fingerprints)
        try:
            claims = self._ledger.commit(settled, named, upcoming)
        except LedgerFailed:
            attempt.unsure.update(want.number for want in wanted)
            raise
        for answer in settled:
            if isinstance(answer, Accepted) and answer.number in noted:
                noted[answer.number].request_id = answer.request_id
        self._note(claims, wanted)
        self._world.truth.committed(attempt)
        return claims

    def name_answer(self, number: int, correlation_id: str) -> None:
        """Let the ledger keep it."""
        self._ledger.name_answer(number, correlation_id)

    def close(self) -> None:
        """Close the ledger."""
        self._ledger.close()

    def _note(self, claims: Sequence[Claim], wanted: Sequence[Wanted]) -> None:
        wants = {want.number: want for want in wanted}
        for claim in claims:
            want = wants[claim.number]
            won = tuple(one for place, one in enumerate(want.fingerprints) if place not in claim.lost)
            if won:
                self._attempt.noted[claim.number] = Noted(won, want.batch_id)
