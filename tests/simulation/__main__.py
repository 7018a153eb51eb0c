"""Simulates sends for as long as there is time: all schedules of small campaigns, then random ones of larger campaigns.

python -m tests.simulation [random schedules] [first seed]
"""

import logging
import os
import sys
import time
from collections import Counter
from dataclasses import replace
from multiprocessing import get_context
from multiprocessing.pool import Pool

from airflow_provider_responsys.sending.engine import Delivery
from tests.simulation.campaign import Setup, Strike
from tests.simulation.choices import Drawn
from tests.simulation.search import SMALL, everyone, play, shrunk
from tests.simulation.truth import Broken

SCHEDULES = 1_000_000
AT_A_TIME = 2_000
EVERY = 15.0  # seconds between two lines of progress

CALM = replace(SMALL, sources=((1, 2),), answers=("answer lost",), reads_fail=False)

HOUSEKEEPING = (Strike.CLEAR, Strike.MARKS, Strike.LOST)

SMALL_ONES: dict[str, Setup] = {
    "task state store, two faults": SMALL,
    "task state store, one fault, at least once": replace(SMALL, faults=1, delivery=Delivery.AT_LEAST_ONCE),
    "task state store, one fault, every answer": Setup(faults=1),
    "SQL, one fault": replace(SMALL, sql=True, faults=1),
    "SQL, one fault, at least once": replace(SMALL, sql=True, faults=1, delivery=Delivery.AT_LEAST_ONCE),
    "SQL, two tasks that share people, no fault": replace(SMALL, sql=True, sources=((1, 2), (2, 3)), faults=0),
    "a late write, two faults": replace(CALM, sources=((1,),), late=1, strikes=(Strike.KILL, Strike.CLEAR)),
    "values kept outside, two faults": replace(
        CALM, sources=((1,),), outside=True, strikes=(Strike.ZOMBIE, Strike.CLEAR)
    ),
    "a second start, two faults": replace(CALM, strikes=(Strike.KILL, Strike.AGAIN)),
    "housekeeping, three faults": replace(CALM, sources=((1,),), faults=3, retries=0, answers=(), strikes=HOUSEKEEPING),
    "a database put back, two faults": replace(CALM, sql=True, strikes=(Strike.KILL, Strike.PUT_BACK)),
    "a database put back beside a restart, two faults": replace(
        CALM,
        sql=True,
        sources=((1,),),
        answers=(),
        on_clear="restart",
        strikes=(Strike.KILL, Strike.CLEAR, Strike.PUT_BACK),
    ),
    "a brown-out, no fault": replace(SMALL, sources=(tuple(range(5)),), faults=0, brown_out=0.5, max_in_doubt=2),
}
"""Campaigns of a few batches and two tries, of which every schedule is run."""


def main(schedules: int = SCHEDULES, first: int = 0) -> int:
    """Run all schedules of the small campaigns and *schedules* random ones; return the exit status."""
    with get_context("fork").Pool(os.cpu_count(), initializer=be_quiet) as pool:
        for name, count, states, seconds in pool.imap_unordered(explored, SMALL_ONES):
            say(f"{name}: all {count:,} schedules, {states:,} states, {seconds:.0f} s of CPU time, no rule broken")
        found = at_random(pool, schedules, first)
    return 1 if found else 0


def at_random(pool: Pool, schedules: int, first: int) -> bool:
    """Run random schedules, and print what came of them; return whether one broke a rule."""
    began = told = time.monotonic()
    ends: Counter[str] = Counter()
    done = broken = 0
    starts = range(first, first + schedules, AT_A_TIME)
    sizes = (min(AT_A_TIME, first + schedules - start) for start in starts)
    for count, chunk_ends, story in pool.imap_unordered(some, zip(starts, sizes, strict=True)):
        done += count
        ends += chunk_ends
        if story:
            broken += 1
            say(story)
        now = time.monotonic()
        if now - told >= EVERY or done == schedules:
            told = now
            rate = done / (now - began)
            say(f"{done:>10,} random schedules, {rate:,.0f} a second, {broken} broke a rule")
    say("tasks that ended in " + ", ".join(f"{end}: {count:,}" for end, count in ends.most_common()))
    return bool(broken)


def some(seeds: tuple[int, int]) -> tuple[int, Counter[str], str]:
    """Run the schedules of some seeds, until one breaks a rule."""
    ends: Counter[str] = Counter()
    first, count = seeds
    for seed in range(first, first + count):
        choices = Drawn(seed)
        try:
            world = play(choices)
        except Broken as broken:
            return seed - first + 1, ends, f"seed {seed}: {shrunk(choices.taken, broken.rule)}"
        ends.update(str(task.outcome) for task in world.tasks)
    return count, ends, ""


def explored(name: str) -> tuple[str, int, int, float]:
    """Run every schedule of a small campaign; return its name, schedules, states and seconds of CPU time."""
    began = time.process_time()
    count, states = everyone(SMALL_ONES[name])
    return name, count, states, time.process_time() - began


def be_quiet() -> None:
    """Silence a process of the pool."""
    logging.disable(logging.CRITICAL)


def say(text: str) -> None:
    """Print at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
