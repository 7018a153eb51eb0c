"""Which parts of the provider a schedule runs."""

from collections.abc import Callable
from dataclasses import dataclass

from airflow_provider_responsys.errors import ResponsysError
from airflow_provider_responsys.ledger.interface import Ledger
from airflow_provider_responsys.ledger.marked import MarkedLedger
from airflow_provider_responsys.ledger.tries import may_have_claimed
from airflow_provider_responsys.sending.run import Run
from tests.simulation.attempt import Turnwise
from tests.simulation.sql_model import SqlModel
from tests.simulation.stores import Record


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What is put to the test."""

    engine: type[Turnwise] = Turnwise
    run: type[Run] = Run
    record: Callable[..., Ledger] = Record
    sql: type[SqlModel] = SqlModel
    marked: Callable[..., Ledger] = MarkedLedger
    may_have_claimed: Callable[..., bool] = may_have_claimed
    transport: Callable[[ResponsysError], ResponsysError] = lambda error: error
    """What the wire makes of a failure."""


REAL = Parts()
