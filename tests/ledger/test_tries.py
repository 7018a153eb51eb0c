"""What a try can know of the tries before it."""

import pytest

from airflow_provider_responsys.ledger.tries import MARK, changes, may_have_begun


@pytest.mark.parametrize(
    ("try_number", "left", "remembers", "expected"),
    [
        (1, None, False, False),
        (1, [MARK], True, False),
        (2, [], False, False),
        (2, ["return_value"], True, False),
        (2, [MARK], True, True),
        (2, None, True, True),
        (3, [], True, False),
        (3, [], False, True),
        (3, [MARK], True, True),
        (3, None, True, True),
    ],
    ids=[
        "nobody came before",
        "nor with a mark",
        "the try before died on its way",
        "what others push is no mark",
        "the try before began",
        "nobody knows",
        "both died on their way, and nothing was lost",
        "the second may have taken the first one's mark",
        "one of them began",
        "nobody knows, again",
    ],
)
def test_may_have_begun(try_number: int, left: list[str] | None, remembers: bool, expected: bool) -> None:
    """A try that began is never taken for one that did not."""
    assert may_have_begun(try_number=try_number, left=left, remembers=remembers) is expected


def test_changes_are_named() -> None:
    """A person sees what to set back."""
    text = changes({"campaign_name": "A", "match_on": "riid"}, {"campaign_name": "B", "match_on": "riid", "new": "x"})

    assert "campaign_name was 'A' and is 'B'" in text
    assert "new was None and is 'x'" in text
    assert "match_on" not in text
