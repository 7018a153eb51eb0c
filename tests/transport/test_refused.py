"""One wrong password locks no account: what processes of one machine know of each other's logins."""

import fcntl
import hashlib
import logging
import multiprocessing
import os
import stat
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_responsys.errors import InvalidSettings, LoginFailed, NotSent, ResponsysError, TryLater
from airflow_provider_responsys.protocol.account import Account
from airflow_provider_responsys.protocol.call import authorized
from airflow_provider_responsys.sandbox import Clock, Fault, Sandbox
from airflow_provider_responsys.transport import aio, refused, sync
from airflow_provider_responsys.transport.refused import KEPT, NAME, Memory
from tests.support.lines import OpenLine

USER = "api_user"
RIGHT = "sandbox-password"
TASKS = 8


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    """Give a Responsys that takes its time."""
    with Sandbox(latency=0.2) as running:
        yield running


@pytest.fixture
def files(state_home: Path) -> Path:
    """Give the folder that refusals are kept in."""
    return state_home / NAME


def account_of(sandbox: Sandbox, password: str) -> Account:
    """Return the API user with *password*."""
    return Account(host=sandbox.url, login=USER, password=password, timeout=5.0)


class LogIn:
    """Logs in as one task after the other would, with either driver."""

    def __init__(self, line: "OpenLine", sandbox: Sandbox) -> None:
        self._line = line
        self._sandbox = sandbox

    def __call__(self, password: str, **options: Any) -> str:
        """Return the error that a new task with *password* gets, or nothing."""
        options = {"memory": Memory()} | options
        opened = self._line(self._sandbox.url)
        opened.driver._account = account_of(self._sandbox, password)
        opened.driver._keyring.account = opened.driver._account
        for name, value in options.items():
            setattr(opened.driver, f"_{name}", value)
        try:
            opened.run(authorized(None))
        except LoginFailed as error:
            return str(error)
        return ""


@pytest.fixture
def log_in(line: "OpenLine", sandbox: Sandbox) -> LogIn:
    """Give what logs in as a new task."""
    return LogIn(line, sandbox)


def a_task(url: str, password: str, together: Any, said: Any) -> None:
    """Log in, in a process of its own, at the same time as others; tell how that ended."""
    account = Account(host=url, login=USER, password=password, timeout=20.0)
    with sync.Responsys(account, user_agent="tests", memory=Memory(), login_waits=lambda: iter(())) as line:
        together.wait(60)
        try:
            line.run(authorized(None))
        except ResponsysError as error:
            said.put((type(error).__name__, str(error)))
        else:
            said.put(("", ""))


def at_once(sandbox: Sandbox, *passwords: str) -> list[tuple[str, str]]:
    """Return how tasks with *passwords* end that start together, each in its own process."""
    here = multiprocessing.get_context("spawn")
    together, said = here.Barrier(len(passwords)), here.Queue()
    tasks = [here.Process(target=a_task, args=(sandbox.url, each, together, said)) for each in passwords]
    for task in tasks:
        task.start()
    ends = [said.get(timeout=90) for _ in tasks]
    for task in tasks:
        task.join(30)
    return ends


def test_eight_processes_with_a_wrong_password_ask_once(sandbox: Sandbox) -> None:
    """Five would lock the account; the seven others say what happened, and what to do."""
    ends = at_once(sandbox, *["wrong"] * TASKS)

    assert {kind for kind, _ in ends} == {"LoginFailed"}
    assert sandbox.counts["login"] == 1
    assert sum("was answered with INVALID_USER_NAME_PASSWORD" in text for _, text in ends) == 1
    assert sum("not asked again until the connection changes" in text for _, text in ends) == TASKS - 1


def test_processes_with_the_right_password_all_get_in(sandbox: Sandbox) -> None:
    """Beside one that has a wrong one: the account is never locked, and nothing is remembered of the others."""
    ends = at_once(sandbox, *[RIGHT] * 4, "wrong", "wrong")

    assert sorted(kind for kind, _ in ends) == ["", "", "", "", "LoginFailed", "LoginFailed"]
    assert sandbox.counts["login"] == 5


def test_a_refused_login_is_not_repeated(log_in: LogIn, sandbox: Sandbox) -> None:
    """Whichever task tries next; the sentence says when it was refused and what to press."""
    first, second = log_in("wrong"), log_in("wrong")

    assert sandbox.counts["login"] == 1
    assert "was answered with INVALID_USER_NAME_PASSWORD (HTTP 400)" in first
    assert second.startswith(f"{sandbox.url}: the login of {USER} was refused at ")
    assert "press Test" in second
    assert "wrong" not in second.replace("wrong password", "")


