"""Plots as PNG, all in one style; a notebook shows one that stands last in a cell."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from io import BytesIO
from typing import TYPE_CHECKING, Any

from sllm_jax.errors import SllmError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH = 7.0  # inches; with letters this large still legible at half the width, in one column of two
_STYLE: dict[Any, Any] = {
    "font.size": 12,
    "axes.titlesize": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}
_DPI, _COLOURS = 200, 192
_DPI_SHOWN = 100  # of a notebook's page


@dataclass(frozen=True)
class Plot:
    """What draws on an empty figure, and how high that is in inches."""

    draw: Callable[[Figure], None] = field(repr=False)
    height: float = 3.8

    def png(self) -> bytes:
        """With a palette of colours, which takes a third of the bytes. Raises `SllmError` without matplotlib."""
        check_plots()
        import matplotlib
        from matplotlib.figure import Figure
        from PIL import Image

        drawn, small = BytesIO(), BytesIO()
        with matplotlib.rc_context(_STYLE):
            figure = Figure(figsize=(WIDTH, self.height), layout="constrained")
            self.draw(figure)
            figure.savefig(drawn, dpi=_DPI)
        with Image.open(drawn) as image:
            reduced = image.convert("RGB").quantize(_COLOURS, dither=Image.Dither.NONE)
        reduced.save(small, format="png", optimize=True, dpi=(_DPI, _DPI))
        return small.getvalue()

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        return self.png(), {"width": round(WIDTH * _DPI_SHOWN)}


def check_plots() -> None:
    """Raises `SllmError` if there is no matplotlib to draw with."""
    if find_spec("matplotlib") is None:
        raise SllmError("plots need matplotlib; install it with pip install 'sllm-jax[plot]'")
