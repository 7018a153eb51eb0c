"""One call: get a token, send the request, log in once more if Responsys wants it, be patient if asked to."""

from collections.abc import Callable, Container, Iterable
from typing import cast

from airflow_provider_responsys.errors import LoginExpired, NotSent, ResponsysError, TryLater
from airflow_provider_responsys.protocol.account import Account, base_url
from airflow_provider_responsys.protocol.codes import envelope_of, is_success, read_error
from airflow_provider_responsys.protocol.wire import Authorize, Conversation, Pause, Request, Response, Send, Token


def call(
    account: Account,
    request: Request,
    *,
    waits: Iterable[float] = (),
    read: Callable[[Response], ResponsysError] = read_error,
    answers: Container[str] = (),
) -> Conversation[Response]:
    """Return the answer to *request*, or raise what *read* makes of one that is none.

    An error code among *answers* is an answer. For each of *waits*, the request is
    sent once more where it was certainly not accepted: that many seconds after the
    wait that Responsys asks for. A lost answer is never followed by a second request.
    """
    patience = iter(waits)
    refused: Token | None = None
    while True:
        token = yield from authorized(refused)
        # What can't be addressed has not been sent: the login checks the endpoint that it names.
        signed = request.signed(token, base_url(account, token))
        try:
            response = yield from sent(signed)
            if _is_answer(response, answers):
                return response
            raise read(response)
        except LoginExpired:
            if refused is not None:
                raise
            refused = token
        except (TryLater, NotSent) as error:
            wait = next(patience, None)
            if wait is None:
                raise
            yield Pause(wait + (error.wait if isinstance(error, TryLater) else 0.0), str(error))


def authorized(refused: Token | None) -> Conversation[Token]:
    """Return a token other than *refused*."""
    return cast("Token", (yield Authorize(refused)))


def sent(request: Request) -> Conversation[Response]:
    """Return what *request* is answered with, whatever it is."""
    return cast("Response", (yield Send(request)))


def _is_answer(response: Response, answers: Container[str]) -> bool:
    # A poll may be answered with an error and HTTP 200 (AFTM polling errors page).
    envelope = envelope_of(response)
    return envelope.code in answers if envelope else is_success(response)
