import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import airflow
import jsonschema
import pytest

from airflow_provider_responsys import __version__
from airflow_provider_responsys.hooks import ResponsysHook
from airflow_provider_responsys.provider_info import CONNECTION_FIELDS, FIELD_BEHAVIOUR, get_provider_info

AIRFLOW = Path(airflow.__path__[0])
PACKAGE_NAME = "airflow-provider-responsys"
COMMANDS = ("list", f"get {PACKAGE_NAME} --full", "hooks", "triggers", "behaviours", "widgets", "configs")
MARK = "----- next -----"

EXTRAS = {
    "api",
    "auth_type",
    "push_requests_per_minute",
    "poll_requests_per_minute",
    "timeout",
    "follow_endpoint",
    "dry_run",
}


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Give what each `airflow providers` command prints, by the command's name."""
    home = tmp_path_factory.mktemp("cli")
    # What the `airflow` command runs, several times in one process: importing Airflow takes seconds.
    script = f"""
import sys
from airflow.__main__ import main
for command in {COMMANDS!r}:
    sys.argv = ["airflow", "providers", *command.split(), "-o", "json"]
    print({MARK!r})
    main()
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={"AIRFLOW_HOME": str(home), "AIRFLOW__CORE__LOAD_EXAMPLES": "False"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return {command.split()[0]: text for command, text in zip(COMMANDS, done.stdout.split(MARK)[1:], strict=True)}


def rows(printed: str) -> list[dict[str, Any]]:
    """Return the table that a command printed as JSON, after whatever was logged before it."""
    found: list[dict[str, Any]] = json.loads(printed[printed.index("[{") :])
    return found


def schema(name: str) -> dict[str, Any]:
    """Return one of Airflow's own schemas."""
    found: dict[str, Any] = json.loads((AIRFLOW / name).read_text())
    return found


def test_it_satisfies_the_schema_that_airflow_checks_when_it_runs() -> None:
    """An invalid provider info breaks every `airflow providers` command."""
    jsonschema.validate(get_provider_info(), schema("provider_info.schema.json"))


@pytest.mark.parametrize("part", ["connection-types", "config", "hooks", "operators", "sensors", "triggers"])
def test_it_satisfies_the_strict_schema_of_airflows_own_providers(part: str) -> None:
    """The form is specified in the development schema only."""
    strict = schema("provider.yaml.schema.json")

    jsonschema.validate(
        get_provider_info()[part], {**strict["properties"][part], "definitions": strict.get("definitions")}
    )


def test_every_extra_has_a_form_entry() -> None:
    """Each extra is labelled and described, has a kind that may be empty, and a default or a placeholder."""
    assert set(CONNECTION_FIELDS) == EXTRAS
    for name, field in CONNECTION_FIELDS.items():
        assert field["label"]
        assert field["description"]
        assert field["schema"]["type"][1] == "null"
        assert "default" in field["schema"] or name in FIELD_BEHAVIOUR["placeholders"]


def test_the_certificate_login_is_not_offered() -> None:
    """The form offers what works."""
    assert CONNECTION_FIELDS["auth_type"]["schema"]["enum"] == ["password"]


def test_the_command_line_lists_the_provider(shown: dict[str, str]) -> None:
    """`airflow providers list` and `get` show us, under our version."""
    (listed,) = [row for row in rows(shown["list"]) if row["package_name"] == PACKAGE_NAME]

    assert listed["version"] == __version__
    assert "Oracle Responsys" in shown["get"]


def test_the_command_line_imports_the_hook(shown: dict[str, str]) -> None:
    """`airflow providers hooks` imports the hook and reads its attributes."""
    (hook,) = [row for row in rows(shown["hooks"]) if row["connection_type"] == "responsys"]

    assert hook == {
        "connection_type": "responsys",
        "class": "airflow_provider_responsys.hooks.ResponsysHook",
        "conn_id_attribute_name": "responsys_conn_id",
        "package_name": PACKAGE_NAME,
        "hook_name": "Oracle Responsys",
    }


def test_the_command_line_lists_the_trigger(shown: dict[str, str]) -> None:
    """`airflow providers triggers` imports the trigger."""
    assert "airflow_provider_responsys.triggers" in shown["triggers"]


def test_the_command_line_shows_the_form(shown: dict[str, str]) -> None:
    """`airflow providers behaviours` and `widgets` know the connection type and its fields."""
    fields = {
        row["connection_parameter_name"]
        for row in rows(shown["widgets"])
        if row["class"] == "airflow_provider_responsys.hooks.ResponsysHook"
    }

    assert "responsys" in {row["field_behaviours"] for row in rows(shown["behaviours"])}
    assert fields == {f"extra__responsys__{name}" for name in EXTRAS}


def test_the_command_line_shows_the_setting(shown: dict[str, str]) -> None:
    """`airflow providers configs` names the section [responsys]."""
    assert "responsys" in shown["configs"]


def test_airflow_before_3_2_gets_the_same_form(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hook's class methods are made from the same data as the declared form."""

    class Field:
        def __init__(self, label: str, **options: Any) -> None:
            self.label = label
            self.options = options

    class Text(Field): ...

    class Number(Field): ...

    class Switch(Field): ...

    # Airflow 3.1 puts stand-ins like these in their place, too: the form libraries are not installed there.
    fake(monkeypatch, "wtforms", StringField=Text, IntegerField=Number, BooleanField=Switch)
    fake(monkeypatch, "wtforms.validators", Optional=lambda: "optional", any_of=lambda values: values)
    fake(monkeypatch, "flask_babel", lazy_gettext=str)
    fake(monkeypatch, "flask_appbuilder")
    fake(monkeypatch, "flask_appbuilder.fieldwidgets", BS3TextFieldWidget=object)

    widgets = ResponsysHook.get_connection_form_widgets()

    assert {name: widget.label for name, widget in widgets.items()} == {
        name: field["label"] for name, field in CONNECTION_FIELDS.items()
    }
    assert isinstance(widgets["timeout"], Number)
    assert isinstance(widgets["dry_run"], Switch)
    assert widgets["api"].options["validators"] == ["optional", ["haAsyncApi", "asyncApi"]]
    assert widgets["api"].options["default"] == "haAsyncApi"


def test_airflow_before_3_2_gets_the_same_behaviour() -> None:
    """Older versions write the keys with underscores, and accept what we give."""
    behaviour = ResponsysHook.get_ui_field_behaviour()

    jsonschema.validate(behaviour, schema("customized_form_field_behaviours.schema.json"))
    assert behaviour["hidden_fields"] == FIELD_BEHAVIOUR["hidden-fields"]
    assert behaviour["relabeling"] == FIELD_BEHAVIOUR["relabeling"]


def fake(monkeypatch: pytest.MonkeyPatch, name: str, **members: object) -> None:
    """Put a module *name* with *members* where an import finds it."""
    module = ModuleType(name)
    for key, value in members.items():
        setattr(module, key, value)
    monkeypatch.setitem(sys.modules, name, module)
