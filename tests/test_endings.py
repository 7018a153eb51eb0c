"""A report exists, and says what is known, where a try ends while something hangs."""

import itertools
import threading
import time
from datetime import timedelta
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowTaskTimeout
from pytest_mock import MockerFixture

from airflow_provider_responsys.ledger.marked import MarkedLedger
from airflow_provider_responsys.links import PushReportLink
from airflow_provider_responsys.observers import PushObserver
from airflow_provider_responsys.operators import TriggerPushOperator
from airflow_provider_responsys.push_reporter import PushReporter
from airflow_provider_responsys.sandbox import Sandbox
from tests.support.pushes import Push, RunDag, check, people


def test_what_was_sent_is_reported_where_the_sender_hangs(
    sandbox: Sandbox,
    run_dag: RunDag,
    mocker: MockerFixture,
) -> None:
    """Left behind in the middle of a send, nobody who was pushed is reported as not sent."""
    released = threading.Event()
    calls = itertools.count(1)
    real = PushObserver.accepted

    class Killed(TriggerPushOperator):
        """A push that hangs after its third acceptance, and that is told to stop then."""

        def execute(self, context: Any) -> dict[str, Any]:
            def hanging(observer: PushObserver, recipients: int) -> None:
                real(observer, recipients)
                if next(calls) == 3:
                    self.on_kill()
                    released.wait(60)

            mocker.patch.object(PushObserver, "accepted", hanging)
            return super().execute(context)

    push = Push(run_dag, kind=Killed, recipients=people(2_000), max_in_flight=1)
    released.set()
    time.sleep(0.5)

    assert "told to stop" in str(push.failures[0])
    assert len(sandbox.pushes) == 600
    assert push.recipients["accepted"] == 600
    assert len(push.result["request_ids"]) == 3
    check(push)


def test_a_report_exists_where_a_timeout_strikes_after_the_send(
    sandbox: Sandbox,
    run_dag: RunDag,
    mocker: MockerFixture,
) -> None:
    """All was sent and the sender ends well within its grace: Airflow fails the task, and pushes no result."""
    real = PushObserver.end

    def slow(observer: PushObserver, sent: Any) -> None:
        time.sleep(7.0)
        real(observer, sent)

    mocker.patch.object(PushObserver, "end", slow)

    push = Push(run_dag, recipients=people(400), execution_timeout=timedelta(seconds=6))

    assert isinstance(push.failures[0], AirflowTaskTimeout)
    assert len(sandbox.pushes) == 400
    assert push.recipients == {"read": 400, "accepted": 400}
    check(push)


@pytest.mark.parametrize("ends", ["stop", "timeout"])
def test_a_report_exists_where_the_ledger_hangs_in_begin(
    sandbox: Sandbox,
    run_dag: RunDag,
    mocker: MockerFixture,
    ends: str,
) -> None:
    """The report does not wait for the ledger after SIGTERM, and after an execution_timeout."""
    released, told = threading.Event(), []
    pushed = mocker.spy(PushReporter, "push")

    class Hangs(TriggerPushOperator):
        """A push whose ledger hangs as it begins."""

        def execute(self, context: Any) -> dict[str, Any]:
            def hanging(*_: Any) -> bytes:
                if ends == "stop":
                    told.append(time.monotonic())
                    self.on_kill()
                released.wait(60)
                raise RuntimeError("released")

            mocker.patch.object(MarkedLedger, "begin", hanging)
            try:
                return super().execute(context)
            finally:
                told.append(time.monotonic())

    limit = timedelta(seconds=3) if ends == "timeout" else None
    push = Push(run_dag, kind=Hangs, recipients=people(400), execution_timeout=limit)
    released.set()

    assert pushed.call_count >= 1
    assert push.result is not None
    if ends == "stop":
        assert told[-1] - told[0] < 30.0  # it does not wait for the ledger


def test_one_report_is_written_where_the_sender_is_about_to_report(
    sandbox: Sandbox,
    run_dag: RunDag,
    mocker: MockerFixture,
) -> None:
    """A report that takes long is waited for: two threads that report at once get in each other's way."""
    released, reporting, reports = threading.Event(), threading.Lock(), list[str]()

    class Slow(TriggerPushOperator):
        """A push that is told to stop while its ledger begins, and that takes two seconds to push its report."""

        def execute(self, context: Any) -> dict[str, Any]:
            def hanging(*_: Any) -> bytes:
                self.on_kill()
                released.wait(60)
                raise RuntimeError("released")

            def pushed(ti: Any, key: str, value: Any) -> None:
                if key == PushReportLink.xcom_key:  # before anything else, and not of the report
                    push_xcom(ti, key, value)
                    return
                reports.append(key)
                assert reporting.acquire(blocking=False), "two threads report at once"
                try:
                    time.sleep(2.0 if len(reports) == 1 else 0.0)
                    push_xcom(ti, key, value)
                finally:
                    reporting.release()

            push_xcom = type(context["ti"]).xcom_push
            mocker.patch.object(MarkedLedger, "begin", hanging)
            mocker.patch.object(type(context["ti"]), "xcom_push", pushed)
            return super().execute(context)

    push = Push(run_dag, kind=Slow, recipients=people(400))
    released.set()

    assert push.result is not None
    assert sorted(reports) == sorted({*push.result, "return_value"})
