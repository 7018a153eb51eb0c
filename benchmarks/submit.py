"""How near to the account's limit pushes get, alone and beside another program, over HTTP to sandboxes.

Alone: three limits, three latencies, and a minute that is counted by the clock or
by the last sixty seconds; two minutes of each count, after the first. Beside it
are a loop over a `requests.Session` at two of the latencies, and, at the end,
Airflow's HTTP operator mapped over batches in a whole Airflow.

Shared: while a send runs, the sandbox takes a part of the limit away, untold, in
the middle of a minute. What counts begins two minutes later.

Each cell has a sandbox and a sender, in processes of their own; several cells run
side by side. How much was accepted is what the sandbox says.

python -m benchmarks.submit [counted seconds] [seconds before them]
"""

import logging
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from itertools import product
from multiprocessing import get_context
from pathlib import Path

import requests

from airflow_provider_responsys.errors import NotAllSent
from airflow_provider_responsys.ledger.memory import MemoryLedger
from airflow_provider_responsys.protocol.push import MAX_RECIPIENTS
from benchmarks import naive
from benchmarks.ground import sandbox
from benchmarks.report import Report
from benchmarks.sender import Seen, fill, send

MINUTE = 60.0
LIMITS = (200, 400, 1_000)
LATENCIES = (0.1, 0.5, 1.0)
WINDOWS = ("fixed", "sliding")
LOOPED = (0.1, 0.5)
"""The latencies of the loops: at a second, one could reach sixty requests a minute."""
SHARED_LIMIT = 600
SHARED_PARTS = (1 / 3, 2 / 3)
SHARED_LATENCY = 0.5
SIDE_BY_SIDE = 16
"""Cells at once. The busiest sends 17 requests a second."""
MAPPED_FOR = 120.0  # seconds
GOAL, SHARED_GOAL = 0.98, 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """What one sandbox does: counts *limit* requests a minute, and answers after *latency* seconds.

    The sender has *before* seconds until its *seconds* count. Of a shared limit,
    *taken* are taken away a minute and a half after the send began, and all that
    is awaited before it counts is that two minutes pass and a minute begins.
    """

    limit: int
    latency: float
    window: str
    seconds: float
    before: float
    taken: int = 0
    looped: bool = False

    @property
    def length(self) -> float:
        """Return how long its send takes."""
        return self.before + self.seconds + (MINUTE if self.taken else 0.0) + 1.0

    @property
    def name(self) -> str:
        """Return what it is called in the report."""
        left = f", {self.taken} taken" if self.taken else ""
        return f"{self.limit:,} a minute{left}, {self.latency * 1e3:,.0f} ms, {self.window}"

    @property
    def options(self) -> tuple[str, ...]:
        """Return the sandbox's options."""
        limits = ("--push-limit", str(self.limit), "--window", self.window)
        return ("--latency", str(self.latency), *limits, "--log-length", "100000")


@dataclass(frozen=True, slots=True)
class Found:
    """What came of a cell: which *share* of what it could have was accepted, and what went wrong."""

    share: float
    refused: int
    refused_later: int
    """Refused in the time that counts."""
    duplicates: int
    fatal: int
    """Recipients that were rejected or are in doubt."""


