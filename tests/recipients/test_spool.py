import json
import sqlite3
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from airflow_provider_responsys.errors import InvalidRecipients, SourceFailed
from airflow_provider_responsys.recipients.fields import FieldSettings
from airflow_provider_responsys.recipients.rows import Chunk, from_sequence
from airflow_provider_responsys.recipients.spool import EXAMPLES, KNOWN_LAYOUTS, ROWS_A_WRITE, Batch, Spool

Fingerprint = Callable[[str], bytes]

SETTINGS = FieldSettings()
ROOM = 10_000_000


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    """Give an empty spool."""
    with Spool(tmp_path) as spool:
        yield spool


def people(*numbers: object) -> Iterator[Chunk]:
    """Return rows of people that are known by their RIID."""
    return from_sequence([{"riid": number} for number in numbers])


def table(*numbers: object) -> list[Chunk]:
    """Return the same as a table."""
    return [Chunk(("riid",), [(number,) for number in numbers], is_table=True)]


def riids(spool: Spool, size: int = 200) -> list[list[int]]:
    """Return who is in each batch."""
    batches = spool.batches(max_recipients=size, max_bytes=ROOM)
    return [[json.loads(body)["recipientId"] for body in batch.bodies] for batch in batches]


def test_fingerprints_are_sorted_out_by_where_they_are(spool: Spool, fingerprint: Fingerprint) -> None:
    """A row that repeats an earlier one is left out, and its recipient still here."""
    spool.fill(people(1, 2, 1, 2), SETTINGS, fingerprint)
    one, other = next(spool.batches(max_recipients=9, max_bytes=9_999)).fingerprints
    spool.exclude([other])

    found = spool.sort_out([other, b"elsewhere", one])

    assert (found.here, found.known, found.vanished) == ([one], [other, one], [b"elsewhere"])


def test_batches_in_source_order(spool: Spool, fingerprint: Fingerprint) -> None:
    """As full as they may be, with positions from 1 and the fingerprints to claim."""
    spool.fill(people(30, 20, 10), SETTINGS, fingerprint)

    batches = list(spool.batches(max_recipients=2, max_bytes=ROOM))

    assert [batch.positions for batch in batches] == [(1, 2), (3,)]
    assert batches[1].fingerprints == (fingerprint('["PROFILE","recipientId",10]'),)
    assert riids(spool, 2) == [[30, 20], [10]]
    assert [len(batch) for batch in batches] == [2, 1]
    assert len(spool) == spool.read == 3


def test_nobody(spool: Spool, fingerprint: Fingerprint) -> None:
    """An empty source is zero recipients."""
    spool.fill(people(), SETTINGS, fingerprint)

    assert (spool.read, spool.invalid, spool.duplicates, len(spool)) == (0, 0, 0, 0)
    assert riids(spool) == []


def test_the_first_of_several_wins(spool: Spool, fingerprint: Fingerprint) -> None:
    """Whoever comes again is counted and not sent to again."""
    spool.fill(people(1, 2, "1", 3, 2.0, 1), SETTINGS, fingerprint)

    assert [batch.positions for batch in spool.batches(max_recipients=9, max_bytes=ROOM)] == [(1, 2, 4)]
    assert (spool.read, spool.duplicates, len(spool)) == (6, 3, 3)


def test_bytes_limit_a_batch(spool: Spool, fingerprint: Fingerprint) -> None:
    """Bodies and the commas between them just fit, or are cut before."""
    spool.fill(people(1, 2, 3, 4), SETTINGS, fingerprint)
    one = len(next(spool.batches(max_recipients=1, max_bytes=ROOM)).bodies[0])

    assert [len(batch) for batch in spool.batches(max_recipients=9, max_bytes=3 * one + 2)] == [3, 1]
    assert [len(batch) for batch in spool.batches(max_recipients=9, max_bytes=3 * one + 1)] == [2, 2]


def test_a_recipient_too_large_for_any_request_is_wrong(spool: Spool, fingerprint: Fingerprint) -> None:
    """It is found before anything is sent."""
    rows = [{"riid": 1}, {"riid": 2, "essay": "x" * 1000}]

    with pytest.raises(InvalidRecipients, match=r"1 of 2 rows .*\nrow 2: makes a recipient of more than 1,000 bytes"):
        spool.fill(from_sequence(rows), SETTINGS, fingerprint, max_body_bytes=1000)


