"""A recipient as the ledger remembers it: a keyed hash, which says nothing without its key."""

import secrets
from collections.abc import Callable
from hashlib import blake2b

from airflow_provider_responsys.ledger.interface import FINGERPRINT_BYTES

KEY_BYTES = 16
"""128 bits can't be guessed, so whether a known address was pushed can't be looked up."""


def new_key() -> bytes:
    """Return a fresh key for `fingerprinter`."""
    return secrets.token_bytes(KEY_BYTES)


def key_id(key: bytes) -> str:
    """Return what names *key* without telling it: a record says with which key it was made."""
    return blake2b(b"fingerprint key", key=key, digest_size=8).hexdigest()


def fingerprinter(key: bytes) -> Callable[[str], bytes]:
    """Return the function that turns an identity into its `FINGERPRINT_BYTES` under *key*."""
    keyed = blake2b(key=key, digest_size=FINGERPRINT_BYTES)

    def fingerprint(identity: str) -> bytes:
        digest = keyed.copy()
        digest.update(identity.encode("utf-8", "surrogatepass"))
        return digest.digest()

    return fingerprint
