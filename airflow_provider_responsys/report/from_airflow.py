"""What Airflow itself knows of a push or a wait: XCom values and task state notes, in the form of a report.

It is all there is where no SQL ledger remembers the push. Where one does, it adds
the buckets that no ledger keeps.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from enum import StrEnum

from airflow_provider_responsys.airflow_internals import (
    StoredTask,
    newest_tasks_with_xcom,
    stored_tasks,
    tasks_of_runs,
    tasks_with_xcom,
)
from airflow_provider_responsys.links import PUSH_KEY, WAIT_KEY
from airflow_provider_responsys.progress import PUSH, WAIT
from airflow_provider_responsys.protocol.meanings import meaning_of
from airflow_provider_responsys.report.model import (
    Buckets,
    CodeCount,
    Outcomes,
    PushReport,
    PushState,
    PushSummary,
    PushTask,
)

PUSH_XCOM = (PUSH_KEY, "campaign_name", "send_key", "dry_run", "recipients", "problem", "request_sizes")
WAIT_XCOM = (WAIT_KEY, "return_value")

AT_WORK = frozenset({"running", "queued", "scheduled", "deferred", "restarting", "up_for_retry", "up_for_reschedule"})
"""States of a task instance that has not come to its end."""

LISTED = 500
"""So many task instances are read for a list without a ledger, the newest."""

NEVER = datetime(1970, 1, 1, tzinfo=UTC)


class Kind(StrEnum):
    """What a task is to us."""

    PUSH = "push"
    WAIT = "wait"
    OTHER = "other"


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a running push is, as its task state note says: counts of one try, and *accepted_earlier* ones."""

    to_send: int
    accepted: int
    accepted_earlier: int
    rejected: int
    in_doubt: int
    left: int
    requests: int
    per_minute: int
    limit: int
    ends_at: datetime | None
    updated_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskReport:
    """What Airflow knows of *task*.

    *buckets* are None until a push has reported them, *outcomes* until a wait has
    counted some. *pushes* and *waits* are the other tasks of its run.
    """

    task: PushTask
    kind: Kind
    at_work: bool = False
    airflow_states: Sequence[str] = ()
    campaign_name: str = ""
    send_key: str = ""
    dry_run: bool = False
    began_at: datetime | None = None
    ended_at: datetime | None = None
    tries: int = 0
    requests: int = 0
    buckets: Buckets | None = None
    problems: Sequence[str] = ()
    progress: Progress | None = None
    outcomes: Outcomes | None = None
    waited: Mapping[str, int] | None = None
    """A wait's requests: total, finished, failed, unknown, pending."""
    pushes: Sequence[PushTask] = ()
    waits: Sequence[PushTask] = ()


def task_report(task: PushTask) -> TaskReport:
    """Return what Airflow knows of *task*."""
    tasks = tasks_with_xcom(task.dag_id, task.run_id, (PUSH_KEY, WAIT_KEY))
    waits = tasks[WAIT_KEY]
    wanted = {task.task_id, *(waits if len(tasks[PUSH_KEY]) == 1 and len(waits) == 1 else ())}
    found = stored_tasks(task.dag_id, task.run_id, wanted, xcom_keys=(*PUSH_XCOM, *WAIT_XCOM), note_keys=(PUSH, WAIT))
    own = [one for one in found if one.task_id == task.task_id and task.map_index in (None, one.map_index)]
    report = _report(task, own)
    others = {
        "pushes": _tasks(task, tasks[PUSH_KEY] - {task.task_id}),
        "waits": _tasks(task, waits - {task.task_id}),
    }
    # One push, one wait: its outcomes are the push's. Of several, which wait is of which push is not known here.
    waited = [one for one in found if one.task_id in waits] if len(wanted) > 1 else own
    outcomes, requests = _outcomes(waited)
    if report.kind is Kind.PUSH and task.map_index is not None:
        outcomes = outcomes if task.map_index < 0 else None
    return replace(report, outcomes=outcomes, waited=requests, pushes=others["pushes"], waits=others["waits"])


