import json
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_responsys.sandbox.__main__ import main


def start_program(*arguments: str) -> tuple[subprocess.Popen[str], str]:
    """Start it and return it with its address, once it says that it is ready."""
    command = [sys.executable, "-W", "error", "-m", "airflow_provider_responsys.sandbox", "--port", "0", *arguments]
    program = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert program.stdout
    return program, program.stdout.readline().split()[-1]


def told(url: str, what: str) -> Any:
    """Ask a sandbox in another process."""
    with urllib.request.urlopen(f"{url}/sandbox/{what}") as answer:  # noqa: S310 -- our own address
        return json.load(answer)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_says_where_it_is_and_ends_when_told(number: int) -> None:
    """One line; then a clean end, without a word."""
    program, url = start_program()

    assert url.startswith("http://127.0.0.1:")
    assert told(url, "report")["pushes"] == 0
    program.send_signal(number)
    assert program.communicate(timeout=10) == ("", "")
    assert program.returncode == 0


def test_every_setting_is_an_option(tmp_path: Path) -> None:
    """Under its own name, with dashes; the fault plan from a file."""
    plan = tmp_path / "plan.json"
    plan.write_text('[{"on": "push", "kind": "lost", "nth": 3}]')

    program, url = start_program(
        *("--push-limit", "200", "--latency", "0.5", "--failed-over", "--no-exact", "--window", "sliding"),
        *("--campaign", "One, with comma", "--campaign", "Two", "--limit-status", "429", "--faults", str(plan)),
        *("--ratelimit-rows", '[{"limit": 7}]', "--promotional-campaigns", "A,B"),
    )
    settings = told(url, "settings")
    program.terminate()
    program.communicate(timeout=10)

    assert settings["push_limit"] == 200
    assert settings["latency"] == 0.5
    assert settings["failed_over"] is True
    assert settings["exact"] is False
    assert settings["window"] == "sliding"
    assert settings["campaigns"] == ["One, with comma", "Two"]
    assert settings["promotional_campaigns"] == ["A", "B"]
    assert settings["limit_status"] == 429
    assert settings["ratelimit_rows"] == [{"limit": 7}]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--host", "0.0.0.0"], "allow"),  # noqa: S104 -- what is refused
        (["--faults", "[7]"], "a fault is an object"),
        (["--faults", "/no/such/file"], "No such file"),
        (["--latency", "-1"], "latency must be"),
    ],
)
def test_wrong_options_end_with_a_sentence(
    capsys: pytest.CaptureFixture[str], arguments: list[str], problem: str
) -> None:
    """And with the status of a wrong command."""
    assert main(["--port", "0", *arguments]) == 2
    assert problem in capsys.readouterr().err


def test_options_that_can_not_be_read_end_with_the_usage(capsys: pytest.CaptureFixture[str]) -> None:
    """As argparse has it."""
    with pytest.raises(SystemExit):
        main(["--ratelimit-rows", "7"])

    assert "usage:" in capsys.readouterr().err
