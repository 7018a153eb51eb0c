"""Each block of code on the pages: DAGs run on the sandbox, the rest is parsed by what would read it."""

import argparse
import configparser
import json
import re
import shlex
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from airflow.cli.cli_parser import get_parser
from airflow.dag_processing.dagbag import DagBag
from airflow.sdk import DAG

from airflow_provider_responsys import cli
from airflow_provider_responsys.protocol.account import account_from
from airflow_provider_responsys.sandbox import Sandbox
from airflow_provider_responsys.sandbox.__main__ import _parser as sandbox_parser
from airflow_provider_responsys.sandbox.faults import FaultPlan
from airflow_provider_responsys.sending.outcome import Buckets
from airflow_provider_responsys.sending.progress import Progress

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

OTHERS = frozenset({"cd", "curl", "export", "kill", "mkdir", "pip", "python3"})
"""Programs that a reader has, or gets with Python; their options are their own."""

KINDS = frozenset({"python", "json", "ini", "sh", "text"})


@dataclass(frozen=True, slots=True)
class Block:
    """A block of code on a page."""

    page: Path
    line: int
    kind: str
    code: str

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"


def blocks(*kinds: str) -> list[Block]:
    """Return the blocks of *kinds* on all pages, of any kind if none is given."""
    found = []
    for page in PAGES:
        text = page.read_text("utf-8")
        for match in re.finditer(r"^```(\w*)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL):
            block = Block(page, text[: match.start()].count("\n") + 1, match[1], match[2])
            if not kinds or block.kind in kinds:
                found.append(block)
    return found


def commands(block: Block) -> Iterator[list[str]]:
    """Yield the commands of a shell *block*, as words."""
    for line in block.code.splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="&|;")
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if word.strip("&|;"):
                words.append(word)
            elif words:
                yield words
                words = []


def targets() -> set[str]:
    """Return what the Makefile makes."""
    return set(re.findall(r"^([\w.-]+):", (ROOT / "Makefile").read_text("utf-8"), flags=re.MULTILINE))


def named(text: str) -> Iterator[str]:
    """Yield the commands between backticks in *text*: of make, of Airflow, and modules of Python."""
    yield from re.findall(r"`((?:make|airflow|python -m) [^`]+)`", text)


def check_command(words: list[str]) -> None:
    """Raise where a program does not know these *words*."""
    match words:
        case ["make", target, *settings]:
            assert target in targets(), target
            assert all("=" in setting for setting in settings)
        case ["airflow", "responsys", name, *_] | ["python", "-m", "airflow_provider_responsys", name, *_]:
            ours().parse_args(words[words.index(name) :])
        case ["airflow", "standalone"]:
            pass
        case ["airflow", *arguments]:
            get_parser().parse_args(arguments)
        case ["python", "-m", "airflow_provider_responsys.sandbox", *arguments]:
            sandbox_parser().parse_args(arguments)
        case ["python", "-m", module, *arguments]:
            assert (ROOT / module.replace(".", "/")).with_suffix(".py").is_file() or (
                ROOT / module.replace(".", "/") / "__main__.py"
            ).is_file(), module
            assert all(option in source_of(module) for option in arguments if option.startswith("-"))
        case [".", _]:
            pass
        case _:
            assert words[0] in OTHERS, words[0]


def ours() -> argparse.ArgumentParser:
    """Return the parser of our own command line."""
    parser = argparse.ArgumentParser()
    subparsers = parser.add_subparsers(required=True)
    for command in cli.COMMANDS:
        cli._add(subparsers, command)
    return parser


def source_of(module: str) -> str:
    """Return the text of a *module* that is started by its name."""
    path = ROOT / module.replace(".", "/")
    return (path / "__main__.py" if path.is_dir() else path.with_suffix(".py")).read_text("utf-8")


def is_dag(block: Block) -> bool:
    """Return whether *block* is a whole DAG."""
    return "with DAG(" in block.code and "def test_" not in block.code


