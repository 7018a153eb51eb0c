"""What stands in the archive of the sources."""

import subprocess
import sys
import tarfile
from pathlib import Path

from tests.support.files import ROOT, tracked


def test_an_sdist_holds_every_file_of_the_project(tmp_path: Path) -> None:
    """Unpacked alone, it runs its tests, benchmarks and checks."""
    command = [sys.executable, "-m", "hatchling", "build", "--target", "sdist", "--directory", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    (archive,) = tmp_path.iterdir()

    with tarfile.open(archive) as opened:
        held = {name.partition("/")[2] for name in opened.getnames()}

    assert {path.relative_to(ROOT).as_posix() for path in tracked()} - held == set()
