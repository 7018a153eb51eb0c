"""What the commands on the SQL ledger do.

Each returns how it ended. None of them is an ``action_cli`` of Airflow's, which
would write the whole command line, a recipient included, into Airflow's database.
"""

import argparse
import getpass
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar

from airflow.cli.simple_table import AirflowConsole
from sqlalchemy import inspect
from sqlalchemy.exc import SQLAlchemyError

from airflow_provider_responsys.airflow_internals import connections_of_a_server
from airflow_provider_responsys.cli import QUEUED
from airflow_provider_responsys.errors import InvalidSettings, LedgerFailed
from airflow_provider_responsys.ledger.fingerprint import fingerprinter
from airflow_provider_responsys.ledger.sql_records import Records
from airflow_provider_responsys.ledger.sql_schema import Database
from airflow_provider_responsys.ledger.sql_tables import ledger_table
from airflow_provider_responsys.ledger.sql_values import BatchRecord, SendRecord, State, TraceRecord
from airflow_provider_responsys.ledgers import ledger_conn_id_of, ledger_engine
from airflow_provider_responsys.recipients.fields import FieldSettings, recipient_maker
from airflow_provider_responsys.recipients.optional import InvalidRow
from airflow_provider_responsys.report.batches import SUCCEEDED
from airflow_provider_responsys.report.from_ledger import LedgerReports
from airflow_provider_responsys.report.model import BatchReport, PersonInSend

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine

OK, NOTHING, WRONG = 0, 1, 2
"""How a command ends: it did what it says, there was nothing to do it to, it was asked wrongly."""

SELDOM = ("correlation_id", "resolved")
"""Columns that a table has only where there is something in them."""

Row: TypeAlias = dict[str, Any]


class Opened(Protocol):
    """A ledger that is open."""

    def fingerprint_key(self) -> bytes:
        """Return the key of its fingerprints, or raise where its tables are of another version."""

    def close(self) -> None:
        """Close it."""


Ledger = TypeVar("Ledger", bound=Opened)


def list_sends(options: argparse.Namespace) -> int:
    """List every send, newest first."""
    with _opened(options, LedgerReports) as reports:
        found = reports.sends()
    _print([_send_row(send) for send in found], options.output)
    return OK if found else complain("The ledger knows no send.")


def show_send(options: argparse.Namespace) -> int:
    """List the batches of one send, those in doubt first."""
    with _opened(options, LedgerReports) as reports:
        found = reports.batches_of(options.send_key)
    _print([_batch_row(batch) for batch in found], options.output)
    if not found:
        return complain("The ledger has no batch of this send key: `sends` lists the sends that it knows.")
    if options.output == "table" and any(batch.succeeded for batch in found):
        _say(QUEUED)
    return OK


def settle_batch(options: argparse.Namespace) -> int:
    """Settle a batch in doubt, as a person found out."""
    if options.sent == options.not_sent:
        raise InvalidSettings("settle takes either --sent or --not-sent")
    with _records(options) as records:
        batch = _doubt(records, options.batch_id)
        people = _count(batch.size, "recipient")
        _say(
            f"Batch {batch.batch_id} of send {batch.send_key}: {people}, claimed {_time(batch.claimed_at)} by try "
            f"{batch.try_number} of {batch.task_instance}. Its request carried X-Request-Id {batch.batch_id}."
        )
        reason = options.reason or _reason()
        if options.sent:
            meaning = (
                "Settled as sent, they count as pushed: no later try pushes them. There is no request id, so no "
                "wait counts its results."
            )
        else:
            meaning = (
                "Settled as not sent, they may be pushed by the next try, or by another task with this send key. If "
                "they were pushed after all, they are pushed twice: make sure that Responsys has not got them, and "
                "that no try of the task is running."
            )
        if not _confirmed(meaning, options):
            return NOTHING
        records.settle_by_hand(batch.batch_id, sent=options.sent, by=_person(), reason=reason, force=options.force)
    _say(f"Batch {batch.batch_id} is settled as {'sent' if options.sent else 'not sent'}.")
    return OK


def show_person(options: argparse.Namespace) -> int:
    """List the sends in which one recipient is recorded, without ever saying who it is."""
    identity = _identity(options)
    with _opened(options, LedgerReports) as reports:
        found = reports.person(fingerprinter(reports.fingerprint_key())(identity))
    _print([_person_row(each) for each in found], options.output)
    if not found:
        return complain("The ledger knows of no push of this recipient under this identifier.")
    if options.output == "table" and any(each.outcome == SUCCEEDED for each in found):
        _say(QUEUED)
    return OK


