"""A short look from a worker: one poll after the other, none of them twice."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from airflow_provider_responsys.errors import ResponsysError
from airflow_provider_responsys.protocol.polling import Outcome
from airflow_provider_responsys.waiting.engine import WaitEngine
from airflow_provider_responsys.waiting.schedule import PASSING
from airflow_provider_responsys.waiting.telling import Observer, log_outcomes

LAST_LOOK = 10.0
"""Seconds that a look has at the deadline, when all may be there by then."""

Ask = Callable[[Sequence[str], float], Mapping[str, Outcome]]
"""Polls some requests, so many seconds from now."""

Record = Callable[[Mapping[str, Outcome]], object]
"""Takes note of final outcomes."""


def sweep(
    engine: WaitEngine,
    ask: Ask,
    *,
    log: Any,
    observer: Observer,
    record: Record,
    most: int | None = None,
    seconds: float = math.inf,
    stop_at_open: bool = False,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Poll what is due now, in at most *most* polls; what may pass ends the look, and what will not is raised.

    The wait ends in so many *seconds*: no poll leaves later, but those of a last look
    of `LAST_LOOK`. With *stop_at_open* the look ends at the first request that is
    still open.
    """
    began = clock()
    until = began + max(seconds, LAST_LOOK)
    polls = 0
    while engine.schedule and engine.schedule.due <= began and (most is None or polls < most):
        leaves = max(clock(), engine.next_at)
        if leaves > until:
            return
        if not (taken := engine.take(leaves, most=1)):
            return  # what was left had ended, as the ledger told since the last look
        (ids,) = taken
        polls += 1
        try:
            outcomes = ask(ids, max(0.0, leaves - clock()))
        except ResponsysError as error:
            counted = engine.failed(ids, error, leaves, clock())
            observer.refused(error)
            log_outcomes(log, counted.final, engine.state.sizes)
            record(counted.final)
            if isinstance(error, PASSING):
                log.warning("No results at the moment, polling again later: %s", error)
                return
            continue
        counted = engine.answered(outcomes, leaves, clock())
        observer.answered(counted.found)
        log_outcomes(log, counted.final, engine.state.sizes)
        record(counted.final)
        if stop_at_open and len(counted.final) < len(ids):
            return
