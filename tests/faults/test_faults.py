"""A small part of the fault suite; ``make faults`` runs all of it."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
WITHIN = 600.0  # seconds; 80 on two cores of their own
STATE, EXTERNAL = "task state store", "task state store, external"
SQLITE, POSTGRES, NAIVE = "SQL on SQLite", "SQL on PostgreSQL", "naive operator"
OURS = (
    f"kill points/{STATE}/3",  # during the intent
    f"kill points/{STATE}/4",  # after the intent
    f"kill points/{STATE}/5",  # during connect
    f"kill points/{STATE}/6",  # body half sent
    f"kill points/{STATE}/8",  # answer half read
    f"kill points/{STATE}/10",  # during the acceptance write
    f"kill points/{STATE}/12",  # before XCom
    f"kill points/{SQLITE}/7",  # body sent
    f"kill points/{SQLITE}/10",  # during the acceptance write
    f"random kills/{STATE}/3",
    f"server faults/{STATE}/1",  # an answer lost after the effect
    f"kills while waiting/{STATE}/3",  # in execute_complete
    f"random kills while waiting/{STATE}/4",  # four kills, three of them of the trigger
    f"Airflow faults/{STATE}/6",  # a zombie beside its retry
    f"Airflow faults/{SQLITE}/7",  # a zombie with a request out
    f"Airflow faults/{STATE}/9",  # the ledger is lost
    f"Airflow faults/{SQLITE}/9",  # the same
    f"Airflow faults/{SQLITE}/11",  # a zombie that begins late
    f"Airflow faults/{EXTERNAL}/11",  # the same
    f"Airflow faults/{EXTERNAL}/22",  # a zombie after its retry
    f"late store writes/{STATE}/1",  # when the worker is dead
    f"late store writes/{STATE}/3",  # when the retry has ended
    f"late store writes/{STATE}/5",  # again, though it was done
    f"late store writes/{STATE}/6",  # several, out of order
    f"late store writes/{STATE}/17",  # far behind, without any other fault
    f"late store writes/{STATE}/34",  # of what a restart forgot
    f"late store writes/{EXTERNAL}/2",  # when the retry has begun
    f"late store writes/{SQLITE}/1",  # when the worker is dead
    f"put back/{SQLITE}/1",  # while a try runs
    f"put back/{SQLITE}/3",  # to before the first claim
    f"put back/{POSTGRES}/0",  # between two tries
    f"put back/{POSTGRES}/4",  # while a try runs, its connections ended
    f"brown-outs/{STATE}/0",  # every second request for 7,900 recipients reset
    f"brown-outs/{STATE}/11",  # tokens that expire, few logins, and a stop
    f"brown-outs/{STATE}/17",  # the same with an execution_timeout
    f"brown-outs/{SQLITE}/16",  # dripped answers, and an execution_timeout
    f"stalls/{SQLITE}/0",  # a lock held, and a stop
    f"stalls/{POSTGRES}/3",  # gone dark, and a stop
    f"stalls/{POSTGRES}/5",  # an idle connection dropped
    f"housekeeping/{STATE}/0",  # XComs cleaned, then cleared
    f"housekeeping/{STATE}/2",  # the record cleaned, then cleared
    f"housekeeping/{STATE}/8",  # shards cut anew
    f"housekeeping/{STATE}/9",  # a wrong password in eight tasks
    f"housekeeping/{SQLITE}/10",  # settled by hand in a try
    f"housekeeping/{SQLITE}/11",  # forgotten in a try
    f"housekeeping/{SQLITE}/26",  # pruned in a try
)
BASELINE = (f"kill points/{NAIVE}/8", f"server faults/{NAIVE}/1", f"brown-outs/{NAIVE}/1")


@pytest.fixture(scope="module")
def verdicts() -> dict[str, dict[str, Any]]:
    """Run them all, several at once; give what came of each."""
    chosen = [f"--only={name}" for name in (*OURS, *BASELINE)]
    command = [sys.executable, "-m", "tests.faults", "--json", *chosen]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=WITHIN, check=False)
    lines = [json.loads(line) for line in ended.stdout.splitlines() if line.startswith("{")]
    assert lines, ended.stdout + ended.stderr
    return {line["name"]: line for line in lines}


@pytest.mark.parametrize("name", OURS)
def test_nobody_is_pushed_twice_and_nobody_is_forgotten(verdicts: dict[str, dict[str, Any]], name: str) -> None:
    """Whatever is killed, lost, cleared or left behind; and no more are in doubt than were out."""
    verdict = verdicts[name]

    assert (verdict["duplicates"], verdict["forgotten"], verdict["problem"]) == (0, 0, ""), verdict
    assert verdict["in_doubt"] <= verdict["bound"], verdict


@pytest.mark.parametrize("name", BASELINE)
def test_an_operator_without_a_memory_pushes_people_twice(verdicts: dict[str, dict[str, Any]], name: str) -> None:
    """The same faults are seen to do harm where nothing prevents it."""
    assert verdicts[name]["duplicates"] > 0
