"""The tables of the documentation, compared with the code: nothing is missing, and nothing is stale."""

import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_responsys import cli, errors, metrics
from airflow_provider_responsys.hooks import ResponsysHook
from airflow_provider_responsys.operators import TriggerPushOperator
from airflow_provider_responsys.protocol.codes import CODES, Verdict
from airflow_provider_responsys.protocol.naming import ROW_CODES, UNNAMED
from airflow_provider_responsys.protocol.polling import ABOUT_THE_REQUEST, ROWS_DIFFER
from airflow_provider_responsys.provider_info import CONNECTION_FIELDS, FIELD_BEHAVIOUR, get_provider_info
from airflow_provider_responsys.recipients.fields import MEANINGS
from airflow_provider_responsys.sending.outcome import Buckets
from airflow_provider_responsys.sending.verdict import FINAL
from airflow_provider_responsys.sensors import PushRequestSensor

ROOT = Path(__file__).parent.parent
REFERENCE, ERRORS = ROOT / "docs/reference.md", ROOT / "docs/errors.md"

SENT_LATER = {Verdict.LATER, Verdict.LIMIT}
SAYS: Mapping[Verdict, str | tuple[str, ...]] = {
    Verdict.LATER: "sent again after",
    Verdict.LIMIT: "sent again after",
    Verdict.LOGIN: "logs in and sends again",
    Verdict.BATCH: "the batch is rejected",
    Verdict.SEND: "the send stops",
    Verdict.FAILED_OVER: "the send stops",
    Verdict.LOGIN_FAILED: ("the task fails", "not asked again on this machine"),
    Verdict.DOUBT: "in doubt",
}
"""How the row of a code begins that says this of a request."""

WAITS = {30.0: "30 seconds", 60.0: "a minute", 600.0: "ten minutes"}


def section(page: Path, title: str) -> str:
    """Return the text below the heading *title* of *page*, up to the next heading of the same rank or a higher one."""
    text = page.read_text("utf-8")
    found = re.search(rf"^(#+) {re.escape(title)}$", text, flags=re.MULTILINE)
    assert found, f"{page.name} has no heading {title!r}"
    rest = text[found.end() :]
    following = re.search(rf"^#{{1,{len(found[1])}}} ", rest, flags=re.MULTILINE)
    return rest[: following.start()] if following else rest


def tables(text: str) -> list[list[list[str]]]:
    """Return the tables in *text*: their rows, without the line of dashes, as cells."""
    found: list[list[list[str]]] = []
    before = False
    for line in text.splitlines():
        if not line.startswith("|"):
            before = False
            continue
        if not before:
            found.append([])
        before = True
        cells = [cell.strip() for cell in re.split(r"\s\|(?=\s|$)", line[1:])[:-1]]
        if not re.fullmatch(r"[\s|-]+", line):
            found[-1].append(cells)
    return found


def names(cell: str) -> list[str]:
    """Return what stands between backticks in *cell*."""
    return re.findall(r"`([^`]+)`", cell)


def parameters(title: str) -> dict[str, tuple[str, str]]:
    """Return meaning and default of each parameter in the first table below *title*."""
    rows = tables(section(REFERENCE, title))[0][1:]
    return {names(row[0])[0]: (row[1], row[2]) for row in rows}


def signature(kind: type) -> Mapping[str, str]:
    """Return how the reference has to write the default of each parameter of our own that *kind* takes."""
    return {
        name: "required" if parameter.default is inspect.Parameter.empty else f"`{parameter.default!r}`"
        for name, parameter in inspect.signature(kind.__init__).parameters.items()  # type: ignore[misc]  # of a class that is known
        if name not in ("self", "kwargs")
    }


def quoted(text: str) -> str:
    """Return *text* with the quotes of a text that the reference uses."""
    return text.replace("'", '"')


def error_classes() -> list[str]:
    """Return the names of all errors."""
    return [
        name
        for name, kind in vars(errors).items()
        if isinstance(kind, type) and issubclass(kind, errors.ResponsysError)
    ]


