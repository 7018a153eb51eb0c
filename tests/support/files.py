"""The files of the project, in a repository and in an unpacked sdist."""

import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


def tracked() -> list[Path]:
    """Return the files that git tracks here; where this is no repository, all of the folders that an sdist has."""
    if not (ROOT / ".git").exists():
        folders = ("airflow_provider_responsys", "benchmarks", "docs", "example_dags", "tests")
        found = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.parent.name != "__pycache__"]
    else:
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)  # noqa: S607
        found = [ROOT / name for name in listed.stdout.split("\0") if name]
    return [path for path in found if path.is_file()]
