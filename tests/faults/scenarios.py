"""What happens in a run: drawn from its group, its store and its seed, and from nothing else."""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import count

from airflow_provider_responsys.sandbox import Fault
from tests.faults import families
from tests.faults.families import Drawer
from tests.faults.planted import NAIVE_POINTS, PUSH_POINTS, TRIGGER_POINTS, WAIT_POINTS, Plant
from tests.faults.scenario import HANG, MAY_CLOSE, NAIVE, PROCESSING, STORES, WHOLE, Drawn, Kill, Scenario

SERVER_FAULTS: Sequence[tuple[str, str]] = (
    *(
        (kind, when)
        for kind in (
            "lost",
            "reset",
            "hang",
            "unlisted",
            "UNRECOVERABLE_EXCEPTION",
            "bad_gateway",
            "html_503",
            "gateway_timeout",
        )
        for when in ("before", "after")
    ),
    ("truncated", "after"),
    ("wrong_length", "after"),
    ("empty", "after"),
    ("redirect", "before"),
    ("SERVICE_UNAVAILABLE", "before"),
    ("UNABLE_TO_SUBMIT_ASYNC_REQUEST", "before"),
)
POLL_FAULTS = (
    "endless",
    "purged",
    "expired",
    "unknown_status",
    "row_missing",
    "row_too_many",
    "slow",
    "lost",
    "html_503",
)
WHOM = ("task", "task", "host", "term")
"""Who is killed: the task's process most often."""


def everything(groups: Sequence[str] | None = None, stores: Sequence[str] | None = None) -> Iterator[Scenario]:
    """Yield scenarios without end, every group and store in turn."""
    chosen = [
        (group, store)
        for group, (_, where) in GROUPS.items()
        for store in where
        if (not groups or group in groups) and (not stores or store in stores)
    ]
    for seed in count():
        for group, store in chosen:
            yield scenario(group, store, seed)


def scenario(group: str, store: str, seed: int) -> Scenario:
    """Return what happens under *seed*."""
    draw, _ = GROUPS[group]
    chance = random.Random(f"{group}/{seed}")  # noqa: S311 -- not a secret; the same on every store
    drawn = draw(seed, chance, store)
    if store == NAIVE:
        drawn["dag"] = "naive"
        drawn["in_flight"] = 1
    return Scenario(group, store, seed, **drawn)


def _size(chance: random.Random) -> Drawn:
    return {"batches": chance.randint(3, 6), "in_flight": chance.randint(1, 4)}


def _kill_points(seed: int, chance: random.Random, _store: str) -> Drawn:
    points = tuple(PUSH_POINTS)
    point = points[seed % len(points)]
    nth = 1 if seed < len(points) else chance.randint(1, 4)
    plants = {("push", 1): [Plant(point, nth)]}
    if chance.random() < 0.3:
        plants["push", 2] = [Plant(chance.choice(NAIVE_POINTS), nth=chance.randint(1, 2), host=True)]
    if chance.random() < 0.3:
        plants["push", 1] = [Plant(point, nth, host=True)]
    return {**_size(chance), "what": f"killed {point}", "plants": plants, "strikes": nth == 1}


def _random_kills(_seed: int, chance: random.Random, _store: str) -> Drawn:
    kills = {
        ("push", attempt): Kill(chance.uniform(0.2, 1.8), chance.choice(WHOM))
        for attempt in range(1, chance.randint(1, 5) + 1)
    }
    size = {"batches": chance.randint(5, 12), "in_flight": chance.randint(1, 4), "latency": chance.uniform(0.1, 0.4)}
    return {**size, "what": f"{len(kills)} kills", "kills": kills}


