"""What waiting for thousands of requests in one trigger costs, and how late a finished one is noticed.

`PushRequestTrigger.run()` waits on an event loop in a process of its own, over real
sockets, for requests that a sandbox in another process has accepted. The trigger
gets what Airflow would have stored, reads the account's limit from the sandbox, and
is not told anything else. The sandbox's log says what it asked, and when.

*Noticed late* is the time from when a request was processed, or from when the wait began
if that came later, to the question that was answered with its results. A request is due
with the first question of the wait, and again one poll interval after each question
about it. *Its place in the limit* is how many of the others are due before it then and
not yet asked about, times what each takes of the limit: 60 s / (limit x 0.98 x ids per
question), 0.98 being the share of the limit that a wait uses; and the same for the
questions that leave together with the one about it, a second's. The promise is to notice
a request within one poll interval and its place; *beyond the promise* is by how much the
worst one missed it.

Compared with

- a *sweep*: asks about all requests in turn, finished or not, and again a poll
  interval after it began, or at once if it took longer, until a sweep finds them all
  finished. Calculated for the same limit and the same times of processing.
- a *bare* client for processor time, memory and lag: an aiohttp session that asks the
  same questions at the same rate in turn, reads each answer with `json.loads`, and
  does nothing else. Run for a minute beside the same sandbox.

Processor time is that of the whole process from when the trigger begins until its
event is there, without the probe's; memory is the highest resident size over what was
there after the imports; lag is how much later than wanted a probe on the same loop was
woken. A processor that has paused begins slowly: *without pauses* is the same trigger,
and the same bare client, once more with everything finished and nothing limited.

python -m benchmarks.polling [requests] [recipients of each, 0: default] [limit] [processing time] [interval] [families]
"""

import json
import math
import sys
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count
from typing import Any
from urllib.parse import unquote

import requests

from airflow_provider_responsys.protocol.account import FAMILIES, Account, Family, account_from
from airflow_provider_responsys.protocol.call import call
from airflow_provider_responsys.protocol.pace import WINDOW
from airflow_provider_responsys.protocol.polling import poll_request
from airflow_provider_responsys.protocol.push import Push, submit
from airflow_provider_responsys.protocol.wire import Conversation
from airflow_provider_responsys.recipients.fields import FieldSettings, recipient_maker
from airflow_provider_responsys.transport.sync import Responsys
from airflow_provider_responsys.waiting.event import MAX_PACKED, pack
from airflow_provider_responsys.waiting.schedule import HEADROOM, TOGETHER
from benchmarks import watching
from benchmarks.ground import apart, sandbox
from benchmarks.report import Report

CAMPAIGN = "Bench"
SIGMA = 0.5
RECIPIENTS = {"haAsyncApi": 1, "asyncApi": 200}
"""Of each request: an answer about one is small whatever is in it, and one about 200 requests is not."""
NO_LIMIT = 1_000_000
"""Polls a minute."""
ALIKE = 60.0
"""Seconds that the bare client asks for, at most."""
WITHIN = 1800.0
"""Seconds after which the trigger gives up."""

make = recipient_maker(("customer_id",), FieldSettings(), is_table=True)


@dataclass(frozen=True, slots=True)
class Question:
    """A poll that the sandbox saw."""

    time: float
    ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Notice:
    """How a request was noticed: so many seconds *late*, and so many beyond the promise, which may be below 0."""

    late: float
    beyond: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What is waited for, and how: *interval* and *processing_time* (the median) in seconds, *limit* a minute."""

    family: Family
    number: int
    recipients: int
    limit: int
    processing_time: float
    interval: float

    @property
    def spacing(self) -> float:
        """Return the seconds of the limit that one id of a full question takes up."""
        return WINDOW / (self.limit * HEADROOM * self.family.ids_per_poll)

    @property
    def together(self) -> float:
        """Return the seconds of the limit that the questions take up which leave together."""
        return (1 + int(self.limit * TOGETHER)) * WINDOW / (self.limit * HEADROOM)


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What one wait left behind: times are the sandbox's, in the order of *ids*."""

    ids: Sequence[str]
    processed: Sequence[float]
    questions: Sequence[Question]
    report: Mapping[str, Any]
    waited: watching.Waited
    bare: watching.Asked
    hurried: watching.Waited
    """The same wait once more, everything being finished and nothing limited."""
    bare_hurried: watching.Asked


