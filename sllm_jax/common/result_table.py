"""A table of results, for people."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, repr=False)
class Table:
    """Named columns, and rows of text, numbers, or None for nothing."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str | int | float | None]]

    def markdown(self) -> str:
        """With numbers to four significant digits, large ones in full, and columns of them to the right."""
        rule = [
            " --- " if any(isinstance(x, str) for x in cells) else " ---: " for cells in zip(*self.rows, strict=True)
        ]
        lines = ["| " + " | ".join(_short(cell) for cell in row) + " |" for row in (self.columns, *self.rows)]
        return "\n".join([lines[0], f"|{'|'.join(rule)}|", *lines[1:]])

    _repr_markdown_ = __repr__ = markdown  # what a notebook shows, and a terminal


def _short(cell: Any) -> str:
    if cell is None:
        return ""
    if isinstance(cell, float):
        return f"{cell:.0f}" if 1000 <= abs(cell) < 1e6 else f"{cell:.4g}"
    return str(cell).replace("|", "\\|")
