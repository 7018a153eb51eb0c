"""What is looked at once the source is read, and before anything is sent."""

from airflow_provider_responsys.errors import InvalidRecipients, SettingsChanged
from airflow_provider_responsys.sending.outcome import Resumed


def check_count(recipients: int, *, least: int | None, most: int | None) -> None:
    """Raise `InvalidRecipients` for a source with too few *recipients*, or too many."""
    for name, guard, is_broken in (("min_recipients", least, int.__lt__), ("max_recipients", most, int.__gt__)):
        if guard is not None and is_broken(recipients, guard):
            raise InvalidRecipients(f"the source has {recipients} recipients, {name} is {guard}; nothing was sent")


def check_position(resumed: Resumed, map_index: int | None) -> None:
    """Raise where a mapped task, known by its position alone, can't know that an earlier try's record is its own."""
    if resumed.vanished and map_index is not None and map_index >= 0:
        raise SettingsChanged(
            f"an earlier try at map index {map_index} sent to {resumed.vanished} recipients that are "
            "not in this try's source. Mapped tasks are known by their position only, so this may be another "
            "shard's record: nothing was sent. Keep the mapped list in a fixed order"
        )
