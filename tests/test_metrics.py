"""Counters, as a StatsD server on this machine receives them from a real Airflow."""

import json
import logging
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import timedelta
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import pendulum
import pytest
from airflow.providers.common.compat.sdk import DAG

from airflow_provider_responsys import operators
from airflow_provider_responsys.errors import LimitExceeded, NoAnswer, TryLater
from airflow_provider_responsys.metrics import Metrics
from airflow_provider_responsys.observers import PushObserver, WaitObserver
from airflow_provider_responsys.operators import TriggerPushOperator
from airflow_provider_responsys.progress import PUSH, TaskStateNote
from airflow_provider_responsys.sandbox import Fault, Sandbox
from airflow_provider_responsys.sensors import PushRequestSensor
from airflow_provider_responsys.waiting import engine

RunDag = Callable[[DAG], Any]

START = pendulum.datetime(2026, 1, 1, tz="UTC")
OURS = "airflow.responsys."
TAGS = ",conn_id=responsys_default,campaign_name=Summer_Push"


class Statsd:
    """A StatsD server: what it was sent until now."""

    def __init__(self, server: socket.socket) -> None:
        self._server = server
        self.packets: list[str] = []

    def counters(self) -> dict[str, int]:
        """Return the sums of our counters, without their common beginning."""
        self._receive()
        sums: Counter[str] = Counter()
        for line in (line for packet in self.packets for line in packet.splitlines()):
            name, _, value = line.partition(":")
            if name.startswith(OURS):
                assert value.endswith("|c")
                sums[name.removeprefix(OURS)] += int(value.removesuffix("|c"))
        return dict(sums)

    def _receive(self) -> None:
        while True:
            try:
                self.packets.append(self._server.recv(65_535).decode())
            except BlockingIOError:
                return


def use_metrics(factory: Callable[[], Any]) -> None:
    """Let Airflow send its metrics through what *factory* makes, as it does when a task's process starts."""
    try:
        from airflow.sdk.observability.stats import initialize  # noqa: PLC0415 -- Airflow 3.3
    except ImportError:
        from airflow.providers.common.compat.sdk import Stats  # noqa: PLC0415 -- Airflow 3.1

        type(Stats).factory = staticmethod(factory)  # type: ignore[attr-defined]  # of Airflow 3.1
        Stats.instance = None  # type: ignore[attr-defined]  # the same
    else:
        initialize(factory=factory, export_legacy_names=True)


def statsd_client() -> Any:
    """Return what Airflow makes of its ``[metrics]`` settings."""
    try:
        from airflow.sdk.observability.metrics.statsd_logger import get_statsd_logger  # noqa: PLC0415 -- Airflow 3.3
    except ImportError:
        from airflow.metrics.statsd_logger import get_statsd_logger as get_for_class  # type: ignore[import-not-found]  # noqa: PLC0415 -- 3.1

        return get_for_class(None)
    return get_statsd_logger()


def no_metrics() -> Any:
    """Return what Airflow uses without a monitoring system: the tests after these ones go through it."""
    home = "airflow.sdk._shared.observability" if find_spec("airflow.sdk._shared") else "airflow"  # Airflow 3.1
    return import_module(f"{home}.metrics.base_stats_logger").NoStatsLogger


