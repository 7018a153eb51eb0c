"""What can go wrong, named for what the caller may do next.

::

    ResponsysError
    ├── NotAccepted            Responsys certainly queued nothing: it may be sent again
    │   ├── NotSent            nothing left this machine (no connection, DNS, TLS)
    │   ├── TryLater           Responsys asks for patience; `wait` says how much
    │   │   └── LimitExceeded  a limit of the account was run into: go slower, too
    │   ├── LoginExpired       the token is no longer valid: log in and send again
    │   └── Refused            final for this request: sending it again changes nothing
    │       └── SendRefused    final for the whole send: the campaign or the account
    │           ├── LoginFailed  Responsys does not let this user in
    │           └── FailedOver   the account runs on its secondary, which lacks this call
    ├── InDoubt                it may have been accepted: never send it again
    │   └── NoAnswer           the request left, and no whole answer came back
    ├── InvalidAnswer          a read was answered with something unreadable
    ├── InvalidSettings        the connection or a parameter is wrong
    ├── InvalidRecipients      rows that can't be sent to
    ├── SourceFailed           the recipients could not be read
    ├── LedgerFailed           what was sent before can't be read, or recorded
    │   ├── LedgerUnreachable  the ledger's database is away: it may pass
    │   ├── NotInLedger        it has no such request
    │   ├── StateLost          the record of an earlier try is gone
    │   ├── SettingsChanged    an earlier try identified recipients in another way
    │   └── Fenced             another try has taken this one's place
    ├── NotAllSent             recipients were not sent to, for a reason that may pass
    ├── TooManyInDoubt         so many answers were lost that a person must look before it goes on
    └── RequestsFailed         requests ended without results, or with too many failures

Only a parsed error envelope whose code is listed as "nothing was queued", and a
bare HTTP 429, which is the limit, are a `NotAccepted`; anything else that comes
after a request left is `InDoubt`.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any


class ResponsysError(Exception):
    """Base of everything that this package raises on purpose.

    *code* is Responsys' own ``errorCode`` where there is one, *status* the HTTP
    status where there was an answer, *correlation_id* that answer's own id.
    """

    def __init__(
        self, message: str, *, code: str | None = None, status: int | None = None, correlation_id: str = ""
    ) -> None:
        super().__init__(message)
        self.code = code
        self.status = status
        self.correlation_id = correlation_id


def code_of(error: BaseException) -> str:
    """Return Responsys' own code for *error*, or our name where there is none."""
    return (error.code if isinstance(error, ResponsysError) else None) or type(error).__name__


class NotAccepted(ResponsysError):
    """Responsys certainly queued nothing: the request may be sent again."""


class NotSent(NotAccepted):
    """Nothing left this machine: no connection, no such host, no trust."""


class TryLater(NotAccepted):
    """Responsys asks for patience: the same request may succeed after *wait* seconds."""

    def __init__(
        self,
        message: str,
        *,
        wait: float = 0.0,
        code: str | None = None,
        status: int | None = None,
        correlation_id: str = "",
    ) -> None:
        super().__init__(message, code=code, status=status, correlation_id=correlation_id)
        self.wait = wait


class LimitExceeded(TryLater):
    """A limit of the account was run into: wait, and go slower afterwards."""


class LoginExpired(NotAccepted):
    """The token is no longer valid: log in and send again, once."""


class Refused(NotAccepted):
    """Final for this request: sending it again changes nothing."""


class SendRefused(Refused):
    """Final for the whole send: the campaign or the account is refused."""


class LoginFailed(SendRefused):
    """Responsys does not let this user in; asking again may lock the account."""


class FailedOver(SendRefused):
    """The account runs on its secondary server, which does not offer this call."""


class InDoubt(ResponsysError):
    """The request may have been accepted: sending it again may push people twice."""


class NoAnswer(InDoubt):
    """The request left, and no whole answer came back."""


class InvalidAnswer(ResponsysError):
    """A harmless read was answered with something that can't be read."""


class InvalidSettings(ResponsysError, ValueError):
    """The connection or a parameter is wrong; the message names it."""


class InvalidRecipients(ResponsysError, ValueError):
    """Rows that can't be sent to; the message names position, field and reason, never the data."""


class SourceFailed(ResponsysError):
    """The recipients could not be read from their source."""


class LedgerFailed(ResponsysError):
    """What was sent before can't be read, or what is about to be sent can't be recorded."""

    moved: Mapping[int, Any] = MappingProxyType({})
    """Where recipients in doubt are now, an `Earlier` by the number of the batch that they were wanted for: the
    commit that failed had moved them there already."""


class LedgerUnreachable(LedgerFailed):
    """The ledger's database could not be reached, or did not answer: it may do so later."""


class NotInLedger(LedgerFailed):
    """The ledger has no such request: it was pruned, or is another task's."""


class StateLost(LedgerFailed):
    """The record of an earlier try is gone, so it is unknown whom that try pushed."""


class SettingsChanged(LedgerFailed):
    """An earlier try identified recipients in another way, so the two can't be compared."""


class Fenced(LedgerFailed):
    """Another try of this task has taken over; this one must stop."""


class NotAllSent(ResponsysError):
    """Recipients were not sent to, for a reason that may pass: try again."""


class TooManyInDoubt(ResponsysError):
    """So many answers were lost that a person must look before the send goes on."""


class RequestsFailed(ResponsysError):
    """Requests ended without results, or more recipients failed than the sensor tolerates."""