@pytest.fixture
def sandbox(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Sandbox]:
    """Give a sandbox, a table of recipients and a ledger that the connections of the pages lead to."""
    database = tmp_path / "marketing.db"
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("CREATE TABLE recipients (id INTEGER, customer_id TEXT, first_name TEXT, coupon TEXT)")
        connection.executemany("INSERT INTO recipients VALUES (?, ?, 'Zoë', 'SUN')", [(n, f"C{n}") for n in range(5)])
    monkeypatch.setenv("AIRFLOW_CONN_MARKETING_DB", json.dumps({"conn_type": "sqlite", "host": str(database)}))
    ledger = json.dumps({"conn_type": "sqlite", "host": str(tmp_path / "ledger.db")})
    monkeypatch.setenv("AIRFLOW_CONN_RESPONSYS_LEDGER", ledger)
    monkeypatch.setenv("AIRFLOW__RESPONSYS__LEDGER_CONN_ID", "responsys_ledger")
    with Sandbox(processing_time=0.0) as sandbox:
        monkeypatch.setenv("AIRFLOW_CONN_RESPONSYS_DEFAULT", json.dumps(sandbox.connection()))
        yield sandbox


@pytest.mark.parametrize("block", blocks(), ids=str)
def test_each_block_is_of_a_kind_that_is_checked(block: Block) -> None:
    """A block without a language would be checked by nothing."""
    assert block.kind in KINDS


@pytest.mark.parametrize("block", [block for block in blocks("python") if is_dag(block)], ids=str)
def test_each_dag_runs_on_the_sandbox(
    block: Block, tmp_path: Path, sandbox: Sandbox, airflow_db: None, run_dag: Callable[[DAG], Any]
) -> None:
    """As a reader would paste it into the DAGs folder."""
    folder = tmp_path / "dags"
    folder.mkdir()
    (folder / "pasted.py").write_text(block.code, "utf-8")
    bag = DagBag(dag_folder=str(folder))

    runs = [run_dag(dag) for dag in bag.dags.values()]

    assert bag.import_errors == {}
    assert [run.state for run in runs] == ["success"]
    assert (
        len(sandbox.pushes)
        == runs[0].get_task_instance("push").xcom_pull(task_ids="push")["recipients"]["accepted"]
        > 0
    )
    sandbox.assert_no_duplicates()


@pytest.mark.parametrize(
    "page", [page for page in PAGES if "def test_" in page.read_text("utf-8")], ids=lambda page: page.name
)
def test_the_tests_of_a_page_pass(page: Path, tmp_path: Path, airflow_db: None) -> None:
    """The blocks of one page are one file: they are run by pytest, in an Airflow of their own."""
    code = [block.code for block in blocks("python") if block.page == page and "pytest_plugins" not in block.code]
    (tmp_path / "test_pasted.py").write_text("\n".join(code), "utf-8")
    (tmp_path / "conftest.py").write_text(SYNCED, "utf-8")
    home = tmp_path / "home"
    environment = {
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__DAGS_FOLDER": str(tmp_path),
        "XDG_STATE_HOME": str(tmp_path / "state"),
        "PATH": str(Path(sys.executable).parent),
    }
    started = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", "/dev/null", str(tmp_path)]

    done = subprocess.run(
        started, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=500, check=False
    )

    assert done.returncode == 0, done.stdout[-5000:]
    assert f"{len(re.findall('^def test_', chr(10).join(code), flags=re.MULTILINE))} passed" in done.stdout


SYNCED = """
import pytest


@pytest.fixture(scope="session", autouse=True)
def database():
    from airflow.utils import db

    db.initdb()


@pytest.fixture(autouse=True)
def known(database):
    from airflow.dag_processing.bundles.manager import DagBundlesManager
    from airflow.dag_processing.collection import update_dag_parsing_results_in_db
    from airflow.serialization.serialized_objects import LazyDeserializedDAG
    from airflow.utils.session import create_session
    from test_pasted import my_dag

    DagBundlesManager().sync_bundles_to_db()
    with create_session() as session:
        parsed = [LazyDeserializedDAG.from_dag(my_dag)]
        update_dag_parsing_results_in_db("dags-folder", None, parsed, {}, None, set(), session=session)
"""