@pytest.fixture
def statsd(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Statsd]:
    """Give a StatsD server that Airflow sends its metrics to, with tags unless told otherwise."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        server.setblocking(False)
        monkeypatch.setenv("AIRFLOW__METRICS__STATSD_HOST", "127.0.0.1")
        monkeypatch.setenv("AIRFLOW__METRICS__STATSD_PORT", str(server.getsockname()[1]))
        monkeypatch.setenv("AIRFLOW__METRICS__STATSD_INFLUXDB_ENABLED", str(getattr(request, "param", True)))
        client = statsd_client()
        use_metrics(lambda: client)
        yield Statsd(server)
        client.statsd.close()
        use_metrics(no_metrics())


@pytest.fixture
def sandbox(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sandbox]:
    """Give a Responsys that responsys_default leads to, and a sensor that is impatient."""
    monkeypatch.setattr(PushRequestSensor, "first_delay", 0.0)
    monkeypatch.setattr(engine, "NOT_BELIEVED", ())
    with Sandbox(processing_time=0.0) as sandbox:
        connection = sandbox.connection(poll_requests_per_minute=60_000)
        monkeypatch.setenv("AIRFLOW_CONN_RESPONSYS_DEFAULT", json.dumps(connection))
        yield sandbox


def push(run_dag: RunDag, dag_id: str, names: list[str], wait: dict[str, Any] | None = None, **arguments: Any) -> Any:
    """Run a push to *names*, and a sensor with the settings *wait* if there are any; return the run."""
    defaults = {"requests_per_minute": 60_000, "max_in_flight": 1, "retry_delay": timedelta(0)}
    with DAG(dag_id, schedule=None, start_date=START) as dag:
        first = TriggerPushOperator(
            task_id="push",
            campaign_name="Summer_Push",
            recipients=[{"customerId": name} for name in names],
            **{**defaults, **arguments},
        )
        if wait is not None:
            PushRequestSensor(task_id="wait", request_ids=first.output, **wait)
    return run_dag(dag)


def people(count: int) -> list[str]:
    """Return *count* customer ids."""
    return [f"SECRET{number}" for number in range(count)]


@pytest.mark.parametrize("ledger", ["sqlite"], indirect=True)
def test_a_push_counts_what_becomes_of_its_requests(
    sandbox: Sandbox, run_dag: RunDag, statsd: Statsd, ledger: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In requests and in recipients, by code, and for one try and the next."""
    # A second try waits until the first one's requests can no longer be answered.
    monkeypatch.setenv("AIRFLOW_CONN_RESPONSYS_DEFAULT", json.dumps(sandbox.connection(timeout=1)))
    monkeypatch.setattr(operators, "ANSWER_MARGIN", 0.5)
    sandbox.plan(
        Fault("push", "INVALID_PARAMETER", nth=2),
        Fault("push", "lost", when="after", nth=3),
        Fault("push", "SERVICE_UNAVAILABLE", nth=4),
    )

    run = push(run_dag, "metrics_push", people(1_100), retry_for=1.5, retries=1, ledger_conn_id=ledger)

    assert run.state == "failed"
    assert {name: number for name, number in statsd.counters().items() if name.startswith("push.")} == {
        f"push.requests.accepted{TAGS}": 5,
        f"push.recipients.accepted{TAGS}": 900,
        f"push.requests.rejected{TAGS},code=INVALID_PARAMETER": 1,
        f"push.recipients.rejected{TAGS},code=INVALID_PARAMETER": 200,
        f"push.requests.in_doubt{TAGS}": 1,
        f"push.recipients.in_doubt{TAGS}": 200,
        f"push.requests.put_off{TAGS},code=SERVICE_UNAVAILABLE": 1,
        f"push.recipients.found_in_doubt{TAGS}": 200,
    }


def test_a_push_counts_the_limits_that_it_runs_into(sandbox: Sandbox, run_dag: RunDag, statsd: Statsd) -> None:
    """Apart from other troubles: somebody else uses the account, too."""
    sandbox.plan(Fault("push", "API_LIMIT_EXCEEDED", nth=2))

    push(run_dag, "metrics_limited", people(300), retry_for=0.5)

    assert statsd.counters() == {
        f"push.requests.accepted{TAGS}": 1,
        f"push.recipients.accepted{TAGS}": 200,
        f"push.requests.limited{TAGS},code=API_LIMIT_EXCEEDED": 1,
    }


def test_a_wait_counts_polls_and_what_they_tell(sandbox: Sandbox, run_dag: RunDag, statsd: Statsd) -> None:
    """In the worker, whose first poll is lost, and then in the triggerer: each request ends once."""
    sandbox.plan(Fault("push", "expired", nth=2), Fault("push", "purged", nth=3), Fault("poll", "lost", nth=1))
    names = ["NODEVICE-SECRET", *people(450)]

    push(run_dag, "metrics_wait", names, wait={"poke_interval": 0.5})

    assert {name: number for name, number in statsd.counters().items() if name.startswith("wait.")} == {
        "wait.begun,conn_id=responsys_default": 1,
        "wait.polls.failed,conn_id=responsys_default,code=NoAnswer": 1,
        "wait.polls.answered,conn_id=responsys_default": 3,
        "wait.requests.ended,conn_id=responsys_default,outcome=finished": 1,
        "wait.requests.ended,conn_id=responsys_default,outcome=failed": 1,
        "wait.requests.ended,conn_id=responsys_default,outcome=unknown": 1,
        "wait.recipients.succeeded,conn_id=responsys_default": 199,
        "wait.recipients.failed,conn_id=responsys_default,code=NO_RECIPIENT_FOUND": 1,
    }
    assert "SECRET" not in "".join(statsd.packets)


