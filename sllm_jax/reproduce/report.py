"""The report of an experiment and its files: figures (CSV), tables with settings (Markdown), plot."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sllm_jax.common.plot import Plot, can_plot
from sllm_jax.common.progress import Progress
from sllm_jax.common.result_table import Table

if TYPE_CHECKING:
    from matplotlib.figure import FigureBase


@dataclass(frozen=True)
class Report:
    """The results of one experiment."""

    title: str
    tables: Sequence[Table]  # summary, for people
    settings: Mapping[str, str]
    figures: Table  # all measurements, for the CSV file
    draw: Callable[[FigureBase], None]

    @property
    def plot(self) -> Plot:
        """The plot, for a file or a notebook."""
        return Plot(self.draw, title=name_of(self.settings))

    def markdown(self) -> str:
        """The title, tables and settings as Markdown."""
        settings = Table(("setting", "value"), list(self.settings.items()))
        parts = [f"# {self.title}", *(table.markdown() for table in self.tables), settings.markdown()]
        return "\n\n".join(parts) + "\n"

    def write(self, folder: Path, name: str, plot_format: str = "png") -> None:
        """Write `name`.csv, `name`.md and, if matplotlib is installed, the plot into an existing folder."""
        with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(self.figures.columns)
            writer.writerows(_exact(row) for row in self.figures.rows)
        (folder / f"{name}.md").write_text(self.markdown(), encoding="utf-8")
        if can_plot():
            (folder / f"{name}.{plot_format}").write_bytes(self.plot.render(plot_format))


def name_of(names: Mapping[str, str]) -> str:
    """The title of a plot: the names of the model and the text without their folders; "" if neither is known."""
    found = (names.get(entry, "").rstrip("/").rpartition("/")[2] for entry in ("model", "text"))
    return ", ".join(name for name in found if name)


Work = Callable[[Progress], Report]  # a planned experiment: all inputs are checked


def _exact(row: Iterable[Any]) -> list[str]:
    """The cells as text; floats with seven significant digits, the precision of float32."""
    return ["" if cell is None else f"{cell:.7g}" if isinstance(cell, float) else str(cell) for cell in row]
