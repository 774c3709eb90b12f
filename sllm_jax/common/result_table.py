"""Tables of results, rendered as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, repr=False)
class Table:
    """Column names, and rows of text, numbers, or None for an empty cell."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str | int | float | None]]

    def markdown(self) -> str:
        """The table as Markdown: four significant digits, large numbers in full, numeric columns right-aligned."""
        rule = [
            " --- " if any(isinstance(x, str) for x in cells) else " ---: " for cells in zip(*self.rows, strict=True)
        ]
        lines = ["| " + " | ".join(_short(cell) for cell in row) + " |" for row in (self.columns, *self.rows)]
        return "\n".join([lines[0], f"|{'|'.join(rule)}|", *lines[1:]])

    _repr_markdown_ = __repr__ = markdown  # display in notebooks and terminals


def _short(cell: Any) -> str:
    if cell is None:
        return ""
    if isinstance(cell, float):
        return f"{cell:.0f}" if 1000 <= abs(cell) < 1e6 else f"{cell:.4g}"
    return str(cell).replace("|", "\\|")
