"""How many recipients requests have, in few words: almost all have as many."""

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any


def runs(sizes: Iterable[int | None]) -> list[list[int]]:
    """Return *sizes* as pairs, each a size and how many requests in a row have it; 0 where it is not known."""
    return [[size or 0, len(list(alike))] for size, alike in groupby(sizes)]


def sizes_in(found: Any, requests: int) -> Sequence[int] | None:
    """Return the sizes that *found* says of so many *requests*, None if it is not what `runs` returns."""
    if not isinstance(found, (list, tuple)):
        return None
    sizes: list[int] = []
    for run in found:
        match run:
            case [int(size), int(times)] if size >= 0 and 0 < times <= requests - len(sizes):
                sizes += [size] * times
            case _:
                return None
    return sizes if len(sizes) == requests else None