def push_summaries(
    *,
    dag_ids: Collection[str],
    campaign: str | None = None,
    state: PushState | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
) -> tuple[list[PushSummary], dict[PushTask, Progress], bool]:
    """Return the newest pushes that Airflow knows of, in doubt first, and whether there may be older ones.

    Between them is how far those are that run.

    *campaign* is looked for in the campaigns' names, in any case.
    """
    found = newest_tasks_with_xcom(
        PUSH_KEY,
        dag_ids=dag_ids,
        since=since,
        until=until,
        xcom_keys=PUSH_XCOM,
        note_keys=(PUSH,),
        most=LISTED,
    )
    groups: dict[tuple[str, str, str], list[StoredTask]] = {}
    for one in found:
        groups.setdefault((one.dag_id, one.run_id, one.task_id), []).append(one)
    reports = [
        _report(PushTask(dag_id=dag_id, run_id=run_id, task_id=task_id), own)
        for (dag_id, run_id, task_id), own in groups.items()
    ]
    listed = [
        push
        for push in (as_report(report).summary for report in reports)
        if state in (None, push.state) and (campaign or "").casefold() in push.campaign_name.casefold()
    ]
    progress = {report.task: report.progress for report in reports if report.progress}
    return sorted(listed, key=lambda push: push.state is not PushState.IN_DOUBT), progress, len(found) == LISTED


def as_report(found: TaskReport) -> PushReport:
    """Return what Airflow knows of a push in the form of a ledger's report: without batches, and without an account."""
    buckets = found.buckets or _so_far(found.progress)
    state = PushState.ENDED
    if found.at_work:
        state = PushState.RUNNING
    elif buckets.in_doubt:
        state = PushState.IN_DOUBT
    summary = PushSummary(
        task=found.task,
        campaign_name=found.campaign_name,
        account="",
        send_key=found.send_key,
        state=state,
        began_at=found.began_at or NEVER,
        ended_at=found.ended_at,
        tries=found.tries,
        requests=found.requests or (found.progress.requests if found.progress else 0),
        buckets=buckets,
    )
    return PushReport(summary=summary, outcomes=found.outcomes or Outcomes(unknown=buckets.accepted))


def merged(report: PushReport, found: TaskReport | None) -> PushReport:
    """Return a ledger's *report* with what only Airflow knows of it."""
    return report if found is None else replace(report, summary=_merged(report.summary, found))


def merged_summaries(pushes: Sequence[PushSummary]) -> tuple[list[PushSummary], dict[PushTask, Progress]]:
    """Return a ledger's *pushes* with what only Airflow knows of them, and how far those are that run."""
    names = {push.task: (push.task.dag_id, push.task.run_id, push.task.task_id) for push in pushes}
    stored = tasks_of_runs(list(names.values()), xcom_keys=PUSH_XCOM, note_keys=(PUSH,))
    found = {task: _report(task, stored[name]) for task, name in names.items() if stored[name]}
    progress = {task: report.progress for task, report in found.items() if report.progress}
    return [_merged(push, found[push.task]) if push.task in found else push for push in pushes], progress


def _merged(push: PushSummary, found: TaskReport) -> PushSummary:
    """Add to what a ledger knows when the task ended, and the buckets that no ledger keeps.

    What the ledger says of accepted and in doubt is newer: a person may have resolved
    a doubt since the task reported. The recipients of a batch that was resolved as not
    sent are in no bucket of either, and count as not sent.
    """
    if found.at_work or not found.ended_at:
        return push
    ledger = push.buckets
    # The task has ended: what is on the way has no one left to hear its answer.
    in_doubt = ledger.in_doubt + ledger.in_flight
    buckets = replace(ledger, in_doubt=in_doubt, in_flight=0)
    if found.buckets and found.buckets.read is not None:
        buckets = replace(found.buckets, accepted=ledger.accepted, in_doubt=in_doubt)
        missing = (found.buckets.read or 0) - _sum(buckets)
        buckets = replace(buckets, not_sent=max(0, buckets.not_sent + missing))
        buckets = replace(buckets, read=_sum(buckets))
    state = PushState.IN_DOUBT if in_doubt else PushState.ENDED
    return replace(push, state=state, ended_at=push.ended_at or found.ended_at, buckets=buckets)


def _report(task: PushTask, own: Sequence[StoredTask]) -> TaskReport:
    """Return what the task instances *own* of *task* left."""
    kind = _kind(own)
    if not own:
        return TaskReport(task=task, kind=kind)
    notes = [one for one in own if kind is Kind.PUSH and one.state in AT_WORK]
    told = [one.xcom for one in own]
    return TaskReport(
        task=task,
        kind=kind,
        at_work=any(one.state in AT_WORK for one in own),
        airflow_states=sorted({one.state or "none" for one in own}),
        campaign_name=next((str(xcom["campaign_name"]) for xcom in told if xcom.get("campaign_name")), ""),
        send_key=next((str(xcom["send_key"]) for xcom in told if xcom.get("send_key")), ""),
        dry_run=any(bool(xcom.get("dry_run")) for xcom in told),
        began_at=min((one.started_at for one in own if one.started_at), default=None),
        ended_at=None
        if any(one.state in AT_WORK for one in own)
        else max((one.ended_at for one in own if one.ended_at), default=None),
        tries=max(one.try_number for one in own),
        requests=sum(_requests(xcom.get("request_sizes")) for xcom in told),
        buckets=_buckets(xcom.get("recipients") for xcom in told),
        problems=sorted({str(xcom["problem"]) for xcom in told if xcom.get("problem")}),
        progress=_progress(one.notes.get(PUSH) for one in notes),
    )


