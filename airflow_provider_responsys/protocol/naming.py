"""What counts as a code. Anything else in an answer may be a recipient's data, and is never shown."""

import re
from collections.abc import Collection

UNNAMED = "UNNAMED_ERROR"
"""Of an error whose code can't be shown, or has no room left."""

ROW_CODES = frozenset(
    {
        "FAILURE",  # Recipient errors page
        "MULTIPLE_RECIPIENTS_FOUND",  # Error code table, part 4, as are the next four
        "NO_RECIPIENT_FOUND",
        "PROFILE_LIST_NOT_FOUND",
        "PROFILE_LIST_NOT_FOUND_IN_FOLDER",
        "RECIPIENT_STATUS_UNDELIVERABLE",
        "USER_BLOCKED",
    }
)
"""The documented codes of a recipient's result."""

CODE = re.compile(r"[A-Z]+(?:_[A-Z]+)+")
"""Words in capitals: no digits, and never a single word, either of which may be a customer's id or name."""

MAX_LENGTH = 60
MAX_CODES = 50
"""How many codes that no page lists are told apart: each would be a member of an event and a series of a metric."""


def is_code(text: str) -> bool:
    """Return whether *text* may be shown as a code."""
    return text in ROW_CODES or (len(text) <= MAX_LENGTH and CODE.fullmatch(text) is not None)


def named(text: str) -> str:
    """Return *text* if it may be shown as a code, otherwise `UNNAMED`."""
    return text if is_code(text) else UNNAMED


def with_room(code: str, counted: Collection[str], known: Collection[str]) -> str:
    """Return *code*, or `UNNAMED` where *counted* has no room for one more code that is not *known*."""
    if code in counted or code in known or len(counted) < MAX_CODES:
        return code
    return code if sum(other not in known for other in counted) < MAX_CODES else UNNAMED
