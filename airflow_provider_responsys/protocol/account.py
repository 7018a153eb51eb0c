"""An account: where to log in, as whom, and through which family of calls."""

import ipaddress
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar
from urllib.parse import SplitResult, quote, urlsplit

from airflow_provider_responsys.errors import InvalidSettings
from airflow_provider_responsys.protocol.wire import Token

LOGIN_PATH = "/rest/api/v1.3/auth/token"  # AFTM WS API page: the `api` segment, on AFTM hosts too
RATE_LIMIT_PATH = "/rest/api/ratelimit"  # Throttling page: without a version

DEFAULT_TIMEOUT = 60.0
"""Seconds to wait for an answer."""

TRUSTED_DOMAINS = (".responsys.net", ".rsys8.net", ".rsys9.net", ".responsys.ocs.oraclecloud.com")
"""Where a login may send us (Login endpoints page)."""

HOST_NAME = re.compile(
    r"(?=.{1,253}$)[A-Za-z0-9]([A-Za-z0-9_-]*[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9_-]*[A-Za-z0-9])?)*"
)

TRUE = frozenset({"true", "1", "yes", "on"})
FALSE = frozenset({"false", "0", "no", "off"})

V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class Family:
    """A family of Responsys' asynchronous calls; *name* is its segment in the path."""

    name: str
    ids_per_poll: int
    message_expiration: bool
    """Whether a push may say how long it may wait in the queue."""


