"""The outcomes of many requests, in numbers that may cross a process: no recipient is in them."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from airflow_provider_responsys.errors import InvalidAnswer
from airflow_provider_responsys.protocol.codes import CODES
from airflow_provider_responsys.protocol.naming import ROW_CODES, UNNAMED, is_code, with_room
from airflow_provider_responsys.protocol.polling import (
    ABOUT_THE_REQUEST,
    ROWS_DIFFER,
    Finished,
    Gone,
    Outcome,
    Processing,
    Unclear,
)

KNOWN = frozenset({*CODES, *ROW_CODES, *ABOUT_THE_REQUEST, ROWS_DIFFER, UNNAMED})
"""Codes that are always counted by their name; of others there may be `MAX_CODES`."""

REQUESTS = ("total", "finished", "failed", "unknown", "pending")
RECIPIENTS = ("succeeded", "failed", "unknown")


@dataclass(slots=True)
class Results:
    """The sum over *total* requests.

    A request is *finished* with results, *failed* without, *unknown* when its
    results are gone, and pending until then. *errors* counts recipients by code,
    *request_errors* requests.
    """

    total: int = 0
    finished: int = 0
    failed: int = 0
    unknown: int = 0
    recipients_succeeded: int = 0
    recipients_failed: int = 0
    recipients_unknown: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    request_errors: Counter[str] = field(default_factory=Counter)

    @property
    def pending(self) -> int:
        """Return how many requests have not ended, as far as is known."""
        return self.total - self.finished - self.failed - self.unknown

    def add(self, outcome: Outcome, recipients: int | None = None) -> bool:
        """Add the *outcome* of one request, of *recipients* if known; return whether it has ended."""
        if isinstance(outcome, Processing | Unclear):
            return False
        if isinstance(outcome, Finished):
            self.finished += 1
            self._add_rows(outcome, recipients)
            return True
        if isinstance(outcome, Gone):
            self.unknown += 1
        else:
            self.failed += 1
        _count(self.request_errors, outcome.code)
        self.recipients_unknown += recipients or 0
        return True

    def include(self, other: Self) -> None:
        """Add the counts of *other*, whose requests are among these."""
        self.finished += other.finished
        self.failed += other.failed
        self.unknown += other.unknown
        self.recipients_succeeded += other.recipients_succeeded
        self.recipients_failed += other.recipients_failed
        self.recipients_unknown += other.recipients_unknown
        for code, number in other.errors.items():
            _count(self.errors, code, number)
        for code, number in other.request_errors.items():
            _count(self.request_errors, code, number)

    def summary(self) -> dict[str, dict[str, int]]:
        """Return what a person reads, in the shape that the sensor returns."""
        return {
            "requests": {name: getattr(self, name) for name in REQUESTS},
            "recipients": {name: getattr(self, f"recipients_{name}") for name in RECIPIENTS},
            "errors": dict(sorted(self.errors.items())),
        }

    def to_event(self) -> dict[str, Any]:
        """Return everything, as JSON takes it."""
        return {**self.summary(), "request_errors": dict(sorted(self.request_errors.items()))}

    @classmethod
    def from_event(cls, event: object) -> Self:
        """Return what `to_event` was given, or raise `InvalidAnswer` if *event* can't be that."""
        if not isinstance(event, dict):
            raise InvalidAnswer("an event holds no results")
        requests = _counts(event, "requests", REQUESTS)
        recipients = _counts(event, "recipients", RECIPIENTS)
        results = cls(
            total=requests["total"],
            finished=requests["finished"],
            failed=requests["failed"],
            unknown=requests["unknown"],
            recipients_succeeded=recipients["succeeded"],
            recipients_failed=recipients["failed"],
            recipients_unknown=recipients["unknown"],
            errors=Counter(_counts(event, "errors")),
            request_errors=Counter(_counts(event, "request_errors")),
        )
        if results.pending != requests["pending"] or results.pending < 0:
            raise InvalidAnswer("an event's numbers of requests do not add up")
        if results.errors.total() != results.recipients_failed:
            raise InvalidAnswer("an event's numbers of recipients do not add up")
        return results

    def _add_rows(self, outcome: Finished, recipients: int | None) -> None:
        if recipients is not None and recipients != outcome.rows:
            # Rows have no name but their position: with one too many, none can be matched.
            self.request_errors[ROWS_DIFFER] += 1
            self.recipients_unknown += recipients
            return
        self.recipients_failed += outcome.failures
        self.recipients_succeeded += outcome.rows - outcome.failures
        for code, positions in outcome.failed.items():
            _count(self.errors, code, len(positions))


def _count(counter: Counter[str], code: str, number: int = 1) -> None:
    """Add *number* to *code* in *counter*, or to the unnamed ones where it has too many codes already."""
    counter[with_room(code, counter, KNOWN)] += number


def _counts(event: Mapping[str, Any], member: str, names: tuple[str, ...] | None = None) -> dict[str, int]:
    """Return the numbers in *member* of *event*: of exactly *names*, or by code."""
    counts = event.get(member)
    if not isinstance(counts, dict) or (names and set(counts) != set(names)):
        raise InvalidAnswer(f"an event's {member} are not as expected")
    for name, count in counts.items():
        if type(count) is not int or count < 0 or not (names or (isinstance(name, str) and is_code(name))):
            raise InvalidAnswer(f"an event's {member} are not numbers")
    return counts
