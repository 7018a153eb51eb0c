"""Looks through schedules: some by chance, or all of a small campaign."""

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice

from tests.simulation.campaign import Setup
from tests.simulation.choices import Choices, Drawn, explore, shrink
from tests.simulation.parts import REAL, Parts
from tests.simulation.truth import Broken
from tests.simulation.world import World

WIRE = "not sent", "batch refused", "send refused", "answer lost"
"""One of each kind that the engine tells apart, but for how long it waits."""

SMALL = Setup(sources=((1, 2, 3),), retries=1, source_changes=False, answers=WIRE)
"""Three batches, two tries."""


@dataclass(frozen=True, slots=True)
class Found:
    """A schedule that breaks *rule*, as simple as it could be made, and its story."""

    rule: str
    how: str
    script: list[int]
    setup: Setup
    story: list[str]

    def __str__(self) -> str:
        return "\n".join((f"{self.how}", f"  {self.script}", f"  {self.setup}", *(f"  {line}" for line in self.story)))


@contextmanager
def quiet() -> Iterator[None]:
    """Leave the provider's own sentences out: a million schedules have many."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


def play(choices: Choices, setup: Setup | None = None, parts: Parts = REAL, *, tells: bool = False) -> World:
    """Run one schedule of *setup*, or of a campaign that is drawn, too."""
    world = World(setup or Setup.drawn(choices), choices, parts, tells=tells)
    world.to_end()
    return world


def breaks(script: list[int], setup: Setup | None = None, parts: Parts = REAL) -> str | None:
    """Return which rule the schedule *script* breaks."""
    try:
        play(Choices(script), setup, parts)
    except Broken as broken:
        return broken.rule
    return None


def by_chance(seeds: Iterable[int], parts: Parts = REAL, setup: Setup | None = None) -> Found | None:
    """Return the first schedule of *seeds* that breaks a rule, shrunk."""
    return next(_found(seeds, parts, setup), None)


def simplest(seeds: Iterable[int], parts: Parts, setup: Setup | None = None, enough: int = 2) -> Found | None:
    """Return the shortest story of *enough* schedules of *seeds* that break a rule: shrinking one may get stuck."""
    found = islice(_found(seeds, parts, setup), enough)
    return min(found, key=lambda each: (sum(map(bool, each.script)), len(each.script)), default=None)


def _found(seeds: Iterable[int], parts: Parts, setup: Setup | None) -> Iterator[Found]:
    for seed in seeds:
        choices = Drawn(seed)
        try:
            play(choices, setup, parts)
        except Broken as broken:
            yield shrunk(choices.taken, broken.rule, setup, parts)


def everyone(setup: Setup, parts: Parts = REAL) -> tuple[int, int]:
    """Run every schedule of *setup*; return how many there were, and how many states they came through."""

    def run(choices: Choices) -> None:
        try:
            play(choices, setup, parts)
        except Broken as broken:
            raise AssertionError(str(shrunk(choices.taken, broken.rule, setup, parts))) from broken

    return explore(run)


def shrunk(script: list[int], rule: str, setup: Setup | None = None, parts: Parts = REAL) -> Found:
    """Make *script*, which breaks *rule*, as simple as it can be."""
    simple = shrink(script, lambda shorter: breaks(shorter, setup, parts) == rule)
    choices = Choices(simple)
    world = World(setup or Setup.drawn(choices), choices, parts, tells=True)
    try:
        world.to_end()
    except Broken as broken:
        return Found(broken.rule, str(broken), simple, world.setup, world.story)
    raise AssertionError("a schedule that breaks a rule once does so always")
