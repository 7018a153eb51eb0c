import pytest

from airflow_provider_responsys.protocol.meanings import MEANINGS, NOT_EXPLAINED, meaning_of
from airflow_provider_responsys.protocol.naming import ROW_CODES
from airflow_provider_responsys.protocol.polling import ABOUT_THE_REQUEST, PROCESSING
from airflow_provider_responsys.protocol.results import KNOWN


@pytest.mark.parametrize("code", sorted(KNOWN - {PROCESSING}))
def test_every_code_that_is_counted_by_name_has_a_sentence(code: str) -> None:
    """For people who do not know the API."""
    meaning = meaning_of(code)

    assert meaning.text[0].isupper()
    assert meaning.text.endswith(".")


def test_the_codes_of_results_have_meanings_of_their_own() -> None:
    """What a code says of a submission is not what it says of a recipient, or of a request that was accepted."""
    assert {*ROW_CODES, *ABOUT_THE_REQUEST} - {PROCESSING} <= set(MEANINGS)


@pytest.mark.parametrize("code", ["BRAND_NEW_CODE", "DUPLICATE_API_REQUEST", "USER_BLOCKED"])
def test_what_no_page_explains_is_not_guessed(code: str) -> None:
    """An unknown is not presented as known."""
    assert meaning_of(code) == NOT_EXPLAINED


def test_one_code_is_normal_for_a_push() -> None:
    """Of recipients without a device; the sensor does not count it as a failure, either."""
    assert {code for code in KNOWN if meaning_of(code).normal} == {"NO_RECIPIENT_FOUND"}