def forget_recipient(options: argparse.Namespace) -> int:
    """Erase one recipient from every send, without ever saying who it is."""
    identity = _identity(options)
    with _records(options) as records:
        fingerprint = fingerprinter(records.fingerprint_key())(identity)
        erased = records.forget(fingerprint, by=_person(), reason=options.reason or "")
    if not erased:
        return complain("The ledger knows of no push of this recipient under this identifier.")
    _say(
        f"Forgotten in {_count(erased, 'send')}. A later try of such a send pushes this recipient again if its source "
        "still has it."
    )
    return OK


def prune_sends(options: argparse.Namespace) -> int:
    """Remove the sends in which nothing was begun or claimed for long."""
    before = datetime.now(UTC) - options.older_than
    with _records(options) as records:
        sends = records.sends()
        old = [send for send in sends if send.created_at < before]
        if not old:
            _say(f"No send is older than {_time(before)}: nothing to remove.")
            return OK
        doubtful = sum(send.recipients.get(State.IN_DOUBT, 0) for send in old)
        meaning = (
            f"Every send in which nothing was begun or claimed since {_time(before)} is removed, with its batches, "
            f"request ids, outcomes and recipients: at most {len(old)} of {_count(len(sends), 'send')}, with "
            f"{_count(doubtful, 'recipient')} in doubt. A later try of such a send fails closed, and a new task or "
            "run that uses its send key pushes all recipients again."
        )
        if not _confirmed(meaning, options):
            return NOTHING
        removed = records.prune(before, by=_person(), reason=options.reason or "")
    _say(f"Removed {_count(removed, 'send')}.")
    return OK


def list_traces(options: argparse.Namespace) -> int:
    """List what people settled, forgot and pruned, newest first."""
    with _records(options) as records:
        found = records.traces()
    _print([_trace_row(trace) for trace in found], options.output)
    return OK if found else complain("No person has settled, forgotten or pruned anything in this ledger.")


# What is asked and said


def complain(text: str, status: int = NOTHING) -> int:
    """Print *text* as one line where errors go, and return *status*."""
    print(" ".join(text.split()), file=sys.stderr)  # noqa: T201 -- a command line prints
    return status


def _say(text: str) -> None:
    print(text)  # noqa: T201 -- a command line prints


def _confirmed(meaning: str, options: argparse.Namespace) -> bool:
    """Say what is about to happen, and whether it may."""
    _say(meaning)
    if options.yes:
        return True
    try:
        answer = input("Go on? [y/N] ")
    except (EOFError, KeyboardInterrupt):
        answer = ""
        _say("")
    if answer.strip().lower() in {"y", "yes"}:
        return True
    complain("Nothing was changed. Answer y, or give --yes where no person can answer.")
    return False


# The ledger


@contextmanager
def _records(options: argparse.Namespace) -> Iterator[Records]:
    """Give the records of the ledger, which people may change."""
    with _opened(options, Records) as records:
        yield records


@contextmanager
def _opened(options: argparse.Namespace, kind: Callable[["Engine"], Ledger]) -> Iterator[Ledger]:
    """Give what *kind* reads of the ledger; make no tables where there are none."""
    conn_id = ledger_conn_id_of(options.ledger_conn_id)
    if conn_id is None:
        raise InvalidSettings(
            "Which ledger? Give --ledger-conn-id, or set ledger_conn_id in section [responsys] of Airflow's config. "
            "What Airflow's task state store remembers is not shown here."
        )
    try:
        with _connections():
            database, opened = Database(ledger_engine(conn_id)), kind(ledger_engine(conn_id))
    except (ImportError, SQLAlchemyError) as error:
        # Without its text, which may name the password.
        raise InvalidSettings(
            f"The database of connection {conn_id!r} can't be opened: {type(error).__name__}"
        ) from None
    try:
        with database.transaction() as connection:
            exists = inspect(connection).has_table(ledger_table.name)
        if not exists:
            raise LedgerFailed(
                f"There is no ledger in the database of connection {conn_id!r}: no task has used it yet."
            )
        opened.fingerprint_key()  # checks the version of its tables
        yield opened
    finally:
        database.dispose()
        opened.close()


