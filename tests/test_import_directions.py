"""Which of our modules may import what."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NAME = "airflow_provider_responsys"
PACKAGE = ROOT / NAME

HOOKS = {"errors", "protocol", "transport", "recipients", "provider_info"}
TRIGGERS = HOOKS | {"hooks", "ledgers", "metrics", "observers", "waiting"}
SENSORS = TRIGGERS | {"triggers", "progress", "airflow_internals", "files"}
OPERATORS = SENSORS | {"sending", "ledger", "threads", "airflow_internals"}

MAY_IMPORT = {
    "": set(),  # the root
    "errors": set(),
    "provider_info": set(),
    "airflow_internals": {"errors"},  # imports nothing of Airflow, and knows what is private there
    "protocol": {"errors"},
    "transport": {"errors", "protocol"},
    "databases": set(),  # what drivers differ in, for sources and ledgers alike
    "recipients": {"errors", "protocol", "databases"},
    "ledger": {"errors", "protocol", "databases", "airflow_internals"},
    "sandbox": {"errors", "protocol"},
    "threads": set(),
    "files": {"errors", "protocol", "recipients", "ledger", "sending", "waiting"},  # of the last two, types alone
    "sending": {"errors", "protocol", "recipients", "ledger", "threads"},
    "waiting": {"errors", "protocol", "ledger", "threads"},
    "metrics": {"errors", "protocol"},
    "progress": set(),
    "observers": {"errors", "protocol", "metrics", "progress", "sending"},  # of the last one, types alone
    "hooks": HOOKS,
    "ledgers": {"errors", "ledger", "airflow_internals"},
    "triggers": TRIGGERS,
    "sensors": SENSORS,
    "operators": OPERATORS,
    "decorators": {"operators"},
    "links": {"operators", "sensors"},
    "plugin": {"errors", "ledger", "hooks"},
    "cli": {"errors", "recipients", "ledger", "ledgers", "airflow_internals"},
    "__main__": {"cli"},
}
"""A module may import the layers, or the single modules, in its row, its own layer, and nothing else of ours."""

MEET_AIRFLOW = {
    "hooks",
    "ledgers",
    "metrics",
    "operators",
    "sensors",
    "triggers",
    "decorators",
    "links",
    "plugin",
    "cli",
}

HTTP = {
    "requests": {"transport.sync"},
    "urllib3": {"transport.sync", "transport.connections"},
    "aiohttp": {"transport.aio"},
    "yarl": {"transport.aio"},
    "httpx": set(),
}
"""Who may import an HTTP client."""

IMPURE = {
    "asyncio",
    "http.client",
    "logging",
    "os",
    "pathlib",
    "random",
    "secrets",
    "socket",
    "sqlite3",
    "ssl",
    "subprocess",
    "threading",
    "time",
    "urllib.request",
}
"""What the protocol must do without."""


def modules() -> dict[str, Path]:
    """Return the path of each of our modules by its name below the package."""
    return {dotted(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def dotted(path: Path) -> str:
    """Return the name of the module at *path*, below the package."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(source: str) -> set[str]:
    """Return every dotted name that *source* imports, wherever it does so."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


def layer(module: str) -> str:
    """Return the row that *module* belongs to."""
    return module.split(".", maxsplit=1)[0]


def ours(names: set[str]) -> set[str]:
    """Return those of *names* that lie in our package, below it; not what its root itself defines."""
    below = {name.removeprefix(f"{NAME}.") for name in names if name.startswith(f"{NAME}.")}
    placed = set(MAY_IMPORT) | {layer(module) for module in modules()}
    return {name for name in below if layer(name) in placed}


def wrong(module: str, source: str) -> list[str]:
    """Return what *source*, as *module*, imports of ours and may not."""
    allowed = MAY_IMPORT[layer(module)] | {layer(module)}
    return [name for name in ours(imports(source)) if not any(touches({name}, row) for row in allowed)]


def touches(names: set[str], forbidden: str) -> bool:
    """Tell whether one of *names* is *forbidden* or inside it."""
    return any(name == forbidden or name.startswith(f"{forbidden}.") for name in names)


def everywhere() -> pytest.MarkDecorator:
    """Run a test once for each of our modules."""
    return pytest.mark.parametrize("module", modules(), ids=lambda name: name or "(root)")


@everywhere()
def test_imports_only_lower_layers(module: str) -> None:
    """A module imports what its row allows, absolutely; a new folder fails until it is placed."""
    assert layer(module) in MAY_IMPORT, f"{module} belongs to no row"
    assert wrong(module, modules()[module].read_text()) == []


@everywhere()
def test_only_the_airflow_facing_modules_import_airflow(module: str) -> None:
    """Everything else runs, and is tested, without Airflow."""
    if layer(module) not in MEET_AIRFLOW:
        assert not touches(imports(modules()[module].read_text()), "airflow")


@everywhere()
def test_http_clients_are_imported_by_their_drivers_only(module: str) -> None:
    """One module knows requests, one knows the async client."""
    found = imports(modules()[module].read_text())

    used = {client for client in HTTP if touches(found, client)}

    assert {client for client in used if module not in HTTP[client]} == set()


@everywhere()
def test_the_protocol_does_nothing(module: str) -> None:
    """No I/O, clock, chance or logging in the protocol."""
    if layer(module) == "protocol":
        found = imports(modules()[module].read_text())
        assert [name for name in sorted(IMPURE) if touches(found, name)] == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("sending.run", f"def late():\n    from {NAME}.hooks import ResponsysHook"),
        ("protocol.push", f"import {NAME}.recipients"),
        ("operators", f"from {NAME}.sandbox import server"),
        ("triggers", f"from {NAME}.sending import engine"),
        ("hooks", f"from {NAME} import sensors"),
    ],
)
def test_a_wrong_direction_is_seen(module: str, source: str) -> None:
    """The test itself: what must be found is found, inside functions too."""
    assert wrong(module, source) != []


@pytest.mark.parametrize(
    ("source", "forbidden"),
    [
        ("def late():\n    import airflow.sdk", "airflow"),
        ("from time import monotonic", "time"),
        ("from urllib import request", "urllib.request"),
        ("import http.client as client", "http.client"),
    ],
)
def test_a_forbidden_import_is_seen(source: str, forbidden: str) -> None:
    """The test itself: every way to write an import counts."""
    assert touches(imports(source), forbidden)


def test_a_relative_import_is_seen() -> None:
    """A relative import fails the test, so that directions stay greppable."""
    with pytest.raises(AssertionError, match="relative import"):
        imports("from . import hooks")


def test_the_core_imports_with_nothing_but_the_standard_library_and_sql() -> None:
    """With Airflow and the HTTP clients absent, protocol, sending and waiting import."""
    core = [name for name in modules() if layer(name) in {"errors", "protocol", "sending", "waiting", "threads"}]
    script = "import sys\n"
    script += "".join(
        f"sys.modules[{name!r}] = None\n" for name in ("airflow", "requests", "urllib3", "aiohttp", "httpx")
    )
    script += "".join(f"import {NAME}.{name}\n" for name in core)

    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr


def test_the_root_imports_nothing_else_of_ours() -> None:
    """Airflow imports the root to discover providers, so it must cost nothing."""
    script = f"import {NAME}, sys; print([m for m in sys.modules if m.startswith({NAME + '.'!r})])"

    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "module", ["sensors", "triggers", "waiting.engine", "waiting.watch", "waiting.sweep", "files.results_file"]
)
def test_a_wait_loads_nothing_of_the_sender(module: str) -> None:
    """Each task imports what it does, and a triggerer holds many waits."""
    script = f"import {NAME}.{module}, sys; print([m for m in sys.modules if m.startswith({f'{NAME}.sending'!r})])"

    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)

    assert done.stdout.splitlines()[-1] == "[]"
