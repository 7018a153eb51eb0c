import pytest

from airflow_provider_responsys.errors import LedgerFailed
from airflow_provider_responsys.ledger.book import Ending, passes
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


def test_a_ledger_that_said_no_will_say_so_again() -> None:
    """Only what could not be reached is tried again."""
    unreachable = LedgerFailed("no connection")
    unreachable.__cause__ = OSError()

    assert passes(unreachable)
    assert not passes(LedgerFailed("it is another database"))
