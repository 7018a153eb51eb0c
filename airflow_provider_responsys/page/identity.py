"""From what a person types to the identity by which a ledger knows a recipient."""

from typing import Final

from airflow_provider_responsys.errors import InvalidSettings
from airflow_provider_responsys.protocol.recipient import Identifier, ListType
from airflow_provider_responsys.recipients.fields import FieldSettings, recipient_maker
from airflow_provider_responsys.recipients.optional import InvalidRow

IDENTIFIERS: Final = {
    Identifier.CUSTOMER_ID: "Customer id",
    Identifier.EMAIL_ADDRESS: "Email address",
    Identifier.MOBILE_NUMBER: "Mobile number",
    Identifier.RECIPIENT_ID: "Recipient id (RIID)",
    Identifier.EMAIL_SHA256_HASH: "Email address, SHA-256 hash",
    Identifier.EMAIL_MD5_HASH: "Email address, MD5 hash",
    Identifier.DEVICE_ID: "Device id",
}
"""What a recipient may be pushed by, in the order of the form."""

LONGEST = 500


def identity_of(identifier: str, value: str, api_key: str) -> str:
    """Return the identity of a recipient, made as the operator makes it; raise `InvalidSettings` where it is none."""
    if identifier not in set(IDENTIFIERS):
        raise InvalidSettings("Choose what the recipient was pushed by.")
    value = value.strip()
    if not value or len(value) > LONGEST:
        raise InvalidSettings("Type the identifier of one recipient.")
    is_device = identifier == Identifier.DEVICE_ID
    settings = FieldSettings(
        list_type=ListType.PUSH if is_device else ListType.PROFILE,
        api_key=api_key.strip() or None if is_device else None,
    )
    try:
        return recipient_maker((identifier,), settings)((value,)).identity
    except InvalidRow as error:
        raise InvalidSettings(f"This is no recipient: {error}") from None
