import base64
import json
import random
from typing import Any

import pytest

from airflow_provider_responsys.errors import InvalidAnswer
from airflow_provider_responsys.protocol.results import Results
from airflow_provider_responsys.waiting.event import MAX_PACKED, Event, Status, pack, unpack


def test_five_thousand_ids_fit() -> None:
    """Airflow keeps a trigger's arguments in 64 KB on MySQL."""
    chance = random.Random(1)  # noqa: S311 -- any ids will do
    ids = [base64.b64encode(f"PjBVpB::{chance.randrange(10**9, 10**10)}".encode()).decode() for _ in range(5000)]

    packed = pack(ids)

    assert len(packed) < MAX_PACKED
    assert unpack(packed) == ids


@pytest.mark.parametrize("packed", ["nonsense", "Zm9v", "Zm9v\u00e9", 3, None])
def test_what_is_no_packed_list_is_refused(packed: Any) -> None:
    """It has been stored in a database: what comes back is read, or refused."""
    with pytest.raises(InvalidAnswer, match="list of requests can't be read"):
        unpack(packed)


@pytest.mark.parametrize(
    "payload",
    [
        None,
        "finished",
        {},
        {"status": "finished"},
        {"status": "done", "results": Results().to_event(), "message": ""},
        {"status": "finished", "results": Results().to_event()},
        {"status": "finished", "results": None, "message": ""},
        {"status": "finished", "results": Results(total=1).to_event(), "message": ""},
        {"status": "timeout", "results": {**Results().to_event(), "errors": {"X": 1}}, "message": ""},
        {"status": "timeout", "results": Results().to_event(), "message": "", "recipients": -1},
    ],
)
def test_an_event_is_checked_before_it_is_believed(payload: Any) -> None:
    """An event has crossed a process and a database."""
    with pytest.raises(InvalidAnswer):
        Event.from_payload(payload)


def test_an_event_comes_back_as_it_went() -> None:
    """What one side writes, the other reads."""
    event = Event(Status.TIMEOUT, Results(total=3, finished=1, recipients_succeeded=4), "so far", 7)

    assert Event.from_payload(json.loads(json.dumps(event.to_payload()))) == event
