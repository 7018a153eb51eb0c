"""How a sandbox behaves: one flat, frozen set of values, the same in Python, on the command line and over HTTP."""

from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields, replace
from typing import Any, Self

from airflow_provider_responsys.errors import InvalidSettings

ANY_CAMPAIGN = "*"  # no campaign can be called that
MINUTE = 60.0
HOUR = 3600.0
DAY = 86400.0


def _setting(default: object, text: str, *, choices: tuple[object, ...] = ()) -> Any:
    return field(default=default, metadata={"help": text, "choices": choices})


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Every setting of a sandbox; its metadata holds the help text and the choices."""

    api_user: str = _setting("api_user", "the one user who may log in")
    password: str = field(
        default="sandbox-password",
        repr=False,
        metadata={"help": "that user's password", "choices": ()},
    )
    end_point: str = _setting("", "the endPoint that a login names; by default the address it was asked at")

    campaigns: tuple[str, ...] = _setting(("Summer_Push",), "transactional push campaigns; * allows every name")
    promotional_campaigns: tuple[str, ...] = _setting((), "promotional push campaigns: they fail during a failover")
    unknown_campaign: str = _setting(
        "at_submit",
        "when an unknown campaign fails: at once with 404, or with CAMPAIGN_IS_INVALID when polled",
        choices=("at_submit", "at_poll"),
    )
    failed_over: bool = _setting(default=False, text="the account runs on its secondary server")

    accept_status: int = _setting(202, "HTTP status of an accepted push", choices=(200, 202))
    poll_status: int = _setting(200, "HTTP status of an answered poll", choices=(200, 202))
    latency: float = _setting(0.0, "seconds that each answer takes; half before the effect, half after it")
    idle_timeout: float = _setting(60.0, "seconds after which an unused connection is closed, unannounced")

    echo_request_id: bool = _setting(
        default=True, text="send the X-Request-Id of a request back with its answer, as Responsys does since 26C"
    )
    framing: str = _setting(
        "length",
        "how an answer ends: at its Content-Length; or where the connection closes, as in recorded answers",
        choices=("length", "close"),
    )

    token_lifetime: float = _setting(2 * HOUR, "seconds that a token is valid")
    bad_token_as_500: bool = _setting(
        default=False,
        text="answer a bad token with HTTP 500 UNEXPECTED_EXCEPTION instead of 401",
    )
    lockout_after: int = _setting(5, "wrong passwords in a row that lock the user out")
    lockout_seconds: float = _setting(HOUR, "seconds that a lock-out lasts")

    push_limit: int | None = _setting(None, "push requests a minute and family; none: no limit")
    poll_limit: int | None = _setting(None, "poll requests a minute and family; none: no limit")
    login_limit: int | None = _setting(None, "logins and refreshes a minute; none: no limit")
    ratelimit_limit: int | None = _setting(None, "reads of the limits a minute; none: no limit")
    push_taken: int = _setting(0, "part of the push limit that another program uses up, untold")
    poll_taken: int = _setting(0, "part of the poll limit that another program uses up, untold")
    login_taken: int = _setting(0, "part of the login limit that another program uses up, untold")
    window: str = _setting(
        "fixed",
        "a limit counts each minute of the clock, or the last sixty seconds",
        choices=("fixed", "sliding"),
    )
    limit_status: int = _setting(401, "HTTP status of API_LIMIT_EXCEEDED", choices=(400, 401, 429))
    capacity_limit: int | None = _setting(None, "push requests in ten minutes before the internal capacity is used up")
    ratelimit: str = _setting(
        "on",
        "whether the limits can be read: on; off (404); refused (401, a missing role); page (404, a gateway's page)",
        choices=("on", "off", "refused", "page"),
    )
    ratelimit_rows: tuple[Mapping[str, object], ...] | None = _setting(None, "rows to tell instead of the real limits")

    processing_time: float = _setting(0.0, "seconds from acceptance to result; the median if there is a sigma")
    processing_sigma: float = _setting(0.0, "sigma of log-normal processing times; 0: constant")
    seed: int = _setting(0, "seed of the processing times")
    retention: float = _setting(DAY, "seconds from submission after which a result is purged")

    exact: bool = _setting(default=True, text="remember every recipient by name; otherwise by an eight-byte hash")
    log_length: int = _setting(10_000, "requests that the log remembers")
    keep_bodies: bool = _setting(default=False, text="keep the bodies of pushes and polls in the log")

    def __post_init__(self) -> None:
        for each in fields(self):
            _check(each, getattr(self, each.name))

    def changed(self, changes: Mapping[str, object]) -> Self:
        """Return these settings with *changes*, which may come from JSON."""
        known = {each.name for each in fields(self)}
        if unknown := sorted(set(changes) - known):
            raise InvalidSettings(f"the sandbox has no setting {', '.join(unknown)}; it has {', '.join(sorted(known))}")
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in changes.items()
        }
        return replace(self, **values)

    def told(self) -> dict[str, object]:
        """Return all but the password, for a report."""
        return {each.name: getattr(self, each.name) for each in fields(self) if each.name != "password"}


def _check(setting: Field[Any], value: object) -> None:
    choices: tuple[object, ...] = setting.metadata["choices"]
    if choices and value not in choices:
        raise InvalidSettings(f"{setting.name} is one of {', '.join(map(str, choices))}, not {value!r}")
    fits, wanted = CHECKS[setting.type]
    if not fits(value):
        raise InvalidSettings(f"{setting.name} must be {wanted}")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_seconds(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value >= 0


CHECKS: Mapping[Any, tuple[Any, str]] = {
    str: (lambda value: isinstance(value, str), "a text"),
    bool: (lambda value: isinstance(value, bool), "true or false"),
    int: (_is_count, "a whole number, 0 or more"),
    float: (_is_seconds, "a number, 0 or more"),
    int | None: (lambda value: value is None or _is_count(value), "a whole number, 0 or more, or none"),
    tuple[str, ...]: (
        lambda value: isinstance(value, tuple) and all(isinstance(each, str) for each in value),
        "a list of texts",
    ),
    tuple[Mapping[str, object], ...] | None: (
        lambda value: value is None or (isinstance(value, tuple) and all(isinstance(each, Mapping) for each in value)),
        "a list of objects, or none",
    ),
}
