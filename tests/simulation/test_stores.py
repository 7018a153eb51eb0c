"""The model of the SQL ledger beside the real one."""

from collections.abc import Callable
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any, cast

import pytest
from sqlalchemy import create_engine

from airflow_provider_responsys.errors import LedgerFailed
from airflow_provider_responsys.ledger.interface import Accepted, Ledger, Released, Settlement, Wanted
from airflow_provider_responsys.ledger.sql import SqlLedger
from airflow_provider_responsys.ledger.tries import OnClear
from tests.simulation.attempt import Attempt
from tests.simulation.sql_model import SqlModel
from tests.simulation.sql_tables import SqlStore
from tests.simulation.stores import EPOCH, IDENTITY

PEOPLE = [bytes([number] * 9) for number in range(12)]


class CalmWorld:
    """A world in which nothing happens."""

    now = 100.0
    may_put_back = False

    def __init__(self, on_clear: OnClear) -> None:
        self.setup = SimpleNamespace(on_clear=on_clear, retries=1, reads_fail=False)

    def fault(self, _: int) -> int:
        return 0

    def write(self, _: object, do: Callable[[], None], *__: object) -> None:
        do()

    def sleep(self, _: object, seconds: float) -> None:
        self.now += seconds

    def nothing(self, *_: object) -> None:
        """Lets nothing else happen."""

    gap = between = nothing


class Tries:
    """Opens each try of two tasks on the real ledger, and on the model."""

    def __init__(self, path: Path, on_clear: OnClear) -> None:
        self.path = path
        self.on_clear = on_clear
        self.world = CalmWorld(on_clear)
        self.store = SqlStore(cast("Any", self.world), SqlModel)
        self.tasks = [SimpleNamespace(name=f"task{number}", number=0, max_tries=1) for number in (1, 2)]

    def open(self, place: int, *, clear: bool) -> tuple[Ledger, Ledger]:
        task = self.tasks[place]
        task.number += 1
        if clear:
            task.max_tries = task.number
        attempt = SimpleNamespace(
            name=f"{task.name} try {task.number}",
            task=task,
            number=task.number,
            max_tries=task.max_tries,
            may_have_claimed=False,
        )
        real = SqlLedger(
            create_engine(f"sqlite:///{self.path}"),
            send_key="autumn",
            task_instance=task.name,
            try_number=task.number,
            max_tries=task.max_tries,
            retries=1,
            on_clear=self.on_clear,
            may_have_claimed=False,
            now=lambda: EPOCH,
        )
        model = SqlModel(cast("Any", self.world), self.store, cast("Attempt", attempt))
        for ledger in (real, model):
            ledger.begin(IDENTITY)
        return real, model


def commit(ledger: Ledger, settled: list[Settlement], wanted: list[Wanted]) -> object:
    """Return what comes of a commit, as a value."""
    try:
        return ledger.commit(settled, wanted)
    except LedgerFailed as failure:
        return type(failure)


def earlier(ledger: Ledger) -> list[object]:
    """Return what *ledger* tells of earlier tries, as a value."""
    return [(sorted(batch.fingerprints), batch.request_id, batch.label) for batch in ledger.earlier()]


@pytest.mark.parametrize("seed", range(12))
def test_the_model_does_what_the_sql_ledger_does(seed: int, tmp_path: Path) -> None:
    """What the simulation finds of the model holds for the ledger."""
    chance = Random(seed)  # noqa: S311 -- chance, not secrecy
    tries = Tries(tmp_path / "ledger.db", chance.choice(["resume", "restart"]))
    alive: list[tuple[Ledger, Ledger]] = [tries.open(0, clear=False), tries.open(1, clear=False)]
    opened = list(alive)
    claimed: dict[int, list[int]] = {}
    numbers = iter(range(1, 1_000))

    for _ in range(25):
        if chance.random() < 0.2:
            pair = tries.open(chance.randrange(2), clear=chance.random() < 0.3)
            opened.append(pair)
            alive.append(pair)
            assert earlier(pair[0]) == earlier(pair[1])
            continue
        pair = chance.choice(alive)
        open_batches = claimed.setdefault(id(pair[0]), [])
        settled: list[Settlement] = [
            Accepted(number, f"id{number}") if chance.random() < 0.6 else Released(number)
            for number in chance.sample(open_batches, chance.randint(0, len(open_batches)))
        ]
        people = chance.sample(PEOPLE, 6)  # no recipient is in two batches of one try
        wanted = [Wanted(next(numbers), people[start : start + 3]) for start in range(0, 3 * chance.randint(0, 2), 3)]
        real, model = (commit(ledger, settled, wanted) for ledger in pair)
        assert real == model
        for answer in settled:
            open_batches.remove(answer.number)
        if isinstance(real, list):
            open_batches += [claim.number for claim in real if len(claim.lost) < 3]
    for pair in opened:
        assert earlier(pair[0]) == earlier(pair[1])
        pair[0].close()
