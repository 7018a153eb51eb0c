"""What was accepted and how it ends: request ids, processing times, results."""

import math
import random
import string
from array import array
from base64 import b64encode
from dataclasses import dataclass, field

from airflow_provider_responsys.sandbox import bodies
from airflow_provider_responsys.sandbox.answers import Frame
from airflow_provider_responsys.sandbox.bodies import PushBody
from airflow_provider_responsys.sandbox.faults import Kind
from airflow_provider_responsys.sandbox.settings import Settings

API_NAMES = {"haAsyncApi": "HaAsyncTriggerPush", "asyncApi": "AsyncTriggerPush"}  # the second is guessed
MESSAGE_EXPIRATION = 3600  # seconds, the documented default of asyncApi
NO_RIID = -1


@dataclass(slots=True)
class Accepted:
    """One accepted push request."""

    family: str
    request_id: str
    submitted: float
    processed: float
    expires: float = math.inf
    valid_campaign: bool = True
    riids: "array[int]" = field(default_factory=lambda: array("q"), repr=False)
    errors: dict[int, str] = field(default_factory=dict, repr=False)
    reference_data: object = field(default=None, repr=False)
    fault: Kind | None = None

    @property
    def pushes(self) -> bool:
        """Whether its recipients are really pushed."""
        return self.valid_campaign and self.processed <= self.expires and self.fault is not Kind.EXPIRED


class Queue:
    """All requests accepted so far, by id."""

    def __init__(self, seed: int) -> None:
        self._accepted: dict[str, Accepted] = {}
        self._random = random.Random(seed)  # noqa: S311 -- processing times, no secrets

    def accept(
        self,
        family: str,
        body: PushBody,
        *,
        valid_campaign: bool,
        expiration: float,
        fault: Kind | None,
        settings: Settings,
        now: float,
    ) -> Accepted:
        """Queue a push."""
        accepted = Accepted(
            family,
            self._new_id(now),
            submitted=now,
            processed=now + self._processing_time(settings),
            expires=now + expiration,
            valid_campaign=valid_campaign,
            riids=array(
                "q",
                [NO_RIID if at in body.errors else bodies.riid(key) for at, key in enumerate(body.recipients)],
            ),
            errors=body.errors,
            reference_data=body.reference_data,
            fault=fault,
        )
        self._accepted[accepted.request_id] = accepted
        return accepted

    def poll(
        self, family: str, request_id: str, *, fault: Kind | None, settings: Settings, now: float
    ) -> dict[str, object]:
        """Return the frame that says how *request_id* stands."""
        accepted = self._accepted.get(request_id)
        if accepted is None or accepted.family != family:
            return Frame(request_id=request_id).invalid_id()
        frame = Frame(
            request_id=request_id,
            api_name=API_NAMES[family],
            submitted=accepted.submitted,
            processed=min(accepted.processed, now),
            reference_data=accepted.reference_data,
        )
        return _frame(accepted, frame, fault or accepted.fault, settings, now)

    def request_ids(self) -> list[str]:
        """Return the ids of all requests accepted so far, oldest first."""
        return list(self._accepted)

    def _processing_time(self, settings: Settings) -> float:
        if not settings.processing_sigma or not settings.processing_time:
            return settings.processing_time
        return self._random.lognormvariate(math.log(settings.processing_time), settings.processing_sigma)

    def _new_id(self, now: float) -> str:
        while True:
            letters = "".join(random.choices(string.ascii_letters + string.digits, k=6))  # noqa: S311 -- no secret
            request_id = b64encode(f"{letters}::{int(now)}".encode("ascii")).decode("ascii")
            if request_id not in self._accepted:
                return request_id


def _frame(accepted: Accepted, frame: Frame, fault: Kind | None, settings: Settings, now: float) -> dict[str, object]:
    """Return *frame* as the request stands; what comes first here wins."""
    if fault is Kind.PURGED or now >= accepted.submitted + settings.retention:
        told = frame.purged()
    elif fault is Kind.EXPIRED or now >= accepted.expires < accepted.processed:
        told = frame.expired()
    elif fault is Kind.ENDLESS or now < accepted.processed:
        told = frame.processing()
    elif not accepted.valid_campaign:
        told = frame.invalid_campaign()
    elif fault is Kind.UNKNOWN_STATUS:
        told = frame.parked()
    else:
        told = frame.finished(_rows(accepted, fault))
    return told


def _rows(accepted: Accepted, fault: Kind | None) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = [
        {"recipientId": riid, "success": at not in accepted.errors, "errorMessage": accepted.errors.get(at)}
        for at, riid in enumerate(accepted.riids)
    ]
    match fault:
        case Kind.ROW_MISSING:
            return rows[:-1]
        case Kind.ROW_TOO_MANY:
            return [*rows, rows[-1]]
        case _:
            return rows
