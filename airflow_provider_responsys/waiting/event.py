"""What a sensor and its trigger tell each other: texts and numbers that cross a process and a database."""

import base64
import lzma
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Self

from airflow_provider_responsys.errors import InvalidAnswer
from airflow_provider_responsys.protocol.results import Results

MAX_PACKED = 60_000  # MySQL keeps a trigger's arguments, all together, in a TEXT of 65,535 bytes

FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": 1 << 20}]
"""A dictionary of a megabyte holds ten thousand ids; the usual eight would be taken from the triggerer."""


class Status(StrEnum):
    """How a trigger ended."""

    FINISHED = "finished"
    TIMEOUT = "timeout"
    RETRY = "retry"
    """Something was away that may be back when the task is tried again."""
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Event:
    """What a trigger tells its sensor: how it ended, the counts until then, and, of an error, the reason.

    *recipients* is how many the requests are for, if the ledger says so.
    """

    status: Status
    results: Results
    message: str = ""
    recipients: int | None = None

    def to_payload(self) -> dict[str, Any]:
        """Return this event as JSON values. It is stored and logged: counts only."""
        return {
            "status": self.status.value,
            "results": self.results.to_event(),
            "message": self.message,
            "recipients": self.recipients,
        }

    @classmethod
    def from_payload(cls, payload: object) -> Self:
        """Return the event in *payload*, or raise `InvalidAnswer`: it has crossed a process and a database."""
        if not isinstance(payload, Mapping):
            raise InvalidAnswer(f"the trigger's event is {type(payload).__name__}, not a mapping")
        try:
            status = Status(str(payload.get("status")))
        except ValueError:
            raise InvalidAnswer("the trigger's event has an unknown status") from None
        message = payload.get("message")
        if not isinstance(message, str):
            raise InvalidAnswer("the trigger's event has no message")
        recipients = payload.get("recipients")
        if not (recipients is None or (type(recipients) is int and recipients >= 0)):
            raise InvalidAnswer("the trigger's event has no number of recipients")
        results = Results.from_event(payload.get("results"))
        if status is Status.FINISHED and results.pending:
            raise InvalidAnswer(f"the trigger's event says finished, with {results.pending} requests pending")
        return cls(status, results, message, recipients)


def pack(ids: Iterable[str]) -> str:
    """Return *ids* as a short text."""
    return base64.b64encode(lzma.compress("\n".join(ids).encode(), filters=FILTERS)).decode("ascii")


def unpack(packed: str) -> list[str]:
    """Return what `pack` was given."""
    try:
        return lzma.decompress(base64.b64decode(packed, validate=True)).decode().split("\n")
    except (ValueError, TypeError, lzma.LZMAError) as error:
        raise InvalidAnswer(f"the trigger's list of requests can't be read ({type(error).__name__})") from None
