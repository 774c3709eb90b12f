"""Plots as PNG, SVG or PDF, all in one style; a notebook shows one that stands last in a cell."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from io import BytesIO
from typing import TYPE_CHECKING, Any

from sllm_jax.errors import SllmError
from sllm_jax.extras import how_to_install

if TYPE_CHECKING:
    from matplotlib.figure import FigureBase

FORMATS = ("png", "svg", "pdf")
WIDTH = 7.0  # inches; with letters this large still legible at half the width, in one column of two
_STYLE: dict[Any, Any] = {
    "font.size": 12,
    "axes.titlesize": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "svg.hashsalt": "sllm-jax",  # the same file for the same figures
}
_DPI, _COLOURS = 200, 192
_DPI_SHOWN = 100  # of a notebook's page
_DATES = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}  # none, for the same reason


@dataclass(frozen=True)
class Plot:
    """What draws on an empty figure, its height in inches, and the title above all that is drawn."""

    draw: Callable[[FigureBase], None] = field(repr=False)
    height: float = 3.8
    title: str = ""

    def render(self, plot_format: str = "png") -> bytes:
        """The file, in one of `FORMATS`. Raises `SllmError` for another one, and without matplotlib."""
        check_format(plot_format)
        if not can_plot():
            raise SllmError(f"plots need matplotlib; {how_to_install('plot')}")
        import matplotlib
        from matplotlib.figure import Figure

        drawn = BytesIO()
        with matplotlib.rc_context(_STYLE):
            figure = Figure(figsize=(WIDTH, self.height), layout="constrained")
            below_title = figure.add_subfigure(figure.add_gridspec()[0])  # a legend outside the axes included
            self.draw(below_title)
            if self.title:
                figure.suptitle(self.title, fontsize=10, color="0.35")
            figure.savefig(drawn, dpi=_DPI, format=plot_format, metadata=_DATES[plot_format])
        return _with_palette(drawn) if plot_format == "png" else drawn.getvalue()

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        return self.render(), {"width": round(WIDTH * _DPI_SHOWN)}


def can_plot() -> bool:
    """Whether there is matplotlib to draw with."""
    return find_spec("matplotlib") is not None


def check_format(plot_format: str) -> None:
    """Raises `SllmError` for a format that is not in `FORMATS`."""
    if plot_format not in FORMATS:
        raise SllmError(f"format {plot_format!r} is not one of {', '.join(FORMATS)}")


def no_plots() -> str:
    """A note for people who have no matplotlib: that plots are left out, and how to get them."""
    return f"matplotlib is not installed, so plots are left out; {how_to_install('plot')}"


def _with_palette(png: BytesIO) -> bytes:
    """The picture with a palette of colours, which takes a third of the bytes."""
    from PIL import Image

    small = BytesIO()
    with Image.open(png) as image:
        reduced = image.convert("RGB").quantize(_COLOURS, dither=Image.Dither.NONE)
    reduced.save(small, format="png", optimize=True, dpi=(_DPI, _DPI))
    return small.getvalue()
