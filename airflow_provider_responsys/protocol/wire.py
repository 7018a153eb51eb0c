"""The words of a conversation with Responsys: requests, answers, and the steps between them."""

from collections.abc import Generator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Self, TypeAlias, TypeVar

if TYPE_CHECKING:
    from airflow_provider_responsys.protocol.account import Account

FORM = "application/x-www-form-urlencoded"
JSON = "application/json"

SMALL_ANSWER = 256 * 1024
"""Bytes of an answer to a login or a push: a gateway's page may need them."""

TRACKING = "X-Request-Id"  # What's new in 26C: it comes back in the answer's headers
CORRELATION = "X-CorrelationID"  # recorded on the pods' answers; Oracle's support asks for it


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """What a login gave: the *value* to sign requests with and the *endpoint* it names.

    *obtained* is the reading of the caller's monotonic clock, in seconds, when
    the login was asked for.
    """

    value: str = field(repr=False)
    endpoint: str = ""
    obtained: float = 0.0


@dataclass(frozen=True, slots=True)
class Request:
    """One HTTP request. *path* is host-relative until `signed` puts it on a host.

    A *fresh* request must not leave on a connection that has idled: such a
    connection may be dead, and the request's fate would then be unknown.
    Of an answer at most *max_answer* bytes are read, unpacked.
    """

    method: str
    path: str
    body: bytes = field(default=b"", repr=False)
    headers: tuple[tuple[str, str], ...] = ()
    host: str = ""
    fresh: bool = False
    max_answer: int = SMALL_ANSWER
    authorization: str = field(default="", repr=False)

    @property
    def url(self) -> str:
        """Return the whole address."""
        return f"{self.host}{self.path}"

    def signed(self, token: Token, host: str) -> Self:
        """Return this request on *host*, signed with *token*."""
        return replace(self, host=host, authorization=token.value)


def tracked(tracking_id: str) -> tuple[tuple[str, str], ...]:
    """Return the headers with which Responsys and its support can name a request (What's new in 26C)."""
    return ((TRACKING, tracking_id),) if tracking_id else ()


@dataclass(frozen=True, slots=True)
class Response:
    """One HTTP answer, read to its end.

    *correlation_id* is Responsys' own, *tracking_id* the ``X-Request-Id`` that came
    back. Both are for people and for Oracle's support, and decide nothing.
    """

    status: int
    body: bytes = field(default=b"", repr=False)
    correlation_id: str = ""
    tracking_id: str = ""


@dataclass(frozen=True, slots=True)
class Send:
    """Send *request*; the reply is a `Response`, or a `NotSent` or `NoAnswer` is thrown in."""

    request: Request


@dataclass(frozen=True, slots=True)
class Pause:
    """Wait *seconds*; the reply is None. *reason* is what a person may read meanwhile."""

    seconds: float
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Authorize:
    """Get a token other than *refused*; the reply is a `Token`, or why there is none is thrown in.

    The driver lets one conversation at a time log in; the others find its token.
    """

    refused: Token | None = None


@dataclass(frozen=True, slots=True)
class LogIn:
    """Log in as *account* with the password that its connection has now; the reply is the `Response`.

    Thrown in are what `Send` throws in, and a `LoginFailed` where this machine knows that the login is refused.
    """

    account: "Account"


Step: TypeAlias = Send | Pause | Authorize | LogIn
Reply: TypeAlias = Response | Token | None

T = TypeVar("T")
Conversation: TypeAlias = Generator[Step, Reply, T]
"""Yields what to do next, is sent the answer, returns a result."""
