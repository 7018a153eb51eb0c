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
TRIGGERS = HOOKS | {"hooks", "ledgers", "metrics", "observers", "threads", "waiting"}
SENSORS = TRIGGERS | {"triggers", "progress", "airflow_internals", "files", "links"}
OPERATORS = SENSORS | {"sending", "ledger", "threads", "push_reporter"}

MAY_IMPORT = {
    "": set(),  # the root
    "errors": set(),
    "provider_info": set(),
    "airflow_internals": {"errors"},  # knows what is private in Airflow
    "protocol": {"errors"},
    "transport": {"errors", "protocol", "threads"},
    "databases": set(),  # what drivers differ in, for sources and ledgers alike
    "recipients": {"errors", "protocol", "databases"},
    "ledger": {"errors", "protocol", "databases", "airflow_internals"},
    "sandbox": {"errors", "protocol"},
    "threads": set(),
    "files": {"errors", "protocol", "recipients", "ledger", "sending", "waiting"},  # of the last two, types alone
    "sending": {"errors", "protocol", "recipients", "ledger", "threads"},
    "waiting": {"errors", "protocol", "ledger", "threads"},
    "report": {"errors", "protocol", "ledger", "airflow_internals", "links", "progress"},
    "metrics": {"errors", "protocol"},
    "progress": set(),
    "observers": {"errors", "protocol", "metrics", "progress", "sending", "threads"},  # of the last one, types alone
    "push_reporter": {"errors", "protocol", "sending"},
    "hooks": HOOKS,
    "ledgers": {"errors", "ledger", "airflow_internals"},
    "triggers": TRIGGERS,
    "sensors": SENSORS,
    "operators": OPERATORS,
    "decorators": {"operators"},
    "links": set(),
    "plugin": {"page"},
    "page": {"errors", "protocol", "recipients", "ledger", "ledgers", "links", "report", "airflow_internals"},
    "cli": {"errors", "commands"},  # when one of them runs
    "commands": {"cli", "errors", "recipients", "ledger", "ledgers", "report", "airflow_internals"},
    "__main__": {"cli"},
}
"""A module may import the layers, or the single modules, in its row, its own layer, and nothing else of ours."""

MEET_AIRFLOW = {
    "hooks",
    "ledgers",
    "metrics",
    "operators",
    "push_reporter",
    "sensors",
    "triggers",
    "decorators",
    "links",
    "airflow_internals",  # where it is used, never when it is imported: see the test of the core
    "plugin",
    "page",
    "cli",
    "commands",
}

HTTP = {
    "requests": {"transport.sync"},
    "urllib3": {"transport.sync", "transport.connections"},
    "aiohttp": {"transport.aio"},
    "yarl": {"transport.aio"},
    "httpx": set(),
}
"""Who may import an HTTP client."""

BESIDE = {
    NAME: set(),
    "example_dags": {"example_dags"},  # the demo runs alone, so what it starts Airflow with stands beside it
    "tests": {"example_dags", "tests.support"},
    "benchmarks": {"benchmarks", "example_dags", "tests.support"},
}
"""A folder may import what its row has; of the folders in `tests`, each its own modules, too."""

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


def astray(path: str, source: str) -> list[str]:
    """Return what *source*, as the file at *path*, imports of the folders beside the package and may not."""
    top, *below = Path(path).with_suffix("").parts
    own = {f"tests.{below[0]}"} if top == "tests" and len(below) > 1 else set()
    return [
        name
        for name in sorted(imports(source))
        if name.partition(".")[0] in BESIDE.keys() - {NAME}
        and (is_collected(name) or not any(touches({name}, allowed) for allowed in BESIDE[top] | own))
    ]


def is_collected(name: str) -> bool:
    """Tell whether *name* is a test module or a conftest, or is inside one: pytest imports those, and nothing else."""
    return any(part == "conftest" or part.startswith("test_") for part in name.split("."))


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


def test_what_stands_beside_the_package_imports_in_one_direction() -> None:
    """Tests and benchmarks share `tests.support` alone, and no module imports a test module or a conftest."""
    found = {path.relative_to(ROOT).as_posix(): path for top in BESIDE for path in (ROOT / top).rglob("*.py")}

    wrong = {name: names for name, path in found.items() if (names := astray(name, path.read_text()))}

    assert len(found) > len(modules())
    assert wrong == {}


@pytest.mark.parametrize(
    ("path", "source"),
    [
        (f"{NAME}/hooks.py", "from tests.support import servers"),
        (f"{NAME}/hooks.py", "import example_dags.demo"),
        ("example_dags/demo/run.py", "from tests.support.servers import Proxy"),
        ("benchmarks/ledger.py", "from tests.simulation.search import play"),
        ("benchmarks/ledger.py", "from tests import simulation"),
        ("benchmarks/ledger.py", "import tests"),
        ("tests/support/servers.py", "from tests.faults import home"),
        ("tests/celery/scenes.py", "from tests.faults.home import Child"),
        ("tests/celery/scenes.py", "from benchmarks import ground"),
        ("tests/test_hooks.py", "def late():\n    from benchmarks.ground import sandbox"),
        ("tests/test_hooks.py", "from tests.test_operators import Push"),
        ("tests/waiting/test_hostile.py", "from tests.waiting.test_sharing import Account"),
        ("tests/waiting/test_hostile.py", "from tests.waiting import conftest"),
    ],
)
def test_an_import_that_goes_astray_is_seen(path: str, source: str) -> None:
    """The test itself: every direction that is not in the table, and each way to write it."""
    assert astray(path, source) != []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("benchmarks/ledger.py", "from tests.support.databases import postgres_databases"),
        ("tests/celery/scenes.py", "from tests.celery.cluster import Cluster"),
        ("tests/test_hooks.py", "from tests import support"),
        ("tests/faults/dags/faulty.py", "from tests.faults import planted"),
    ],
)
def test_an_import_that_is_in_the_table_is_none(path: str, source: str) -> None:
    """The test itself: what is allowed is not found."""
    assert astray(path, source) == []


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
