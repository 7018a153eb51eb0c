"""What both drivers keep to."""

import logging
import random
from collections.abc import Iterator

from airflow_provider_responsys.errors import InvalidSettings, LoginFailed, NotSent, ResponsysError
from airflow_provider_responsys.protocol.account import Account
from airflow_provider_responsys.protocol.wire import Pause

CONNECT_TIMEOUT = 5.0
"""Seconds until a connection stands, trust included."""

IDLE = 5.0
"""Seconds after which a connection may have been dropped on the way."""

PIECE = 64 * 1024

HEADERS = {"Accept": "application/json", "Accept-Encoding": "gzip, deflate"}

LOCK_MARGIN = 2 * CONNECT_TIMEOUT
"""Seconds beyond the timeout of an answer after which a login that another process began must be over."""

NOTICED = 10.0
"""Seconds after which a person wonders why nothing happens."""

LOGIN_SPREADS = (20.0,) * 4 + (120.0,) + (300.0,) * 9
"""Seconds over which those who were refused once, twice, … come back, beyond what Responsys asks for.

Fifty who start together at ten logins a minute are in five minutes later, none refused more than
four times, whether the limit counts minutes of the clock or the last sixty seconds. Who is not in by
then spreads out: where refused logins count as well, a crowd that came back together would keep
every task out for ever.
"""


def login_waits(chance: random.Random | None = None) -> Iterator[float]:
    """Yield how long to wait before each further login, beyond what Responsys asks for.

    At random, so that tasks that started together do not come back together.
    """
    uniform = (chance or random).uniform
    return (uniform(1.0, spread) for spread in LOGIN_SPREADS)


def tell(log: logging.Logger, pause: Pause) -> None:
    """Log a pause that a person would notice, if it says why."""
    if pause.reason and pause.seconds >= NOTICED:
        log.info("Trying again in %.0f s: %s", pause.seconds, pause.reason)


def unreadable(account: Account, error: Exception) -> ResponsysError:
    """Return what it means for a login as *account* that its connection can't be read again: *error* says why."""
    if isinstance(error, InvalidSettings):
        return LoginFailed(str(error))
    return NotSent(f"{account.host}: the connection can't be read again ({type(error).__name__})")
