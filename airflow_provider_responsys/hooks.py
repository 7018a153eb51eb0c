"""Talk to Responsys through an Airflow connection."""

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, Self, TypeVar
from uuid import uuid4

from airflow.providers.common.compat.sdk import AirflowNotFoundException, BaseHook, mask_secret
from airflow.providers.common.compat.version_compat import AIRFLOW_V_3_3_PLUS

from airflow_provider_responsys import __version__
from airflow_provider_responsys.errors import InvalidRecipients, InvalidSettings, LoginFailed, ResponsysError
from airflow_provider_responsys.protocol.account import Account, account_from
from airflow_provider_responsys.protocol.call import authorized
from airflow_provider_responsys.protocol.polling import Outcome, poll
from airflow_provider_responsys.protocol.push import MAX_RECIPIENTS, Push, submit
from airflow_provider_responsys.protocol.ratelimit import RateLimit, push_limit, rate_limits
from airflow_provider_responsys.protocol.wire import Conversation, Reply, Token
from airflow_provider_responsys.recipients.fields import FieldSettings, MakeRecipient, recipient_maker
from airflow_provider_responsys.recipients.optional import InvalidRow
from airflow_provider_responsys.recipients.rows import from_sequence

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Connection

    from airflow_provider_responsys.transport.sync import Responsys

READ_WAITS = (1.0, 5.0, 30.0)
"""Seconds to wait before a harmless read is tried again, beyond what Responsys asks for."""

USUAL_LIMIT = 200  # requests a minute. REST Throttling: the usual limit of a high-volume function

T = TypeVar("T")


