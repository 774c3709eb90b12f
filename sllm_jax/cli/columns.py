"""Columns of a terminal that show three texts as they are written."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from sllm_jax.evaluate.side_by_side import Side, SideBySide

LEAST_COLUMN, LEAST_WIDTH = 24, 40  # characters: of a column beside others, of the terminal
LEAST_ROWS = 3  # of text
MOST_BARS = 16
FIGURES = 4  # rows of figures under a text in a column
WAITING = "Preparing. The first start takes longer, because it compiles nine programs."
BARS = "▁▂▃▄▅▆▇█"
STYLES = {"dense": "red", "window": "yellow", "streaming": "green"}
_CONTROL = re.compile(r"[^\n -~\u00a0-\U0010ffff]")  # characters that would move the cursor


def about_measure(running: int) -> str:
    """The meaning of the perplexity below each text."""
    return (
        f"Perplexity: how badly each cache predicts the last {running} tokens of the streaming text, which all three "
        "read. Lower is better."
    )


class Wrapped:
    """The last lines of a growing text. Complete lines are not wrapped again."""

    def __init__(self) -> None:
        """Nothing yet."""
        self._width, self._taken = 0, 0
        self._lines: list[str] = []
        self._open = ""  # the last line, which may grow

    def lines(self, text: str, width: int, rows: int) -> list[str]:
        """The last `rows` lines of `text`, which begins with the text of the call before."""
        if width != self._width:
            self._width, self._taken, self._lines, self._open = width, 0, [], ""
        self._open += _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text[self._taken :].replace("\t", " "))
        self._taken = len(text)
        spaces = self._open[len(self._open.rstrip(" ")) :]  # wrapping removes them at the end of a line
        lines = [line.plain for line in Text(self._open).wrap(_MEASURING, width)] or [""]
        self._lines = [*self._lines, *lines[:-1]][-4 * rows :]
        self._open = lines[-1].rstrip(" ") + spaces
        return [*self._lines, lines[-1]][-rows:]


_MEASURING = Console(width=80)  # required by `wrap`, without effect


class Columns:
    """Renders three sides."""

    def __init__(self, trio: SideBySide, running: int, heading: str) -> None:
        """`running`: tokens of the running perplexity."""
        self._trio, self._heading, self._measure = trio, heading, about_measure(running)
        self._wrapped = {side.name: Wrapped() for side in trio.sides}

    def frame(self, console: Console, below: int = 0) -> RenderableType:
        """The current frame at the size of the terminal. `below`: rows left free below columns, if there is room."""
        width, height = console.size
        if not fits(width, height):
            return Text(
                f"The terminal is too small: {LEAST_WIDTH} x {least_height(width)} or larger shows three texts."
            )
        if beside(width):
            height -= min(below, height - least_height(width))
        foot = Text(self._measure if self._trio.written else WAITING, "dim")
        left = height - 1 - len(foot.wrap(console, width)) - 1  # a heading, and the row of the cursor
        head = Text(self._heading, "bold", no_wrap=True, overflow="ellipsis")
        bars = console.encoding.startswith("utf")
        sides = self._trio.sides
        if not beside(width):
            return Group(
                head, *(self._panel(side, width, left // 3, _in_two(figures(side)), bars) for side in sides), foot
            )
        grid = Table.grid()
        grid.add_row(*(self._panel(side, width // 3, left, figures(side), bars) for side in sides))
        return Group(head, grid, foot)

    def _panel(self, side: Side, width: int, height: int, under: list[str], bars: bool) -> Panel:
        """The last lines of a text, and rows of figures under it, the last one with bars."""
        inner = width - 4
        if bars:
            under[-1] += sparkline(side.curve, self._scale(), min(inner - len(under[-1]), MOST_BARS))
        rows = height - 2 - len(under)
        lines = self._wrapped[side.name].lines(side.text, inner, rows)
        text = Text("\n".join([*lines, *[""] * (rows - len(lines))]), no_wrap=True, overflow="crop")
        low = Text("\n".join(under), STYLES[side.name], no_wrap=True, overflow="crop")
        return Panel(Group(text, low), title=side.title, border_style=STYLES[side.name], width=width, height=height)

    def _scale(self) -> tuple[float, float]:
        """The smallest and the largest perplexity of all sides, for bars on one scale."""
        values = [value for side in self._trio.sides for value in side.curve]
        return (min(values), max(values)) if values else (1.0, 1.0)


def beside(width: int) -> bool:
    """Whether three columns fit beside each other; else they are stacked."""
    return width >= 3 * LEAST_COLUMN


def least_height(width: int) -> int:
    """Rows that a terminal of this width needs."""
    return 1 + LEAST_ROWS + FIGURES + 2 + 3 + 1 if beside(width) else 1 + 3 * (LEAST_ROWS + 2 + 2) + 4 + 1


def fits(width: int, height: int) -> bool:
    """Whether a terminal is large enough."""
    return width >= LEAST_WIDTH and height >= least_height(width)


def figures(side: Side) -> list[str]:
    """Four rows: speed, cache, tokens seen, perplexity."""
    stream, rate, value = side.stream, side.tokens_per_second, side.perplexity
    return [
        f"{rate:,.0f} tokens/s" if rate else "- tokens/s",
        f"cache {stream.cache_in_use:,} of {stream.cache_size:,}",
        f"{stream.tokens_seen:,} tokens seen",
        f"perplexity {value:.1f} " if value else "perplexity -",
    ]


def sparkline(values: Sequence[float], scale: tuple[float, float], width: int) -> str:
    """Values as bars on a logarithmic scale, of a factor of 2 at least; of too many, some and the last one."""
    low, high = (math.log(end) for end in scale)
    step = max(high - low, math.log(2)) / (len(BARS) - 1)
    count = max(min(width, len(values)), 0)
    chosen = [values[(i + 1) * len(values) // count - 1] for i in range(count)]
    return "".join(BARS[round((math.log(value) - low) / step)] for value in chosen)


def _in_two(rows: Sequence[str]) -> list[str]:
    """The four rows of figures as two."""
    rate, cache, seen, perplexity = rows
    return [f"{rate}, {cache}", f"{seen}, {perplexity}"]
