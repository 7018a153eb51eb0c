"""What a try can know of the tries before it."""

import pytest

from airflow_provider_responsys.ledger.tries import CLAIMED, began, changes, may_have_claimed

RETRIES = 2


@pytest.mark.parametrize(
    ("try_number", "max_tries", "left", "expected"),
    [
        pytest.param(1, 2, None, False, id="first try, unknown marks"),
        pytest.param(1, 2, [], False, id="first try, no mark"),
        pytest.param(1, 2, [began(1)], False, id="first try started again, its first start claimed nothing"),
        pytest.param(1, 2, [CLAIMED], True, id="first try started again, its first start may have claimed"),
        pytest.param(2, 2, None, True, id="second try, unknown marks"),
        pytest.param(2, 2, [], False, id="the first try died before execute"),
        pytest.param(2, 2, ["return_value"], False, id="the XCom of other code is no mark"),
        pytest.param(2, 2, [began(1)], False, id="the first try claimed nothing"),
        pytest.param(2, 2, [began(2)], False, id="second try started again, its first start claimed nothing"),
        pytest.param(2, 2, [began(1), CLAIMED], True, id="the first try may have claimed"),
        pytest.param(2, 3, [], True, id="cleared, and the mark may have been cleaned"),
        pytest.param(2, 3, [began(1)], False, id="cleared, and the first try claimed nothing"),
        pytest.param(2, 3, [began(1), CLAIMED], True, id="cleared, and the first try may have claimed"),
        pytest.param(3, 2, None, True, id="third try, unknown marks"),
        pytest.param(3, 2, [], True, id="the second try may have taken the mark of the first"),
        pytest.param(3, 2, [began(2)], False, id="neither the first nor the second try claimed"),
        pytest.param(3, 2, [began(3)], False, id="third try started again, its first start claimed nothing"),
        pytest.param(3, 2, [began(1)], True, id="the first try's mark came late, or alone was not deleted yet"),
        pytest.param(3, 2, [began(1), began(2)], False, id="a late mark beside the one that counts"),
        pytest.param(3, 2, [CLAIMED], True, id="one of the tries may have claimed"),
        pytest.param(3, 2, [began(2), CLAIMED], True, id="the second try may have claimed"),
        pytest.param(3, 2, [began(4)], True, id="a mark of a try that is still to come proves nothing"),
        pytest.param(3, 4, [began(1)], True, id="cleared, and a try was in between"),
        pytest.param(3, 4, [began(2)], False, id="cleared, and neither try claimed"),
        pytest.param(11, 12, [began(1)], True, id="1 is not 10"),
        pytest.param(2, 3, [began(10)], True, id="10 is not 1"),
        pytest.param(11, 12, [began(10)], False, id="none of ten tries claimed"),
        pytest.param(2, 3, ["responsys_began"], True, id="a mark without a number proves nothing"),
    ],
)
def test_may_have_claimed(try_number: int, max_tries: int, left: list[str] | None, expected: bool) -> None:
    """A mark says that nothing was claimed only if no other try can have come after the one that left it."""
    assert may_have_claimed(try_number=try_number, max_tries=max_tries, retries=RETRIES, left=left) is expected


def test_changes_are_named() -> None:
    """A person sees what to set back."""
    text = changes({"campaign_name": "A", "match_on": "riid"}, {"campaign_name": "B", "match_on": "riid", "new": "x"})

    assert "campaign_name was 'A' and is 'B'" in text
    assert "new was None and is 'x'" in text
    assert "match_on" not in text
