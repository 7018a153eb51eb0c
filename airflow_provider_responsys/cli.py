"""The command line of the SQL ledger: what people do with the record of who has been sent what.

The same commands as ``airflow responsys …`` (Airflow 3.2 and newer) and as
``python -m airflow_provider_responsys …``. They end with 0; with 1 where nothing
was found or the ledger refuses; with 2 where they were asked wrongly.

Every ``airflow`` command imports this module: what a command needs is imported
where it runs. None of them is an ``action_cli`` of Airflow's, which would write
the whole command line, a recipient included, into Airflow's database.
"""

import argparse
import getpass
import json
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeAlias

from airflow.cli.cli_config import ARG_YES, ActionCommand, Arg, GroupCommand

from airflow_provider_responsys.errors import InvalidSettings, LedgerFailed, ResponsysError

if TYPE_CHECKING:
    from airflow_provider_responsys.ledger.sql_records import Records
    from airflow_provider_responsys.ledger.sql_values import BatchRecord, SendRecord, TraceRecord

NAME = "responsys"
HELP = "See and settle what the SQL ledger of the Responsys provider remembers"

OK, NOTHING, WRONG = 0, 1, 2
"""How a command ends: it did what it says, there was nothing to do it to, it was asked wrongly."""

UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}

QUEUED = "Succeeded: handed to Responsys' personalization queue, not delivered."

SELDOM = ("correlation_id", "resolved")
"""Columns that a table has only where there is something in them."""

