"""What the codes of results mean, in one sentence each for people, and which are normal for a push.

A code that no page of Oracle's explains is said to be one: nothing is guessed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from airflow_provider_responsys.protocol.codes import CODES
from airflow_provider_responsys.protocol.naming import UNNAMED
from airflow_provider_responsys.protocol.polling import ROWS_DIFFER


@dataclass(frozen=True, slots=True)
class Meaning:
    """What a code says of recipients, and whether that is *normal* for a push."""

    text: str
    normal: bool = False


NOT_EXPLAINED = Meaning("Responsys' pages do not explain this code.")

MEANINGS: Mapping[str, Meaning] = MappingProxyType(
    {
        # Of one recipient (Recipient errors page; Error code table, part 4)
        "NO_RECIPIENT_FOUND": Meaning(  # Synchronous trigger push (AFTM)
            "Responsys knows no such recipient, or the recipient has no device with the campaign's app. "
            "In a push this is common, and no error.",
            normal=True,
        ),
        "MULTIPLE_RECIPIENTS_FOUND": Meaning("The identifier fits several recipients in Responsys."),
        "RECIPIENT_STATUS_UNDELIVERABLE": Meaning("Responsys has marked the recipient as undeliverable."),
        "PROFILE_LIST_NOT_FOUND": Meaning("Responsys did not find the campaign's profile list."),
        "PROFILE_LIST_NOT_FOUND_IN_FOLDER": Meaning(
            "Responsys did not find the campaign's profile list in its folder."
        ),
        "USER_BLOCKED": NOT_EXPLAINED,  # listed there, and its text was cut
        "FAILURE": Meaning("Responsys says that it failed for this recipient, and not why."),
        # Of a whole request, which ended without results (Polling errors; Polling errors (AFTM))
        "RESPONSE_PURGED": Meaning(
            "Responsys no longer has the results, which it keeps for a day: whether these recipients were handed over "
            "is not known."
        ),
        "ASYNC_REQUEST_EXPIRED": Meaning(
            "The request waited in Responsys' queue for longer than its message expiration, and was not processed."
        ),
        "INVALID_REQUEST_ID": Meaning(
            "Responsys does not know the request id: whether these recipients were handed over is not known."
        ),
        "CAMPAIGN_IS_INVALID": Meaning(
            "Responsys accepted the request and could not process it: check in Responsys that the campaign is a push "
            "campaign."
        ),
        # Of either
        "WS_ARG_DISABLED": Meaning(
            "Responsys says to try again later; if it lasts, open a service request with Oracle."
        ),
        "DUPLICATE_API_REQUEST": NOT_EXPLAINED,
        # Ours
        ROWS_DIFFER: Meaning(
            "Responsys gave more or fewer results than the request has recipients, so which result is whose is not "
            "known."
        ),
        UNNAMED: Meaning("Responsys gave a reason that is not a code; it is not shown, as it may name a recipient."),
    }
)


def meaning_of(code: str) -> Meaning:
    """Return what *code* means, as far as Responsys' pages say."""
    if found := MEANINGS.get(code):
        return found
    if not (row := CODES.get(code)):
        return NOT_EXPLAINED
    return Meaning(f"{row.advice[0].upper()}{row.advice[1:]}.")