def test_wrong_rows(spool: Spool, fingerprint: Fingerprint) -> None:
    """The first ten are named by position, field and reason; all are counted; their data is not told."""
    with pytest.raises(InvalidRecipients) as error:
        spool.fill(people(1, *(f"ann{number}" for number in range(EXAMPLES + 1)), 2), SETTINGS, fingerprint)

    lines = str(error.value).splitlines()
    assert lines[0] == "11 of 13 rows can't be sent to, so nothing was sent (the first 10 are named):"
    assert lines[1:] == [f"row {position}: riid is not a whole number" for position in range(2, EXAMPLES + 2)]
    assert lines[1:] == spool.invalid_examples


def test_wrong_rows_are_skipped_if_told_so(spool: Spool, fingerprint: Fingerprint) -> None:
    """They are counted and named all the same."""
    spool.fill(people(1, None, 2, "x"), SETTINGS, fingerprint, on_invalid="skip")

    assert riids(spool) == [[1, 2]]
    assert (spool.read, spool.invalid, len(spool)) == (4, 2, 2)
    assert spool.invalid_examples == ["row 2: riid is missing", "row 4: riid is not a whole number"]


def test_positions_run_through_all_chunks(spool: Spool, fingerprint: Fingerprint) -> None:
    """Rows with other columns are counted with the rest."""
    rows = [{"riid": 1}, {"customer_id": "C", "riid": None}, {"CITY_": 1, "riid": 3}, {"riid": 4}]

    spool.fill(from_sequence(rows), SETTINGS, fingerprint, on_invalid="skip")

    assert [batch.positions for batch in spool.batches(max_recipients=9, max_bytes=ROOM)] == [(1, 2, 4)]
    assert [example.split(" ends in")[0] for example in spool.invalid_examples] == ["row 3: CITY_"]


@pytest.mark.parametrize("on_invalid", ["fail", "skip"])
def test_wrong_columns_of_a_table(spool: Spool, fingerprint: Fingerprint, on_invalid: Any) -> None:
    """A query is somebody's decision: no row of it can be right, so none is skipped."""
    chunks = [Chunk(("riid", "CITY_"), [], is_table=True)]

    with pytest.raises(InvalidRecipients, match=r"^The columns can't be used: CITY_ ends in '_'"):
        spool.fill(chunks, SETTINGS, fingerprint, on_invalid=on_invalid)


def test_many_layouts(spool: Spool, fingerprint: Fingerprint) -> None:
    """Rows that all differ need no more memory than rows that don't."""
    rows = [{"riid": number + 1, f"column{number}": 1} for number in range(KNOWN_LAYOUTS + 2)]

    spool.fill(from_sequence(rows), SETTINGS, fingerprint)

    assert len(spool) == KNOWN_LAYOUTS + 2


def test_whom_an_earlier_try_sent_to_is_left_out(spool: Spool, fingerprint: Fingerprint) -> None:
    """Found by fingerprint wherever they are now, with their repetitions; each counts once."""
    earlier = [fingerprint(f'["PROFILE","recipientId",{number}]') for number in (3, 1, 99)]
    spool.fill(people(1, 2, 3, 1, 4, 3), SETTINGS, fingerprint)

    excluded = spool.exclude(earlier)

    assert excluded == 2
    assert spool.exclude(earlier) == 0
    assert spool.exclude([]) == 0
    assert riids(spool) == [[2, 4]]
    assert (len(spool), spool.duplicates) == (4, 2)


def test_recipients_that_another_source_did_not_have_are_counted(spool: Spool, fingerprint: Fingerprint) -> None:
    """Left out or not, and each of them once."""
    spool.fill(people(1, 2, 3, 3, 4), FieldSettings(), fingerprint)
    (batch,) = spool.batches(max_recipients=9, max_bytes=9999)
    one, two, _, four = batch.fingerprints
    spool.exclude([four])

    strangers = spool.strangers([[one], [two, b"no one else"]])

    assert strangers == 2
    assert spool.strangers([]) == 4


