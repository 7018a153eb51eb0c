"""The command line of the SQL ledger: what people do with the record of a send.

The same commands as ``airflow responsys …`` (Airflow 3.2 and newer) and as
``python -m airflow_provider_responsys …``. They end with 0; with 1 where nothing
was found or the ledger refuses; with 2 where they were asked wrongly.

Every ``airflow`` command imports this module: what its own commands do is in
`commands`, imported where one of them runs.
"""

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import wraps
from typing import Any, TypeAlias

from airflow.cli.cli_config import ARG_YES, ActionCommand, Arg, GroupCommand

from airflow_provider_responsys.errors import InvalidSettings, ResponsysError

NAME = "responsys"
HELP = "See and settle what the SQL ledger of the Responsys provider remembers"

UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}

QUEUED = "Succeeded: handed to Responsys' personalization queue, not delivered."

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


def duration(text: str) -> timedelta:
    """Read an age such as ``90d`` or ``12h``."""
    found = re.fullmatch(r"([1-9][0-9]{0,4})([mhdw])", text)
    if not found:
        raise argparse.ArgumentTypeError("it is a number and one of m, h, d, w: 90d are 90 days, 12h 12 hours")
    return timedelta(**{UNITS[found[2]]: int(found[1])})


def _lazily(name: str) -> Work:
    """Return the command *name* of `commands`, imported when it runs."""

    def work(options: argparse.Namespace) -> int:
        from airflow_provider_responsys import commands  # noqa: PLC0415 -- see the module

        done: int = getattr(commands, name)(options)
        return done

    work.__name__ = name
    return work


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
    metavar="(table, json, yaml, plain)",
    choices=("table", "json", "yaml", "plain"),
    default="table",
    help="Output format. Allowed values: table, json, yaml, plain (default: table)",
)

RECIPIENT = (
    _arg("--list-type", default="PROFILE", help="PROFILE (the default), or PUSH for a device"),
    _arg("--identifier", required=True, help="What the recipient was pushed by, such as customerId or deviceId"),
    _arg(
        "--value",
        help="Its value. Without it, it is asked for, or read from standard input: so it stays\n"
        "out of the shell's history",
    ),
    _arg("--api-key", help="The key of the app, which belongs to a device's identity"),
)
"""Which recipient: named as the tasks that push to it do."""

COMMANDS = (
    ActionCommand(
        name="sends",
        help="List the sends, newest first",
        description="List every send: its key, its campaign, when it began, its tries, and its recipients by state.",
        func=_lazily("list_sends"),
        args=(LEDGER, OUTPUT),
    ),
    ActionCommand(
        name="show",
        help="Show the batches of one send, those in doubt first",
        description="Show the batches of one send, those in doubt first. A batch in doubt has been claimed, and no\n"
        "answer is known: it is on its way at this moment, or its answer was lost.\n"
        "Its request carried the batch's id as X-Request-Id: Oracle's support can look for it.\n" + QUEUED,
        func=_lazily("show_send"),
        args=(_arg("send_key", metavar="SEND_KEY", help="The key of the send, as `sends` lists it"), LEDGER, OUTPUT),
    ),
    ActionCommand(
        name="settle",
        help="Settle a batch in doubt as sent or not sent",
        description="Settle a batch in doubt, as you found out from Responsys. Say either --sent or --not-sent.\n"
        "Who settled it, when and why stands in `show` and `history`.",
        func=_lazily("settle_batch"),
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
        name="person",
        help="Show in which sends one recipient is",
        description="Show in which sends one recipient is: when, in which request, and with what outcome. Name it as\n"
        "your tasks do: a recipient that was pushed by several identifiers is recorded under each of them.\n" + QUEUED,
        func=_lazily("show_person"),
        args=(*RECIPIENT, LEDGER, OUTPUT),
    ),
    ActionCommand(
        name="forget",
        help="Erase one recipient from every send",
        description="Erase one recipient from every send. Name it as your tasks do: a recipient that was pushed by\n"
        "several identifiers is erased under each of them.",
        func=_lazily("forget_recipient"),
        args=(*RECIPIENT, REASON, LEDGER),
    ),
    ActionCommand(
        name="prune",
        help="Remove old sends",
        description="Remove the sends in which nothing was begun or claimed for a while. A later try of such a send\n"
        "fails closed.",
        func=_lazily("prune_sends"),
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
        func=_lazily("list_traces"),
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

    from airflow_provider_responsys.commands import WRONG, complain  # noqa: PLC0415 -- see the module

    try:
        return work(options)
    except InvalidSettings as error:
        return complain(str(error), WRONG)
    except (ResponsysError, AirflowException) as error:
        return complain(str(error))