Row: TypeAlias = dict[str, Any]
Work: TypeAlias = Callable[[argparse.Namespace], int]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command, and return how it ended."""
    parser = argparse.ArgumentParser(prog="python -m airflow_provider_responsys", description=HELP)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in COMMANDS:
        _add(commands, command)
    options = parser.parse_args(arguments)
    return _status(options.func, options)


def get_cli_commands() -> list[GroupCommand]:
    """Return what ``airflow responsys`` offers."""
    commands = [command._replace(func=_ending(command.func)) for command in COMMANDS]
    return [GroupCommand(name=NAME, help=HELP, subcommands=commands)]


def list_sends(options: argparse.Namespace) -> int:
    """List every send, newest first."""
    with _records(options) as records:
        found = records.sends()
    _print([_send_row(send) for send in found], options.output)
    return OK if found else _complain("The ledger knows no send.")


def show_send(options: argparse.Namespace) -> int:
    """List the batches of one send, those in doubt first."""
    from airflow_provider_responsys.ledger.sql_values import State  # noqa: PLC0415 -- see the module

    with _records(options) as records:
        found = records.show(options.send_key)
    found.sort(key=lambda batch: batch.state is not State.IN_DOUBT)
    _print([_batch_row(batch) for batch in found], options.output)
    if not found:
        return _complain("The ledger has no batch of this send key: `sends` lists the sends that it knows.")
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
                "Settled as sent, they count as pushed: no later try pushes them. There is no request id, so nobody "
                "waits for its results."
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


def forget_recipient(options: argparse.Namespace) -> int:
    """Erase one recipient from every send, without ever saying who it is."""
    from airflow_provider_responsys.ledger.fingerprint import fingerprinter  # noqa: PLC0415 -- see the module

    identity = _identity(options)
    with _records(options) as records:
        fingerprint = fingerprinter(records.fingerprint_key())(identity)
        erased = records.forget(fingerprint, by=_person(), reason=options.reason or "")
    if not erased:
        return _complain("The ledger knows of no push of this recipient under this identifier.")
    _say(
        f"Forgotten in {_count(erased, 'send')}. A later try of such a send pushes this recipient again if its source "
        "still has it."
    )
    return OK


def prune_sends(options: argparse.Namespace) -> int:
    """Remove the sends in which nothing was begun or claimed for long."""
    from airflow_provider_responsys.ledger.sql_values import State  # noqa: PLC0415 -- see the module

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
            "run that uses its send key pushes everybody again."
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
    return OK if found else _complain("No person has settled, forgotten or pruned anything in this ledger.")


def duration(text: str) -> timedelta:
    """Read an age such as ``90d`` or ``12h``."""
    found = re.fullmatch(r"([1-9][0-9]{0,4})([mhdw])", text)
    if not found:
        raise argparse.ArgumentTypeError("it is a number and one of m, h, d, w: 90d are 90 days, 12h 12 hours")
    return timedelta(**{UNITS[found[2]]: int(found[1])})


def _arg(*flags: str, **settings: Any) -> Arg:
    return Arg(flags=flags, **settings)  # type: ignore[no-untyped-call]  # Airflow did not annotate it


LEDGER = _arg(
    "--ledger-conn-id",
    metavar="CONN_ID",
    help="The connection of the ledger's database. Default: ledger_conn_id in section responsys of Airflow's config",
)
REASON = _arg("--reason", help="Why, for the record that `history` lists; no recipient's data")
OUTPUT = _arg(
    "-o",
    "--output",
    metavar="(table, json, plain)",
    choices=("table", "json", "plain"),
    default="table",
    help="Output format. Allowed values: table, json, plain (default: table)",
)

COMMANDS = (
    ActionCommand(
        name="sends",
        help="List the sends, newest first",
        description="List every send: its key, its campaign, when it began, its tries, and its recipients by state.",
        func=list_sends,
        args=(LEDGER, OUTPUT),
    ),
    ActionCommand(
        name="show",
        help="Show the batches of one send, those in doubt first",
        description="Show the batches of one send, those in doubt first. A batch in doubt has been claimed, and no\n"
        "answer is known: it is on its way at this moment, or its answer was lost.\n"
        "Its request carried the batch's id as X-Request-Id: Oracle's support can look for it.\n" + QUEUED,
        func=show_send,
        args=(_arg("send_key", metavar="SEND_KEY", help="The key of the send, as `sends` lists it"), LEDGER, OUTPUT),
    ),
    ActionCommand(
        name="settle",
        help="Settle a batch in doubt as sent or not sent",
        description="Settle a batch in doubt, as you found out from Responsys. Say either --sent or --not-sent.\n"
        "Who settled it, when and why stands in `show` and `history`.",
        func=settle_batch,
        args=(
            _arg("batch_id", metavar="BATCH_ID", type=int, help="The id of the batch, as `show` lists it"),
            _arg("--sent", action="store_true", help="Its recipients were pushed: no later try pushes them"),
            _arg("--not-sent", action="store_true", help="They were not: a later try pushes them"),
            _arg("--reason", help="How you know, for the record; asked for if absent; no recipient's data"),
            _arg("--force", action="store_true", help="Also while its try runs, or its answer may still come"),
            LEDGER,
            ARG_YES,
        ),
    ),
    ActionCommand(
        name="forget",
        help="Erase one recipient from every send",
        description="Erase one recipient from every send. Name it as your tasks do: a recipient that was pushed by\n"
        "several identifiers is erased under each of them.",
        func=forget_recipient,
        args=(
            _arg("--list-type", default="PROFILE", help="PROFILE (the default), or PUSH for a device"),
            _arg(
                "--identifier", required=True, help="What the recipient was pushed by, such as customerId or deviceId"
            ),
            _arg(
                "--value",
                help="Its value. Without it, it is asked for, or read from standard input: so it stays\n"
                "out of the shell's history",
            ),
            _arg("--api-key", help="The key of the app, which belongs to a device's identity"),
            REASON,
            LEDGER,
        ),
    ),
    ActionCommand(
        name="prune",
        help="Remove old sends",
        description="Remove the sends in which nothing was begun or claimed for a while. A later try of such a send\n"
        "fails closed.",
        func=prune_sends,
        args=(
            _arg("--older-than", required=True, type=duration, metavar="AGE", help="Such as 90d, 12h, 30m or 4w"),
            REASON,
            LEDGER,
            ARG_YES,
        ),
    ),
    ActionCommand(
        name="history",
        help="List what people settled, forgot and pruned",
        description="List what people did to the record, newest first: who, when, why, and to how many; never to whom.",
        func=list_traces,
        args=(LEDGER, OUTPUT),
    ),
)
"""What there is to do, for both command lines."""


# How a command is started, and ends


def _add(parsers: Any, command: ActionCommand) -> None:
    """Offer *command* on our own command line."""
    parser = parsers.add_parser(command.name, help=command.help, description=command.description)
    for argument in command.args:
        argument.add_to_parser(parser)
    parser.set_defaults(func=command.func)


def _ending(work: Work) -> Callable[[argparse.Namespace], None]:
    """Return *work* as Airflow calls it, which takes no notice of what is returned."""

    @wraps(work)
    def command(options: argparse.Namespace) -> None:
        if status := _status(work, options):
            sys.exit(status)

    return command


def _status(work: Work, options: argparse.Namespace) -> int:
    """Do *work* and return how it ended, after a plain sentence where it could not be done."""
    from airflow.providers.common.compat.sdk import AirflowException  # noqa: PLC0415 -- see the module

    try:
        return work(options)
    except InvalidSettings as error:
        return _complain(str(error), WRONG)
    except (ResponsysError, AirflowException) as error:
        return _complain(str(error))


def _complain(text: str, status: int = NOTHING) -> int:
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
    _complain("Nothing was changed. Answer y, or give --yes where nobody can answer.")
    return False


# The ledger


@contextmanager
def _records(options: argparse.Namespace) -> Iterator["Records"]:
    """Give the records of the ledger; make no tables where there are none."""
    from sqlalchemy import inspect  # noqa: PLC0415 -- see the module
    from sqlalchemy.exc import SQLAlchemyError  # noqa: PLC0415 -- see the module

    from airflow_provider_responsys.ledger.sql_records import Records  # noqa: PLC0415 -- see the module
    from airflow_provider_responsys.ledger.sql_schema import Database  # noqa: PLC0415 -- see the module
    from airflow_provider_responsys.ledger.sql_tables import ledger_table  # noqa: PLC0415 -- see the module
    from airflow_provider_responsys.ledgers import ledger_conn_id_of, ledger_engine  # noqa: PLC0415 -- see the module

    conn_id = ledger_conn_id_of(options.ledger_conn_id)
    if conn_id is None:
        raise InvalidSettings(
            "Which ledger? Give --ledger-conn-id, or set ledger_conn_id in section [responsys] of Airflow's config. "
            "What Airflow's task state store remembers is not shown here."
        )
    try:
        with _connections():
            database, records = Database(ledger_engine(conn_id)), Records(ledger_engine(conn_id))
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
        records.fingerprint_key()  # checks the version of its tables
        yield records
    finally:
        database.dispose()
        records.close()


@contextmanager
def _connections() -> Iterator[None]:
    """Find connections in Airflow's database too, as Airflow's own commands do."""
    from airflow_provider_responsys.airflow_internals import connections_of_a_server  # noqa: PLC0415 -- see the module

    with connections_of_a_server(), warnings.catch_warnings():
        # Airflow warns of what its own connections do when they are asked for their hook.
        warnings.simplefilter("ignore")
        yield


def _doubt(records: "Records", batch_id: int) -> "BatchRecord":
    """Find the batch *batch_id*, if it is in doubt."""
    from airflow_provider_responsys.ledger.sql_values import State  # noqa: PLC0415 -- see the module

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
    from airflow_provider_responsys.recipients.fields import (  # noqa: PLC0415 -- see the module
        FieldSettings,
        recipient_maker,
    )
    from airflow_provider_responsys.recipients.optional import InvalidRow  # noqa: PLC0415 -- see the module

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


def _send_row(send: "SendRecord") -> Row:
    from airflow_provider_responsys.ledger.sql_values import State  # noqa: PLC0415 -- see the module

    return {
        "send_key": send.send_key,
        "campaign": send.campaign_name,
        "account": send.account,
        "created": _time(send.created_at),
        "tries": send.tries,
        "recipients": {str(state): send.recipients[state] for state in State if state in send.recipients},
    }


def _batch_row(batch: "BatchRecord") -> Row:
    outcome = {"succeeded": batch.succeeded, **batch.failed} if batch.outcome_at else None
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
        "resolved": _resolution(batch),
    }


def _resolution(batch: "BatchRecord") -> str | None:
    """Return who resolved a doubt, when and why."""
    found = batch.resolution
    return None if found is None else f"as {found.resolved_as} by {found.by}, {_time(found.at)}: {found.reason}"


def _trace_row(trace: "TraceRecord") -> Row:
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
    from airflow.cli.simple_table import AirflowConsole  # noqa: PLC0415 -- see the module

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