@pytest.mark.parametrize(
    "block", [block for block in blocks("python") if not is_dag(block) and "def test_" not in block.code], ids=str
)
def test_each_other_piece_of_python_runs(block: Block, sandbox: Sandbox) -> None:
    """Operators are made in a DAG; their parameters are real ones."""
    code = compile(block.code, str(block), "exec")
    with DAG(f"piece_{block.line}", schedule=None, start_date=datetime(2026, 1, 1, tzinfo=UTC)):
        exec(code, {"__name__": "pasted"})  # noqa: S102 -- our own pages


@pytest.mark.parametrize("block", blocks("json"), ids=str)
def test_each_piece_of_json_is_parsed(block: Block) -> None:
    """And if it is a connection, it is one."""
    value = json.loads(block.code)

    if value.get("conn_type") == "responsys":
        check_connection(value)
    if "read" in value.get("recipients", ()):
        Buckets(**value["recipients"]).check()
        assert sum(size * times for size, times in value["request_sizes"]) == value["recipients"]["accepted"]


def check_connection(value: dict[str, Any]) -> None:
    """Raise where *value* is no connection to Responsys."""
    account_from(
        host=value["host"],
        port=None,
        schema=None,
        login=value["login"],
        password=value["password"],
        extra=value.get("extra", {}),
    )


@pytest.mark.parametrize("block", blocks("ini"), ids=str)
def test_each_piece_of_a_configuration_is_parsed(block: Block) -> None:
    """As Airflow reads its file."""
    parser = configparser.ConfigParser(interpolation=None)

    parser.read_string(block.code)

    assert parser.sections()


@pytest.mark.parametrize("block", blocks("sh"), ids=str)
def test_each_command_exists_with_its_options(block: Block) -> None:
    """By the parser of the program that it starts."""
    for words in commands(block):
        check_command(words)


@pytest.mark.parametrize("block", blocks("sh"), ids=str)
def test_each_text_in_a_command_is_right(block: Block) -> None:
    """Connections and plans of faults are given as JSON."""
    for text in re.findall(r"'([\[{].*?)'$|'([\[{].*?)' ", block.code, flags=re.MULTILINE):
        value = json.loads("".join(text))
        if isinstance(value, list):
            FaultPlan.from_json(json.dumps(value))
        elif value["conn_type"] == "responsys":
            check_connection(value)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_each_command_in_the_text_exists(page: Path) -> None:
    """Between backticks, where it may lack what it needs to run."""
    text = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)

    for command in named(text):
        check_mention(command.split())


def check_mention(words: list[str]) -> None:
    """Raise where a program does not know the command that *words* name, or one of their options."""
    if words[:2] == ["airflow", "responsys"] or words[:3] == ["python", "-m", "airflow_provider_responsys"]:
        found = {command.name: command for command in cli.COMMANDS}
        name = (words[2:] if words[0] == "airflow" else words[3:])[:1]
        if name and name[0] not in found and name[0] == "…":
            return
        flags = {flag for each in name for argument in found[each].args for flag in argument.flags}
        assert {word for word in words if word.startswith("--")} <= flags
    else:
        check_command(words)


def test_the_line_of_progress_is_what_a_push_logs() -> None:
    """The reference shows one."""
    (block,) = [block for block in blocks("text") if block.code.startswith("Accepted ")]
    now, end = datetime(2026, 11, 24, 9, 30, tzinfo=UTC), datetime(2026, 11, 24, 9, 32, tzinfo=UTC)

    said = str(
        Progress(
            total=100_000,
            accepted=24_000,
            rejected=0,
            in_doubt=0,
            not_sent=0,
            left=76_000,
            requests=120,
            per_minute=197.0,
            limit=200.0,
            now=now,
            ends_at=end,
        )
    )

    assert said == block.code.strip()


@pytest.mark.parametrize(
    "words",
    [
        ["make", "none"],
        ["airflow", "responsys", "settle", "1", "--none"],
        ["airflow", "responsys", "none"],
        ["airflow", "dags", "none"],
        ["python", "-m", "airflow_provider_responsys.sandbox", "--none"],
        ["python", "-m", "benchmarks.none"],
        ["none"],
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("check", [check_command, check_mention])
def test_a_command_that_does_not_exist_is_found(check: Callable[[list[str]], None], words: list[str]) -> None:
    """Of each kind, in a block and in the text."""
    with pytest.raises((AssertionError, KeyError, SystemExit)):
        check(words)
