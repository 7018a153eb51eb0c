"""Why a task fails: a reason that may pass comes first, so that all else is sent before a failure is final."""

from dataclasses import dataclass
from typing import Literal

from airflow_provider_responsys.errors import (
    InvalidRecipients,
    InvalidSettings,
    SendRefused,
    SettingsChanged,
    StateLost,
    TooManyInDoubt,
    code_of,
)
from airflow_provider_responsys.sending.outcome import Sent
from airflow_provider_responsys.sending.run import Doubt

FINAL = (InvalidSettings, InvalidRecipients, SendRefused, StateLost, SettingsChanged, TooManyInDoubt)
"""What another try of the same task would run into again."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The task fails, with a *message* for people and a *problem* in counts and codes alone.

    It is *final* if another try would change nothing.
    """

    message: str
    problem: str
    final: bool = True


def judge(campaign: str, sent: Sent, *, on_in_doubt: str) -> Verdict | None:
    """Return why the task that has *sent* this fails, None if it does not."""
    buckets, report, stopped = sent.buckets, sent.report, sent.report.stopped
    code = code_of(stopped) if stopped else "stopped"
    counts = f"Campaign {campaign}: {buckets}"
    left = buckets.not_sent or report.to_repeat
    # Where all else was sent, the last lost answer stopped nothing.
    if isinstance(stopped, FINAL) and (left or not isinstance(stopped, TooManyInDoubt)):
        return Verdict(f"{counts}: {stopped}", f"{buckets}: {code}")
    if left:
        again = (
            f" ({report.to_repeat:,} of those in doubt are sent to again by another try)" if report.to_repeat else ""
        )
        return Verdict(f"{counts}{again}: {stopped}", f"{buckets}: {code}", final=False)
    if buckets.rejected:
        codes = ", ".join(f"{code}: {count:,}" for code, count in report.rejected.most_common())
        return Verdict(f"{counts} ({codes})", f"{buckets} ({codes})")
    if buckets.in_doubt and on_in_doubt == "fail":
        why = "those in doubt may have been pushed, and are not pushed again. The log names the batches"
        return Verdict(f"{counts}: {why}", f"{buckets}")
    return None


def problem_of(error: BaseException, sent: Sent | None, *, first: bool) -> str:
    """Return why a try failed with *error* before it could send, in counts and codes.

    *sent* is all that is known by then, None if nothing is; then there is more to
    say unless it is the *first* try.
    """
    if sent is not None:
        return f"{sent.buckets}: {code_of(error)}"
    unknown = "" if first else "what earlier tries sent is not known: "
    return f"{unknown}{code_of(error)}"


def doubt_line(doubt: Doubt, send_key: str, record: Literal["sql", "none"]) -> str:
    """Return what a person reads about *doubt*, and what to type or do next."""
    name = f"{doubt.label} of send {send_key!r}"
    if not doubt.batch_id:
        return f"In doubt: {name} ({doubt.size:,} recipients): {doubt.reason}"
    if record == "sql":
        then = f"When you know: airflow responsys settle {doubt.batch_id} --not-sent (or --sent)"
    else:
        then = (
            f"Oracle's support finds the request by X-Request-Id {doubt.batch_id}; in_doubt_path lists the recipients"
        )
    return f"In doubt: {doubt.batch_id}, {name} ({doubt.size:,} recipients): {doubt.reason}. {then}"
