"""Marks beside a ledger: what tells a record that was lost from one that never was."""

from collections.abc import Callable, Iterable, Mapping, Sequence

from airflow_provider_responsys.ledger.interface import Claim, Earlier, Ledger, Settlement, Source, Wanted
from airflow_provider_responsys.ledger.tries import CLAIMED, began


class MarkedLedger:
    """A *ledger* whose try leaves a mark outside of it: that it began, and, before its first claim, that it may claim.

    *push* writes a mark durably where the next try will be told of it. *try_number*
    is this try's, and *may_have_claimed* what the marks of earlier tries say.
    """

    def __init__(
        self, ledger: Ledger, *, push: Callable[[str], object], try_number: int, may_have_claimed: bool
    ) -> None:
        self._ledger = ledger
        self._push = push
        self._try_number = try_number
        self._may_have_claimed = may_have_claimed
        self._marked: str | None = None
        self.durable = ledger.durable
        self.looks_ahead = ledger.looks_ahead
        self.resumes = False

    def begin(self, identity: Mapping[str, str]) -> bytes:
        """Push again what the marks said, then let the ledger begin."""
        # First of all: Airflow has deleted the marks of the earlier tries.
        self._mark(CLAIMED if self._may_have_claimed else began(self._try_number))
        key = self._ledger.begin(identity)
        self.resumes = self._ledger.resumes
        if self.resumes:
            self._mark(CLAIMED)
        return key

    def compare(self, source: Source) -> None:
        """Let the ledger compare."""
        self._ledger.compare(source)

    def earlier(self) -> Iterable[Earlier]:
        """Yield what the ledger yields."""
        return self._ledger.earlier()

    def commit(
        self, settled: Sequence[Settlement], wanted: Sequence[Wanted], upcoming: Sequence[Sequence[bytes]] = ()
    ) -> list[Claim]:
        """Mark the try before its first claim, then let the ledger commit."""
        if wanted:
            self._mark(CLAIMED)
        return self._ledger.commit(settled, wanted, upcoming)

    def name_answer(self, number: int, correlation_id: str) -> None:
        """Let the ledger keep it."""
        self._ledger.name_answer(number, correlation_id)

    def close(self) -> None:
        """Close the ledger."""
        self._ledger.close()

    def _mark(self, mark: str) -> None:
        if self._marked not in (mark, CLAIMED):
            self._push(mark)
            self._marked = mark
