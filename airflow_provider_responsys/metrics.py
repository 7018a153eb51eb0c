"""Counters for a monitoring system, through Airflow's own ``[metrics]`` settings.

Each with the tag ``conn_id``, and those of a push with ``campaign_name``. A system
without tags (plain StatsD) gets the sums under the same names.

::

    responsys.push.requests.accepted      queued by Responsys
    responsys.push.requests.rejected      refused for good; tag code
    responsys.push.requests.in_doubt      sent, and the answer was lost
    responsys.push.requests.limited       refused by a limit, and sent again later; tag code
    responsys.push.requests.put_off       not accepted for another reason that may pass, and sent again; tag code
    responsys.push.recipients.accepted, .rejected, .in_doubt   the same, in recipients
    responsys.push.recipients.found_in_doubt   left in doubt by earlier tries: told by each try that finds them
    responsys.wait.begun                  waits that begin in a triggerer, or go on in another one
    responsys.wait.polls.answered
    responsys.wait.polls.limited          refused by a limit, and asked again later; tag code
    responsys.wait.polls.failed           without an answer for another reason that may pass; tag code
    responsys.wait.requests.ended         tag outcome: finished, failed or unknown
    responsys.wait.recipients.succeeded   handed to Responsys' personalization queue, not delivered
    responsys.wait.recipients.failed      tag code

Without a SQL ledger, a wait that goes on elsewhere polls again, and counts again.

What is tagged is chosen by the DAG's author and by Responsys, and never a
recipient, a request or a run: that would name people, or make a series of its own
for each value. Where each day has a new campaign, keep its name out with
``[metrics] statsd_disabled_tags``.
"""

import re
from collections.abc import Mapping
from typing import Any

from airflow.providers.common.compat.sdk import Stats

from airflow_provider_responsys.protocol.naming import with_room
from airflow_provider_responsys.protocol.results import KNOWN

UNSAFE = re.compile(r"[^A-Za-z0-9_.-]")
"""What Airflow drops a tag for, or the metric: StatsD's names have no room for it."""

MAX_TAG = 60
"""Airflow drops a StatsD metric of more than 250 characters, its tags included."""


class Metrics:
    """Counters with *tags*. A failure of theirs disturbs nothing else."""

    def __init__(self, log: Any, **tags: str) -> None:
        self._log = log
        self._tags = tags
        self._works = True
        self._codes: set[str] = set()

    def count(self, name: str, number: int = 1, **tags: str) -> None:
        """Add *number* to the counter *name*, which also gets *tags*. It never raises; in trouble it stays silent."""
        if not number or not self._works:
            return
        if "code" in tags:
            tags["code"] = with_room(tags["code"], self._codes, KNOWN)
            self._codes.add(tags["code"])
        try:
            Stats.incr(f"responsys.{name}", number, tags=_readable(self._tags | tags))
        except Exception as error:  # noqa: BLE001 -- whatever a monitoring system does, the push goes on
            self._works = False
            self._log.warning("Metrics can't be sent any more (%s): %s", type(error).__name__, error)


def _readable(tags: Mapping[str, str]) -> dict[str, str]:
    return {name: UNSAFE.sub("_", value)[:MAX_TAG] for name, value in tags.items()}
