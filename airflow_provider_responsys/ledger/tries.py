"""What a try can know of the tries before it, beside what the ledger holds."""

from collections.abc import Collection, Mapping
from typing import Literal

OnClear = Literal["resume", "restart"]
"""What a person's clear means: go on where it stopped, or forget this task's own claims."""

MARK = "responsys_began"
"""The XCom key that a try pushes when `Ledger.begin` has returned, or has raised `StateLost`.

Airflow tells each try, in ``xcom_keys_to_clear``, which XComs the earlier ones
left, and deletes them before ``execute``: a mark that outlives a lost ledger.
It must be there before anything is sent, and stay there after a refusal.
"""


def may_have_begun(*, try_number: int, left: Collection[str] | None, remembers: bool) -> bool:
    """Tell whether an earlier try may have reached ``execute``.

    *left* are the XCom keys that Airflow found when this try started, None where
    that is unknown. Airflow deletes them before ``execute``: what try 1 left,
    a try 2 that died on its way there has taken from try 3. So from try 3 on a
    missing mark proves something only beside a missing record that no crash and
    no clear can have removed: *remembers*.
    """
    if try_number == 1:
        return False
    if left is None or MARK in left:
        return True
    return try_number > 2 and not remembers  # noqa: PLR2004 -- the first try that has two before it


def changes(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    """Say which settings are no longer those of an earlier try, and what to do."""
    names = sorted(name for name in {*before, *now} if before.get(name) != now.get(name))
    changed = ", ".join(f"{name} was {before.get(name)!r} and is {now.get(name)!r}" for name in names)
    return (
        f"{changed}: an earlier try claimed recipients under other settings, so nobody could tell whom it pushed, and "
        'nothing is sent. Set them back; or, if everybody may be pushed again, set on_clear="restart" and clear the '
        "task."
    )
