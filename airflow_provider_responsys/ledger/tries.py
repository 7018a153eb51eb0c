"""What a try can know of the tries before it, beside what the ledger holds."""

from collections.abc import Collection, Mapping
from typing import Literal

OnClear = Literal["resume", "restart"]
"""What a person's clear means: go on where it stopped, or forget this task's own claims."""

BEGAN = "responsys_began"
"""What the XCom keys that `began` names start with."""

CLAIMED = "responsys_may_have_claimed"
"""The XCom key of a try that may have claimed recipients, or that may come after one that did."""


def began(try_number: int) -> str:
    """Return the XCom key of try *try_number*: it reached ``execute``, and no try has claimed anything so far.

    The number is in the key because Airflow tells a try the keys that earlier ones left, and no values.
    """
    return f"{BEGAN}_{try_number}"


def may_have_claimed(*, try_number: int, max_tries: int, retries: int, left: Collection[str] | None) -> bool:
    """Return whether an earlier try may have claimed recipients, whatever the ledger says.

    *left* are the XCom keys that Airflow found when this try started, None where
    that is unknown. Airflow deletes them before ``execute``, so each try pushes
    again what they said: `CLAIMED`, or `began` with its own number.

    `began` of the try before this one says that nothing was claimed: a claim would
    have left `CLAIMED` beside it. `began` of an older try proves nothing: a try in
    between may have had both deleted and died before ``execute``, and then a late
    copy of the write was stored, or one of the deletions was not done.

    Without a mark that counts, only the first try and an automatic second one
    (*max_tries* is *retries*: the task was not cleared) are certain: a second try
    that died before ``execute`` has taken the mark of the first one from the
    third, and housekeeping may have removed it before a clear.
    """
    if left is None:
        return try_number > 1
    if CLAIMED in left:
        return True
    if began(try_number - 1) in left or began(try_number) in left:  # Airflow may start one try twice
        return False
    return try_number > 1 and not (try_number == 2 and max_tries == retries)  # noqa: PLR2004 -- the second try


def is_of_a_clear(*, try_number: int, max_tries: int, retries: int) -> bool:
    """Return whether a person's clear made this try: such a clear sets max_tries to the tries so far plus *retries*."""
    return try_number > 1 and try_number == max_tries - retries + 1


def changes(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    """Say which settings are no longer those of an earlier try, and what to do."""
    names = sorted(name for name in {*before, *now} if before.get(name) != now.get(name))
    changed = ", ".join(f"{name} was {before.get(name)!r} and is {now.get(name)!r}" for name in names)
    return (
        f"{changed}: an earlier try claimed recipients under other settings, so the two lists can't be compared, and "
        "nothing is sent. Set them back; or, if all recipients may be pushed again, set "
        'on_clear="restart" and clear the task.'
    )
