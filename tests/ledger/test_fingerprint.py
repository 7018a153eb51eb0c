"""A recipient as the ledger remembers it."""

from airflow_provider_responsys.ledger.fingerprint import KEY_BYTES, fingerprinter, new_key
from airflow_provider_responsys.ledger.interface import FINGERPRINT_BYTES


def test_one_person_has_one_fingerprint() -> None:
    """A later try recognises whom an earlier one claimed."""
    key = new_key()

    first, second = fingerprinter(key)("customerId 4711"), fingerprinter(key)("customerId 4711")

    assert first == second
    assert len(first) == FINGERPRINT_BYTES


def test_the_order_of_asking_does_not_matter() -> None:
    """Nothing of one identity reaches the next one's fingerprint."""
    fingerprint = fingerprinter(new_key())

    alone = fingerprint("b")
    fingerprint("a")

    assert fingerprint("b") == alone


def test_another_key_makes_another_fingerprint() -> None:
    """Without the key nobody can look up whether a known address was pushed."""
    identity = "emailAddress someone@example.com"

    assert fingerprinter(new_key())(identity) != fingerprinter(new_key())(identity)


def test_a_key_is_never_made_twice() -> None:
    """It is the secret of one ledger."""
    assert len({new_key() for _ in range(100)}) == 100
    assert len(new_key()) == KEY_BYTES


def test_any_text_has_a_fingerprint() -> None:
    """Half a surrogate pair can come from a JSON source."""
    fingerprint = fingerprinter(new_key())

    assert len({fingerprint("\ud83d"), fingerprint("é"), fingerprint("e\u0301"), fingerprint("")}) == 4
