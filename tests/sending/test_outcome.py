"""Buckets: everybody read ends in exactly one."""

import json
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial

import pytest

from airflow_provider_responsys.errors import ResponsysError
from airflow_provider_responsys.ledger.interface import Earlier, Holder
from airflow_provider_responsys.recipients.fields import FieldSettings
from airflow_provider_responsys.recipients.rows import from_sequence
from airflow_provider_responsys.recipients.spool import Spool
from airflow_provider_responsys.sending.outcome import Buckets, Resumed
from airflow_provider_responsys.sending.run import Doubt, Report

SINCE = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)


def fingerprint(identity: str) -> bytes:
    """Tell the recipients of these tests apart."""
    return identity.encode()[-9:].rjust(9)


def of(*names: str) -> list[bytes]:
    """Return the fingerprints of the customers *names*."""
    with Spool() as spool:
        spool.fill(from_sequence([{"customerId": name} for name in names]), FieldSettings(), fingerprint)
        return [one for batch in spool.batches(max_recipients=200, max_bytes=10_000) for one in batch.fingerprints]


@pytest.fixture
def spool() -> Iterator[Spool]:
    """Give a spool of five recipients, of which one stands in it twice."""
    with Spool() as spool:
        rows = [{"customerId": name} for name in ("c1", "c2", "c3", "c4", "c5", "c1")]
        spool.fill(from_sequence(rows), FieldSettings(), fingerprint)
        yield spool


def test_earlier_batches_are_taken_out_of_the_spool(spool: Spool) -> None:
    """Accepted before is accepted now, without a request; and so is doubt."""
    earlier = [Earlier(of("c1", "c2"), "id-1", SINCE, "try 1, batch 1"), Earlier(of("c3"), None, SINCE, "batch 2")]

    resumed = Resumed.of(earlier, spool)

    assert (resumed.accepted, resumed.in_doubt, resumed.here, resumed.vanished) == (2, 1, 3, 0)
    assert resumed.request_ids == ["id-1"]
    assert [(doubt.label, doubt.size) for doubt in resumed.doubts] == [("batch 2", 1)]
    assert "2026-11-23" in resumed.doubts[0].reason
    assert [batch.fingerprints for batch in spool.batches(max_recipients=9, max_bytes=9_999)] == [tuple(of("c4", "c5"))]


def test_whoever_left_the_source_since_still_counts_as_read(spool: Spool) -> None:
    """They were pushed: a report without them would be wrong."""
    resumed = Resumed.of([Earlier(of("c1", "gone"), "id-1", SINCE, "batch 1")], spool)
    buckets = Buckets.of(spool, resumed, Report(4, accepted=4))

    assert resumed.vanished == 1
    assert buckets.as_dict() == {
        "read": 7,
        "accepted": 6,
        "rejected": 0,
        "in_doubt": 0,
        "not_sent": 0,
        "withheld": 0,
        "duplicate": 1,
        "invalid": 0,
    }


def test_who_is_in_doubt_and_here_is_to_be_sent_to_again(spool: Spool) -> None:
    """At least once: whoever is no longer in the source stays in doubt, and nobody is counted twice or forgotten."""
    doubt = Earlier(of("c2", "gone", "c1"), None, SINCE, "try 1, batch 2")
    accepted = Earlier(of("c3"), "id-1", SINCE, "try 1, batch 1")

    resumed = Resumed.of([accepted, doubt], spool, partial(spool.take_out, max_recipients=200, max_bytes=10_000))

    [due] = resumed.repeats
    assert due.doubt == doubt
    assert list(due.batch.fingerprints) == of("c2", "c1")
    assert [json.loads(body)["customerId"] for body in due.batch.bodies] == ["c2", "c1"]
    assert (resumed.accepted, resumed.in_doubt, resumed.here, resumed.vanished) == (1, 1, 3, 1)
    assert resumed.found_in_doubt == 3
    assert [(doubt.label, list(doubt.fingerprints)) for doubt in resumed.doubts] == [("try 1, batch 2", of("gone"))]
    assert [batch.fingerprints for batch in spool.batches(max_recipients=9, max_bytes=9_999)] == [tuple(of("c4", "c5"))]
    buckets = Buckets.of(spool, resumed, Report(4, accepted=4))
    assert (buckets.read, buckets.accepted, buckets.in_doubt, buckets.duplicate) == (7, 5, 1, 1)


