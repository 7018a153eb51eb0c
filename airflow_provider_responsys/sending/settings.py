"""What the settings of a send may be."""

from typing import Any

from airflow_provider_responsys.errors import InvalidSettings
from airflow_provider_responsys.sending.engine import Delivery

CHOICES = {
    "on_invalid": ("fail", "skip"),
    "delivery": tuple(Delivery),
    "on_in_doubt": ("fail", "continue"),
    "on_clear": ("resume", "restart"),
}


def check_choices(**given: Any) -> None:
    """Raise `InvalidSettings` where one of the settings *given*, by name, is none of its `CHOICES`."""
    for name, value in given.items():
        if value not in CHOICES[name]:
            raise InvalidSettings(f"{name} is {value!r}; it takes {' or '.join(CHOICES[name])}")


def check_numbers(*, requests_per_minute: float | None, max_in_flight: int, max_in_doubt: float) -> None:
    """Raise `InvalidSettings` where a number makes no sense."""
    if requests_per_minute is not None and requests_per_minute <= 0:
        raise InvalidSettings(f"requests_per_minute is {requests_per_minute}; it takes a number above 0")
    if max_in_flight < 1:
        raise InvalidSettings(f"max_in_flight is {max_in_flight}; it takes a number above 0")
    if not (0.0 <= max_in_doubt < 1.0 if isinstance(max_in_doubt, float) else max_in_doubt >= 1):
        raise InvalidSettings(
            f"max_in_doubt is {max_in_doubt}; it takes a count of recipients, 1 or more, or a share below 1.0"
        )
