"""What a benchmark found: printed while it runs, and kept as a JSON and a picture.

A line is a figure beside its baseline of the same run and beside its goal. The
picture scales every line to its goal, so that lines of different units share
an axis: what should be large reaches past the goal, what should be small stays
short of it.
"""

import json
import os
import platform
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from xml.sax.saxutils import escape

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("apache-airflow", "requests", "aiohttp", "sqlalchemy", "psycopg")

WIDTH, LABEL, ROW, TOP = 900, 380, 24, 58
AXIS = WIDTH - LABEL - 200
"""Pixels of the axis; the figures stand to the right of it."""
REACH = 2.0
"""How many times its goal a bar can show; a longer one is cut off with an arrow."""
SMALL, LARGE = 10, 1000
"""Below and above these, a figure is printed with three decimals and with none."""
GOOD, BAD, OTHER = "#2f855a", "#c53030", "#a0aec0"


@dataclass(frozen=True, slots=True)
class Line:
    """One figure: *baseline* is the same figure of what it is compared with, in the same run."""

    what: str
    value: float
    unit: str
    baseline: float | None = None
    at_least: float | None = None
    at_most: float | None = None

    @property
    def goal(self) -> float | None:
        """Return what the value should reach, or stay below."""
        return self.at_most if self.at_least is None else self.at_least

    @property
    def met(self) -> bool | None:
        """Tell whether the goal is met; None without a goal."""
        if self.at_least is not None:
            return self.value >= self.at_least
        return None if self.at_most is None else self.value <= self.at_most

    @property
    def ratio(self) -> float | None:
        """Return the value as a multiple of its baseline."""
        return self.value / self.baseline if self.baseline else None

    def __str__(self) -> str:
        text = f"{self.what:<52}{number(self.value):>12} {self.unit:<14}"
        text += f"{self.ratio:>8.2f} x {number(self.baseline):<10}" if self.ratio and self.baseline else " " * 21
        if self.goal is None:
            return text.rstrip()
        bound = "at least" if self.at_least is not None else "at most"
        return f"{text} goal: {bound} {number(self.goal)}{'' if self.met else ', MISSED'}"


@dataclass(slots=True)
class Report:
    """The lines of one benchmark. *baseline* says what the lines are compared with."""

    name: str
    title: str
    settings: Mapping[str, object]
    baseline: str = ""
    lines: list[Line] = field(default_factory=list)
    when: datetime = field(default_factory=lambda: datetime.now(UTC))

    def __post_init__(self) -> None:
        print(f"\n{self.title}")
        print(", ".join(f"{name} {value}" for name, value in {**self.settings, **machine()}.items()))
        if self.baseline:
            print(f"compared with {self.baseline}")

    def add(
        self,
        what: str,
        value: float,
        unit: str,
        *,
        baseline: float | None = None,
        at_least: float | None = None,
        at_most: float | None = None,
    ) -> Line:
        """Add a line, and print it."""
        line = Line(what, value, unit, baseline, at_least, at_most)
        self.lines.append(line)
        print(line, flush=True)
        return line

    def write(self, folder: Path = RESULTS) -> None:
        """Write ``<name>.json`` and ``<name>.svg`` to *folder*."""
        folder.mkdir(exist_ok=True)
        found = {
            "title": self.title,
            "when": self.when.isoformat(timespec="seconds"),
            "machine": machine(),
            "settings": dict(self.settings),
            "baseline": self.baseline,
            "lines": [{**asdict(line), "ratio": line.ratio, "met": line.met} for line in self.lines],
        }
        text = json.dumps(found, indent=2, default=str)
        (folder / f"{self.name}.json").write_text(f"{text}\n", encoding="utf-8")
        (folder / f"{self.name}.svg").write_text("\n".join(self._picture()) + "\n", encoding="utf-8")

    def _picture(self) -> Iterator[str]:
        height = TOP + ROW * len(self.lines) + 14
        goal = LABEL + AXIS / REACH
        yield (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" '
            f'viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="12">'
        )
        yield f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>'
        yield f'<text x="10" y="22" font-size="15" font-weight="bold">{escape(self.title)}</text>'
        compared = f"; grey: {self.baseline}" if self.baseline else ""
        yield f'<text x="10" y="42" fill="#4a5568">bars are scaled to the goal (line){escape(compared)}</text>'
        for place, line in enumerate(self.lines):
            yield from self._row(line, TOP + ROW * place)
        ends = f'x1="{goal}" x2="{goal}" y1="{TOP - 4}" y2="{height - 10}"'
        yield f'<line {ends} stroke="#1a202c" stroke-dasharray="3 3"/>'
        yield "</svg>"

    def _row(self, line: Line, top: int) -> Iterator[str]:
        scale = line.goal or line.baseline or line.value or 1.0
        yield f'<text x="10" y="{top + 14}">{escape(line.what)}</text>'
        colour = BAD if line.met is False else GOOD
        yield _bar(top + 2, line.value / scale, colour, 10 if line.baseline else 16)
        if line.baseline:
            yield _bar(top + 13, line.baseline / scale, OTHER, 5)
        said = f"{number(line.value)} {line.unit}" + (f" ({line.ratio:.2f} x)" if line.ratio else "")
        yield f'<text x="{LABEL + AXIS + 12}" y="{top + 14}">{escape(said)}</text>'


def number(value: float) -> str:
    """Return *value* with as many digits as a reader can use."""
    if value == int(value) or abs(value) >= LARGE:
        return f"{value:,.0f}"
    return f"{value:,.3f}" if abs(value) < SMALL else f"{value:,.1f}"


def machine() -> dict[str, object]:
    """Say what this ran on: processors, memory, system, and the versions of what matters."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "processors": f"{os.cpu_count()} ({_processor()})",
        "memory": f"{memory:.0f} GiB",
        "system": f"{platform.system()} {platform.release().split('-')[0]}",
        "Python": platform.python_version(),
        **{name: found for name in PACKAGES if (found := _version(name))},
    }


def _processor() -> str:
    try:
        told = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.machine()
    names = [line.split(":", 1)[1].strip() for line in told.splitlines() if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _bar(top: int, share: float, colour: str, thickness: int) -> str:
    reach = min(share, REACH) / REACH * AXIS
    bar = f'<rect x="{LABEL}" y="{top}" width="{max(reach, 1):.1f}" height="{thickness}" fill="{colour}"/>'
    if share <= REACH:
        return bar
    end, middle = LABEL + AXIS, top + thickness / 2
    return f'{bar}<path d="M{end} {top} l8 {middle - top} l-8 {middle - top} z" fill="{colour}"/>'
