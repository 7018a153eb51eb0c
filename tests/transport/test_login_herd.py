"""Many tasks of one account that start together, in simulated time: who is let in when."""

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace

import pytest

from airflow_provider_responsys.errors import TryLater
from airflow_provider_responsys.protocol.account import Account
from airflow_provider_responsys.protocol.auth import Keyring, authorize
from airflow_provider_responsys.protocol.wire import Conversation, Pause, Response, Token
from airflow_provider_responsys.sandbox.limits import Windows
from airflow_provider_responsys.transport.limits import LOGIN_SPREADS, login_waits

TASKS = 50
LIMIT = 10  # logins a minute
MINUTE = 60.0
TWELVE_MINUTES = 720.0

LOGGED_IN = Response(200, b'{"authToken": "E1", "endPoint": "https://api.responsys.net"}')
REFUSED = Response(
    401, b'{"type": "", "title": "", "errorCode": "API_LIMIT_EXCEEDED", "detail": "", "errorDetails": []}'
)

Admit = Callable[[float], bool]


@dataclass
class Herd:
    """What became of the tasks: when the last one was in, how often one was refused at most, who gave up."""

    last: float
    most_refused: int
    gave_up: int


def window(*, sliding: bool, phase: float) -> Admit:
    """Return a limit as the sandbox has it."""
    windows = Windows()
    return lambda now: windows.admit("login", LIMIT, now=now + phase, span=MINUTE, sliding=sliding)


def counting_refused() -> Admit:
    """Return a limit over the last minute in which a refused login counts like any other."""
    calls: list[float] = []

    def admit(now: float) -> bool:
        calls[:] = [*(call for call in calls if call > now - MINUTE), now]
        return len(calls) <= LIMIT

    return admit


def herd(admit: Admit, seed: int, *, naive: bool = False, tasks: int = TASKS) -> Herd:
    """Let *tasks* log in that start within two seconds; *naive* ones come back when the minute is over."""
    chance = random.Random(seed)  # noqa: S311 -- nothing to guess here
    clock = SimpleNamespace(now=0.0)
    result = Herd(0.0, 0, 0)
    refused = [0] * tasks
    due: list[tuple[float, int, Conversation[Token]]] = []
    for task in range(tasks):
        account = Account(host="https://login5.responsys.net", login="u", password="p")
        waits = iter([0.0] * 30) if naive else login_waits(chance)
        login = authorize(Keyring(account), None, now=lambda: clock.now, waits=waits)
        next(login)  # it wants to ask
        due.append((chance.uniform(0, 2), task, login))
    heapq.heapify(due)
    while due:
        clock.now, task, login = heapq.heappop(due)
        let_in = admit(clock.now)
        refused[task] += not let_in
        try:
            step = login.send(LOGGED_IN if let_in else REFUSED)
        except StopIteration:
            result.last = clock.now
            continue
        except TryLater:
            result.gave_up += 1
            continue
        assert isinstance(step, Pause)
        login.send(None)  # it wants to ask again
        heapq.heappush(due, (clock.now + step.seconds, task, login))
    result.most_refused = max(refused)
    return result


@pytest.mark.parametrize("sliding", [False, True], ids=["fixed", "sliding"])
def test_fifty_tasks_are_in_after_six_minutes(*, sliding: bool) -> None:
    """Five minutes are the least that ten a minute allow; twelve are what is promised."""
    herds = [herd(window(sliding=sliding, phase=seed), seed) for seed in range(60)]

    assert max(each.last for each in herds) <= TWELVE_MINUTES / 2
    assert max(each.most_refused for each in herds) <= 5
    assert sum(each.gave_up for each in herds) == 0


def test_where_refused_logins_count_a_crowd_still_gets_in() -> None:
    """Who comes back with everybody else at the end of each minute keeps everybody out for ever."""
    herds = [herd(counting_refused(), seed) for seed in range(60)]
    naive = herd(counting_refused(), 0, naive=True)

    assert sum(each.gave_up for each in herds) == 0
    assert max(each.most_refused for each in herds) <= 8
    assert naive.gave_up == TASKS - LIMIT


@pytest.mark.parametrize("sliding", [False, True], ids=["fixed", "sliding"])
def test_two_hundred_tasks_are_in_at_last(*, sliding: bool) -> None:
    """Patience grows with the crowd, and nobody is refused more often than the waits allow."""
    found = herd(window(sliding=sliding, phase=7), 7, tasks=200)

    assert found.gave_up == 0
    assert found.most_refused <= len(LOGIN_SPREADS)


def test_a_limit_of_none_is_given_up() -> None:
    """Refused ever again, a task ends with what may pass: another try of it goes on."""
    found = herd(lambda _: False, 1, tasks=3)

    assert (found.gave_up, found.most_refused) == (3, len(LOGIN_SPREADS) + 1)
