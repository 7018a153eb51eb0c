"""The sandbox's time, which a test can move."""

import time

from airflow_provider_responsys.errors import InvalidSettings


class Clock:
    """Epoch seconds that can be moved forward; they stand still between moves if *frozen_at* is given."""

    def __init__(self, frozen_at: float | None = None) -> None:
        self._frozen_at = frozen_at
        self._moved = 0.0

    def __call__(self) -> float:
        """Return the sandbox's time."""
        return (time.time() if self._frozen_at is None else self._frozen_at) + self._moved

    def advance(self, seconds: float) -> None:
        """Let *seconds* pass at once."""
        if not seconds >= 0:
            raise InvalidSettings(f"a clock moves forward only, not by {seconds} seconds")
        self._moved += seconds
