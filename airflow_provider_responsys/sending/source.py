"""The spool as the ledger sees it: fingerprints alone."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from airflow_provider_responsys.recipients.spool import Spool


@dataclass(frozen=True, slots=True)
class Spooled:
    """All recipients in *spool*, in batches as large as requests may be."""

    spool: Spool
    max_recipients: int
    max_bytes: int

    def fingerprints(self) -> Iterator[Sequence[bytes]]:
        """Yield the fingerprints of all of them that are not left out."""
        for batch in self.spool.batches(max_recipients=self.max_recipients, max_bytes=self.max_bytes):
            yield batch.fingerprints

    def strangers(self, known: Iterable[Sequence[bytes]]) -> int:
        """Return how many of them are not among those *known*."""
        return self.spool.strangers(known)
