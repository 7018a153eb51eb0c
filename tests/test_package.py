"""What an installation has: the code, and the files that the page is made of."""

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "airflow_provider_responsys" / "page"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """Build both packages; give the names of their files."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,), (source,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as file, tarfile.open(source) as archive:
        return {
            "wheel": set(file.namelist()),
            "source": {name.partition("/")[2] for name in archive.getnames()},
        }


@pytest.mark.parametrize("package", ["wheel", "source"])
def test_the_files_of_the_page_are_in_both_packages(built: dict[str, set[str]], package: str) -> None:
    """Templates and static files are no Python, and are needed all the same."""
    files = [path for path in PAGE.rglob("*") if path.suffix in {".html", ".css", ".js", ".py"}]

    assert len(files) > 10
    assert {str(path.relative_to(ROOT)) for path in files} <= built[package]