def main(
    number: int = 5_000,
    recipients: int = 0,
    limit: int = 1_000,
    processing_time: float = 60.0,
    interval: float = 60.0,
    *families: str,
) -> None:
    """Wait once in each of *families*, and report; without *recipients*, of as many as `RECIPIENTS` says."""
    for name in families or FAMILIES:
        setting = Setting(
            family=FAMILIES[name],
            number=int(number),
            recipients=int(recipients) or RECIPIENTS[name],
            limit=int(limit),
            processing_time=float(processing_time),
            interval=float(interval),
        )
        tell(setting, measured(setting))


def measured(setting: Setting) -> Found:
    """Push, wait as *setting* says, and ask what became of everything."""
    options = ["--processing-time", setting.processing_time, "--processing-sigma", SIGMA]
    options += ["--poll-limit", setting.limit, "--log-length", 20 * setting.number]
    name = setting.family.name
    with sandbox(*map(str, options), campaign=CAMPAIGN) as url:
        account = account_from(host=url, port=None, schema=None, extra={"api": name}, **watching.LOGIN)
        ids = pushed(account, setting)
        change(url, keep_bodies=True)
        waited = apart(watching.trigger, url, name, ids, setting.interval, WITHIN)
        asked = questions(url)
        report = requests.get(f"{url}/sandbox/report", timeout=60).json()
        change(url, poll_limit=None)
        processed = times_of_processing(account, ids)
        return Found(
            ids=ids,
            processed=processed,
            questions=asked,
            report=report,
            waited=waited,
            bare=apart(watching.bare, url, name, ids, setting.limit * HEADROOM, ALIKE),
            hurried=apart(watching.trigger, url, name, ids, setting.interval, WITHIN),
            bare_hurried=apart(watching.bare, url, name, ids, NO_LIMIT, ALIKE),
        )


def tell(setting: Setting, found: Found) -> None:
    """Report *found*."""
    together = setting.family.ids_per_poll > 1
    cost, bare = found.waited.cost, found.bare.cost
    asked, number = len(found.questions), setting.number
    sweeps, swept_late = swept(found, setting)
    late = [notice.late for notice in notices(found, setting)]
    beyond = max(notice.beyond for notice in notices(found, setting))
    report = Report(
        "polling_async" if together else "polling",
        f"Waiting for {number:,} requests in one trigger, {setting.family.name}",
        {
            "recipients each": setting.recipients,
            "limit": f"{setting.limit:,} a minute",
            "processing": f"log-normal, median {setting.processing_time:g} s, sigma {SIGMA:g}",
            "poke_interval": f"{setting.interval:g} s",
            "the wait took": f"{found.questions[-1].time - found.questions[0].time:.0f} s",
        },
        baseline="a sweep of all (polls, late), a bare aiohttp client (rest)",
    )
    polls = swept_polls = number / setting.family.ids_per_poll
    if together:
        report.add("polls of the first sweep", first_sweep(found), "polls", baseline=math.ceil(polls), at_most=30)
        report.add("most polls within a poll interval", busiest(found, setting), "polls", at_most=30)
        report.add("polls in all", asked, "polls", baseline=sweeps * math.ceil(swept_polls))
    else:
        report.add("polls a request", asked / number, "polls", baseline=sweeps, at_most=1.7)
    report.add("noticed late, median", watching.percentile(late, 50), "s", baseline=watching.percentile(swept_late, 50))
    report.add("noticed late, p99", watching.percentile(late, 99), "s", baseline=watching.percentile(swept_late, 99))
    report.add("worst beyond the promise", beyond, "s", at_most=0)
    report.add("requests lost", number - found.waited.event["results"]["requests"]["finished"], "requests", at_most=0)
    report.add("polls refused by the limit", sum(found.report["refusals"].values()), "polls", at_most=0)
    report.add("loop lag, p99", cost.lag, "ms", baseline=bare.lag, at_most=20)
    what, times = ("processor time a request", number) if together else ("processor time a poll", asked)
    report.add(what, cost.cpu / times * 1e3, "ms", baseline=bare.cpu / found.bare.requests * 1e3, at_most=0.3)
    hurried, bare_hurried = found.hurried.cost.cpu, found.bare_hurried.cost.cpu
    report.add(
        f"{what}, without pauses",
        hurried / number * 1e3,
        "ms",
        baseline=bare_hurried / found.bare_hurried.requests * 1e3,
    )
    # Forty thousand results in one answer are megabytes for everybody who reads them.
    report.add("memory over the start", cost.memory, "MB", baseline=bare.memory, at_most=None if together else 10)
    report.add("the ids, packed", len(pack(found.ids)), "bytes", at_most=MAX_PACKED)
    report.write()