KINDS: Sequence[tuple[str, Any]] = (
    ("TriggerPushOperator", TriggerPushOperator),
    ("PushRequestSensor", PushRequestSensor),
)


@pytest.mark.parametrize(("title", "kind"), KINDS, ids=[title for title, _ in KINDS])
def test_each_parameter_is_listed_with_its_default(title: str, kind: type) -> None:
    """None is missing, none is stale."""
    listed = {name: default for name, (_, default) in parameters(title).items()}
    real = {name: quoted(default) for name, default in signature(kind).items()}

    assert listed == real


@pytest.mark.parametrize(("title", "kind"), KINDS, ids=[title for title, _ in KINDS])
def test_a_parameter_is_called_templated_if_it_is(title: str, kind: Any) -> None:
    """By the operator's own list."""
    listed = {name for name, (meaning, _) in parameters(title).items() if "(templated)" in meaning}

    assert listed == set(kind.template_fields)


def test_each_bucket_is_listed() -> None:
    """In the table of buckets, and in the example of a push's output."""
    text = section(REFERENCE, "What a push returns")
    listed = {name for row in tables(text)[1][1:] for name in names(row[0])}

    assert listed == set(Buckets.__dataclass_fields__)


def test_each_call_of_the_hook_is_listed() -> None:
    """With its parameters and defaults."""
    calls = {names(row[0])[0] for row in tables(section(REFERENCE, "ResponsysHook"))[0][1:]}

    for call in calls:
        name, _, arguments = call.partition("(")
        function = ResponsysHook.__init__ if name == "ResponsysHook" else getattr(ResponsysHook, name)
        taken = [
            parameter.name
            if parameter.default is inspect.Parameter.empty
            else quoted(f"{parameter.name}={parameter.default!r}")
            for parameter in inspect.signature(function).parameters.values()
            if parameter.name != "self" and parameter.kind is not inspect.Parameter.KEYWORD_ONLY
        ]
        assert arguments.rstrip(")") == ", ".join(taken)


def test_each_field_of_the_connection_is_listed() -> None:
    """With its label and its default."""
    rows = {names(row[0])[0]: row for row in tables(section(REFERENCE, "Connection"))[0][1:]}
    labels = {**FIELD_BEHAVIOUR["relabeling"], **{name: field["label"] for name, field in CONNECTION_FIELDS.items()}}
    defaults = {
        name: quoted(f"`{field['schema']['default']!r}`") if "default" in field["schema"] else "empty"
        for name, field in CONNECTION_FIELDS.items()
    }

    assert {name: row[1] for name, row in rows.items()} == labels
    assert {name: rows[name][3] for name in defaults} == defaults


def test_each_setting_is_listed() -> None:
    """Those of Airflow's configuration."""
    listed = [names(row[0])[0] for row in tables(section(REFERENCE, "Settings"))[0][1:]]
    options = [f"[{part}] {name}" for part, found in get_provider_info()["config"].items() for name in found["options"]]

    assert listed == options


def test_each_command_is_listed() -> None:
    """By its name, with all of its options, and in the order of the command line."""
    commands, options = tables(section(REFERENCE, "Command line"))
    real = [command.name for command in cli.COMMANDS]
    listed = [names(row[0])[0].split()[0] for row in commands[1:]]

    assert listed == real
    taken: dict[str, set[str]] = {name: set() for name in listed}
    for row in options[1:]:
        for name in listed if row[1] == "all" else names(row[1]):
            taken[name].update(names(row[0]))
    for command in cli.COMMANDS:
        flags = {flag for argument in command.args for flag in argument.flags if flag.startswith("-")}
        assert taken[command.name] == flags, command.name


def test_each_form_of_output_is_listed() -> None:
    """In the row of the option."""
    (row,) = [row for row in tables(section(REFERENCE, "Command line"))[1] if "--output" in row[0]]
    choices = {
        choice
        for command in cli.COMMANDS
        for argument in command.args
        for choice in argument.kwargs.get("choices") or ()
    }

    assert set(names(row[2])) == choices


