"""What an experiment found, and its three files: figures (CSV), plot (PNG), table with settings (Markdown)."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sllm_jax.plot import Plot
from sllm_jax.result_table import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Report:
    """The findings of one experiment."""

    title: str
    tables: Sequence[Table]  # what people read
    settings: Mapping[str, str]
    figures: Table  # everything that was measured
    draw: Callable[[Figure], None]

    @property
    def plot(self) -> Plot:
        """The drawing, for a file or a notebook."""
        return Plot(self.draw)

    def markdown(self) -> str:
        """Tables, then settings."""
        settings = Table(("setting", "value"), list(self.settings.items()))
        parts = [f"# {self.title}", *(table.markdown() for table in self.tables), settings.markdown()]
        return "\n\n".join(parts) + "\n"

    def write(self, folder: Path, name: str) -> None:
        """Write `name`.csv, .md and .png into a folder that exists."""
        with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(self.figures.columns)
            writer.writerows(_exact(row) for row in self.figures.rows)
        (folder / f"{name}.md").write_text(self.markdown(), encoding="utf-8")
        (folder / f"{name}.png").write_bytes(self.plot.png())


def _exact(row: Iterable[Any]) -> list[str]:
    """Floats to the seven digits that float32 has."""
    return ["" if cell is None else f"{cell:.7g}" if isinstance(cell, float) else str(cell) for cell in row]
