"""Responsys and the network: how requests end."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from airflow_provider_responsys.errors import (
    FailedOver,
    InDoubt,
    InvalidAnswer,
    LimitExceeded,
    LoginExpired,
    NoAnswer,
    NotSent,
    Refused,
    ResponsysError,
    SendRefused,
    TryLater,
)
from tests.simulation.attempt import Attempt, Flight
from tests.simulation.campaign import REFUSALS

if TYPE_CHECKING:
    from tests.simulation.world import World

TIMEOUT = 60.0  # as the connection has it
PROBES = "not sent", "lost", "failed over"

ERRORS: dict[str, Callable[[], BaseException]] = {
    "not sent": lambda: NotSent("no route"),
    "token expired": lambda: LoginExpired("token"),
    "limit exceeded": lambda: LimitExceeded("limit", wait=60.0),
    "try later": lambda: TryLater("busy", wait=30.0),
    "batch refused": lambda: Refused("bad"),
    "send refused": lambda: SendRefused("no such campaign"),
    "answer lost": lambda: NoAnswer("reset"),
    "queue failed": lambda: InDoubt("queue", code="UNRECOVERABLE_EXCEPTION"),
    "an error of our own": lambda: RuntimeError("a defect"),
}

PROBE_ERRORS: dict[str, Callable[[], ResponsysError]] = {
    "not sent": lambda: NotSent("no route"),
    "lost": lambda: NoAnswer("reset"),
    "failed over": lambda: FailedOver("secondary"),
}


class Wire:
    """Answers the requests of *world*."""

    def __init__(self, world: "World") -> None:
        self._world = world

    def expire(self, attempt: Attempt, flight: Flight) -> None:
        """Let *flight* time out."""
        world = self._world
        world.faults_left -= 1
        if flight.number is None:
            self._take_in(attempt, flight, InvalidAnswer("timed out"))
            return
        world.tell(f"{attempt.name}, batch {flight.number}: timed out")
        world.truth.lost(attempt, flight)
        self._take_in(attempt, flight, NoAnswer("timed out"))

    def answer(self, attempt: Attempt, flight: Flight) -> None:
        """Let *flight* be answered, and with it perhaps others of the same try."""
        self._world.moved = True
        self._decide(attempt, flight)
        while attempt.flights and self._world.choices.pick(2, 0.8):
            self._decide(attempt, attempt.flights[0])
        attempt.receive()

    def _decide(self, attempt: Attempt, flight: Flight) -> None:
        world = self._world
        if flight.number is None:
            happens = world.fault(1 + len(PROBES))
            name = ("", *PROBES)[happens]
            if name:
                world.tell(f"{attempt.name}, harmless read: {name}")
            attempt.answered(flight, PROBE_ERRORS[name]() if name else "")
            return
        brown_out = world.setup.brown_out
        if brown_out and world.choices.pick(2, 1.0 - brown_out):
            world.tell(f"{attempt.name}, batch {flight.number}: lost in a brown-out")
            world.truth.lost(attempt, flight)
            attempt.answered(flight, world.parts.transport(NoAnswer("reset")))
            return
        happens = world.fault(1 + len(world.setup.answers))
        if not happens:
            world.tell(f"{attempt.name}, batch {flight.number}: accepted")
            world.truth.accepted(attempt, flight)
            attempt.answered(flight, attempt.request_id(flight))
            return
        name = world.setup.answers[happens - 1]
        world.tell(f"{attempt.name}, batch {flight.number}: {name}")
        if name in REFUSALS:
            world.truth.refused(attempt, flight)
        else:
            world.truth.lost(attempt, flight)
        error = ERRORS[name]()
        attempt.answered(flight, world.parts.transport(error) if isinstance(error, ResponsysError) else error)

    def _take_in(self, attempt: Attempt, flight: Flight, error: ResponsysError) -> None:
        attempt.answered(flight, self._world.parts.transport(error))
        if attempt.until is not None:
            attempt.receive()
