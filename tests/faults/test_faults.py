"""A small part of the fault suite; ``make faults`` runs all of it."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
WITHIN = 400.0  # seconds; 40 on two cores of their own
STATE, SQLITE, NAIVE = "task state store", "SQL on SQLite", "naive operator"
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
)
BASELINE = (f"kill points/{NAIVE}/8", f"server faults/{NAIVE}/1")


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
