"""Pictures of a state, for people who change the code: what its slots hold, and how a query meets them.

Everything is read from the state of one stream. Letters as in `kv_state.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from sllm_jax.attention import plan, query_rotations
from sllm_jax.kv_state import KVState, cache_order, live
from sllm_jax.plot import Plot

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import FigureBase
    from matplotlib.patches import Patch

EMPTY, SINK, THIS_LAP, OLD_LAP = range(4)
_COLOURS = ("#FFFFFF", "#00487A", "#F3C9A8", "#D97B2E")  # of different greys
_INK = ("black", "white", "black", "black")
_LABELS = ("empty or evicted", "sink", "window, this lap", "window, the lap before")


class Slots(NamedTuple):
    """What each of the C slots of a state holds."""

    kind: np.ndarray  # [C]: EMPTY, SINK, THIS_LAP or OLD_LAP
    token_id: np.ndarray  # [C]
    position: np.ndarray  # [C]: cache position, -1 where nothing is live


def slots(state: KVState) -> Slots:
    """What the slots hold between two calls."""
    slot, filled = np.arange(state.slots), int(state.filled)
    position = np.full(state.slots, -1)
    position[np.asarray(cache_order(state))[:filled]] = np.arange(filled)
    kind = np.where(slot < state.start_size, SINK, np.where(slot > int(state.next_slot), OLD_LAP, THIS_LAP))
    is_live = np.asarray(live(state))[: state.slots]
    return Slots(np.where(is_live, kind, EMPTY), np.asarray(state.token_ids)[: state.slots], position)


def steps(states: Mapping[int | str, KVState], text_of: Callable[[int], str]) -> Plot:
    """A row for each state, named by how many tokens it has read; a column for each slot.

    A cell has the token's text, its cache position below, and a frame where the next token will go.
    """

    def draw(figure: FigureBase) -> None:
        axes = figure.subplots()
        for row, state in enumerate(states.values()):
            _draw_slots(axes, row, slots(state), text_of)
            axes.plot(int(state.next_slot), row, "s", markersize=15, fillstyle="none", color="black")
        columns = max(state.slots for state in states.values())
        axes.set(xlim=(-0.6, columns - 0.4), ylim=(len(states) - 0.4, -0.6), xlabel="Slot", ylabel="Tokens read")
        axes.set_xticks(range(columns))
        axes.set_yticks(range(len(states)), list(map(str, states)))
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        frame = axes.plot([], [], "s", markersize=9, fillstyle="none", color="black", label="next token")
        figure.legend(handles=[*_patches(), *frame], loc="outside upper center", ncols=3, fontsize=10)

    return Plot(draw, height=1.5 + 0.42 * len(states))


def rotations(state: KVState) -> Plot:
    """For the next token: by how much each key was rotated when it was written, and the query that meets it now.

    Their difference, written above, is the distance of the two in cache positions.
    """
    numbers, way = query_rotations(state, plan(state, 1, jnp.int32(1)))
    query = np.asarray(numbers[way])[: state.slots]
    kind = slots(state).kind
    itself = int(state.next_slot)
    kind[itself] = SINK if itself < state.start_size else THIS_LAP
    shown = np.flatnonzero(kind)

    def draw(figure: FigureBase) -> None:
        from matplotlib.ticker import MaxNLocator

        axes = figure.subplots()
        axes.vlines(shown, shown, query[shown], [_COLOURS[kind[slot]] for slot in shown], linewidth=9)
        axes.plot(shown, query[shown], "_", color="black", markersize=14, label="the query")
        axes.plot(shown, shown, "o", color="black", markersize=5, label="the key: its slot")
        for slot in shown:
            above: dict[str, Any] = {"xytext": (0, 5), "textcoords": "offset points", "ha": "center", "fontsize": 10}
            axes.annotate(str(query[slot] - slot), (slot, query[slot]), **above)
        axes.set(xlabel="Slot", ylabel="Rotated by (positions)", xticks=shown)
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        axes.margins(y=0.12)
        handles = [*axes.get_legend_handles_labels()[0], *_patches()[1:]]
        figure.legend(handles=handles, loc="outside upper center", ncols=3, fontsize=10)

    return Plot(draw)


def _draw_slots(axes: Axes, row: int, held: Slots, text_of: Callable[[int], str]) -> None:
    from matplotlib.patches import Rectangle

    for slot, kind in enumerate(held.kind):
        face: dict[str, Any] = {"facecolor": _COLOURS[kind], "edgecolor": "0.6", "linewidth": 0.5}
        axes.add_patch(Rectangle((slot - 0.5, row - 0.46), 1, 0.92, **face))
        if kind != EMPTY:
            centred: dict[str, Any] = {"color": _INK[kind], "ha": "center", "va": "center"}
            axes.text(slot, row - 0.12, text_of(int(held.token_id[slot])).strip(), fontsize=9, **centred)
            axes.text(slot, row + 0.26, str(held.position[slot]), fontsize=8, **centred)


def _patches() -> list[Patch]:
    from matplotlib.patches import Patch

    return [Patch(facecolor=c, edgecolor="0.6", label=label) for c, label in zip(_COLOURS, _LABELS, strict=True)]