class ResponsysHook(BaseHook):
    """Trigger push campaigns, and poll for their results.

    One line to Responsys is opened when it is first needed, and kept: use the
    hook as a context manager, or close it.

    :param responsys_conn_id: the connection to use.
    """

    conn_name_attr = "responsys_conn_id"
    default_conn_name = "responsys_default"
    conn_type = "responsys"
    hook_name = "Oracle Responsys"

    def __init__(self, responsys_conn_id: str = default_conn_name, *, logger_name: str | None = None) -> None:
        super().__init__(logger_name=logger_name)
        self.responsys_conn_id = responsys_conn_id
        self._account: Account | None = None
        self._line: Responsys | None = None
        self._masked: Token | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def account(self) -> Account:
        """Return what the connection says: where to log in, as whom, through which family."""
        if self._account is None:
            self._account = self._read_account()
        return self._account

    def get_conn(self) -> "Responsys":
        """Return the open line to Responsys. Conversations go through `run`, which masks their tokens."""
        if self._line is None:
            self._line = self._open(reread=self._account_now)
        return self._line

    def run(self, conversation: Conversation[T]) -> T:
        """Hold *conversation* and return its result. Any thread may, once the line is open."""
        return self.get_conn().run(observed(conversation, self._mask))

    def log_in(self) -> None:
        """Log in now, so that what is wrong with that is known before anything else happens."""
        self.run(authorized(None))

    def close(self) -> None:
        """Close the line. Harmless to repeat."""
        line, self._line = self._line, None
        if line is not None:
            line.close()

    def trigger_push(
        self,
        campaign_name: str,
        recipients: Sequence[Mapping[str, Any]],
        reference_data: str | Mapping[str, Any] | None = None,
    ) -> str:
        """Push *campaign_name* to *recipients*, at most 200, and return the request id.

        A `NotAccepted` that comes out of it says that no recipient was pushed, an `InDoubt` that they may have been.
        """
        account = self.account()
        if account.dry_run:
            raise InvalidSettings(
                f"connection {self.responsys_conn_id!r} is for dry runs: nothing is pushed through it. "
                "Remove dry_run from its extras if it should"
            )
        push = Push(campaign_name, reference_data)
        return self.run(submit(account, push, _bodies(recipients), tracking_id=new_tracking_id())).request_id

    def get_request(self, request_id: str) -> Outcome:
        """Return the outcome of the request *request_id*, as far as is known now."""
        return self.get_requests([request_id])[request_id]

    def get_requests(self, request_ids: Iterable[str]) -> dict[str, Outcome]:
        """Return the outcome of each of *request_ids*, as far as is known now."""
        account = self.account()
        wanted = list(dict.fromkeys(request_ids))
        size = account.family.ids_per_poll
        outcomes: dict[str, Outcome] = {}
        for start in range(0, len(wanted), size):
            ids = wanted[start : start + size]
            outcomes |= self.run(poll(account, ids, waits=READ_WAITS, tracking_id=new_tracking_id()))
        return outcomes

    def get_rate_limits(self) -> list[RateLimit]:
        """Return the account's own limits, as Responsys lists them."""
        return self.run(rate_limits(self.account()))

    def test_connection(self) -> tuple[bool, str]:
        """Log in, and say in one line whether that worked and what is wrong if not."""
        try:
            account = self.account()
            # A person waits: what may pass is told at once, not waited out.
            with self._open(login_waits=lambda: iter(()), always_asks=True) as line:
                line.run(observed(authorized(None), self._mask))
        except (ResponsysError, AirflowNotFoundException) as error:
            return False, _one_line(str(error))
        except Exception as error:
            self.log.exception("The connection test failed")
            return False, f"The connection could not be tested ({type(error).__name__}): see the log"
        note = "; dry run: nothing is pushed" if account.dry_run else ""
        return True, f"Logged in to {account.host} as {account.login}, for {account.family.name}{note}"

    @classmethod
    def get_connection_form_widgets(cls) -> dict[str, Any]:
        """Return the fields of the connection form, for Airflow before 3.2: newer ones read the provider info."""
        # Airflow before 3.2 puts something in the place of these libraries; newer ones do not call this.
        from flask_appbuilder.fieldwidgets import (  # type: ignore[import-not-found]  # noqa: PLC0415 -- see above
            BS3TextFieldWidget,
        )
        from flask_babel import lazy_gettext  # type: ignore[import-not-found]  # noqa: PLC0415 -- see above
        from wtforms import (  # type: ignore[import-untyped]  # noqa: PLC0415 -- see above
            BooleanField,
            IntegerField,
            StringField,
        )
        from wtforms.validators import Optional, any_of  # type: ignore[import-untyped]  # noqa: PLC0415 -- see above

        from airflow_provider_responsys.provider_info import CONNECTION_FIELDS  # noqa: PLC0415 -- only the form needs it

        kinds = {"boolean": BooleanField, "integer": IntegerField, "number": IntegerField, "string": StringField}
        widgets = {}
        for name, field in CONNECTION_FIELDS.items():
            schema = field["schema"]
            kind = kinds[schema["type"][0]]
            look = {} if kind is BooleanField else {"widget": BS3TextFieldWidget()}
            widgets[name] = kind(
                lazy_gettext(field["label"]),
                description=field["description"],
                default=schema.get("default"),
                validators=[Optional(), *([any_of(schema["enum"])] if "enum" in schema else [])],
                **look,
            )
        return widgets

    @classmethod
    def get_ui_field_behaviour(cls) -> dict[str, Any]:
        """Return how the connection form shows its fields, for Airflow before 3.2."""
        from airflow_provider_responsys.provider_info import FIELD_BEHAVIOUR  # noqa: PLC0415 -- only the form needs it

        return {key.replace("-", "_"): value for key, value in FIELD_BEHAVIOUR.items()}

    def _mask(self, token: Token) -> None:
        if token != self._masked:
            self._masked = token
            mask_token(token)

    def _read_account(self) -> Account:
        connection = self.get_connection(self.responsys_conn_id)
        return _account(self.responsys_conn_id, connection, connection.extra_dejson)

    def _account_now(self) -> Account:
        """Return what the connection says now; before Airflow 3.3 only the main thread may ask its supervisor."""
        if AIRFLOW_V_3_3_PLUS or threading.current_thread() is threading.main_thread():
            return self._read_account()
        return self.account()

    def _open(self, *, always_asks: bool = False, **options: Any) -> "Responsys":
        from airflow_provider_responsys.transport.refused import Memory  # noqa: PLC0415 -- only where it is asked
        from airflow_provider_responsys.transport.sync import Responsys  # noqa: PLC0415 -- requests is slow to import

        return Responsys(self.account(), user_agent=user_agent(), memory=Memory(always_asks=always_asks), **options)