def test_more_rows_than_a_write(spool: Spool, fingerprint: Fingerprint) -> None:
    """Nobody is lost between writes, and a failure after many good rows is still one."""
    numbers = range(1, 2 * ROWS_A_WRITE + 2)

    spool.fill(table(*numbers), SETTINGS, fingerprint)

    assert [number for batch in riids(spool) for number in batch] == list(numbers)


def test_a_late_wrong_row(spool: Spool, fingerprint: Fingerprint) -> None:
    """The last row can stop all of them."""
    with pytest.raises(InvalidRecipients, match="1 of 4,002 rows"):
        spool.fill(table(*range(1, 2 * ROWS_A_WRITE + 2), None), SETTINGS, fingerprint)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    numbers=st.lists(st.integers(-1, 12), max_size=40),
    earlier=st.sets(st.integers(1, 12)),
    size=st.integers(1, 5),
)
def test_every_row_ends_in_one_place(
    tmp_path: Path, fingerprint: Fingerprint, numbers: list[int], earlier: set[int], size: int
) -> None:
    """Wrong, repeated, excluded or in exactly one batch: the numbers add up."""
    with Spool(tmp_path) as spool:
        spool.fill(people(*numbers), SETTINGS, fingerprint, on_invalid="skip")
        excluded = spool.exclude([fingerprint(f'["PROFILE","recipientId",{number}]') for number in earlier])
        sent = riids(spool, size)

    valid = [number for number in numbers if number > 0]
    assert sum(sent, []) == [number for number in dict.fromkeys(valid) if number not in earlier]  # noqa: RUF017 -- a few
    assert all(len(batch) == size for batch in sent[:-1])
    assert excluded == len(earlier & set(valid))
    assert spool.read == len(numbers) == spool.invalid + spool.duplicates + excluded + sum(map(len, sent))


def test_the_file_has_no_name(tmp_path: Path, fingerprint: Fingerprint) -> None:
    """Nobody else can open it, and a kill leaves nothing behind."""
    with Spool(tmp_path) as spool:
        spool.fill(people(1, 2, 1), SETTINGS, fingerprint)

        assert list(tmp_path.iterdir()) == []
        assert riids(spool) == [[1, 2]]


def test_it_is_used_in_a_with_statement(tmp_path: Path) -> None:
    """A spool that nobody closes would keep its disk space."""
    spool = Spool(tmp_path)

    with pytest.raises(RuntimeError, match="with statement"):
        spool.exclude([b""])
    with spool:
        pass
    spool.close()


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    """The folder is named, and what it needs."""
    with (
        pytest.raises(SourceFailed, match=r"can't be kept in .*nowhere.*: the folder needs to be writable"),
        Spool(tmp_path / "nowhere"),
    ):
        pass


def test_a_full_disk(spool: Spool, fingerprint: Fingerprint) -> None:
    """It is found before anything is sent, and the message says what is needed."""
    spool._database.execute("PRAGMA max_page_count = 20")

    with pytest.raises(SourceFailed, match=r"disk is full.*500 bytes of room for each recipient"):
        spool.fill(table(*range(1, 5000)), SETTINGS, fingerprint)


def test_a_failing_source_is_not_blamed_on_the_disk(spool: Spool, fingerprint: Fingerprint) -> None:
    """What a generator raises is its author's to see, whatever it is."""

    def rows() -> Iterator[dict[str, int]]:
        yield {"riid": 1}
        raise sqlite3.OperationalError("mine")

    with pytest.raises(sqlite3.OperationalError, match="mine"):
        spool.fill(from_sequence(rows()), SETTINGS, fingerprint)


def test_batches_are_streamed(spool: Spool, fingerprint: Fingerprint) -> None:
    """They can be left in the middle, and started again."""
    spool.fill(people(1, 2, 3), SETTINGS, fingerprint)

    first = list(islice(spool.batches(max_recipients=1, max_bytes=ROOM), 1))

    assert first[0].positions == (1,)
    assert riids(spool, 2) == [[1, 2], [3]]


def test_a_batch_shows_nobody() -> None:
    """It may stand in a traceback or a log."""
    assert repr(Batch((1,), (b"f",), ("body",))) == "Batch(positions=(1,))"