def pushed(account: Account, setting: Setting) -> list[str]:
    """Push all requests, one after the other, and return their ids."""
    people = count()
    with Responsys(account, user_agent="benchmark") as line:
        return [
            line.run(submit(account, Push(CAMPAIGN), [body(next(people)) for _ in range(setting.recipients)]))
            for _ in range(setting.number)
        ]


def body(person: int) -> str:
    """Return what a push says of *person*."""
    return make((f"C{person:08d}",)).body


def change(url: str, **settings: object) -> None:
    """Change *settings* of the sandbox."""
    requests.post(f"{url}/sandbox/settings", json=settings, timeout=60).raise_for_status()


def questions(url: str) -> list[Question]:
    """Return the polls that the sandbox has seen so far."""
    log = requests.get(f"{url}/sandbox/requests", timeout=60).json()
    return [
        Question(
            seen["time"],
            tuple(json.loads(seen["body"])["requestIds"])
            if seen["body"]
            else (unquote(seen["path"].rpartition("/")[2]),),
        )
        for seen in log
        if seen["endpoint"] == "poll"
    ]


def times_of_processing(account: Account, ids: Sequence[str]) -> list[float]:
    """Ask when each of *ids* was processed, all of them being finished: the answers tell milliseconds."""

    def frames(some: Sequence[str]) -> Conversation[list[dict[str, Any]]]:
        response = yield from call(account, poll_request(account, some))
        answer = json.loads(response.body)
        return answer if isinstance(answer, list) else [answer]

    size = account.family.ids_per_poll
    with Responsys(account, user_agent="benchmark") as line:
        told = [frame for at in range(0, len(ids), size) for frame in line.run(frames(ids[at : at + size]))]
    by_id = {frame["requestId"]: datetime.fromisoformat(frame["requestProcessedTime"]) for frame in told}
    return [by_id[request_id].replace(tzinfo=UTC).timestamp() for request_id in ids]


def notices(found: Found, setting: Setting) -> list[Notice]:
    """Return how each request was noticed: by the last question about it."""
    begin = found.questions[0].time
    place = {request_id: at for at, request_id in enumerate(found.ids)}
    asked: list[tuple[tuple[float, int], float]] = []  # of each request in each question: when it was due, and asked
    due = {request_id: (begin, at) for request_id, at in place.items()}
    last = {}
    for question in found.questions:
        for request_id in question.ids:
            last[request_id] = (due[request_id], question.time)
            asked.append(last[request_id])
            due[request_id] = (question.time + setting.interval, place[request_id])
    dues, times = sorted(each[0] for each in asked), sorted(each[1] for each in asked)
    told = []
    for request_id, processed in zip(found.ids, found.processed, strict=True):
        was_due, noticed = last[request_id]
        ahead = max(0, bisect_left(dues, was_due) - bisect_right(times, was_due[0]))
        late = noticed - max(processed, found.waited.began)
        told.append(Notice(late, late - setting.interval - ahead * setting.spacing - setting.together))
    return told


def swept(found: Found, setting: Setting) -> tuple[int, list[float]]:
    """Return how many sweeps find everything finished, and how late each request is noticed by them."""
    start = found.questions[0].time
    late: dict[int, float] = {}
    for sweep in count(1):
        for at, processed in enumerate(found.processed):
            asked = start + at * setting.spacing
            if at not in late and asked >= processed:
                late[at] = asked - max(processed, found.waited.began)
        if len(late) == setting.number:
            return sweep, list(late.values())
        start += max(setting.interval, setting.number * setting.spacing)
    raise AssertionError("it counts to infinity")


def first_sweep(found: Found) -> int:
    """Return how many questions it took until every request had been asked about."""
    missing = set(found.ids)
    for number, question in enumerate(found.questions, 1):
        missing.difference_update(question.ids)
        if not missing:
            return number
    raise RuntimeError(f"{len(missing)} requests were never asked about")


def busiest(found: Found, setting: Setting) -> int:
    """Return the most questions within one poll interval."""
    times = [question.time for question in found.questions]
    return max(bisect_left(times, each + setting.interval) - at for at, each in enumerate(times))


if __name__ == "__main__":
    main(*sys.argv[1:])  # type: ignore[arg-type]  # they are read as numbers there
