"""Where the decisions of a simulated schedule come from: chance, a script, or all of them in turn.

A schedule is nothing but the list of its decisions. 0 is always the one that
makes the least trouble, so a shorter list of smaller numbers is a simpler story.
"""

from collections.abc import Callable, Hashable, Sequence
from random import Random


class Choices:
    """Decides by *script*, then calmly: 0 for ever."""

    prunes = False
    """Whether `known` wants to be asked."""

    def __init__(self, script: Sequence[int] = ()) -> None:
        self.taken: list[int] = []
        self._script = script

    def pick(self, options: int, calm: float = 0.0) -> int:
        """Return a number below *options*; *calm* is how probable the harmless 0 is, if it matters."""
        if options == 1:
            return 0
        place = len(self.taken)
        choice = min(self._script[place], options - 1) if place < len(self._script) else 0
        self.taken.append(choice)
        return choice

    def known(self, state: Hashable) -> bool:
        """Tell whether everything that can follow *state* is looked at elsewhere."""
        return False


class Drawn(Choices):
    """Decides by chance, the same for the same *seed*."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._draw = Random(seed).random  # noqa: S311 -- chance, not secrecy

    def pick(self, options: int, calm: float = 0.0) -> int:
        """Draw 0 with the probability *calm*, else any other; without *calm* any."""
        if options == 1:
            return 0
        if not calm:
            choice = int(self._draw() * options)
        else:
            drawn = self._draw()
            choice = 0 if drawn < calm else 1 + int((drawn - calm) / (1.0 - calm) * (options - 1))
        self.taken.append(choice)
        return choice


class Enumerated(Choices):
    """Decides by *script*, then calmly, and remembers what else there was."""

    prunes = True

    def __init__(self, script: Sequence[int], states: set[Hashable]) -> None:
        super().__init__(script)
        self.options: list[int] = []
        self._states = states

    def pick(self, options: int, calm: float = 0.0) -> int:
        """Return the script's choice, else 0."""
        if options == 1:
            return 0
        self.options.append(options)
        return super().pick(options, calm)

    def known(self, state: Hashable) -> bool:
        """Remember *state*; tell whether it was there before this schedule came to it."""
        if len(self.taken) < len(self._script):
            return False  # the way to the first new decision
        if state in self._states:
            return True
        self._states.add(state)
        return False


def explore(run: Callable[[Choices], object], most: int = 10_000_000) -> tuple[int, int]:
    """Run every schedule; return how many there were, and how many states they came through.

    A schedule that comes to a state from which another one went on may end there.
    """
    states: set[Hashable] = set()
    script: list[int] = []
    for count in range(1, most + 1):
        choices = Enumerated(script, states)
        run(choices)
        taken, options = choices.taken, choices.options
        while taken and taken[-1] + 1 == options[-1]:
            taken.pop()
            options.pop()
        if not taken:
            return count, len(states)
        taken[-1] += 1
        script = taken
    raise AssertionError(f"more than {most} schedules")


def shrink(script: Sequence[int], fails: Callable[[list[int]], bool]) -> list[int]:
    """Return a script, as simple as can be found, for which *fails* still holds (delta debugging)."""
    best = _trimmed(script)
    while True:
        before = best
        best = _lowered(_without_parts(best, fails), fails)
        if best == before:
            return best


def _without_parts(script: list[int], fails: Callable[[list[int]], bool]) -> list[int]:
    """Leave out parts of *script*, long ones first, or put 0 in their place."""
    length = len(script)
    while length:
        start = 0
        while start < len(script):
            for shorter in (
                script[:start] + script[start + length :],
                _trimmed([*script[:start], *[0] * len(script[start : start + length]), *script[start + length :]]),
            ):
                if shorter != script and fails(shorter):
                    script = _trimmed(shorter)
                    break
            else:
                start += length
        length //= 2
    return script


def _lowered(script: list[int], fails: Callable[[list[int]], bool]) -> list[int]:
    """Make each number of *script* as small as it can be."""
    for place in range(len(script)):
        for lower in range(script[place] if place < len(script) else 0):
            changed = [*script[:place], lower, *script[place + 1 :]]
            if fails(changed):
                script = changed
                break
    return _trimmed(script)


def _trimmed(script: Sequence[int]) -> list[int]:
    """Leave out the zeros at the end, which follow anyway."""
    end = len(script)
    while end and script[end - 1] == 0:
        end -= 1
    return list(script[:end])