def test_a_changed_password_is_asked_at_once(log_in: LogIn, sandbox: Sandbox) -> None:
    """It is another login; the old one stays refused."""
    log_in("old")

    assert log_in(RIGHT) == ""
    assert log_in("old") != ""
    assert sandbox.counts["login"] == 2


def test_an_hour_is_remembered(log_in: LogIn, sandbox: Sandbox) -> None:
    """As long as a lock-out lasts; then it is asked again."""
    now = Clock(frozen_at=1_800_000_000)
    memory = Memory(now=now)
    log_in("wrong", memory=memory)
    now.advance(KEPT - 1)
    log_in("wrong", memory=memory)
    asked_within = sandbox.counts["login"]
    now.advance(1)
    log_in("wrong", memory=memory)

    assert (asked_within, sandbox.counts["login"]) == (1, 2)


def test_a_person_is_always_answered(log_in: LogIn, sandbox: Sandbox) -> None:
    """What is found then counts for the tasks: a success clears it."""
    log_in("mended")
    sandbox.change(password="mended")

    assert log_in("mended") != ""
    assert log_in("mended", memory=Memory(always_asks=True)) == ""
    assert log_in("mended") == ""
    assert sandbox.counts["login"] == 3


def test_a_person_does_not_wait_for_a_task(log_in: LogIn, sandbox: Sandbox, files: Path) -> None:
    """The lock is for tasks: Test asks beside one."""
    log_in("other")
    (file,) = files.iterdir()
    with file.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)

        assert log_in(RIGHT, memory=Memory(always_asks=True)) == ""


@pytest.mark.parametrize(
    "code", ["PASSWORD_LOCKOUT", "PASSWORD_EXPIRED", "API_DISABLED_FOR_USER", "API_LIMIT_EXCEEDED"]
)
def test_only_a_wrong_password_is_remembered(log_in: LogIn, sandbox: Sandbox, code: str) -> None:
    """Anything else says nothing of the password, and may pass."""
    sandbox.plan(Fault("login", code, times=1))
    try:
        log_in(RIGHT)
    except TryLater:
        assert code == "API_LIMIT_EXCEEDED"

    assert log_in(RIGHT) == ""


def test_what_is_kept_is_for_this_user_alone(log_in: LogIn, files: Path) -> None:
    """A folder and a file that nobody else may open, with nothing in it that is a password or made fast from one."""
    log_in("wrong")

    (file,) = files.iterdir()
    assert stat.S_IMODE(files.stat().st_mode) == 0o700
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert "wrong" not in file.read_text() + file.name
    assert "salt" in file.read_text()


