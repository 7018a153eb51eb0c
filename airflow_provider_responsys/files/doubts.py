"""The file of the recipients in doubt."""

from collections.abc import Iterable
from typing import Any

from airflow_provider_responsys.files.storage import Open


def write_doubts(path: str, lines: Iterable[str], *, open_path: Open, log: Any) -> None:
    """Write *lines* where the user asked for it. A failure changes nothing about what was sent."""
    try:
        with open_path(path).open("w", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in lines)
    except Exception:  # whatever storage it is, and however it fails
        log.exception("The recipients in doubt could not be written to %s", path)
    else:
        log.info("The recipients in doubt are written to %s", path)
