"""What ``make celery`` stands on, without a broker: it is no part of the other tests."""

from dataclasses import replace
from importlib.metadata import PackageNotFoundError

import pytest
import pytest_mock

from tests.celery import __main__ as program
from tests.celery import cluster
from tests.celery.__main__ import APART, CUSTOMERS, OVERLAPPING, SCENES
from tests.celery.scenes import EXAMPLE, LIMIT, SHARDS, SLOTS, Messages, Told
from tests.celery.table import LINES, table
from tests.support.verdict import BATCH, Verdict, judge_push

EXECUTING = "[info] [{}] Executing workload in Celery: dag_rel_path=PurePosixPath('a.py')\n"
FIRST, SECOND = "423dc154-99bf-4307-905a-b4855cea0c43", "83e8952e-b44d-407c-8f6a-e863ff3e9515"
ELSEWHERE = f"[info] [{FIRST}] Task already running elsewhere, ignoring redelivered message\n"
BUCKETS = {"read": 500, "accepted": 200, "in_doubt": 200, "duplicate": 100}


@pytest.fixture
def told() -> Told:
    """Give what is told of a scene in which all went well, and 200 recipients are in doubt."""
    return Told(
        scene=SCENES[0],
        buckets=BUCKETS,
        verdict=judge_push(500, [1] * 300, {"not_sent": 0, **BUCKETS}, bound=4 * BATCH),
        repeated=100,
        state="failed",
        noticed=12.3,
        seconds=80.0,
        tries={"worker-1": 2, "worker-2": 8},
        messages=Messages(redelivered=3, refused=3),
        limited=0,
        wait="",
    )


def test_the_example_is_what_the_scenes_make_it_out_to_be() -> None:
    """Its numbers are theirs, and each scene's DAG is a program."""
    example = EXAMPLE.read_text()

    assert all(
        f"{name} = {value}\n" in example for name, value in (("LIMIT", LIMIT), ("AT_ONCE", SLOTS), ("SHARDS", SHARDS))
    )
    for scene in SCENES:
        compile(scene.dag(), scene.dag_id, "exec")
        assert f'dag_id="{scene.dag_id}"' in scene.dag()


def test_overlapping_shards_overlap_and_the_others_do_not() -> None:
    """A recipient's two rows are in two shards: without a common ledger they would be pushed twice."""
    shards: dict[str, set[int]] = {}
    for row, customer in enumerate(CUSTOMERS[OVERLAPPING]):
        shards.setdefault(customer, set()).add(row % SHARDS)

    repeated = len(CUSTOMERS[OVERLAPPING]) - len(shards)

    assert sum(len(each) == 2 for each in shards.values()) == repeated > 1000
    assert len(set(CUSTOMERS[APART])) == len(CUSTOMERS[APART])


def test_messages_that_came_again_are_told_from_others() -> None:
    """A message has one id, on whichever worker it comes."""
    gone = "Server error detail: {'reason': 'not_found', 'message': 'Task Instance not found'}\n"
    ended = "Server error detail: {'message': 'TI was not in a state where it could be marked as running'}\n"
    logs = [EXECUTING.format(FIRST) + EXECUTING.format(SECOND), EXECUTING.format(FIRST) + ELSEWHERE]

    assert Messages.of(logs) == Messages(redelivered=1, refused=1)
    assert Messages.of([*logs, EXECUTING.format(SECOND) + gone]) == Messages(redelivered=2, refused=2)
    assert Messages.of([*logs, EXECUTING.format(SECOND) + ended]) == Messages(redelivered=2, refused=2)


def test_a_scene_in_which_all_went_well(told: Told) -> None:
    """Somebody in doubt fails the run, and is no broken promise within the bound."""
    assert told.problems() == []
    assert all(line in table([told]) for line in LINES)


@pytest.mark.parametrize(
    ("wrong", "problem"),
    [
        ({"repeated": 99}, "99 rows repeat somebody, and 100 are counted"),
        ({"state": "success"}, "ended as success"),
        ({"messages": Messages(redelivered=3, refused=2)}, "not every message"),
        ({"wait": "the sensor left no counts"}, "left no counts"),
        ({"verdict": Verdict(duplicates=1)}, "a promise is broken"),
    ],
)
def test_a_scene_in_which_something_did_not(told: Told, wrong: dict[str, object], problem: str) -> None:
    """Each is named."""
    (found,) = replace(told, **wrong).problems()  # type: ignore[arg-type]  # one of its fields

    assert problem in found


def test_without_a_broker_it_says_what_to_install(
    mocker: pytest_mock.MockerFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """And does not look like a success."""
    mocker.patch.object(cluster, "version")
    mocker.patch.object(cluster, "redis_server", return_value=None)

    assert program.main([]) == 2
    assert "apt-get install redis-server" in capsys.readouterr().out


def test_without_celery_it_says_what_to_install(
    mocker: pytest_mock.MockerFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """The other tests do without."""
    mocker.patch.object(cluster, "version", side_effect=PackageNotFoundError)

    assert program.main([]) == 2
    assert ".[celery]" in capsys.readouterr().out