def test_the_folder_is_below_the_temporary_one(log_in: LogIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no folder for states; each user has one."""
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    log_in("wrong")

    assert len(list((tmp_path / f"{NAME}-{os.geteuid()}").iterdir())) == 1


def a_link(files: Path) -> None:
    """Let the folder be a link to another one."""
    elsewhere = files.parent / "elsewhere"
    elsewhere.mkdir(mode=0o700, parents=True)
    files.symlink_to(elsewhere)


def an_open_folder(files: Path) -> None:
    """Let others look into the folder."""
    files.mkdir(parents=True)
    files.chmod(0o755)


def no_folder(files: Path) -> None:
    """Let a file stand where the folder should."""
    files.parent.mkdir(parents=True)
    files.write_text("")


def no_folder_above(files: Path) -> None:
    """Let a file stand where the folder above should."""
    files.parent.parent.mkdir(parents=True, exist_ok=True)
    files.parent.write_text("")


@pytest.mark.parametrize("spoil", [a_link, an_open_folder, no_folder, no_folder_above])
def test_without_a_folder_of_its_own_a_login_goes_on(
    log_in: LogIn, sandbox: Sandbox, files: Path, caplog: pytest.LogCaptureFixture, spoil: Any
) -> None:
    """Another's folder is not trusted, and not written to; one line says what that means."""
    spoil(files)

    ends = [log_in("wrong"), log_in("wrong"), log_in(RIGHT)]

    assert [bool(end) for end in ends] == [True, True, False]
    assert sandbox.counts["login"] == 3
    assert [line.startswith("Refused logins can't be remembered on this machine") for line in caplog.messages] == [
        True
    ] * 3


def test_another_users_file_is_not_trusted(
    log_in: LogIn, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What it says of a login may be meant to keep us out."""
    log_in("wrong")
    monkeypatch.setattr(os, "geteuid", lambda: 4711)

    log_in("wrong")

    assert sandbox.counts["login"] == 2
    assert "not this user's alone" in caplog.text


def test_without_the_slow_hash_a_login_goes_on(
    log_in: LogIn, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Some builds of Python lack it; a fast one would let the password be guessed."""
    log_in("other")
    monkeypatch.delattr(hashlib, "scrypt")

    ends = [log_in("wrong"), log_in("wrong")]

    assert all(ends)
    assert sandbox.counts["login"] == 3
    assert ["no scrypt" in line for line in caplog.messages] == [True, True]


def test_without_locks_a_login_goes_on(
    log_in: LogIn, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Some network file systems have none: what is known still counts."""
    monkeypatch.setattr(fcntl, "flock", lambda *_: os.open("/no/such/file", 0))

    ends = [log_in("wrong"), log_in("wrong")]

    assert all(ends)
    assert sandbox.counts["login"] == 1
    assert len(caplog.messages) == 2


def test_a_file_that_others_can_read_is_not_written(log_in: LogIn, sandbox: Sandbox, files: Path) -> None:
    """Nor is it believed."""
    log_in("wrong")
    (file,) = files.iterdir()
    file.chmod(0o644)
    before = file.read_text()

    log_in("wrong")

    assert sandbox.counts["login"] == 2
    assert file.read_text() == before


@pytest.mark.parametrize(
    "text", ["", "{", "17", "[17]", '[{"at": "x"}]', '[{"at": 1e10, "salt": "", "digest": ""}]', "\xff"]
)
def test_what_can_not_be_read_is_nothing(log_in: LogIn, files: Path, text: str) -> None:
    """A process may have been killed in the middle of writing it."""
    log_in("other")
    (file,) = files.iterdir()
    file.write_text(text)

    assert log_in(RIGHT) == ""
    assert log_in("wrong") != ""


def test_a_lock_that_is_never_released_holds_nobody_up_for_long(
    log_in: LogIn, sandbox: Sandbox, files: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stopped process may hold it: the others go on after the time that a login can take, and say so."""
    log_in("other")
    (file,) = files.iterdir()
    for driver in (sync, aio):
        monkeypatch.setattr(driver, "LOCK_MARGIN", -4.5)
    monkeypatch.setattr(refused, "NOTICED", 0.1)
    caplog.set_level(logging.INFO)
    with file.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)

        assert log_in(RIGHT) == ""

    assert f"Waiting for another login as {USER} at {sandbox.url} on this machine" in caplog.messages
    assert f"Logging in as {USER} at {sandbox.url} beside another login of this machine" in caplog.messages


def test_who_waits_for_patience_holds_nobody_up(line: "OpenLine", sandbox: Sandbox) -> None:
    """The lock is held for one request, not for the minutes of a limited login."""
    limited = threading.Event()
    go_on = threading.Event()
    sandbox.plan(Fault("login", "API_LIMIT_EXCEEDED", nth=1))

    def pause(_: float) -> None:
        limited.set()
        go_on.wait(30)

    account = account_of(sandbox, RIGHT)
    patient = sync.Responsys(account, user_agent="t", memory=Memory(), sleep=pause, login_waits=lambda: iter([1.0]))
    thread = threading.Thread(target=patient.run, args=(authorized(None),))
    thread.start()
    assert limited.wait(30)

    LogIn(line, sandbox)(RIGHT)

    assert sandbox.counts["logins"] == 1
    go_on.set()
    thread.join(30)
    patient.close()
    assert sandbox.counts["logins"] == 2


def test_the_password_is_read_again_before_each_login(line: "OpenLine", sandbox: Sandbox) -> None:
    """One that was changed while the task waited is used at once, and the old one never again."""
    opened = line(sandbox.url)
    opened.driver._keyring.account = account_of(sandbox, "old")
    opened.driver._memory = Memory()

    async def later() -> Account:
        return account_of(sandbox, RIGHT)

    opened.driver._reread = later if opened.kind == "aio" else lambda: account_of(sandbox, RIGHT)

    assert opened.run(authorized(None)).value
    assert (sandbox.counts["login"], sandbox.counts["logins"]) == (1, 1)


@pytest.mark.parametrize(
    ("found", "expected", "said"),
    [
        (Account(host="https://h", login="another", password="p"), LoginFailed, "leads to another at https://h now"),
        (RuntimeError("gone"), NotSent, "the connection can't be read again (RuntimeError)"),
        (InvalidSettings("password is missing"), LoginFailed, "password is missing"),
    ],
)
def test_a_connection_that_leads_elsewhere_is_not_followed(
    line: "OpenLine", sandbox: Sandbox, found: Any, expected: type[ResponsysError], said: str
) -> None:
    """Requests of one account are not asked about at another, and a cached password is not tried on a guess."""

    def again() -> Account:
        if isinstance(found, Exception):
            raise found
        account: Account = found
        return account

    async def later() -> Account:
        return again()

    opened = line(sandbox.url)
    opened.driver._reread = later if opened.kind == "aio" else again

    with pytest.raises(expected) as caught:
        opened.run(authorized(None))

    assert said in str(caught.value)
    assert sandbox.counts["login"] == 0
