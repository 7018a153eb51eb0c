"""Remember refused logins on this machine's disk: five wrong passwords lock the account, however many processes ask.

One file for each account, in a folder that only its user can read. The file is the lock across a
login as well, and holds salted slow hashes of what was refused: never a password.
"""

import fcntl
import hashlib
import json
import logging
import os
import secrets
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from airflow_provider_responsys.errors import LoginFailed
from airflow_provider_responsys.protocol.account import Account
from airflow_provider_responsys.protocol.auth import WRONG_PASSWORD
from airflow_provider_responsys.transport.limits import NOTICED

KEPT = 3600.0
"""Seconds that a refusal is remembered: as long as Responsys locks an account after five of them."""

MOST_KEPT = 16
"""Refusals that are remembered of one account: each costs a hash when the account logs in."""

MAX_FILE = 64 * 1024
SCRYPT = {"n": 2**14, "r": 8, "p": 1}  # 16 MB and a twentieth of a second, for each guess as well

NAME = "airflow-provider-responsys"

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Refusal:
    """A login that was refused *at* a time: the *digest* of host, user and password with *salt*."""

    at: float
    salt: str
    digest: str

    @classmethod
    def of(cls, account: Account, at: float) -> Self:
        """Return the refusal of *account*'s login."""
        salt = secrets.token_hex(16)
        return cls(at, salt, _digest(account, salt))

    def is_of(self, account: Account) -> bool:
        """Return whether *account*, its password included, is what was refused."""
        return secrets.compare_digest(_digest(account, self.salt).encode(), str(self.digest).encode())


@dataclass(slots=True)
class Turn:
    """One login's turn: its account's file, open; without one nothing is known and nothing is remembered."""

    account: Account
    file: int | None
    now: Callable[[], float]
    complain: Callable[[OSError], None]

    def check(self) -> None:
        """Raise `LoginFailed` if this very login was refused within the hour."""
        try:
            refused = next((each for each in self._read() if each.is_of(self.account)), None)
        except OSError as error:
            self.complain(error)
            return
        if refused:
            raise LoginFailed(
                f"the login of {self.account.login} was refused at {datetime.fromtimestamp(refused.at, UTC):%H:%M} UTC "
                f"({WRONG_PASSWORD}), as this or another task of this machine was told; it is not asked again until "
                "the connection changes or an hour has passed. Correct the connection, or press Test on it to try now",
                code=WRONG_PASSWORD,
            )

    def learn(self, *, refused: bool) -> None:
        """Remember that the login was *refused*, or forget that it ever was."""
        try:
            known = self._read()
            kept = [refusal for refusal in known if not refusal.is_of(self.account)]
            if refused:
                kept.append(Refusal.of(self.account, self.now()))
            if kept != known:
                self._write(kept[-MOST_KEPT:])
        except OSError as error:
            self.complain(error)

    def end(self) -> None:
        """Let the next one have its turn. Harmless to repeat."""
        file, self.file = self.file, None
        if file is not None:
            os.close(file)  # which unlocks it

    def _read(self) -> list[Refusal]:
        if self.file is None:
            return []
        text = os.pread(self.file, MAX_FILE, 0)
        with suppress(ValueError, TypeError, KeyError):  # half written by a process that was killed, or older than us
            found = [Refusal(float(each["at"]), each["salt"], each["digest"]) for each in json.loads(text or b"[]")]
            return [refusal for refusal in found if 0 <= self.now() - refusal.at < KEPT]
        return []

    def _write(self, refusals: list[Refusal]) -> None:
        if self.file is None:
            return
        text = json.dumps([{"at": each.at, "salt": each.salt, "digest": each.digest} for each in refusals]).encode()
        os.ftruncate(self.file, 0)
        os.pwrite(self.file, text, 0)


class Memory:
    """What this machine knows of refused logins. One that *always_asks* is of a person who waits for the answer."""

    def __init__(self, *, always_asks: bool = False, now: Callable[[], float] = time.time) -> None:
        self.always_asks = always_asks
        self._now = now
        self._complained = False

    def open(self, account: Account) -> Turn:
        """Return a turn that is not locked yet; without a file where the disk can't be used, which one line tells."""
        try:
            file = _open(_folder(), _name(account))
        except OSError as error:
            self._complain(error)
            file = None
        return Turn(account, file, self._now, self._complain)

    def lock(self, turn: Turn, within: float) -> Iterator[float]:
        """Lock the *turn*, and yield how long to wait before each further attempt at it.

        A login takes less than *within* seconds, so a process that holds the lock for longer is stuck, or one of
        many that get no answer: the turn goes on without the lock then.
        """
        began, wait, told = time.monotonic(), 0.02, False
        while turn.file is not None and not self._locked(turn):
            waited = time.monotonic() - began
            if waited >= within or self.always_asks:
                log.warning("Logging in as %s beside another login of this machine", turn.account.name)
                return
            if waited >= NOTICED and not told:
                told = True
                log.info("Waiting for another login as %s on this machine", turn.account.name)
            yield wait
            wait = min(wait * 1.5, 0.5)

    def _locked(self, turn: Turn) -> bool:
        """Return whether the *turn* is locked now, or can't be."""
        try:
            fcntl.flock(turn.file or 0, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            self._complain(error)
        return True

    def _complain(self, error: OSError) -> None:
        if not self._complained:
            self._complained = True
            log.warning("Refused logins can't be remembered on this machine: each task logs in for itself: %s", error)


def _folder() -> Path:
    state = os.environ.get("XDG_STATE_HOME", "")
    if Path(state).is_absolute():
        return Path(state) / NAME
    return Path(tempfile.gettempdir()) / f"{NAME}-{os.geteuid()}"


def _open(folder: Path, name: str) -> int:
    """Return the open file *name* in *folder*, both of which must be this user's alone."""
    folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    here = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        _check(here, folder)
        file = os.open(name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600, dir_fd=here)
    finally:
        os.close(here)
    try:
        _check(file, folder / name)
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise PermissionError(f"{folder / name} is no file")
    except OSError:
        os.close(file)
        raise
    return file


def _check(descriptor: int, path: Path) -> None:
    found = os.fstat(descriptor)
    if found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise PermissionError(f"{path} is not this user's alone")


def _name(account: Account) -> str:
    """Return the name of *account*'s file: the same for every password."""
    return hashlib.sha256(json.dumps([account.host, account.login]).encode()).hexdigest()[:32]


def _digest(account: Account, salt: str) -> str:
    secret = json.dumps([account.host, account.login, account.password]).encode()
    options: dict[str, Any] = SCRYPT
    try:
        return hashlib.scrypt(secret, salt=bytes.fromhex(salt), dklen=32, **options).hex()
    except (AttributeError, ValueError) as error:  # a Python without it, or a policy against it
        raise OSError(f"no scrypt here: {error}") from error
