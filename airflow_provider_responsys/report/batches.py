"""The batches of a push, as people read them."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from airflow_provider_responsys.ledger.sql_reading import resolution_of, state_of
from airflow_provider_responsys.ledger.sql_values import COUNT, State
from airflow_provider_responsys.protocol.meanings import meaning_of
from airflow_provider_responsys.protocol.polling import KEPT
from airflow_provider_responsys.report.model import BatchReport, CodeCount, Outcomes, Point
from airflow_provider_responsys.report.pushes import Row, is_awaited, task_of

POINTS = 100
"""Of a curve: more can't be told apart on a page."""

SUCCEEDED, FAILED, UNKNOWN = "succeeded", "failed", "unknown"
"""What Responsys said of one recipient."""


class PositionOutcome(NamedTuple):
    """What Responsys said of the recipient at *position*, from 0, of a request; *code* says why it failed."""

    request_id: str
    position: int
    outcome: str
    code: str | None


def batch_report(row: Row, now: datetime) -> BatchReport:
    """Return what is known of the batch in *row*, one of `batch_rows`."""
    state, task = state_of(row), task_of(row.task_instance)
    awaited = state is State.IN_DOUBT and is_awaited(row, row.claimed_at, now)
    return BatchReport(
        batch_id=row.id,
        send_key=row.send_key,
        task_instance=row.task_instance,
        map_index=-1 if task.map_index is None else task.map_index,
        try_number=row.try_number,
        number=row.number,
        size=row.size,
        state=str(state),
        claimed_at=row.claimed_at,
        settled_at=row.settled_at,
        request_id=row.request_id,
        correlation_id=row.correlation_id,
        polls=row.polls,
        outcome_at=row.outcome_at,
        kept_until=row.settled_at + KEPT if row.request_id and row.settled_at else None,
        succeeded=row.succeeded if row.outcome_at and not row.request_error else None,
        failed=json.loads(row.failed or "{}"),
        request_error=row.request_error,
        resolved=_resolved(row),
        awaited=awaited,
        settle_command=settle_command(row.id) if state is State.IN_DOUBT and not awaited else None,
    )


def settle_command(batch_id: int) -> str:
    """Return what a person types to resolve a batch in doubt."""
    return f"airflow responsys settle {batch_id} --sent  # or --not-sent"


def at(moment: datetime) -> str:
    """Return *moment* as people read it."""
    return moment.astimezone(UTC).isoformat(timespec="seconds")


def outcomes(rows: Iterable[Row]) -> Outcomes:
    """Add up what Responsys said of the recipients in the batches *rows*, as far as those were accepted."""
    succeeded = unknown = 0
    codes: Counter[str] = Counter()
    failed = 0
    for row in rows:
        state = state_of(row)
        if state is State.FINISHED:
            succeeded += row.succeeded
            for code, positions in json.loads(row.failed or "{}").items():
                codes[code] += len(positions)
                failed += len(positions)
        elif state in COUNT and state is not State.IN_DOUBT:
            unknown += row.size
            if row.request_error:
                codes[row.request_error] += row.size
    return Outcomes(
        succeeded=succeeded,
        failed=failed,
        unknown=unknown,
        by_code=[_code_count(code, number) for code, number in codes.most_common()],
    )


def accepted_over_time(rows: Iterable[Row]) -> list[Point]:
    """Return how many requests and recipients were accepted until when, in `POINTS` points; the last has all."""
    accepted = sorted((row.settled_at, row.size) for row in rows if row.requests and state_of(row) in COUNT)
    points: list[Point] = []
    recipients = 0
    for number, (moment, size) in enumerate(accepted, start=1):
        recipients += size
        if number * POINTS // len(accepted) > (number - 1) * POINTS // len(accepted):
            points.append(Point(at=moment, requests=number, recipients=recipients))
    return points


def positions(row: Row) -> Iterator[PositionOutcome]:
    """Yield what Responsys said of each recipient of the request in *row*."""
    if state_of(row) is not State.FINISHED:
        for place in range(row.size):
            yield PositionOutcome(row.request_id, place, UNKNOWN, row.request_error)
        return
    codes = {place: code for code, places in json.loads(row.failed or "{}").items() for place in places}
    for place in range(row.size):
        code = codes.get(place)
        yield PositionOutcome(row.request_id, place, FAILED if code else SUCCEEDED, code)


def in_doubt_first(rows: Iterable[Row], tries: Sequence[Row]) -> list[int]:
    """Return the ids of the batches *rows* in the order of a page: those in doubt, then the oldest of *tries*."""
    places = {of_try.id: place for place, of_try in enumerate(tries)}

    def place(row: Row) -> tuple[bool, int, int]:
        return state_of(row) is not State.IN_DOUBT, places[row.try_id], row.number

    return [row.id for row in sorted(rows, key=place)]


def _resolved(row: Row) -> str | None:
    """Return who resolved the doubt in *row* as what, when and why."""
    found = resolution_of(row)
    return f"as {found.resolved_as} by {found.by}, {at(found.at)}: {found.reason}" if found else None


def _code_count(code: str, number: int) -> CodeCount:
    meaning = meaning_of(code)
    return CodeCount(code=code, count=number, meaning=meaning.text, normal=meaning.normal)
