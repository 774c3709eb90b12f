"""What an experiment found, and its three files: figures (CSV), plot (PNG), table with settings (Markdown)."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sllm_jax.errors import SllmError
from sllm_jax.result_table import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_STYLE: dict[Any, Any] = {  # 7 inches wide and large letters: still legible at half the width, in one column of two
    "font.size": 12,
    "axes.titlesize": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}
_DPI, _COLOURS = 200, 192


@dataclass(frozen=True)
class Report:
    """The findings of one experiment."""

    title: str
    tables: Sequence[Table]  # what people read
    settings: Mapping[str, str]
    figures: Table  # everything that was measured
    draw: Callable[[Figure], None]

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
        _save_plot(self.draw, folder / f"{name}.png")


def check_plots() -> None:
    """Raises `SllmError` if there is no matplotlib to draw with."""
    if find_spec("matplotlib") is None:
        raise SllmError("plots need matplotlib; install it with pip install 'sllm-jax[plot]'")


def _save_plot(draw: Callable[[Figure], None], path: Path) -> None:
    """With a palette of colours, which takes a third of the bytes."""
    import matplotlib
    from matplotlib.figure import Figure
    from PIL import Image

    buffer = BytesIO()
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(7, 3.8), layout="constrained")
        draw(figure)
        figure.savefig(buffer, dpi=_DPI)
    with Image.open(buffer) as image:
        image.convert("RGB").quantize(_COLOURS, dither=Image.Dither.NONE).save(path, optimize=True, dpi=(_DPI, _DPI))


def _exact(row: Iterable[Any]) -> list[str]:
    """Floats to the seven digits that float32 has."""
    return ["" if cell is None else f"{cell:.7g}" if isinstance(cell, float) else str(cell) for cell in row]
