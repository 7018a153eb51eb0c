"""Recipients that stand in a DAG as data: they are counted where Airflow would show them."""

from collections.abc import Sequence
from typing import Any, Self


class Rows(Sequence[Any]):
    """Recipients as data: Airflow neither renders them as templates nor stores them as a rendered field."""

    def __init__(self, rows: Any) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        return self._rows[index]

    def __repr__(self) -> str:
        return f"<{len(self)} recipients>" if hasattr(self._rows, "__len__") else "<recipients>"

    __str__ = __repr__

    def resolve(self, _context: Any, *_: Any, **__: Any) -> Self:
        """Tell Airflow's templater that there is nothing to render."""
        return self

    def serialize(self) -> str:
        """Return what Airflow may store of it."""
        return repr(self)


def is_data(value: Any) -> bool:
    """Tell rows from a reference to a task's output, or a template."""
    return isinstance(value, (list, tuple)) and not any(hasattr(row, "iter_references") for row in value)
