"""Threads that keep no process from ending, and calls that can be left behind."""

import contextvars
import subprocess
import sys
import threading
import time
import weakref
from queue import SimpleQueue

import pytest

from airflow_provider_responsys.errors import NotAllSent
from airflow_provider_responsys.sending.aside import Aside
from airflow_provider_responsys.sending.run import Halt, Inbox
from airflow_provider_responsys.threads import Call, Pool

WHO: contextvars.ContextVar[str] = contextvars.ContextVar("WHO")


def test_a_call_gives_what_the_function_gave() -> None:
    """On another thread, with the caller's context variables."""
    pool = Pool(2, "test")
    WHO.set("caller")
    fine, broken = Call(WHO.get), Call(lambda: 1 // 0)

    pool.submit(fine)
    pool.submit(broken)

    assert fine.wait(10)
    assert broken.wait(10)
    assert fine.result() == "caller"
    with pytest.raises(ZeroDivisionError):
        broken.result()


def test_each_call_has_the_variables_of_its_own_caller() -> None:
    """Airflow finds a trigger's log by them, and triggers share threads."""
    pool = Pool(1, "test")
    calls = [Call(WHO.get) for _ in range(2)]

    for who, call in zip(("first", "second"), calls, strict=True):
        WHO.set(who)
        pool.submit(call)
        assert call.wait(10)

    assert [call.result() for call in calls] == ["first", "second"]


def test_no_more_threads_than_allowed_and_none_more_than_needed() -> None:
    """What is submitted waits for a thread, and an idle one is taken before another is made."""
    pool, threads, lock = Pool(3, "test"), set(), threading.Lock()

    def work() -> None:
        with lock:
            threads.add(threading.get_ident())
        time.sleep(0.005)

    calls = [Call(work) for _ in range(20)]
    for call in calls:
        pool.submit(call)

    assert all(call.wait(10) for call in calls)
    assert len(threads) <= 3


def test_an_idle_thread_keeps_nothing_of_its_last_work() -> None:
    """Sixty-four threads with a large batch each are megabytes."""

    class Large:
        pass

    pool, large = Pool(1, "test"), Large()
    seen = weakref.ref(large)

    pool.submit(lambda _: None, large)
    del large

    give_up = time.monotonic() + 10
    while seen() and time.monotonic() < give_up:
        time.sleep(0.01)
    assert seen() is None


def test_a_closed_pool_takes_nothing_and_begins_nothing() -> None:
    """What waits is dropped; what is under way ends."""
    pool, begun, released = Pool(1, "test"), threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        released.wait(10)

    first, second = Call(work), Call(lambda: None)
    pool.submit(first)
    pool.submit(second)
    begun.wait(10)

    pool.close()
    released.set()

    assert first.wait(10)
    assert not second.wait(0.1)
    with pytest.raises(RuntimeError):
        pool.submit(second)


def test_a_thread_that_hangs_keeps_no_process_from_ending() -> None:
    """A login that is waited for, or a database that hangs, is left behind."""
    program = (
        "import time\nfrom airflow_provider_responsys.threads import Pool\nPool(1, 'test').submit(time.sleep, 600)\n"
    )

    ended = subprocess.run([sys.executable, "-c", program], timeout=60, check=False)

    assert ended.returncode == 0


def test_a_call_aside_is_left_behind_when_a_stop_is_over() -> None:
    """The next step hears of the stop, too; and the last call is hardly waited for."""
    inbox: Inbox = SimpleQueue()
    aside, released, closed = Aside(inbox), threading.Event(), threading.Event()
    halt = Halt(NotAllSent("killed"), 0.2)
    inbox.put(halt)

    with pytest.raises(NotAllSent):
        aside.call(lambda: released.wait(10))
    aside.close(closed.set)

    assert inbox.get_nowait() is halt
    assert not closed.is_set()
    released.set()


def test_a_call_aside_that_returns_in_time_is_heard() -> None:
    """A stop does not lose what is known a moment later."""
    inbox: Inbox = SimpleQueue()
    aside, closed = Aside(inbox), threading.Event()
    inbox.put(Halt(NotAllSent("killed"), 60.0))

    assert list(aside.iterate(lambda: range(250))) == list(range(250))
    aside.close(closed.set)
    assert closed.is_set()
