"""What is drawn when the world is slow, or is put back, or is tidied up, rather than dead."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from airflow_provider_responsys.sandbox import Fault
from tests.faults.late import Late
from tests.faults.planted import PUSH_POINTS, Plant
from tests.faults.scenario import (
    IN_SQL,
    MAY_CLOSE,
    MAY_STOP,
    NAIVE,
    POSTGRES,
    STORES,
    WHOLE,
    Drawn,
    Kill,
)
from tests.support.verdict import BATCH

Drawer = Callable[[int, random.Random, str], Drawn]
"""Draws the scenario of a seed: the same on every store, unless that has no such thing."""


def _turn(kinds: Sequence[str], seed: int) -> str:
    return kinds[seed % len(kinds)]


# Late and repeated writes to the task state store

LATE = (
    "after its repeat",
    "when the worker is dead",
    "when the retry has begun",
    "when the retry has ended",
    "a copy of one that was answered",
    "again, though it was done",
    "several, out of order",
    "of what a restart forgot",
    "far behind, without any other fault",
)


def _late(seed: int, chance: random.Random, _store: str) -> Drawn:
    what = _turn(LATE, seed)
    nth, soon = chance.randint(2, 4), chance.randint(1, 4)
    late = {
        "after its repeat": [Late(nth, writes=soon)],
        "when the worker is dead": [Late(nth, after="ended 1", writes=0)],
        "when the retry has begun": [Late(nth, after="ended 1", writes=soon)],
        "when the retry has ended": [Late(nth, after="over", writes=0)],
        "a copy of one that was answered": [Late(nth, writes=soon + 2, now=True, answered=True)],
        "again, though it was done": [Late(nth, after=chance.choice(("", "ended 1")), writes=soon, now=True)],
        "several, out of order": [
            Late(each, chance.choice(("", "ended 1", "over")), chance.randint(0, 5), now=chance.random() < 0.5)
            for each in range(2, 12, 3)
        ],
        "of what a restart forgot": [Late(chance.choice((1, nth)), after="over", writes=soon)],
        "far behind, without any other fault": [Late(nth + soon, writes=chance.randint(25, 32))],
    }[what]
    restarts, far = what == "of what a restart forgot", what == "far behind, without any other fault"
    killed = Plant(chance.choice(("between batches", "after the intent")), nth=chance.randint(5, 7))
    dies = what in ("when the worker is dead", "when the retry has begun") or (not far and chance.random() < 0.5)
    return {
        "what": f"late: {what}",
        "batches": 40 if far else chance.randint(9, 12),
        "in_flight": 1 if far else chance.randint(1, 2),
        # The client gives up by itself, or a gateway before the API server does.
        "late": [replace(each, silent=chance.random() < 0.3 and not each.answered) for each in late],
        "plants": {("push", 2 if restarts else 1): [killed]} if dies or restarts else {},
        "at_end": ["clear"],
        "on_clear": "restart" if restarts else "resume",
        "strikes": True,
    }


# A ledger that is put back

PUT_BACK = (
    "between two tries",
    "while a try runs",
    "before a clear",
    "between two tries, to before its first claim",
    "while a try runs, its connections ended",
)


def _put_back(seed: int, chance: random.Random, _store: str) -> Drawn:
    what = _turn(PUT_BACK, seed)
    first = chance.randint(1, 3)
    later = first + chance.randint(1, 4)
    snapshot = Plant("between batches", first, event="snapshot")
    if what == "between two tries, to before its first claim":
        snapshot = Plant("after the record of the try", event="snapshot")
    then = Plant(chance.choice(("between batches", "body sent", "after the intent")), later)
    if what.startswith("while a try runs"):
        event = "put back, connections ended" if "ended" in what else "put back"
        then = Plant("between batches", later, event=event)
    return {
        "what": f"put back {what}",
        "batches": chance.randint(8, 12),
        "in_flight": chance.randint(1, 2),
        "plants": {("push", 1): [snapshot] if what == "before a clear" else [snapshot, then]},
        "between": {1: ["put back"]} if what.startswith("between") else {},
        "at_end": ["put back", "clear"] if what == "before a clear" else ["clear"],
        "ends": MAY_CLOSE,
    }


# Brown-outs

BROWN_OUTS = (
    "reset before",
    "reset after",
    "lost before",
    "lost after",
    "dripped answers",
    "tokens that expire, and few logins",
)
WITH = ("", "a stop", "a timeout", "a kill")


def _brown_outs(seed: int, chance: random.Random, store: str) -> Drawn:
    what, beside = _turn(BROWN_OUTS, seed), WITH[seed // len(BROWN_OUTS) % len(WITH)]
    tokens, dripped = what == BROWN_OUTS[-1], what == BROWN_OUTS[-2]
    if tokens:
        beside = beside or "a stop"  # without an end, the login's limit is waited for
    share = chance.uniform(0.3, 0.5)
    if dripped:
        # Longer than an exchange may take, though each byte comes in time.
        faults = [Fault("push", "slow", nth=(chance.randint(2, 8), chance.randint(9, 14)), seconds=6.0)]
    elif tokens:
        faults = []
    else:
        kind, when = what.split()
        # Where each lost one is followed by one that comes through, nothing looks like an outage.
        every_second = Fault("push", kind, when=when, every=2)
        faults = [every_second if seed % 2 == 0 or seed % 5 == 0 else Fault("push", kind, when=when, probability=share)]
    # A person looks, and clears: then everybody who was not sent to is.
    cleared = not beside
    kills = {"a stop": Kill(chance.uniform(0.6, 1.4), "stop"), "a kill": Kill(chance.uniform(1.2, 2.2), "task")}
    return {
        "what": f"{what}, with {beside}" if beside else what,
        "batches": 40 if seed % 3 == 0 and store != NAIVE else chance.randint(10, 20),
        "in_flight": chance.randint(2 if tokens else 1, 3),
        "latency": chance.uniform(0.05, 0.15),
        "faults": faults,
        "sandbox": {"token_lifetime": 0.25, "login_limit": 1} if tokens else {},
        "kills": {("push", 1): kills[beside]} if beside in kills else {},
        "execution_timeout": chance.uniform(2.5, 4.0) if beside == "a timeout" else None,
        # The budget is one for all tries.
        "between": {1 if tokens or dripped else 3: ["heal"]},
        "budget": True,
        "silent": dripped,
        # A request that was refused for its token waits for a login, and is not out.
        "gentle": tokens and beside != "a kill",
        "at_end": ["heal", "clear failed"] if cleared else [],
        "ends": WHOLE if cleared else MAY_STOP,
    }


# Stalls

STALLS = (
    "a lock held, and a stop",
    "a lock held for a while",
    "stopped in a transaction",
    "gone dark, and a stop",
    "gone dark for a while",
    "an idle connection dropped",
)


def _stalls(seed: int, chance: random.Random, store: str) -> Drawn:
    kinds = STALLS if store == POSTGRES else STALLS[:3]
    what = _turn(kinds, seed)
    point, nth = chance.choice(("before the intent", "before the acceptance write")), chance.randint(1, 3)
    event = {
        "a lock held, and a stop": "lock",
        "a lock held for a while": "lock for a while",
        "stopped in a transaction": "zombie",
        "gone dark, and a stop": "dark",
        "gone dark for a while": "dark for a while",
        "an idle connection dropped": "drop idle",
    }[what]
    plant = Plant("in a transaction of the ledger", nth + 1, event=event) if event == "zombie" else Plant(point, nth)
    if event == "drop idle":
        plant = chance.choice((Plant("after the record of the try"), Plant(point, nth), Plant("between batches", nth)))
    return {
        "what": what,
        "batches": chance.randint(4, 6),
        "in_flight": chance.randint(1, 3),
        "plants": {("push", 1): [Plant(plant.point, plant.nth, event=event)]},
        "one_attempt": event == "drop idle",
    }


# Housekeeping

HOUSEKEEPING = (
    "XComs cleaned, then cleared",
    "record and XComs cleaned, then cleared",
    "record cleaned, then cleared",
    "XComs cleaned between two tries",
    "record and XComs cleaned before the third try",
    "cleared between two tries",
    "cleared at a point",
    "cleared at a point",
    "shards cut anew",
    "a wrong password in eight tasks",
)
IN_SQL_ALONE = ("settled by hand in a try", "forgotten in a try", "pruned in a try", "settled by hand in a dead try")


def _housekeeping(seed: int, chance: random.Random, store: str) -> Drawn:
    what = _turn((*HOUSEKEEPING, *IN_SQL_ALONE) if store in IN_SQL else HOUSEKEEPING, seed)
    killed = [Plant(chance.choice(("between batches", "before the acceptance write")), nth=chance.randint(1, 3))]
    drawn: Drawn = {"what": what, "batches": chance.randint(4, 7), "in_flight": chance.randint(1, 3)}
    if what == "shards cut anew":
        return drawn | _cut_anew(chance)
    if what == "a wrong password in eight tasks":
        shards = [list(range(number * 10, number * 10 + 10)) for number in range(8)]
        return drawn | {"dag": "push_many", "shards": {1: shards}, "wrong_first": 8, "at_end": ["clear failed"]}
    if what == "cleared at a point":
        point = chance.choice([name for name in PUSH_POINTS if "during the" not in name])
        return drawn | {"what": f"cleared {point}", "plants": {("push", 1): [Plant(point, event="clear")]}}
    if what in IN_SQL_ALONE:
        return drawn | _by_hand(what, chance)
    cases: Mapping[str, Drawn] = {
        "XComs cleaned, then cleared": {"at_end": ["xcoms", "clear"]},
        "record and XComs cleaned, then cleared": {"at_end": ["lose", "xcoms", "clear"], "ends": MAY_CLOSE},
        "record cleaned, then cleared": {"at_end": ["lose", "clear"], "ends": MAY_CLOSE},
        "XComs cleaned between two tries": {"plants": {("push", 1): killed}, "between": {1: ["xcoms"]}},
        "record and XComs cleaned before the third try": {
            "plants": {("push", 1): killed, ("push", 2): [Plant("before the record of the try")]},
            "between": {2: ["lose", "xcoms"]},
            "ends": MAY_CLOSE,
        },
        "cleared between two tries": {"plants": {("push", 1): killed}, "between": {1: ["clear"]}},
    }
    return drawn | cases[what]


def _cut_anew(chance: random.Random) -> Drawn:
    """Draw two mapped tasks, [A, B] and [C], of which the first dies and comes back with [A, B, C]."""
    people, first = 5 * BATCH, chance.randint(3, 4) * BATCH
    return {
        "dag": "push_shards",
        "shards": {1: [list(range(first)), list(range(first, people))], 3: [list(range(people)), []]},
        "plants": {("push", 1): [Plant("between batches", nth=chance.randint(1, 2))]},
        "ends": MAY_CLOSE,
    }


def _by_hand(what: str, chance: random.Random) -> Drawn:
    """Draw what a person does at the command line while a try runs."""
    event = {
        "settled by hand in a try": "settle",
        "settled by hand in a dead try": "settle, then kill",
        "forgotten in a try": "forget",
        "pruned in a try": "prune",
    }[what]
    point = "between batches" if event in ("forget", "prune") else "body sent"
    halves: Drawn = {}
    if chance.random() < 0.5:
        people = list(range(chance.randint(4, 7) * BATCH))
        halves = {"dag": "push_shards", "shards": {1: [people[::2], people[1::2]]}}
    return {
        **halves,
        "plants": {("push", 1): [Plant(point, nth=chance.randint(1, 2), event=event)]},
        "at_end": ["clear"],
        "ends": MAY_CLOSE if event == "prune" else WHOLE,
        "forgiven": int(event == "forget"),
    }


GROUPS: Mapping[str, tuple[Drawer, Sequence[str]]] = {
    "late store writes": (_late, STORES),
    "put back": (_put_back, IN_SQL),
    "brown-outs": (_brown_outs, (*STORES, NAIVE)),
    "stalls": (_stalls, IN_SQL),
    "housekeeping": (_housekeeping, STORES),
}