async def account_of(responsys_conn_id: str) -> Account:
    """Return what the connection says, from a trigger."""
    # Slow to import, and only triggers need it.
    from airflow.providers.common.compat.connection import (  # noqa: PLC0415 -- see above
        get_async_connection,
        get_async_extra_dejson,
    )

    connection = await get_async_connection(responsys_conn_id)
    return _account(responsys_conn_id, connection, await get_async_extra_dejson(connection))


def observed(conversation: Conversation[T], seen: Callable[[Token], object]) -> Conversation[T]:
    """Hold *conversation*, and show the token that it gets to *seen* before it is used, each time it gets one."""
    reply: Reply = None
    failure: ResponsysError | None = None
    while True:
        try:
            step = conversation.throw(failure) if failure else conversation.send(reply)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]  # StopIteration does not know its generator's type
        reply = failure = None
        try:
            reply = yield step
        except ResponsysError as error:
            failure = error
        if isinstance(reply, Token):
            seen(reply)


def new_tracking_id() -> str:
    """Return an id for one request, by which Oracle's support may find it."""
    return uuid4().hex


def mask_token(token: Token) -> None:
    """Keep *token* out of every log of this task."""
    mask_secret(token.value)


def polls_per_minute(account: Account) -> int:
    """Return how many polls for results may be sent in a minute."""
    return account.poll_requests_per_minute or USUAL_LIMIT


def pushes_per_minute(hook: ResponsysHook, wanted: float | None) -> float:
    """Return how many pushes may be sent in a minute: *wanted*, else the connection's, the account's, the usual."""
    account = hook.account()
    if configured := wanted or account.push_requests_per_minute:
        return configured
    try:
        found = push_limit(hook.get_rate_limits(), account.family)
    except LoginFailed:
        raise
    except ResponsysError as error:
        hook.log.info("The account's limits could not be read: %s", error)
        found = None
    if found:
        hook.log.info("Sending at most %d requests a minute (the account's limit)", found)
    else:
        hook.log.info(
            "Sending at most %d requests a minute (default; the account's limit could not be read): "
            "set push_requests_per_minute in the connection",
            USUAL_LIMIT,
        )
    return found or USUAL_LIMIT


@cache
def user_agent() -> str:
    """Return how we name ourselves to Responsys."""
    from airflow import __version__ as airflow_version  # noqa: PLC0415 -- only for those who talk to Responsys

    return f"airflow-provider-responsys/{__version__} apache-airflow/{airflow_version}"


def _account(conn_id: str, connection: "Connection", extra: object) -> Account:
    if not isinstance(extra, Mapping):
        raise InvalidSettings(f"connection {conn_id!r}: its extras are not a JSON object")
    try:
        return account_from(
            host=connection.host,
            port=connection.port,
            schema=connection.schema,
            login=connection.login,
            password=connection.password,
            extra=extra,
        )
    except InvalidSettings as error:
        raise InvalidSettings(f"connection {conn_id!r}: {error}") from None


def _bodies(recipients: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the JSON objects of *recipients*, or say what is wrong with the first that can't be sent to."""
    settings = FieldSettings()
    bodies: list[str] = []
    for chunk in from_sequence(recipients):
        make: MakeRecipient | None = None
        for row in chunk.rows:
            try:
                make = make or recipient_maker(chunk.columns, settings, is_table=chunk.is_table)
                bodies.append(make(row).body)
            except InvalidRow as error:
                raise InvalidRecipients(error.at(len(bodies) + 1)) from None
    if len(bodies) > MAX_RECIPIENTS:
        raise InvalidRecipients(
            f"{len(bodies)} recipients: a request takes at most {MAX_RECIPIENTS}; TriggerPushOperator takes any number"
        )
    return bodies


def _one_line(text: str) -> str:
    return " ".join(text.split())