def _server_faults(seed: int, chance: random.Random, _store: str) -> Drawn:
    kind, when = SERVER_FAULTS[seed % len(SERVER_FAULTS)]
    size = _size(chance)
    batches = int(str(size["batches"]))
    place = {"first": 1, "middle": (batches + 1) // 2, "last": batches}
    where = tuple(place)[seed // len(SERVER_FAULTS) % len(place) if seed >= len(SERVER_FAULTS) else seed % len(place)]
    fault = Fault("push", kind, when=when, nth=place[where], seconds=HANG if kind == "hang" else None)
    return {**size, "what": f"{kind} {when} the effect, {where} batch", "faults": [fault]}


def _waiting(seed: int, chance: random.Random, _store: str) -> Drawn:
    points = (*WAIT_POINTS, *TRIGGER_POINTS)
    point = points[seed % len(points)]
    task = "trigger" if point in TRIGGER_POINTS else "wait"
    # In execute_complete the sensor is in its second attempt: the first one deferred.
    attempts = (1, 2, 3) if task == "wait" else (1,)
    plants = {
        (task, attempt): [Plant(point, nth=chance.randint(1, 2) if "sweep" in point else 1)] for attempt in attempts
    }
    if point in ("before deferring", "after deferring"):
        plants = {(task, 1): [Plant(point)]}
    return {**_size(chance), **_wait(), "what": f"killed {point}", "plants": plants}


def _wait(processing: float = PROCESSING) -> Drawn:
    return {"dag": "push_and_wait", "processing": processing}


def _random_waiting(_seed: int, chance: random.Random, _store: str) -> Drawn:
    kills: dict[tuple[str, int], Kill] = {}
    numbers = {"wait": count(1), "trigger": count(1)}
    for _ in range(chance.randint(1, 5)):
        task = chance.choice(("wait", "trigger", "trigger"))
        # The sensor's process lives for about a second, most of which is Airflow's own.
        delay = chance.uniform(0.2, 1.2) if task == "wait" else chance.uniform(0.0, 0.7)
        kills[task, next(numbers[task])] = Kill(delay, chance.choice(WHOM) if task == "wait" else "task")
    return {**_size(chance), **_wait(chance.uniform(2.0, 6.0)), "what": f"{len(kills)} kills", "kills": kills}


def _poll_faults(seed: int, chance: random.Random, _store: str) -> Drawn:
    kind = POLL_FAULTS[seed % len(POLL_FAULTS)]
    size = _size(chance)
    nth = chance.randint(1, int(str(size["batches"])))
    lasts = kind in ("endless", "purged", "expired", "unknown_status", "row_missing", "row_too_many")
    fault = Fault("push" if lasts else "poll", kind, nth=nth, seconds=1.0 if kind == "slow" else None)
    patience = 4.0 if kind in ("endless", "unknown_status") else 60.0
    return {
        **size,
        **_wait(),
        "what": f"poll: {kind}",
        "faults": [fault],
        "patience": patience,
    }


AIRFLOW_FAULTS = (
    "ledger down before a request",
    "ledger down after a request",
    "XCom down",
    "cleared while running",
    "cleared while deferred",
    "cleared when done",
    "a zombie beside its retry",
    "a zombie with a request out",
    "state-store clean",
    "ledger lost",
    "a zombie after its retry",
    "a zombie that begins late",
)
"""With the task state store as ledger, an outage is one of Airflow's API server."""


def _airflow_faults(seed: int, chance: random.Random, _store: str) -> Drawn:
    what = AIRFLOW_FAULTS[seed % len(AIRFLOW_FAULTS)]
    before = Plant("before the intent", nth=chance.randint(1, 3))
    out = Plant("body sent", nth=chance.randint(1, 2))
    after = Plant("before the acceptance write", nth=chance.randint(1, 2))
    killed = Plant("between batches", nth=2)
    unbegun = Plant("before the record of the try")
    plant, event = {
        "ledger down before a request": (before, "outage"),
        "ledger down after a request": (after, "outage"),
        "XCom down": (None, ""),
        "cleared while running": (chance.choice((before, out, after)), "clear"),
        "cleared while deferred": (None, ""),
        "cleared when done": (None, ""),
        "a zombie beside its retry": (chance.choice((before, after)), "zombie"),
        "a zombie with a request out": (out, "zombie"),
        "a zombie after its retry": (chance.choice((before, out, after)), "late zombie"),
        "a zombie that begins late": (unbegun, chance.choice(("zombie", "late zombie"))),
        "state-store clean": (killed, ""),
        "ledger lost": (killed, ""),
    }[what]
    between = {"state-store clean": {1: ["clean"]}, "ledger lost": {1: ["lose"]}}.get(what, {})
    return {
        **_size(chance),
        "what": what,
        "plants": {("push", 1): [replace(plant, event=event)]} if plant else {},
        "between": between,
        # What a zombie has written over, only a later try can miss.
        "at_end": ["clear"] if what == "cleared when done" or "zombie" in what else [],
        "ends": MAY_CLOSE if what == "ledger lost" else WHOLE,
        **(_wait() if what == "cleared while deferred" else {}),
        "xcom_down_from": chance.randint(1, 6) if what == "XCom down" else None,
    }


GROUPS: Mapping[str, tuple[Drawer, Sequence[str]]] = {
    "kill points": (_kill_points, (*STORES, NAIVE)),
    "random kills": (_random_kills, (*STORES, NAIVE)),
    "server faults": (_server_faults, (*STORES, NAIVE)),
    "kills while waiting": (_waiting, STORES),
    "random kills while waiting": (_random_waiting, STORES),
    "poll faults": (_poll_faults, STORES),
    "Airflow faults": (_airflow_faults, STORES),
    **families.GROUPS,
}