@pytest.mark.parametrize("deferrable", [True, False])
def test_a_wait_counts_the_limits_that_it_runs_into(
    sandbox: Sandbox, run_dag: RunDag, statsd: Statsd, *, deferrable: bool
) -> None:
    """In the triggerer, whose second poll it is, and in the worker."""
    sandbox.change(processing_time=60.0)
    sandbox.plan(Fault("poll", "API_LIMIT_EXCEEDED", nth=2))

    push(
        run_dag, f"metrics_{deferrable}", ["C1"], wait={"poke_interval": 0.1, "timeout": 4.0, "deferrable": deferrable}
    )

    assert statsd.counters()["wait.polls.limited,conn_id=responsys_default,code=API_LIMIT_EXCEEDED"] == 1


@pytest.mark.parametrize("statsd", [False], indirect=True, ids=["plain"])
def test_without_tags_the_sums_remain(sandbox: Sandbox, run_dag: RunDag, statsd: Statsd) -> None:
    """Plain StatsD knows none."""
    push(run_dag, "metrics_plain", people(250))

    assert statsd.counters() == {"push.requests.accepted": 2, "push.recipients.accepted": 250}


class Broken:
    """A monitoring system's client that fails at everything."""

    def __init__(self) -> None:
        self.asked = 0

    def incr(self, *_: Any, **__: Any) -> None:
        """Fail."""
        self.asked += 1
        raise ConnectionError("no such host")


def test_a_failing_client_does_not_disturb_a_push(
    sandbox: Sandbox, run_dag: RunDag, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is told of once, and left alone from then on."""
    broken = Broken()
    monkeypatch.setattr("airflow_provider_responsys.metrics.Stats", broken)

    run = push(run_dag, "metrics_broken", people(450))

    assert run.state == "success"
    assert len(sandbox.pushes) == 450
    assert broken.asked == 1


def test_a_failing_client_is_told_of_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Not once a request."""
    monkeypatch.setattr("airflow_provider_responsys.metrics.Stats", Broken())
    metrics = Metrics(logging.getLogger("metrics"))

    for _ in range(3):
        WaitObserver(metrics).begun()

    assert caplog.messages == ["Metrics can't be sent any more (ConnectionError): no such host"]


@pytest.mark.parametrize(
    ("name", "tag"),
    [("Black Friday = 50 {A}", "Black_Friday___50__A_"), ("a" * 200, "a" * 60), ("Zürich,x", "Z_rich_x")],
)
def test_a_tag_is_readable_for_every_system(statsd: Statsd, name: str, tag: str) -> None:
    """With a blank or a comma in it, Airflow would drop the tag, or the whole metric."""
    Metrics(logging.getLogger("metrics"), campaign_name=name).count("push.requests.accepted")

    assert statsd.counters() == {f"push.requests.accepted,campaign_name={tag}": 1}


def test_the_longest_metric_is_not_too_long(statsd: Statsd) -> None:
    """Airflow drops what is longer than 250 characters."""
    metrics = Metrics(logging.getLogger("metrics"), campaign_name="a" * 150, conn_id="b" * 250)
    PushObserver(metrics, TaskStateNote(None, PUSH, None), try_number=1, accepted_earlier=0).rejected(200, "C" * 80)

    assert list(statsd.counters().values()) == [1, 200]


@pytest.mark.parametrize(
    ("error", "name"),
    [
        (LimitExceeded("too many", code="API_LIMIT_EXCEEDED"), "limited,code=API_LIMIT_EXCEEDED"),
        (TryLater("no login yet", code="API_LIMIT_EXCEEDED"), "failed,code=API_LIMIT_EXCEEDED"),
        (NoAnswer("reset"), "failed,code=NoAnswer"),
    ],
)
def test_a_poll_that_came_to_nothing_is_counted_by_reason(statsd: Statsd, error: Any, name: str) -> None:
    """A limit of polls is no outage, and a login that waits no limit of polls."""
    WaitObserver(Metrics(logging.getLogger("metrics"))).refused(error)

    assert statsd.counters() == {f"wait.polls.{name}": 1}