def _kind(own: Iterable[StoredTask]) -> Kind:
    for one in own:
        if PUSH_KEY in one.xcom or PUSH in one.notes:
            return Kind.PUSH
        if WAIT_KEY in one.xcom or WAIT in one.notes:
            return Kind.WAIT
    return Kind.OTHER


def _tasks(task: PushTask, names: Collection[str]) -> list[PushTask]:
    return [replace(task, task_id=name, map_index=None) for name in sorted(names)]


def _requests(sizes: object) -> int:
    """Return how many requests the pairs of a size and a number are."""
    pairs = sizes if isinstance(sizes, list) else []
    return sum(_whole(pair[1]) for pair in pairs if isinstance(pair, list | tuple) and len(pair) == 2)  # noqa: PLR2004 -- a pair


def _buckets(told: Iterable[object]) -> Buckets | None:
    """Return the sum of the buckets that tasks reported, None if none has."""
    total: Counter[str] = Counter()
    some = False
    for counts in told:
        if isinstance(counts, Mapping):
            some = True
            total.update({bucket.name: _whole(counts.get(bucket.name)) for bucket in fields(Buckets)})
    return Buckets(**total) if some else None


def _so_far(progress: Progress | None) -> Buckets:
    if progress is None:
        return Buckets()
    accepted = progress.accepted + progress.accepted_earlier
    return Buckets(accepted=accepted, rejected=progress.rejected, in_doubt=progress.in_doubt)


def _progress(notes: Iterable[object]) -> Progress | None:
    """Return the sum of the notes of running tasks, None if there is none."""
    running = [note for note in notes if isinstance(note, Mapping) and not note.get("ended")]
    if not running:
        return None
    ends = [_moment(note.get("estimated_end")) for note in running]
    known = [end for end in ends if end]

    def total(name: str) -> int:
        return sum(_whole(note.get(name)) for note in running)

    return Progress(
        to_send=total("to_send"),
        accepted=total("accepted"),
        accepted_earlier=total("accepted_earlier"),
        rejected=total("rejected"),
        in_doubt=total("in_doubt"),
        left=total("left"),
        requests=total("requests"),
        per_minute=total("requests_per_minute"),
        limit=max(_whole(note.get("limit_per_minute")) for note in running),
        ends_at=max(known) if len(known) == len(ends) else None,
        updated_at=max(filter(None, (_moment(note.get("updated")) for note in running)), default=None),
    )


def _outcomes(waits: Iterable[StoredTask]) -> tuple[Outcomes | None, dict[str, int] | None]:
    """Return what waits counted, of recipients and of requests, None where none has."""
    recipients: Counter[str] = Counter()
    errors: Counter[str] = Counter()
    requests: Counter[str] = Counter()
    for wait in waits:
        told = wait.xcom.get("return_value") or wait.notes.get(WAIT)
        if isinstance(told, Mapping) and all(
            isinstance(told.get(name), Mapping) for name in ("requests", "recipients")
        ):
            recipients.update({name: _whole(count) for name, count in told["recipients"].items()})
            requests.update({name: _whole(count) for name, count in told["requests"].items()})
            errors.update({code: _whole(count) for code, count in (told.get("errors") or {}).items()})
    if not requests:
        return None, None
    by_code = [_code(code, count) for code, count in errors.most_common()]
    counts = {name: recipients[name] for name in ("succeeded", "failed", "unknown")}
    return Outcomes(**counts, by_code=by_code), dict(requests)


def _code(code: str, count: int) -> CodeCount:
    meaning = meaning_of(code)
    return CodeCount(code=code, count=count, meaning=meaning.text, normal=meaning.normal)


def _sum(buckets: Buckets) -> int:
    return sum(getattr(buckets, bucket.name) or 0 for bucket in fields(Buckets) if bucket.name != "read")


def _whole(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


def _moment(text: object) -> datetime | None:
    if not isinstance(text, str):
        return None
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return None
    return found if found.tzinfo else found.replace(tzinfo=UTC)
