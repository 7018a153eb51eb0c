"""Files on any storage that Airflow reaches, whole or not at all, and several of them together."""

import os
import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from typing import Any, TypeAlias

from airflow_provider_responsys.errors import InvalidSettings
from airflow_provider_responsys.files.formats import Format

LOCAL = ("", "file", "local")
"""Protocols of the worker's own file system."""

UNFINISHED = ".part"

Open: TypeAlias = Callable[[str], Any]
"""From a text to Airflow's `ObjectStoragePath`."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where a file is to be written, in which *format*; *path* is an `ObjectStoragePath`."""

    text: str
    path: Any
    format: Format

    @classmethod
    def of(
        cls, parameter: str, text: str | None, open_path: Open, *, map_index: int | None, template: object
    ) -> "Target | None":
        """Return the target that *parameter* names, None if it names none; raise `InvalidSettings` for a wrong one.

        *text* is what Airflow rendered *template* to, in the task of *map_index*.
        """
        if text is None:
            return None
        form = Format.of(parameter, text)
        if map_index is not None and map_index >= 0 and not _holds(text, str(template), map_index):
            raise InvalidSettings(
                f"{parameter} is {text!r} in the task of map index {map_index}, and mapped tasks would write over each "
                "other's files: add {{ ti.map_index }} to it, such as "
                f"recipients-{{{{ ti.map_index }}}}{form.suffix}"
            )
        try:
            path = open_path(text)
            _ = path.fs
        except (ValueError, ImportError) as error:
            raise InvalidSettings(f"{parameter} is {text!r}, on a storage that can't be used: {error}") from error
        return cls(text, path, form)

    def beside(self, what: str) -> "Target":
        """Return the target with *what* before the suffix of its name."""
        name = f"{self.path.name[: -len(self.format.suffix)]}.{what}{self.format.suffix}"
        return Target(f"{self.text[: -len(self.path.name)]}{name}", self.path.parent / name, self.format)

    @property
    def is_local(self) -> bool:
        """Whether it is on the worker's own file system."""
        return str(self.path.protocol) in LOCAL

    def remove(self) -> None:
        """Remove the file, if there is one."""
        if self.is_local:
            Path(self.path.path).unlink(missing_ok=True)
        elif self.path.fs.exists(self.path.path):
            self.path.fs.rm_file(self.path.path)


def _holds(text: str, template: str, map_index: int) -> bool:
    """Return whether the path *text* is of the task with *map_index*: a number in a folder's name may be any."""
    name = text.rpartition("/")[2]
    return "map_index" in template or bool(re.search(rf"(?<!\d){map_index}(?!\d)", name))


def write_whole(files: Sequence[tuple[Target, Iterable[bytes]]]) -> None:
    """Write *files*, all of one storage, and let them be seen together; an error discards what was begun."""
    if files[0][0].is_local:
        _write_locally([(Path(target.path.path), pieces) for target, pieces in files])
    else:
        _upload(files[0][0].path.fs, [(target.path.path, pieces) for target, pieces in files])


def _write_locally(files: Sequence[tuple[Path, Iterable[bytes]]]) -> None:
    begun: list[tuple[Path, Path]] = []
    try:
        for path, pieces in files:
            path.parent.mkdir(parents=True, exist_ok=True)
            _clear(path)
            unfinished = path.with_name(f".{path.name}.{token_hex(8)}{UNFINISHED}")
            begun.append((unfinished, path))
            with unfinished.open("xb") as file:
                file.writelines(pieces)
                file.flush()
                os.fsync(file.fileno())
        for unfinished, path in begun:
            unfinished.replace(path)
    except BaseException:
        for unfinished, _ in begun:
            unfinished.unlink(missing_ok=True)
        raise


def _clear(path: Path) -> None:
    """Remove what a killed try left unfinished beside *path*: recipients stand in it."""
    for entry in path.parent.iterdir():
        if entry.name.startswith(f".{path.name}.") and entry.name.endswith(UNFINISHED):
            entry.unlink(missing_ok=True)


def _upload(storage: Any, files: Sequence[tuple[str, Iterable[bytes]]]) -> None:
    with storage.transaction:
        for path, pieces in files:
            file = storage.open(path, "wb")
            try:
                for piece in pieces:
                    file.write(piece)
                file.close()
            except BaseException:
                # To close it would complete the upload, and the garbage collector closes what is open.
                with suppress(AttributeError):
                    file.closed = True
                raise
