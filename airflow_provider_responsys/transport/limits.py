"""What both drivers keep to."""

import random
from collections.abc import Iterator

CONNECT_TIMEOUT = 5.0
"""Seconds until a connection stands, trust included."""

IDLE = 5.0
"""Seconds after which a connection may have been dropped by somebody on the way."""

MAX_ANSWER = 64 * 1024 * 1024
"""Bytes of an answer, unpacked. A thousandth of it is what Responsys sends."""

PIECE = 64 * 1024

HEADERS = {"Accept": "application/json", "Accept-Encoding": "gzip, deflate"}

CORRELATION = "X-CorrelationID"
"""Recorded on the pods' answers; Oracle's support asks for it."""

LOGIN_TRIES = 12
LOGIN_SPREAD = 30.0


def login_waits() -> Iterator[float]:
    """Yield how long to wait before each further login, beyond what Responsys asks for.

    At random, so that tasks that started together do not come back together.
    """
    return (random.uniform(1.0, LOGIN_SPREAD) for _ in range(LOGIN_TRIES))  # noqa: S311 -- nothing to guess here
