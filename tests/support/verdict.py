"""What is said of a run, and the table of all of them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

BATCH = 200  # recipients a request
CERTAINLY_NOT = frozenset({"SERVICE_UNAVAILABLE", "UNABLE_TO_SUBMIT_ASYNC_REQUEST", "API_LIMIT_EXCEEDED"})
"""Faults of a push after which nobody is in doubt."""

POLL_ONLY = frozenset({"endless", "purged", "expired", "unknown_status", "row_missing", "row_too_many"})

DOUBT_SHARE = 0.15
"""The share of a send's recipients that may be in doubt when it stops, where the operator is told nothing:
1,200 of 8,000."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of the recipients of one run.

    *duplicates* were pushed more than once. *forgotten* are in no bucket, or in
    one that is not true: pushed and called not sent, or called accepted and never
    pushed. At most *bound* may be *in_doubt*: (lost answers + kills) x requests in
    flight x recipients a request, and no more than the budget where there is one.
    *problem* is what else must not be.
    """

    duplicates: int = 0
    forgotten: int = 0
    in_doubt: int = 0
    bound: int = 0
    problem: str = ""

    @property
    def holds(self) -> bool:
        """Return whether everything that was promised held."""
        return not (self.duplicates or self.forgotten or self.problem) and self.in_doubt <= self.bound


def lost_answers(faults: Mapping[str, int]) -> int:
    """Return how many answers to pushes were lost, of the *faults* that happened."""
    return sum(times for kind, times in faults.items() if kind not in CERTAINLY_NOT | POLL_ONLY)


def doubt_budget(people: int, in_flight: int, *, silent: bool) -> int:
    """Return how many of *people* may be in doubt when a send has stopped for too many doubts.

    In a small send that is one window, which is what may be in flight at once, and
    another one that is in flight when the first is lost. Losses that are *silent*,
    noticed only when an answer is late, may add what is in flight in any send.
    """
    window = in_flight * BATCH
    whole_batches = -(-people // BATCH) * BATCH
    return max(int(whole_batches * DOUBT_SHARE), 2 * window) + (window if silent else 0)


def judge_push(
    people: int,
    times_pushed: Sequence[int],
    report: Mapping[str, int] | None,
    *,
    bound: int,
    expired: int = 0,
    may_stop: bool = False,
) -> Verdict:
    """Compare the operator's *report* with what the sandbox counted.

    Of *expired* requests that it accepted, the sandbox pushed nobody. A send that
    *may_stop* may leave recipients not sent.
    """
    pushed = len(times_pushed)
    duplicates = sum(times > 1 for times in times_pushed)
    if report is None:
        return Verdict(duplicates, forgotten=people if pushed else 0, bound=bound)
    accounted = sum(report.values()) - report["read"]
    forgotten = abs(people - accounted) + abs(people - report["read"]) + untrue(pushed, report, expired)
    left = report["not_sent"] and not may_stop
    return Verdict(
        duplicates,
        forgotten=forgotten,
        in_doubt=report["in_doubt"],
        bound=bound,
        problem=f"{report['not_sent']} not sent" if left else "",
    )


def judge_closed(times_pushed: Sequence[int], report: Mapping[str, int] | None) -> Verdict:
    """Say what is wrong where a send was closed, since its record is gone, or is behind.

    Of those whom the record does not name any more, the report can't know.
    """
    pushed = len(times_pushed)
    duplicates = sum(times > 1 for times in times_pushed)
    return Verdict(duplicates, problem=report_problem(pushed, report, closed=True))


def report_problem(pushed: int, report: Mapping[str, int] | None, *, closed: bool = False, expired: int = 0) -> str:
    """Return what is wrong with the *report* that a try left when so many recipients were *pushed*, if anything."""
    if report is None:
        return f"no report, and {pushed} pushed" if pushed else ""
    accounted = sum(report.values()) - report["read"]
    if accounted != report["read"]:
        return f"{accounted} of {report['read']} in the report's buckets"
    wrong = max(0, report["accepted"] - pushed) if closed else untrue(pushed, report, expired)
    return f"the report is wrong about {wrong} of {pushed} pushed" if wrong else ""


def untrue(pushed: int, report: Mapping[str, int], expired: int = 0) -> int:
    """Return of how many recipients the *report* says what is not so."""
    unknown = max(0, pushed - report["accepted"] - report["in_doubt"] - report["duplicate"])
    return unknown + max(0, report["accepted"] - pushed - expired * BATCH)


def judge_naive(people: int, times_pushed: Sequence[int]) -> Verdict:
    """Say what the sandbox counted of an operator that reports nothing."""
    return Verdict(sum(times > 1 for times in times_pushed), forgotten=people - len(times_pushed))


def judge_wait(
    requests: Sequence[str] | None, accepted: int, told: Mapping[str, Any] | None, *, too_many: int = 0
) -> str:
    """Return what is wrong with what the sensor *told* of *requests*, if anything.

    Responsys' results had *too_many* rows, which can't be seen where the size of each request is not known.
    """
    if told is None or requests is None:
        return "the sensor left no counts"
    counted = dict(told["requests"])
    total = counted.pop("total")
    if total != len(requests) or sum(counted.values()) != total:
        return f"the sensor counts {told['requests']} of {len(requests)} requests"
    known = [number for number in told["recipients"].values() if number is not None]
    least = accepted if len(known) == 3 and not counted["pending"] else 0
    if not least <= sum(known) <= accepted + too_many:
        return f"the sensor counts {told['recipients']} of {accepted} recipients"
    return ""


@dataclass(slots=True)
class Line:
    """The sums of the runs of one group on one store."""

    runs: int = 0
    duplicates: int = 0
    forgotten: int = 0
    in_doubt: int = 0
    bound: int = 0
    broken: int = 0
    naive: bool = False

    def add(self, verdict: Verdict) -> None:
        """Take in one run."""
        self.runs += 1
        self.duplicates += verdict.duplicates
        self.forgotten += verdict.forgotten
        self.in_doubt += verdict.in_doubt
        self.bound += verdict.bound
        self.broken += not verdict.holds


def table(lines: Iterable[tuple[str, str, Line]]) -> str:
    """Return the table: a line for each group and store."""
    heads = ("group", "store", "runs", "duplicates", "forgotten", "in doubt", "bound", "runs that failed")
    rows = [heads]
    for group, store, line in lines:
        unknown = "-" if line.naive else ""
        rows.append(
            (
                group,
                store,
                f"{line.runs:,}",
                f"{line.duplicates:,}",
                f"{line.forgotten:,}",
                unknown or f"{line.in_doubt:,}",
                unknown or f"{line.bound:,}",
                f"{line.broken:,}",
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(heads))]
    left = 2  # columns of text; the others are numbers
    texts = [
        "  ".join(
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return "\n".join([texts[0], "-" * len(texts[0]), *texts[1:]])
