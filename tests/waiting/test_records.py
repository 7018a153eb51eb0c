import pytest

from airflow_provider_responsys.protocol.polling import (
    PURGED,
    ROWS_DIFFER,
    Failed,
    Finished,
    Gone,
    Outcome,
    Processing,
    Unclear,
)
from airflow_provider_responsys.waiting.records import Ending


@pytest.mark.parametrize(
    ("outcome", "ending"),
    [
        (Finished(3), Ending(succeeded=3)),
        (Finished(3, {"BLOCKED": (0, 2)}), Ending(succeeded=1, failed={"BLOCKED": (0, 2)})),
        (Finished(2), Ending(error=ROWS_DIFFER)),
        (Finished(4, {"BLOCKED": (0,)}), Ending(error=ROWS_DIFFER)),
        (Gone(), Ending(error=PURGED)),
        (Failed("ASYNC_REQUEST_EXPIRED"), Ending(error="ASYNC_REQUEST_EXPIRED")),
        (Processing(), None),
        (Unclear("PARKED"), None),
    ],
)
def test_what_is_recorded_of_a_request(outcome: Outcome, ending: Ending | None) -> None:
    """Of three recipients; nothing while it is open, and no rows that can't be matched with them."""
    assert Ending.of(outcome, 3) == ending