@contextmanager
def _connections() -> Iterator[None]:
    """Find connections in Airflow's database too, as Airflow's own commands do."""
    with connections_of_a_server(), warnings.catch_warnings():
        # Airflow warns of what its own connections do when they are asked for their hook.
        warnings.simplefilter("ignore")
        yield


def _doubt(records: Records, batch_id: int) -> BatchRecord:
    """Find the batch *batch_id*, if it is in doubt."""
    batch = records.batch(batch_id)
    if batch is None or batch.state is not State.IN_DOUBT:
        raise LedgerFailed(f"The ledger has no batch {batch_id} in doubt: look it up with `show`.")
    return batch


def _person() -> str:
    """Return who types: the operating system's name of the user."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return f"user {os.getuid()}"


def _reason() -> str:
    """Return why, as it is typed."""
    try:
        reason = input("How do you know? ").strip()
    except (EOFError, KeyboardInterrupt):
        reason = ""
        _say("")
    if not reason:
        raise InvalidSettings("settle takes a reason, for the record: give --reason. Nothing was changed")
    return reason


def _identity(options: argparse.Namespace) -> str:
    """Return the identity of the recipient that is asked about, made as the operator makes it."""
    settings = FieldSettings(list_type=options.list_type, api_key=options.api_key)
    value = _asked() if options.value is None else options.value
    try:
        return recipient_maker((options.identifier,), settings)((value,)).identity
    except InvalidRow as error:
        raise InvalidSettings(f"This is no recipient: {error}") from None


def _asked() -> str:
    """Return what is typed, unseen, or stands on the first line of standard input."""
    if sys.stdin.isatty():
        return getpass.getpass("Value: ")
    return sys.stdin.readline().rstrip("\r\n")


# What is printed


def _send_row(send: SendRecord) -> Row:
    return {
        "send_key": send.send_key,
        "campaign": send.campaign_name,
        "account": send.account,
        "created": _time(send.created_at),
        "tries": send.tries,
        "recipients": {str(state): send.recipients[state] for state in State if state in send.recipients},
    }


def _batch_row(batch: BatchReport) -> Row:
    failed = {code: len(positions) for code, positions in batch.failed.items()}
    outcome = {"succeeded": batch.succeeded or 0, **failed} if batch.outcome_at else None
    return {
        "batch_id": str(batch.batch_id),  # longer than a JSON number that every reader keeps whole
        "task_instance": batch.task_instance,
        "try": batch.try_number,
        "number": batch.number,
        "recipients": batch.size,
        "state": str(batch.state),
        "claimed": _time(batch.claimed_at),
        "settled": batch.settled_at and _time(batch.settled_at),
        "request_id": batch.request_id,
        "correlation_id": batch.correlation_id,
        "outcome": {batch.request_error: batch.size} if batch.request_error else outcome,
        "resolved": batch.resolved,
    }


def _person_row(found: PersonInSend) -> Row:
    task = found.task
    where = (task.dag_id, task.task_id, task.run_id, -1 if task.map_index is None else task.map_index)
    return {
        "send_key": found.send_key,
        "campaign": found.campaign_name,
        "task_instance": "/".join(map(str, where)),
        "claimed": _time(found.claimed_at),
        "state": found.bucket,
        "request_id": found.request_id,
        "position": found.position,
        "outcome": found.outcome,
        "code": found.code,
    }


def _trace_row(trace: TraceRecord) -> Row:
    return {
        "when": _time(trace.done_at),
        "who": trace.done_by,
        "action": trace.action,
        "about": trace.about,
        "count": trace.count,
        "reason": trace.reason,
    }


def _print(rows: Sequence[Row], output: str) -> None:
    """Print *rows* as Airflow's own commands do, but numbers as numbers in JSON."""
    if output == "json":
        _say(json.dumps(rows, indent=2))
        return
    if rows:
        rows = _without_empty(rows)
        # A send key is anybody's text: nothing in it is mark-up.
        console = AirflowConsole(markup=False, emoji=False)
        console.print_as([{name: _cell(value) for name, value in row.items()} for row in rows], output)


def _without_empty(rows: Sequence[Row]) -> Sequence[Row]:
    """Return *rows* without the columns that most ledgers have nothing in: a table is wide enough."""
    empty = {name for name in SELDOM if all(row.get(name) is None for row in rows)}
    return [{name: value for name, value in row.items() if name not in empty} for row in rows]


def _cell(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{count} {what}" for what, count in value.items())
    return "" if value is None else str(value)


def _time(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="seconds")


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
