"""How many recipients may be in doubt before the send stops for a person."""

import math
from dataclasses import dataclass, field


@dataclass(slots=True, kw_only=True)
class Budget:
    """The recipients in doubt, held against the *most* that may be: a count, or below 1 a share of *recipients*.

    *found* are those that earlier tries left in doubt, since a person last cleared
    the task: who clears it has looked at the older ones.
    """

    most: float = math.inf
    recipients: int = 0
    found: int = 0
    lost: dict[int, int] = field(default_factory=dict)
    """Recipients of each batch that this try has put in doubt, by its number."""

    @property
    def in_doubt(self) -> int:
        """Return how many recipients are in doubt."""
        return self.found + sum(self.lost.values())

    def add(self, number: int, size: int, *, was_found: bool = False) -> None:
        """Count batch *number*, of *size* recipients, as in doubt; *was_found* says that an earlier try left it so."""
        if was_found and number not in self.lost:
            self.found = max(0, self.found - size)
        self.lost[number] = size

    def remove(self, number: int, size: int) -> None:
        """Count batch *number* as answered: this try had put it in doubt, or an earlier one."""
        if self.lost.pop(number, None) is None:
            self.found = max(0, self.found - size)

    def limit(self, window: int) -> float:
        """Return how many recipients in doubt stop the send, if *window* recipients may be in flight.

        One outage loses all that is in flight: that alone never exhausts a share.
        """
        return self.most if self.most >= 1 else max(self.most * self.recipients, window + 1)