def test_each_counter_is_listed() -> None:
    """As the module that counts names them."""
    listed = {name for row in tables(section(REFERENCE, "Metrics"))[0][1:] for name in names(row[0])}
    text = str(metrics.__doc__)
    real: set[str] = set()
    for line in re.findall(r"^    (responsys\.\S.*?)(?:  |$)", text, flags=re.MULTILINE):
        first, *others = line.split(", ")
        real |= {first, *(f"{first.rpartition('.')[0]}{other}" for other in others)}

    assert listed == real


def test_each_identifier_is_listed() -> None:
    """The table of rows names all of them, and the sentence below the other columns with a meaning."""
    text = section(REFERENCE, "Rows")
    rows = tables(text)[0][1:]
    spellings = {
        name.replace("_", "").lower(): names(row[0])[0] for row in rows for name in [*names(row[0]), *names(row[1])]
    }
    others = {"apikey": "apiKey", "listtype": "listType", "optionaldata": "optionalData"}

    assert {**spellings, **others} == dict(MEANINGS)
    assert {"api_key", "list_type", "optional_data"} <= set(names(text))


def test_each_error_is_listed() -> None:
    """Once."""
    listed = [names(row[0])[0] for row in tables(section(ERRORS, "Classes"))[0][1:]]

    assert sorted(listed) == sorted(error_classes())


def test_an_error_is_called_final_if_it_is() -> None:
    """What fails a push without a retry."""
    retried = {names(row[0])[0]: row[2] for row in tables(section(ERRORS, "Classes"))[0][1:]}

    for name in error_classes():
        if issubclass(getattr(errors, name), FINAL):
            assert retried[name] == "no", name


def test_each_code_is_listed_with_what_happens() -> None:
    """As the table of codes decides it."""
    rows = {names(row[0])[0]: row[1] for row in tables(section(ERRORS, "Codes of a push or a login"))[0][1:]}

    assert set(rows) == set(CODES)
    for name, code in CODES.items():
        assert rows[name].startswith(SAYS[code.verdict]), name
        if code.verdict in SENT_LATER:
            assert WAITS[code.wait] in rows[name], name


def test_each_code_of_a_poll_is_listed() -> None:
    """Those of requests, and those of recipients."""
    requests = {names(row[0])[0] for row in tables(section(ERRORS, "Codes of a polled request"))[0][1:]}
    recipients = {names(row[0])[0] for row in tables(section(ERRORS, "Codes of a recipient's result"))[0][1:]}

    assert requests == {*ABOUT_THE_REQUEST, ROWS_DIFFER}
    assert recipients == {*ROW_CODES, UNNAMED}


def test_each_row_has_a_remedy() -> None:
    """No cell of a table of errors is empty without need."""
    for title in (
        "Classes",
        "Codes of a push or a login",
        "Codes of a polled request",
        "Codes of a recipient's result",
    ):
        for row in tables(section(ERRORS, title))[0][1:]:
            assert row[1], row
            assert row[-1], row


def test_a_normal_code_is_called_normal() -> None:
    """By the sensor's own default."""
    rows = tables(section(ERRORS, "Codes of a recipient's result"))[0][1:]
    normal = {names(row[0])[0] for row in rows if row[2] == "yes"}

    assert normal == set(inspect.signature(PushRequestSensor.__init__).parameters["expected_errors"].default)


def told() -> Iterator[str]:
    """Yield the parts of messages that the page of errors quotes."""
    for row in tables(section(ERRORS, "What you see"))[0][1:]:
        for text in names(row[0]):
            for part in re.split("…|<[^>]*>|row 17", text):
                if len(part.strip(" :,.()")) > 2:
                    yield part.strip()


@cache
def sources() -> str:
    """Return the text of all modules, with texts that are split over lines put together."""
    folder = Path(str(errors.__file__)).parent
    return "".join(re.sub(r'"\s*\n\s*(?:\+ )?f?"', "", path.read_text("utf-8")) for path in folder.rglob("*.py"))


@pytest.mark.parametrize("part", sorted(set(told())))
def test_a_message_that_is_quoted_exists(part: str) -> None:
    """In the code, with whatever stands between."""
    assert part in sources()
