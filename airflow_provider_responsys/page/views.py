"""What the pages say: sentences, bars and curves, made of the values of a report."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from airflow_provider_responsys.report.from_airflow import Progress, TaskReport
from airflow_provider_responsys.report.model import Buckets, Point, PushReport, PushState

WIDTH = 1000.0
"""Units across a bar and a curve."""

LEAST = 6.0
"""Units of the narrowest part of a bar: one recipient of a million is still seen."""

HEIGHT = 160.0

DASH = "\N{EN DASH}"
"""Where there is no value."""

BUCKETS = (
    ("accepted", "Accepted", "Responsys has queued their requests"),
    ("in_flight", "No answer yet", "Their requests are on the way at this moment"),
    ("in_doubt", "In doubt", "No answer came: they may or may not have been pushed"),
    ("rejected", "Rejected", "Responsys refused their requests for good"),
    ("not_sent", "Not sent", "Certainly not pushed; another try sends to them"),
    ("withheld", "Withheld", "Held back before anything was sent"),
    ("duplicate", "Duplicate", "Further rows of recipients that are counted already"),
    ("invalid", "Invalid", "Rows that name no recipient"),
)
"""In the order of a bar: name, label, and what it means."""

TO_GO = ("to_go", "To go", "Not sent to yet")


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a bar: *x* and *width* in units of `WIDTH`."""

    name: str
    label: str
    meaning: str
    count: int
    x: float
    width: float


@dataclass(frozen=True, slots=True)
class Bar:
    """*total* recipients in parts that add up to them."""

    total: int
    parts: Sequence[Part]

    @property
    def text(self) -> str:
        """Return what the bar shows, for people who hear it."""
        said = ", ".join(f"{part.label.lower()} {number(part.count)}" for part in self.parts)
        return f"{number(self.total)} recipients: {said}" if self.parts else "No recipients yet"


@dataclass(frozen=True, slots=True)
class Curve:
    """Recipients accepted over time, as the paths of an SVG *width* by *height*."""

    line: str
    area: str
    began: datetime
    ended: datetime
    top: int
    requests: int
    text: str
    width: float = WIDTH
    height: float = HEIGHT


def bar(buckets: Buckets, progress: Progress | None = None) -> Bar:
    """Return the bar of *buckets*; with *progress*, of a push that runs, with those that it has not sent to yet."""
    counts = [(*bucket, getattr(buckets, bucket[0])) for bucket in BUCKETS]
    if progress:
        known = sum(count for *_, count in counts)
        counts.append((*TO_GO, max(0, progress.to_send + progress.accepted_earlier - known)))
    counts = [row for row in counts if row[3]]
    total = sum(count for *_, count in counts)
    widths = _widths([count for *_, count in counts])
    parts, x = [], 0.0
    for (name, label, meaning, count), width in zip(counts, widths, strict=True):
        parts.append(Part(name, label, meaning, count, round(x, 2), round(width, 2)))
        x += width
    return Bar(total, parts)


def sentence(report: PushReport, task: TaskReport | None = None) -> str:
    """Say in one sentence how far a push is, or how it ended."""
    buckets, state = report.summary.buckets, report.summary.state
    if task and task.dry_run:
        return f"Dry run: {_people(buckets.read or buckets.not_sent)} would be sent to, and nothing was sent."
    progress = task.progress if task else None
    if state is PushState.RUNNING:
        total = bar(buckets, progress).total if progress else 0
        of = f" of {number(total)}" if total else ""
        return _with_rest(f"Sending: {number(buckets.accepted)}{of} recipients accepted so far", _rest(buckets))
    total = buckets.read if buckets.read is not None else sum(_counts(buckets))
    if not total:
        return "No recipient was sent to."
    if buckets.accepted == total:
        return "The one recipient was accepted." if total == 1 else f"All {number(total)} recipients were accepted."
    return _with_rest(f"{number(buckets.accepted)} of {number(total)} recipients accepted", _rest(buckets))


def curve(points: Sequence[Point], began: datetime) -> Curve | None:
    """Return the curve through *points*, from when the push *began*; None of fewer than two moments."""
    if not points or points[-1].at <= began:
        return None
    ended, top = points[-1].at, points[-1].recipients
    seconds = (ended - began).total_seconds()

    def place(at: datetime, recipients: int) -> str:
        x = min(WIDTH, max(0.0, (at - began).total_seconds() / seconds * WIDTH))
        return f"{x:.1f},{HEIGHT - recipients / top * (HEIGHT - 4):.1f}"

    line = " L".join([place(began, 0), *(place(point.at, point.recipients) for point in points)])
    return Curve(
        line=f"M{line}",
        area=f"M{line} L{WIDTH:.1f},{HEIGHT} L0,{HEIGHT} Z",
        began=began,
        ended=ended,
        top=top,
        requests=points[-1].requests,
        text=(
            f"{_people(top)} in {number(points[-1].requests)} requests were accepted between "
            f"{moment(began)} and {moment(ended)}"
        ),
    )


def number(value: int | None) -> str:
    """Return a count as people read it."""
    return DASH if value is None else f"{value:,}"


def share(part: int, whole: int) -> str:
    """Return *part* of *whole* in per cent; never 0 % or 100 % of what is not none or all."""
    if not whole:
        return DASH
    percent = 100 * part / whole
    if 0 < part < whole:
        percent = min(99.9, max(0.1, percent))
    return f"{percent:.1f}".removesuffix(".0") + " %"


def moment(at: datetime | None) -> str:
    """Return a moment as people read it, in UTC."""
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S}" if at else DASH


def clock(at: datetime | None) -> str:
    """Return the time of day of a moment, in UTC."""
    return f"{at.astimezone(UTC):%H:%M:%S}" if at else DASH


def lasted(began: datetime | None, ended: datetime | None) -> str:
    """Return how long it took, None of both as a dash."""
    return duration(ended - began) if began and ended else DASH


def duration(length: timedelta) -> str:
    """Return a length of time in its two largest units."""
    seconds = max(0, round(length.total_seconds()))
    hours, minutes = divmod(seconds // 60, 60)
    if hours >= 24:  # noqa: PLR2004 -- of a day
        return f"{hours // 24} d {hours % 24} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {seconds % 60} s" if minutes else f"{seconds} s"


def _counts(buckets: Buckets) -> Iterable[int]:
    return (getattr(buckets, name) for name, _, _ in BUCKETS)


def _people(count: int) -> str:
    return f"{number(count)} recipient" if count == 1 else f"{number(count)} recipients"


def _rest(buckets: Buckets) -> list[str]:
    """Return what is to be said of those who are not accepted."""
    said = (
        (buckets.in_flight, "without an answer yet"),
        (buckets.in_doubt, "may or may not have been pushed"),
        (buckets.rejected, "rejected by Responsys"),
        (buckets.not_sent, "not sent"),
        (buckets.withheld, "withheld"),
        (buckets.duplicate, "duplicate" if buckets.duplicate == 1 else "duplicates"),
        (buckets.invalid, "invalid"),
    )
    return [f"{number(count)} {words}" for count, words in said if count]


def _with_rest(head: str, rest: Sequence[str]) -> str:
    return "; ".join([head, *rest]) + "."


def _widths(counts: Sequence[int]) -> list[float]:
    """Return how wide each part is: in proportion, none under `LEAST`, `WIDTH` together."""
    total = sum(counts)
    if not total:
        return []
    wide = [max(LEAST, count / total * WIDTH) for count in counts]
    over = sum(wide) - WIDTH
    spare = sum(width - LEAST for width in wide)
    return [width - over * (width - LEAST) / spare if spare else width for width in wide]
