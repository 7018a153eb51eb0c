"""The sandbox in a thread of this process."""

import asyncio
import ipaddress
import json
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from http import HTTPStatus
from types import TracebackType
from typing import Any, Self

from airflow_provider_responsys.errors import InvalidSettings
from airflow_provider_responsys.sandbox import answers
from airflow_provider_responsys.sandbox.answers import Answer, Refusal
from airflow_provider_responsys.sandbox.clock import Clock
from airflow_provider_responsys.sandbox.edge import MAX_HEAD, Edge, Seen
from airflow_provider_responsys.sandbox.faults import Fault, FaultPlan
from airflow_provider_responsys.sandbox.settings import Settings
from airflow_provider_responsys.sandbox.state import Account, Call
from airflow_provider_responsys.sandbox.tally import Key

LOOPBACK = "127.0.0.1"
BACKLOG = 1024
SHOWN = 5
FIXED = frozenset({"exact", "seed", "log_length"})


class Sandbox:
    """A Responsys on a port of this machine, with a view of what it was asked to do.

    Any setting of `Settings` may be given by name: ``Sandbox(latency=0.1,
    push_limit=200)``. It listens between `start` and `stop`, or as a context
    manager, on a free port of 127.0.0.1 unless told otherwise.

    :param settings: where to start from
    :param faults: what goes wrong, and when
    :param fault_seed: seed of the faults' probabilities
    :param clock: its time; a `Clock` of its own by default
    :param host: the address to listen on
    :param port: the port, 0 for any free one
    :param allow_remote: whether *host* may be other than a loopback address
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        faults: Iterable[Fault] = (),
        fault_seed: int = 0,
        clock: Clock | None = None,
        host: str = LOOPBACK,
        port: int = 0,
        allow_remote: bool = False,
        **changes: object,
    ) -> None:
        if not allow_remote and not _is_loopback(host):
            raise InvalidSettings(f"{host} can be reached by other machines: say allow_remote if that is meant")
        self.clock = clock or Clock()
        self._address = (host, port)
        self._account = Account((settings or Settings()).changed(changes), self.clock)
        self._edge = Edge(self._account, FaultPlan(faults, seed=fault_seed), self._control)
        self._listener: socket.socket | None = None
        self._port = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping: asyncio.Event | None = None
        self._thread: threading.Thread | None = None

    # -- life -----------------------------------------------------------------

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> Self:
        """Listen, in a thread of its own."""
        self.listen()
        started = threading.Event()
        serving = self.serve(started.set)
        self._thread = threading.Thread(target=asyncio.run, args=(serving,), name="sandbox", daemon=True)
        self._thread.start()
        started.wait()
        return self

    def stop(self) -> None:
        """Close every connection and end."""
        if self._loop and self._stopping and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._stopping.set)
        if self._thread:
            self._thread.join()
            self._thread = None

    def listen(self) -> None:
        """Take the port: after a stop the same one as before."""
        host, port = self._address
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server((host, self._port or port), family=family, backlog=BACKLOG)
        self._port = int(self._listener.getsockname()[1])

    async def serve(self, ready: Callable[[], object]) -> None:
        """Call *ready*, then answer requests until `stop` is called."""
        self._loop, self._stopping = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(self._edge.connect, sock=self._listener, limit=MAX_HEAD, backlog=BACKLOG)
        ready()
        await self._stopping.wait()
        server.close()
        await self._edge.disconnect()

    # -- where it is ----------------------------------------------------------

    @property
    def port(self) -> int:
        """The port it listens on."""
        if not self._port:
            raise InvalidSettings("the sandbox has not been started")
        return self._port

    @property
    def url(self) -> str:
        """The address to log in at."""
        host = self._address[0]
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    def connection(self, **extra: object) -> dict[str, object]:
        """Return an Airflow connection to it, for JSON; *extra* goes into its extras."""
        return {
            "conn_type": "responsys",
            "host": self._address[0],
            "port": self.port,
            "schema": "http",
            "login": self.settings.api_user,
            "password": self.settings.password,
            "extra": {"api": "haAsyncApi"} | extra,
        }

    # -- what it does ---------------------------------------------------------

    @property
    def settings(self) -> Settings:
        """The settings in force; `change` replaces them."""
        return self._account.settings

    def change(self, **changes: object) -> None:
        """Change settings while it runs."""
        if fixed := sorted(FIXED & changes.keys()):
            raise InvalidSettings(f"{', '.join(fixed)} can't be changed while the sandbox runs")
        with self._edge.lock:
            self._account.settings = self._account.settings.changed(changes)

    def plan(self, *faults: Fault, seed: int = 0) -> None:
        """Replace the plan of faults; its counts start anew."""
        with self._edge.lock:
            self._edge.plan = FaultPlan(faults, seed=seed)

    def plan_from_json(self, text: str | bytes) -> None:
        """Replace the plan of faults by the one in *text*."""
        plan = FaultPlan.from_json(text.decode() if isinstance(text, bytes) else text)
        with self._edge.lock:
            self._edge.plan = plan

    def expire_tokens(self) -> None:
        """Make every token given out so far answer TOKEN_EXPIRED."""
        with self._edge.lock:
            self._account.access.expire_tokens()

    def forget_tokens(self) -> None:
        """Make every token given out so far answer INVALID_TOKEN."""
        with self._edge.lock:
            self._account.access.forget_tokens()

    # -- what it saw ----------------------------------------------------------

    @property
    def pushes(self) -> Counter[Key]:
        """How often each recipient was pushed."""
        with self._edge.lock:
            return self._account.tally.by_key()

    def times_pushed(self, *key: str | int) -> int:
        """Return how often one recipient was pushed: ``times_pushed("PROFILE", "customerId", "C1")``."""
        with self._edge.lock:
            return self._account.tally.times(key)

    def assert_no_duplicates(self) -> None:
        """Fail if anybody was pushed more than once."""
        with self._edge.lock:
            totals = self._account.tally.totals()
            if not totals.more_than_once:
                return
            twice = (
                [key for key, times in self._account.tally.by_key().items() if times > 1][:SHOWN]
                if (self.settings.exact)
                else "not known by name"
            )
        raise AssertionError(f"{totals.more_than_once} recipients were pushed more than once, such as {twice}")

    @property
    def requests_seen(self) -> list[Seen]:
        """The log of requests, oldest first: as many as the setting log_length."""
        with self._edge.lock:
            return list(self._edge.log)

    @property
    def request_ids(self) -> list[str]:
        """The ids of all accepted pushes, oldest first."""
        with self._edge.lock:
            return self._account.queue.request_ids()

    @property
    def counts(self) -> Counter[str]:
        """Requests by endpoint, and "logins", "refreshes", "accepted", "polled ids"."""
        with self._edge.lock:
            return self._account.counts.copy()

    @property
    def refusals(self) -> Counter[str]:
        """Refusals by error code, those of the fault plan left out."""
        with self._edge.lock:
            return self._account.refusals.copy()

    @property
    def faults_happened(self) -> Counter[str]:
        """The faults of the present plan that happened, by kind."""
        with self._edge.lock:
            return self._edge.plan.happened.copy()

    def report(self) -> dict[str, Any]:
        """Return the sums of all of this; the same as ``GET /sandbox/report``."""
        with self._edge.lock:
            totals = self._account.tally.totals()
            return {
                "pushes": totals.pushes,
                "recipients": {
                    "pushed": totals.recipients,
                    "once": totals.recipients - totals.more_than_once,
                    "more_than_once": totals.more_than_once,
                },
                "requests": dict(self._account.counts),
                "refusals": dict(self._account.refusals),
                "too_large": self._edge.too_large,
                "faults": dict(self._edge.plan.happened),
                "accepted_by_minute": {str(at): n for at, n in sorted(self._account.accepted_by_minute.items())},
                "most_in_flight": self._edge.most_in_flight,
                "now": self.clock(),
            }

    # -- the same, over HTTP --------------------------------------------------

    def _control(self, call: Call) -> Answer:
        do = CONTROLS.get((call.method, call.path))
        if do is None:
            return Refusal("RESOURCE_NOT_FOUND").answer
        try:
            return answers.of(do(self, call.body))
        except (InvalidSettings, ValueError, KeyError, TypeError) as wrong:
            return answers.of({"error": str(wrong)}, HTTPStatus.BAD_REQUEST)


def _object(body: bytes) -> dict[str, Any]:
    value = json.loads(body)
    if not isinstance(value, dict):
        raise InvalidSettings("the body must be an object")
    return value


CONTROLS: Mapping[tuple[str, str], Callable[[Sandbox, bytes], object]] = {
    ("GET", "/sandbox/report"): lambda sandbox, _: sandbox.report(),
    ("GET", "/sandbox/pushes"): lambda sandbox, _: [[*key, times] for key, times in sandbox.pushes.items()],
    ("GET", "/sandbox/requests"): lambda sandbox, _: [seen.told() for seen in sandbox.requests_seen],
    ("GET", "/sandbox/settings"): lambda sandbox, _: sandbox.settings.told(),
    ("POST", "/sandbox/settings"): lambda sandbox, body: sandbox.change(**_object(body)),
    ("POST", "/sandbox/faults"): lambda sandbox, body: sandbox.plan_from_json(body),
    ("POST", "/sandbox/clock"): lambda sandbox, body: sandbox.clock.advance(_object(body)["advance"]),
    ("POST", "/sandbox/expire-tokens"): lambda sandbox, _: sandbox.expire_tokens(),
    ("POST", "/sandbox/forget-tokens"): lambda sandbox, _: sandbox.forget_tokens(),
}
"""What can be asked over HTTP of a sandbox in another process."""


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
