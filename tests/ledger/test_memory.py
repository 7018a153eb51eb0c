"""The ledger that remembers nothing."""

import pytest

from airflow_provider_responsys.errors import StateLost
from airflow_provider_responsys.ledger.interface import Accepted, Claim, Wanted
from airflow_provider_responsys.ledger.memory import MemoryLedger
from tests.support.places import IDENTITY


def test_serves_a_first_try() -> None:
    """Within one try there is nothing to remember."""
    ledger = MemoryLedger(try_number=1)

    key = ledger.begin(IDENTITY)
    claims = ledger.commit([], [Wanted(1, [b"somebody!"])])
    nothing = ledger.commit([Accepted(1, "4711")], [])
    ledger.close()

    assert len(key) >= 16
    assert claims == [Claim(1)]
    assert nothing == []
    assert list(ledger.earlier()) == []
    assert not ledger.durable


def test_refuses_a_second_try_and_says_what_to_set() -> None:
    """It can't know whom the first one pushed."""
    ledger = MemoryLedger(try_number=2)

    with pytest.raises(StateLost, match=r"ledger_conn_id.*Airflow 3\.3"):
        ledger.begin(IDENTITY)


def test_serves_a_second_try_after_one_that_never_began() -> None:
    """That one died before `execute`, and pushed nobody."""
    ledger = MemoryLedger(try_number=2, may_have_claimed=False)

    assert ledger.begin(IDENTITY)
