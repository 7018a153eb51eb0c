"""The sandbox as a program: ``python -m airflow_provider_responsys.sandbox``."""

import argparse
import asyncio
import json
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field, fields
from pathlib import Path
from typing import Any

from airflow_provider_responsys.errors import InvalidSettings
from airflow_provider_responsys.sandbox.faults import FaultPlan
from airflow_provider_responsys.sandbox.instance import LOOPBACK, Sandbox
from airflow_provider_responsys.sandbox.settings import Settings

PORT = 8765


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until SIGINT or SIGTERM."""
    options = vars(_parser().parse_args(arguments))
    host, port, allow_remote = options.pop("host"), options.pop("port"), options.pop("allow_remote")
    plan, campaigns = options.pop("faults"), options.pop("campaign")
    changes = {name: value for name, value in options.items() if value is not None}
    if campaigns:
        changes["campaigns"] = (*changes.get("campaigns", ()), *campaigns)
    try:
        faults = FaultPlan.from_json(_plan(plan))
        sandbox = Sandbox(
            faults=faults.faults, fault_seed=faults.seed, host=host, port=port, allow_remote=allow_remote, **changes
        )
        sandbox.listen()
    except (InvalidSettings, OSError) as wrong:
        sys.stderr.write(f"{wrong}\n")
        return 2
    asyncio.run(_serve(sandbox))
    return 0


async def _serve(sandbox: Sandbox) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, sandbox.stop)
    await sandbox.serve(lambda: print(f"Responsys sandbox ready: {sandbox.url}", flush=True))  # noqa: T201 -- what it is for


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m airflow_provider_responsys.sandbox",
        description="A Responsys to try things with and to test against. It pushes nobody.",
    )
    parser.add_argument("--host", default=LOOPBACK, help="address to listen on (%(default)s)")
    parser.add_argument("--port", type=int, default=PORT, help="port to listen on, 0 for any free one (%(default)s)")
    parser.add_argument("--allow-remote", action="store_true", help="listen on an address that others can reach")
    parser.add_argument("--faults", default="[]", metavar="PLAN", help="fault plan: JSON, or the path of a JSON file")
    parser.add_argument("--campaign", action="append", help="a campaign that exists; may be given several times")
    for setting in fields(Settings):
        _add(parser, setting)
    return parser


def _add(parser: argparse.ArgumentParser, setting: Field[Any]) -> None:
    """Offer a setting under its own name, with dashes."""
    flag, text = f"--{setting.name.replace('_', '-')}", f"{setting.metadata['help']} ({setting.default})"
    if setting.type is bool:
        parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=None, help=text)
        return
    read = READ.get(setting.type, _rows)
    parser.add_argument(flag, type=read, choices=setting.metadata["choices"] or None, help=text.replace("%", "%%"))


def _texts(text: str) -> tuple[str, ...]:
    return tuple(each for each in text.split(",") if each)


def _rows(text: str) -> tuple[Any, ...]:
    rows = json.loads(text)
    if not isinstance(rows, list):
        raise ValueError("a list of objects is wanted")  # noqa: TRY004 -- argparse turns a ValueError into its message
    return tuple(rows)


READ: Mapping[Any, Callable[[str], object]] = {
    str: str,
    int: int,
    float: float,
    int | None: int,
    tuple[str, ...]: _texts,
}


def _plan(text: str) -> str:
    return text if text.lstrip().startswith(("[", "{")) else Path(text).read_text(encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