@pytest.mark.parametrize("again", [False, True])
def test_a_doubt_about_an_accepted_recipient_is_none(spool: Spool, again: bool) -> None:
    """A claim that is written late, whose request never left: another try has sent to its recipients meanwhile."""
    late = Earlier(of("c1", "c2"), None, SINCE, "try 1, batch 1")
    accepted = Earlier(of("c2", "c3"), "id-1", SINCE, "try 2, batch 1")
    twice = Earlier(of("c1"), None, SINCE, "try 2, batch 2")
    take_out = partial(spool.take_out, max_recipients=200, max_bytes=10_000) if again else None

    resumed = Resumed.of([late, accepted, twice], spool, take_out)

    assert (resumed.accepted, resumed.here, resumed.vanished, resumed.lost_lately) == (2, 3, 0, 1)
    assert [due.batch.fingerprints for due in resumed.repeats] == ([tuple(of("c1"))] if again else [])
    assert [doubt.fingerprints for doubt in resumed.doubts] == ([] if again else [of("c1")])
    assert [batch.fingerprints for batch in spool.batches(max_recipients=9, max_bytes=9_999)] == [tuple(of("c4", "c5"))]


def test_a_recipient_accepted_twice_counts_once(spool: Spool) -> None:
    """At least once: the answer to the first request may come when the second one has left."""
    first, second = (
        Earlier(of("c1", "gone"), "id-1", SINCE, "batch 1"),
        Earlier(of("c1", "c2"), "id-2", SINCE, "batch 2"),
    )

    resumed = Resumed.of([first, second], spool)

    assert (resumed.accepted, resumed.here, resumed.vanished) == (3, 2, 1)
    assert resumed.request_sizes == [2, 2]


def test_a_doubt_whose_people_have_more_to_say_now_is_sent_again_in_parts(spool: Spool) -> None:
    """Their optional data may have grown since: a request stays as small as any other."""
    doubt = Earlier(of("c1", "c2", "c3"), None, SINCE, "try 1, batch 2")

    resumed = Resumed.of([doubt], spool, partial(spool.take_out, max_recipients=2, max_bytes=10_000))

    assert [list(due.batch.fingerprints) for due in resumed.repeats] == [of("c1", "c2"), of("c3")]
    assert [due.doubt for due in resumed.repeats] == [doubt, doubt]
    assert not resumed.doubts


def test_recipients_held_by_others_count_as_what_they_are(spool: Spool) -> None:
    """Another task's are duplicates; an earlier try's own are accepted, or in doubt."""
    held = Counter({Holder.OTHER: 1, Holder.ACCEPTED: 1, Holder.IN_DOUBT: 1})
    report = Report(5, held=held, rejected=Counter({"X": 1}), doubts=[Doubt("batch 1", 1, "lost")])

    buckets = Buckets.of(spool, Resumed(), report)

    assert (buckets.duplicate, buckets.accepted, buckets.in_doubt, buckets.rejected) == (2, 1, 2, 1)


def test_a_mismatch_is_a_failure_of_ours(spool: Spool) -> None:
    """Rather fail than lose somebody silently."""
    with pytest.raises(ResponsysError, match="6 recipients read, 5 accounted for"):
        Buckets.of(spool, Resumed(), Report(5, accepted=4))


def test_what_is_in_doubt_counts_anew_after_a_clear(spool: Spool) -> None:
    """A person has looked at what earlier tries left; what automatic tries since then lost adds up."""
    since = datetime(2026, 11, 23, tzinfo=UTC)
    earlier = [
        Earlier([bytes([number]) * 9] * number, None, since, f"try {number}", try_number=number) for number in (1, 2, 3)
    ]

    uncleared = Resumed.of(earlier, spool)
    cleared = Resumed.of(earlier, spool, first_try=3)

    assert (uncleared.lost_lately, uncleared.in_doubt) == (6, 6)
    assert (cleared.lost_lately, cleared.in_doubt) == (3, 6)


def test_buckets_are_told_in_a_sentence() -> None:
    """What a log line and a report's problem say."""
    buckets = Buckets(read=1_003, accepted=600, in_doubt=200, not_sent=201, duplicate=1, invalid=1)

    assert str(buckets) == "600 of 1,003 accepted, 200 in doubt, 201 not sent, 1 duplicate, 1 invalid"
