"""A Responsys to try things with and to test against; README.md beside this file says what it does and how surely."""

from airflow_provider_responsys.sandbox.clock import Clock
from airflow_provider_responsys.sandbox.faults import Endpoint, Fault, FaultPlan, Kind, When
from airflow_provider_responsys.sandbox.instance import Sandbox
from airflow_provider_responsys.sandbox.settings import Settings

__all__ = ["Clock", "Endpoint", "Fault", "FaultPlan", "Kind", "Sandbox", "Settings", "When"]
