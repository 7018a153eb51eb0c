"""Who a recipient on the wire is."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_responsys.protocol.recipient import Identifier, identified, wire_text, writer


@given(value=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1))
@pytest.mark.parametrize("name", [name for name in Identifier if name is not Identifier.RECIPIENT_ID])
def test_the_value_is_what_was_written(name: Identifier, value: str) -> None:
    """Whatever stands in it: quotation marks, backslashes, what looks like a member."""
    text = wire_text(value)
    recipient = writer(name)(text, text, '"key"', '{"name":"a","value":"b"}')

    assert identified(recipient.body) == (name, value)
    assert json.loads(recipient.body)[name] == value


@pytest.mark.parametrize("value", ['"', "\\", 'x","customerId":"y', "\\u0041", "由紀"])
def test_what_has_to_be_escaped_comes_back(value: str) -> None:
    """The cases that a pattern gets wrong."""
    text = wire_text(value)

    assert identified(writer(Identifier.EMAIL_ADDRESS)(text, text, "null", "").body) == ("emailAddress", value)


def test_a_riid_is_told_as_text() -> None:
    """Beyond 2^53, readers of JSON numbers would change it."""
    number = str(2**63 - 1)

    assert identified(writer(Identifier.RECIPIENT_ID)(number, number, "null", "").body) == ("recipientId", number)
