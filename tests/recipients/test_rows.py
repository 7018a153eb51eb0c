from collections.abc import Iterator, Sequence
from itertools import chain, islice, repeat
from typing import Any

import pytest

from airflow_provider_responsys.errors import InvalidRecipients
from airflow_provider_responsys.recipients.rows import CHUNK_ROWS, Chunk, from_sequence

ANN, BOB = {"riid": 1, "city": "Rome"}, {"riid": 2, "city": "Oslo"}


class Lazy(Sequence[Any]):
    """What a mapped task's output is: a sequence that is no list, and whose length costs a query."""

    def __init__(self, values: list[Any]) -> None:
        self.values = values

    def __getitem__(self, index: Any) -> Any:
        return self.values[index]

    def __len__(self) -> int:
        raise AssertionError("nobody needs to know")

    def __iter__(self) -> Iterator[Any]:
        return iter(self.values)


@pytest.mark.parametrize(
    "value",
    [
        [ANN, BOB],
        (ANN, BOB),
        Lazy([ANN, BOB]),
        Lazy([[ANN], [], (BOB,)]),
        [Lazy([ANN]), [[BOB]]],
        iter([ANN, BOB]),
        {"a": ANN, "b": BOB}.values(),
    ],
    ids=["list", "tuple", "lazy", "mapped", "nested", "generator", "view"],
)
def test_rows_with_the_same_columns_come_together(value: object) -> None:
    """Whatever holds them, a mapped task's list of lists included."""
    assert list(from_sequence(value)) == [Chunk(("riid", "city"), [(1, "Rome"), (2, "Oslo")])]


@pytest.mark.parametrize(
    "value", [[], (), Lazy([]), iter([]), [[], []]], ids=["list", "tuple", "lazy", "iterator", "mapped"]
)
def test_nobody(value: object) -> None:
    """An empty source is no error here."""
    assert list(from_sequence(value)) == []


def test_other_columns_start_a_new_chunk() -> None:
    """Rows need not be alike, and stay in their order."""
    rows = [ANN, {"city": "Oslo", "riid": 2}, {"riid": 3}, {"riid": 4}]

    assert list(from_sequence(rows)) == [
        (("riid", "city"), [(1, "Rome")], False),
        (("city", "riid"), [("Oslo", 2)], False),
        (("riid",), [(3,), (4,)], False),
    ]


def test_a_generator_is_streamed() -> None:
    """Its rows are not all held at once."""
    first = next(from_sequence(repeat(ANN)))

    assert len(first.rows) == CHUNK_ROWS


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("[{'riid': 1}]", "pass the task's .output instead of the template"),
        (b"[]", "are a text"),
        (ANN, "are one mapping"),
        (None, "no recipients, not even an empty list"),
        (7, "of type int"),
    ],
)
def test_what_is_no_list_of_rows(value: object, reason: str) -> None:
    """It is refused at once, with what to do."""
    with pytest.raises(InvalidRecipients, match=reason):
        from_sequence(value)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ([ANN, "ann@example.com"], "Row 2 is of type str"),
        ([[ANN, BOB], [ANN, None]], "Row 4 is of type NoneType"),
        ([[ANN], BOB, 7], "Row 3 is of type int"),
        ([("riid", 1)], "Row 1 is of type str"),
    ],
)
def test_a_row_that_is_none(value: object, reason: str) -> None:
    """Its position and its type are told, not what it is, and what a row looks like."""
    with pytest.raises(InvalidRecipients, match=f"{reason}: recipients must be a list of mappings") as error:
        list(from_sequence(value))

    assert "ann@" not in str(error.value)


def test_the_rows_before_a_failure_come_first() -> None:
    """A generator's own failure is its author's to see."""

    def rows() -> Iterator[dict[str, Any]]:
        yield from chain(repeat(ANN, CHUNK_ROWS), [BOB])
        raise LookupError("mine")

    chunks = from_sequence(rows())

    assert len(list(islice(chunks, 1))) == 1
    with pytest.raises(LookupError, match="mine"):
        next(chunks)


def test_a_chunk_shows_nobody() -> None:
    """It may stand in a traceback or a log."""
    assert repr(Chunk(("riid",), [(1,), (2,)])) == "<2 rows>"
