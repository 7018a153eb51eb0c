"""Writes that are late are done when they were planned to be, and no others are held up."""

from collections.abc import Callable

import pytest

from tests.faults.late import Late, LostAnswer, Writes

RUN = "a run"


class Store:
    """Keeps what was written, in its order; a session is no matter to it."""

    def __init__(self, *late: Late) -> None:
        self.written: list[str] = []
        self.writes = Writes(lambda write: write(None))
        self.writes.plan(RUN, late)

    def write(self, what: str, run_id: str = RUN) -> bool:
        """Write *what*; return whether that was answered."""
        try:
            self.writes.take(run_id, self._do(what), None)
        except LostAnswer:
            return False
        return True

    def _do(self, what: str) -> Callable[[object], None]:
        return lambda _: self.written.append(what)


def test_a_write_is_late_by_as_many_others_as_it_was_planned_to_be() -> None:
    """Its client gets no answer, and repeats it."""
    store = Store(Late(1, writes=2))

    answered = [store.write(what) for what in ("a", "a", "b", "c")]

    assert answered == [False, True, True, True]
    assert store.written == ["a", "b", "a", "c"]


def test_a_write_waits_for_its_flag() -> None:
    """However many others are done meanwhile."""
    store = Store(Late(1, after="ended 1", writes=0))

    store.write("a")
    store.write("b")
    store.writes.raise_flag(RUN, "ended 1")

    assert store.written == ["b", "a"]


@pytest.mark.parametrize("answered", [True, False])
def test_a_write_is_done_twice(answered: bool) -> None:
    """At once, and again later, whether its client learns of the first or not."""
    store = Store(Late(1, now=True, answered=answered))

    told = store.write("a")
    store.write("b")

    assert told is answered
    assert store.written == ["a", "b", "a"]


def test_other_runs_write_in_time() -> None:
    """The plan of a run is its own."""
    store = Store(Late(1))

    answered = store.write("a", "another run")

    assert answered
    assert store.written == ["a"]
