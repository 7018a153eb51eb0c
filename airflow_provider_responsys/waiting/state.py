"""How far a wait is: one state for the sensor, its trigger, and every look of a rescheduled task."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Self

from airflow_provider_responsys.errors import InvalidAnswer, LedgerFailed
from airflow_provider_responsys.protocol.polling import ROWS_DIFFER, Outcome
from airflow_provider_responsys.protocol.results import Results
from airflow_provider_responsys.waiting.records import RequestRecords

DIFFERENT = (
    "which result is whose can't be told. Responsys does not say whether a recipient with several devices gets several "
    "results"
)


@dataclass(slots=True)
class WaitState:
    """The counts so far, and which requests are *open*.

    *sizes* is how many recipients a request has, *accepted_at* since when Responsys
    has it, both where that is known. *recipients* is how many all requests have
    together, by the ledger, and *accepted* by the push's output.
    """

    results: Results = field(default_factory=Results)
    open: dict[str, None] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)
    accepted_at: Mapping[str, datetime] = field(default_factory=dict)
    recipients: int | None = None
    accepted: int | None = None
    polls: Counter[str] = field(default_factory=Counter)
    """How often this process polled each request."""
    asked: Sequence[str] = ()
    """All requests, open or not, where they are known."""

    @classmethod
    def on(cls, ids: Iterable[str], *, sizes: Mapping[str, int] | None = None, accepted: int | None = None) -> Self:
        """Return the state of a wait for *ids* that has just begun."""
        waiting = dict.fromkeys(ids)
        return cls(Results(total=len(waiting)), waiting, sizes or {}, accepted=accepted, asked=tuple(waiting))

    def resume(self, ids: Sequence[str], sizes: Sequence[int] | None = None) -> None:
        """Go on from the counts so far, with *ids* open, of *sizes* recipients where that is known."""
        self.open = dict.fromkeys(ids)
        self.sizes = {request_id: size for request_id, size in zip(ids, sizes or (), strict=False) if size}
        if not self.results.total:
            self.results.total = len(self.open)
        if self.results.pending != len(self.open):
            raise InvalidAnswer(
                f"the trigger was given {len(self.open)} requests, and {self.results.pending} to wait for"
            )

    def go_on(self, ids: Iterable[str], results: Results) -> None:
        """Go on where an earlier look had counted *results* and left *ids* open."""
        self.open, self.results = dict.fromkeys(ids), results

    def start(self, ids: Sequence[str], total: int) -> None:
        """Begin anew, with *ids*, which the ledger says are the *total* requests to wait for."""
        if len(ids) != total:
            raise LedgerFailed(
                f"the ledger has {len(ids)} of the {total} requests to wait for: it is another "
                "database than the sensor's, or was pruned, or the push ran again. Clear the sensor"
            )
        self.results, self.open = Results(total=total), dict.fromkeys(ids)

    def learn(self, records: RequestRecords) -> None:
        """Take in what the ledger knows: sizes, times, and the outcomes that are recorded there."""
        self.sizes = {**self.sizes, **records.sizes}
        self.accepted_at = records.accepted_at
        self.asked = self.asked or tuple(self.open)
        # A trigger that was given what is open does not know what the others were for.
        if len(self.asked) == self.results.total and all(map(records.knows, self.asked)):
            self.recipients = sum(records.sizes[request_id] for request_id in self.asked)
        found = Results()
        for request_id in list(self.open):
            if outcome := records.outcome_of(request_id):
                found.add(outcome, self.sizes.get(request_id))
                del self.open[request_id]
        self.results.include(found)

    def count(self, outcomes: Mapping[str, Outcome]) -> Results:
        """Count those of *outcomes* that are of open requests and final, once; return what they add."""
        found = Results()
        for request_id, outcome in outcomes.items():
            if request_id in self.open and found.add(outcome, self.sizes.get(request_id)):
                del self.open[request_id]
        self.results.include(found)
        return found

    @property
    def known(self) -> int:
        """Return of how many recipients the outcome is known."""
        return self.results.recipients_succeeded + self.results.recipients_failed

    @property
    def expected(self) -> int | None:
        """Return how many results there must be, None where that is not known."""
        if self.asked and all(self.sizes.get(request_id) for request_id in self.asked):
            return sum(self.sizes[request_id] for request_id in self.asked)
        return self.accepted

    def mismatch(self) -> list[str]:
        """Return what is wrong with the number of results, where the requests alone do not show it.

        A batch that a person resolved by hand has no request, and no results.
        """
        results = self.results
        if results.finished < results.total or results.request_errors[ROWS_DIFFER] or self.expected is None:
            return []
        if self.known == self.expected:
            return []
        return [f"{self.known} results for {self.expected} recipients ({ROWS_DIFFER}): {DIFFERENT}"]

    def summary(self) -> dict[str, Any]:
        """Return what the sensor returns. Unknown recipients are counted where their number is known, or null."""
        summary: dict[str, Any] = self.results.summary()
        unknown = None
        if self.accepted is not None and self.accepted >= self.known:
            unknown = self.accepted - self.known
        elif self.recipients is not None:
            unknown = self.recipients - self.known
        elif self.results.finished == self.results.total:
            unknown = self.results.recipients_unknown
        summary["recipients"]["unknown"] = unknown
        return summary
