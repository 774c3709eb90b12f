"""Plots as PNG, SVG or PDF in one style. A notebook displays a `Plot` that is the last value of a cell."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from io import BytesIO
from typing import TYPE_CHECKING, Any

from sllm_jax.common.errors import SllmError
from sllm_jax.common.extras import how_to_install

if TYPE_CHECKING:
    from matplotlib.figure import FigureBase

FORMATS = ("png", "svg", "pdf")
WIDTH = 7.0  # inches; text stays legible at half the width, in a two-column layout
_STYLE: dict[Any, Any] = {
    "font.size": 12,
    "axes.titlesize": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "svg.hashsalt": "sllm-jax",  # reproducible files
}
_DPI, _COLOURS = 200, 192
_DPI_SHOWN = 100  # in notebooks
_DATES = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}  # no dates, for reproducible files


@dataclass(frozen=True)
class Plot:
    """A function that draws on an empty figure, the height in inches, and the title of the figure."""

    draw: Callable[[FigureBase], None] = field(repr=False)
    height: float = 3.8
    title: str = ""

    def render(self, plot_format: str = "png") -> bytes:
        """The file contents in one of `FORMATS`. Raises `SllmError` for other formats and without matplotlib."""
        check_format(plot_format)
        if not can_plot():
            raise SllmError(f"plots need matplotlib; {how_to_install('plot')}")
        import matplotlib
        from matplotlib.figure import Figure

        drawn = BytesIO()
        with matplotlib.rc_context(_STYLE):
            figure = Figure(figsize=(WIDTH, self.height), layout="constrained")
            below_title = figure.add_subfigure(figure.add_gridspec()[0])  # title above any legend
            self.draw(below_title)
            if self.title:
                figure.suptitle(self.title, fontsize=10, color="0.35")
            figure.savefig(drawn, dpi=_DPI, format=plot_format, metadata=_DATES[plot_format])
        return _with_palette(drawn) if plot_format == "png" else drawn.getvalue()

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        return self.render(), {"width": round(WIDTH * _DPI_SHOWN)}


def can_plot() -> bool:
    """Whether matplotlib is installed."""
    return find_spec("matplotlib") is not None


def check_format(plot_format: str) -> None:
    """Raises `SllmError` for a format that is not in `FORMATS`."""
    if plot_format not in FORMATS:
        raise SllmError(f"format {plot_format!r} is not one of {', '.join(FORMATS)}")


def no_plots() -> str:
    """The note shown without matplotlib: plots are left out, and how to install it."""
    return f"matplotlib is not installed, so plots are left out; {how_to_install('plot')}"


def _with_palette(png: BytesIO) -> bytes:
    """The image with a colour palette, at a third of the size."""
    from PIL import Image

    small = BytesIO()
    with Image.open(png) as image:
        reduced = image.convert("RGB").quantize(_COLOURS, dither=Image.Dither.NONE)
    reduced.save(small, format="png", optimize=True, dpi=(_DPI, _DPI))
    return small.getvalue()
