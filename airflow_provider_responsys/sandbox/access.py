"""Who may come in: the password login, the refresh, tokens and the lock-out."""

import secrets
from urllib.parse import parse_qs

from airflow_provider_responsys.sandbox import answers
from airflow_provider_responsys.sandbox.answers import Answer, Refusal
from airflow_provider_responsys.sandbox.settings import Settings

FORM_TYPE = "application/x-www-form-urlencoded"
TOKEN_LENGTH = 54  # recorded: 54 characters, the first an E


class Access:
    """The tokens given out so far, and the wrong passwords in a row."""

    def __init__(self) -> None:
        self._issued: dict[str, float] = {}
        self._wrong_in_a_row = 0
        self._locked_until = 0.0

    def log_in(self, form: dict[str, str], address: str, settings: Settings, now: float) -> Answer:
        """Return a new token for a name and password."""
        if form.keys() != {"auth_type", "user_name", "password"}:
            raise Refusal("INVALID_PARAMETER", "Invalid parameter 'auth_type', 'user_name' or 'password'")
        if form["user_name"] != settings.api_user:
            raise Refusal("INVALID_USER_NAME_PASSWORD")
        if now < self._locked_until:
            raise Refusal("PASSWORD_LOCKOUT")
        if form["password"] != settings.password:
            self._wrong_in_a_row += 1
            if self._wrong_in_a_row >= settings.lockout_after:
                self._wrong_in_a_row = 0
                self._locked_until = now + settings.lockout_seconds
            raise Refusal("INVALID_USER_NAME_PASSWORD")
        self._wrong_in_a_row = 0
        return self._issue(address, settings, now)

    def refresh(self, token: str, address: str, settings: Settings, now: float) -> Answer:
        """Return a new token for one that is still valid; the old one stays valid, too."""
        self.check(token, settings, now)
        return self._issue(address, settings, now)

    def check(self, token: str, settings: Settings, now: float) -> None:
        """Refuse a token that was never given out, or is too old."""
        issued = self._issued.get(token)
        if issued is not None and now < issued + settings.token_lifetime:
            return
        if settings.bad_token_as_500:
            raise Refusal("UNEXPECTED_EXCEPTION", "Not a valid authentication token")
        raise Refusal("INVALID_TOKEN" if issued is None else "TOKEN_EXPIRED")

    def expire_tokens(self) -> None:
        """Make every token given out so far too old."""
        self._issued = dict.fromkeys(self._issued, float("-inf"))

    def forget_tokens(self) -> None:
        """Make every token given out so far unknown."""
        self._issued.clear()

    def _issue(self, address: str, settings: Settings, now: float) -> Answer:
        token = ("E" + secrets.token_urlsafe(TOKEN_LENGTH))[:TOKEN_LENGTH]
        self._issued[token] = now
        return answers.of(
            {"authToken": token, "issuedAt": int(now * 1000), "endPoint": settings.end_point or address},
        )


def read_form(content_type: str, query: str, body: bytes) -> dict[str, str]:
    """Return the fields of a login; credentials in the address are refused."""
    if query:
        raise Refusal("INVALID_PARAMETER", "Credentials belong in the body, never in the URL")
    if content_type != FORM_TYPE:
        raise Refusal("INVALID_REQUEST_CONTENT")
    try:
        fields = parse_qs(body.decode("ascii"), keep_blank_values=True, strict_parsing=True, errors="strict")
    except ValueError:
        raise Refusal("INVALID_REQUEST_CONTENT") from None
    if any(len(values) > 1 for values in fields.values()):
        raise Refusal("INVALID_PARAMETER", "A parameter is given twice")
    return {name: values[0] for name, values in fields.items()}