HA_ASYNC = Family("haAsyncApi", ids_per_poll=1, message_expiration=False)  # AFTM polling and push pages
ASYNC = Family("asyncApi", ids_per_poll=200, message_expiration=True)  # Multiple polling and async push pages
FAMILIES: Mapping[str, Family] = {family.name: family for family in (HA_ASYNC, ASYNC)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """What a connection says. *host* is a whole base address, such as ``https://login5.responsys.net``."""

    host: str
    login: str
    password: str = field(repr=False)
    family: Family = HA_ASYNC
    follow_endpoint: bool = False
    timeout: float = DEFAULT_TIMEOUT
    push_requests_per_minute: int | None = None
    poll_requests_per_minute: int | None = None
    dry_run: bool = False

    @property
    def name(self) -> str:
        """Return what tells this account from others: its API user and its host."""
        return f"{self.login} at {self.host}"


def account_from(
    *,
    host: str | None,
    port: int | None,
    schema: str | None,
    login: str | None,
    password: str | None,
    extra: Mapping[str, object],
) -> Account:
    """Return the account that the fields of a connection describe, or say which field is wrong."""
    if not login:
        raise InvalidSettings("login is missing: give the name of the API user")
    if not password:
        raise InvalidSettings("password is missing: give the password of the API user")
    if (auth_type := _text(extra, "auth_type", "password")) != "password":
        raise InvalidSettings(f"auth_type {auth_type!r} is not supported yet: use 'password'")
    api = _text(extra, "api", HA_ASYNC.name)
    if api not in FAMILIES:
        raise InvalidSettings(f"api is {api!r}: it must be one of {', '.join(map(repr, FAMILIES))}, in this case")
    family = FAMILIES[api]
    return Account(
        host=_base(host, port, schema),
        login=login,
        password=password,
        family=family,
        # AFTM: calls go to the account's own host. Otherwise Responsys says where to (Login endpoints page).
        follow_endpoint=_option(extra, "follow_endpoint", _truth, default=family is not HA_ASYNC),
        timeout=_option(extra, "timeout", _seconds, default=DEFAULT_TIMEOUT),
        push_requests_per_minute=_option(extra, "push_requests_per_minute", _count, default=None),
        poll_requests_per_minute=_option(extra, "poll_requests_per_minute", _count, default=None),
        dry_run=_option(extra, "dry_run", _truth, default=False),
    )


def base_url(account: Account, token: Token) -> str:
    """Return where calls with *token* go, or say why it must not be there."""
    if not account.follow_endpoint or not token.endpoint:
        return account.host
    try:
        parts = _split(token.endpoint, None)
    except InvalidSettings as error:
        raise InvalidSettings(f"the login names an endpoint that can't be used: {error}") from None
    name, home = parts.hostname or "", urlsplit(account.host).hostname or ""
    at_home = name == home or (_is_loopback(name) and _is_loopback(home))
    if not at_home and not name.endswith(TRUSTED_DOMAINS):
        raise InvalidSettings(
            f"the login at {account.host} names the endpoint {name!r}, which is no host of Responsys: "
            "check host, or set follow_endpoint to false"
        )
    return f"{parts.scheme}://{parts.netloc}"


def push_path(family: Family, campaign: str) -> str:
    """Return the path that pushes *campaign* are sent to."""
    return f"/rest/{family.name}/v1.3/campaigns/{quote(campaign, safe='')}/push"


def poll_path(family: Family, request_id: str) -> str:
    """Return the path of a poll of *request_id*."""
    return f"{polls_path(family)}/{quote(request_id, safe='')}"


def polls_path(family: Family) -> str:
    """Return the path of a poll of several requests."""
    return f"/rest/{family.name}/v1.3/requests"


def _base(host: str | None, port: int | None, schema: str | None) -> str:
    if not host or not host.strip():
        raise InvalidSettings("host is missing: give the login address, for AFTM the account's own")
    parts = _split(host.strip(), schema)
    if port is None or parts.port == port:
        return f"{parts.scheme}://{parts.netloc}"
    if parts.port is not None:
        raise InvalidSettings(f"host names port {parts.port}, and port is {port}: give one of them")
    return f"{parts.scheme}://{parts.netloc}:{port}"


def _split(address: str, schema: str | None) -> SplitResult:
    """Return the parts of *address*: a scheme and a host that may be spoken to."""
    try:
        parts = urlsplit(address if "://" in address else f"//{address}")
        name, port = parts.hostname or "", parts.port
    except ValueError:
        raise InvalidSettings("host is no address: give a name such as login5.responsys.net") from None
    if "@" in parts.netloc:
        raise InvalidSettings("host holds a user name: give it as login")
    if parts.path not in {"", "/"} or parts.query or parts.fragment:
        raise InvalidSettings("host holds more than an address: leave out what follows the host's name")
    if not HOST_NAME.fullmatch(name) and not _address(name):
        raise InvalidSettings("host is no address: give a name such as login5.responsys.net")
    scheme = (parts.scheme or schema or ("http" if _is_loopback(name) else "https")).lower()
    if scheme != "https" and not (scheme == "http" and _is_loopback(name)):
        raise InvalidSettings(f"host {name} must be reached by https: leave out {scheme!r}")
    netloc = f"[{name}]" if ":" in name else name
    return parts._replace(scheme=scheme, netloc=netloc if port is None else f"{netloc}:{port}")


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None


def _is_loopback(name: str) -> bool:
    address = _address(name)
    return address.is_loopback if address else name == "localhost"


def _option(extra: Mapping[str, object], name: str, read: Callable[[object], V], *, default: V) -> V:
    """Return what *read* makes of the extra *name*; Airflow's form leaves None or an empty text behind."""
    value = extra.get(name)
    if value is None or (isinstance(value, str) and not value.strip()):
        return default
    try:
        return read(value.strip() if isinstance(value, str) else value)
    except (ValueError, TypeError, OverflowError) as error:
        reason = str(error) if type(error) is ValueError else f"it must not be {value!r}"
        raise InvalidSettings(f"{name}: {reason}") from None


def _text(extra: Mapping[str, object], name: str, default: str) -> str:
    return _option(extra, name, str, default=default)


def _truth(value: object) -> bool:
    word = str(value).lower()
    if word not in TRUE | FALSE:
        raise ValueError("it must be true or false")
    return word in TRUE


def _seconds(value: object) -> float:
    seconds = 0.0 if isinstance(value, bool) else float(str(value))
    if not 0 < seconds < float("inf"):
        raise ValueError("it must be a number of seconds above 0")
    return seconds


def _count(value: object) -> int:
    number = 0.0 if isinstance(value, bool) else float(str(value))
    if number < 1 or number != int(number):
        raise ValueError("it must be a whole number above 0")
    return int(number)
