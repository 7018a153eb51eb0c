"""What a try can know of the tries before it."""

import pytest

from airflow_provider_responsys.ledger.tries import BEGAN, CLAIMED, changes, may_have_claimed


@pytest.mark.parametrize(
    ("try_number", "max_tries", "left", "expected"),
    [
        (1, 2, None, False),
        (1, 2, [], False),
        (1, 2, [CLAIMED], True),
        (1, 2, [BEGAN], False),
        (2, 2, [], False),
        (2, 2, ["return_value"], False),
        (2, 2, [BEGAN], False),
        (2, 2, [BEGAN, CLAIMED], True),
        (2, 2, None, True),
        (2, 3, [], True),
        (2, 3, [BEGAN], False),
        (3, 2, [], True),
        (3, 2, [BEGAN], False),
        (3, 2, [CLAIMED], True),
        (3, 2, None, True),
    ],
    ids=[
        "nobody came before",
        "nor is there a mark",
        "this try is started a second time",
        "the same, and it had claimed nothing",
        "the first try died on its way",
        "what others push is no mark",
        "the first try claimed nothing",
        "the first try may have claimed",
        "unknown",
        "a person cleared the task, and the mark may have been cleaned",
        "a person cleared a task that had claimed nothing",
        "the second try may have taken the mark of the first",
        "none of them claimed",
        "one of them may have claimed",
        "unknown, again",
    ],
)
def test_may_have_claimed(try_number: int, max_tries: int, left: list[str] | None, expected: bool) -> None:
    """Only what certainly claimed nothing stands in nobody's way."""
    assert may_have_claimed(try_number=try_number, max_tries=max_tries, retries=2, left=left) is expected


def test_changes_are_named() -> None:
    """A person sees what to set back."""
    text = changes({"campaign_name": "A", "match_on": "riid"}, {"campaign_name": "B", "match_on": "riid", "new": "x"})

    assert "campaign_name was 'A' and is 'B'" in text
    assert "new was None and is 'x'" in text
    assert "match_on" not in text
