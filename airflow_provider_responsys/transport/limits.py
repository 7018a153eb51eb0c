"""What both drivers keep to."""

import logging
import random
from collections.abc import Iterator

from airflow_provider_responsys.protocol.wire import Pause

CONNECT_TIMEOUT = 5.0
"""Seconds until a connection stands, trust included."""

IDLE = 5.0
"""Seconds after which a connection may have been dropped by somebody on the way."""

PIECE = 64 * 1024

HEADERS = {"Accept": "application/json", "Accept-Encoding": "gzip, deflate"}

NOTICED = 10.0
"""Seconds after which a person wonders why nothing happens."""

LOGIN_SPREADS = (20.0,) * 4 + (120.0,) + (300.0,) * 9
"""Seconds over which those who were refused once, twice, … come back, beyond what Responsys asks for.

Fifty who start together at ten logins a minute are in five minutes later, none refused more than
four times, whether the limit counts minutes of the clock or the last sixty seconds. Who is not in by
then spreads out: where refused logins count as well, a crowd that came back together would keep
everybody out for ever.
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