def main(seconds: float = 120.0, before: float = MINUTE, side_by_side: int = SIDE_BY_SIDE, batches: int = 300) -> None:
    """Measure all cells, *seconds* of each, and write two reports; map the HTTP operator over so many *batches*."""
    alone = [
        Cell(limit=limit, latency=latency, window=window, seconds=seconds, before=before)
        for limit, latency, window in product(LIMITS, LATENCIES, WINDOWS)
    ]
    loops = [
        Cell(limit=limit, latency=latency, window="fixed", seconds=seconds, before=before, looped=True)
        for limit, latency in product(LIMITS, LOOPED)
    ]
    shared = [
        Cell(
            limit=SHARED_LIMIT,
            latency=SHARED_LATENCY,
            window=window,
            seconds=max(MINUTE, seconds // MINUTE * MINUTE),
            before=1.5 * before + 2 * MINUTE,
            taken=round(SHARED_LIMIT * part),
        )
        for part, window in product(SHARED_PARTS, WINDOWS)
    ]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cells = sorted([*alone, *loops, *shared], key=lambda cell: -cell.length)
        sources = tables(folder, cells)
        began = time.monotonic()
        found = dict(side(side_by_side, measured, [(cell, sources[cell.limit]) for cell in cells]))
        print(f"{len(cells)} cells, {side_by_side} at once, took {time.monotonic() - began:.0f} s", flush=True)
        report_alone(alone, loops, found, folder, batches)
    report_shared(shared, found)


def tables(folder: Path, cells: Iterable[Cell]) -> Mapping[int, Path]:
    """Make, for each limit, a table of as many recipients as its longest cell can send to; return where they are."""
    longest: dict[int, float] = {}
    for cell in cells:
        longest[cell.limit] = max(longest.get(cell.limit, 0.0), cell.length)
    for limit, length in longest.items():
        fill(folder / f"{limit}.db", (int(limit * length / MINUTE) + 10) * MAX_RECIPIENTS)
    return {limit: folder / f"{limit}.db" for limit in longest}


def side(
    by_side: int, measure: Callable[[Cell, Path], Found], cells: Iterable[tuple[Cell, Path]]
) -> Iterable[tuple[Cell, Found]]:
    """Measure *cells*, so many at once, each in a process of its own."""
    with ProcessPoolExecutor(by_side, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        running: dict[Future[Found], Cell] = {pool.submit(measure, cell, source): cell for cell, source in cells}
        for done in as_completed(running):
            yield running[done], done.result()


def measured(cell: Cell, source: Path) -> Found:
    """Run one cell."""
    logging.disable(logging.WARNING)  # each refusal is one
    with sandbox(*cell.options) as url:
        counts_from: list[float] = []
        if cell.taken:
            threading.Thread(target=take, args=(url, cell, counts_from), daemon=True).start()
        fatal = 0
        if cell.looped:
            naive.loop(url, cell.length)
        else:
            fatal = sent(url, source, cell)
        saw = Seen.at(url)
    start = counts_from[0] if counts_from else min(saw.times) + cell.before
    seen = sum(start <= at < start + cell.seconds for at in saw.times)
    refused = saw.refusals.get("API_LIMIT_EXCEEDED", 0)
    # Without a part taken away nothing should be refused: if something is, it is not counted as accepted.
    accepted = saw.accepted(start, start + cell.seconds) if cell.taken else seen - refused
    could = (cell.limit - cell.taken) * cell.seconds / MINUTE
    return Found(accepted / could, refused, seen - accepted, saw.duplicates, fatal)


def sent(url: str, source: Path, cell: Cell) -> int:
    """Send for as long as *cell* says; return how many recipients were rejected or are in doubt."""
    report = send(url, source, MemoryLedger(try_number=1), cell.limit, seconds=cell.length)
    in_time = isinstance(report.stopped, NotAllSent)
    if not in_time:
        raise RuntimeError(f"{cell.name}: the send ended too early: {report.stopped or 'nobody was left'}")
    return report.rejected.total() + report.in_doubt


def take(url: str, cell: Cell, counts_from: list[float]) -> None:
    """Let another program use a part of the limit while *cell* sends; say from which minute on the rest counts."""
    while not requests.get(f"{url}/sandbox/report", timeout=60).json()["requests"].get("push"):
        time.sleep(0.5)
    time.sleep(cell.before - 2 * MINUTE)
    requests.post(f"{url}/sandbox/settings", json={"push_taken": cell.taken}, timeout=60).raise_for_status()
    counts_from.append(-(-(time.time() + 2 * MINUTE) // MINUTE) * MINUTE)


def report_alone(
    alone: Sequence[Cell], loops: Sequence[Cell], found: Mapping[Cell, Found], folder: Path, batches: int
) -> None:
    """Report what a sender alone reached, beside the loops and the mapped operator."""
    report = Report(
        "submit",
        "Pushes at the account's limit",
        {"recipients a request": MAX_RECIPIENTS, "seconds counted": alone[0].seconds},
        baseline="a loop over a requests.Session, at the same limit and latency",
    )
    looped = {(cell.limit, cell.latency): found[cell].share for cell in loops}
    for cell in alone:
        share = found[cell].share
        report.add(cell.name, share, "of the limit", baseline=looped.get((cell.limit, cell.latency)), at_least=GOAL)
    refused = [found[cell].refused for cell in alone]
    report.add("refused, in all these cells", sum(refused), "requests", at_most=0)
    report.add("recipients pushed twice", sum(found[cell].duplicates for cell in alone), "", at_most=0)
    report.add("refused, in all loops", sum(found[cell].refused for cell in loops), "requests")
    if batches:
        with sandbox("--latency", str(SHARED_LATENCY), "--push-limit", str(LIMITS[0])) as url:
            saw, state = naive.mapped(folder, url, batches, seconds=MAPPED_FOR)
        what = f"HTTP operator mapped over {batches} batches, limit {LIMITS[0]}, 500 ms"
        report.add(what, saw.per_minute, "a minute")
        report.add("refused of it (the run: " + state + ")", sum(saw.refusals.values()), "requests")
    report.write()


def report_shared(shared: Sequence[Cell], found: Mapping[Cell, Found]) -> None:
    """Report what was made of the part that another program left."""
    report = Report("shared_limit", "A limit that another program shares, untold", {"latency": f"{SHARED_LATENCY} s"})
    for cell in shared:
        report.add(cell.name, found[cell].share, "of the rest", at_least=SHARED_GOAL)
        report.add("    refused, and sent again later", found[cell].refused, "requests")
        report.add("    of them in the time that counts", found[cell].refused_later, "requests")
    report.add("recipients rejected or in doubt", sum(found[cell].fatal for cell in shared), "", at_most=0)
    report.add("recipients pushed twice", sum(found[cell].duplicates for cell in shared), "", at_most=0)
    report.write()


if __name__ == "__main__":
    main(*map(float, sys.argv[1:]))
