"""The table of all scenes: one column each."""

from collections.abc import Callable, Sequence

from tests.celery.scenes import IN_FLIGHT, Told
from tests.support.verdict import BATCH

NONE_OF_THESE = ("not_sent", "rejected", "invalid", "withheld")
LINES: dict[str, Callable[[Told], object]] = {
    "one of two workers was": lambda told: told.scene.struck,
    "what remembers": lambda told: told.scene.store,
    "rows read": lambda told: told.buckets.get("read", 0),
    "accepted": lambda told: told.buckets.get("accepted", 0),
    "duplicate: the same person again, in another shard": lambda told: told.buckets.get("duplicate", 0),
    "in doubt": lambda told: told.verdict.in_doubt,
    f"  at most (shards killed x {IN_FLIGHT} in flight x {BATCH})": lambda told: told.verdict.bound,
    "not sent, rejected, invalid": lambda told: sum(told.buckets.get(name, 0) for name in NONE_OF_THESE),
    "pushed twice, as the sandbox counts": lambda told: told.verdict.duplicates,
    "forgotten": lambda told: told.verdict.forgotten,
    "requests refused for the account's limit": lambda told: told.limited,
    "tries of 8 shards, by worker": lambda told: " + ".join(map(str, told.tries.values())),
    "messages given out again by the broker": lambda told: told.messages.redelivered,
    "  refused by Airflow": lambda told: told.messages.refused,
    "seconds until Airflow noticed": lambda told: "-" if told.noticed is None else f"{told.noticed:.0f}",
    "seconds of the run, with the wait": lambda told: f"{told.seconds:.0f}",
    "the run ended as": lambda told: told.state,
}


def table(told: Sequence[Told]) -> str:
    """Return the table."""
    rows = [[label, *(cell(line(each)) for each in told)] for label, line in LINES.items()]
    widths = [max(len(row[column]) for row in rows) for column in range(len(told) + 1)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows
    )


def cell(value: object) -> str:
    """Return *value* as it stands in the table."""
    return f"{value:,}" if isinstance(value, int) else str(value)
