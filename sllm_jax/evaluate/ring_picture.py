"""Pictures of the ring: the contents of its slots, and the rotations of keys and query.

Everything is read from the state of one stream. Axis letters as in `kv_state.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from sllm_jax.common.plot import Plot
from sllm_jax.core.attention import plan, query_rotations
from sllm_jax.core.kv_state import KVState, cache_order, live

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import FigureBase
    from matplotlib.patches import Patch

EMPTY, SINK, THIS_LAP, PREVIOUS_LAP = range(4)
_COLOURS = ("#FFFFFF", "#00487A", "#F3C9A8", "#D97B2E")  # distinct in greyscale too
_INK = ("black", "white", "black", "black")
_LABELS = ("empty or evicted", "sink", "window, this lap", "window, the lap before")


class Slots(NamedTuple):
    """The contents of the C slots of a state."""

    kind: np.ndarray  # [C]: EMPTY, SINK, THIS_LAP or PREVIOUS_LAP
    token_id: np.ndarray  # [C]
    position: np.ndarray  # [C]: cache position, -1 for slots that are not live


def slots(state: KVState) -> Slots:
    """The contents of the slots between two calls."""
    ring = state.ring
    slot, filled = np.arange(ring.slots), int(ring.filled)
    # Inverse of the cache order: slot -> cache position.
    position = np.full(ring.slots, -1)
    position[np.asarray(cache_order(ring))[:filled]] = np.arange(filled)
    # Slots after the next one to be written belong to the previous lap.
    kind = np.where(slot < ring.start_size, SINK, np.where(slot > int(ring.next_slot), PREVIOUS_LAP, THIS_LAP))
    is_live = np.asarray(live(ring))[: ring.slots]
    return Slots(np.where(is_live, kind, EMPTY), np.asarray(state.token_ids)[: ring.slots], position)


def steps(states: Mapping[int | str, KVState], text_of: Callable[[int], str]) -> Plot:
    """A plot with a row per state, labelled with the number of tokens read, and a column per slot.

    A cell shows the text of its token and, below, its cache position. A frame marks the slot of the next token.
    """

    def draw(figure: FigureBase) -> None:
        axes = figure.subplots()
        for row, state in enumerate(states.values()):
            _draw_slots(axes, row, slots(state), text_of)
            axes.plot(int(state.ring.next_slot), row, "s", markersize=15, fillstyle="none", color="black")
        columns = max(state.ring.slots for state in states.values())
        axes.set(xlim=(-0.6, columns - 0.4), ylim=(len(states) - 0.4, -0.6), xlabel="Slot", ylabel="Tokens read")
        axes.set_xticks(range(columns))
        axes.set_yticks(range(len(states)), list(map(str, states)))
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        frame = axes.plot([], [], "s", markersize=9, fillstyle="none", color="black", label="next token")
        figure.legend(handles=[*_patches(), *frame], loc="outside upper center", ncols=3, fontsize=10)

    return Plot(draw, height=1.5 + 0.42 * len(states))


def rotations(state: KVState) -> Plot:
    """A plot of the rotations at the next token: of each key when it was written, and of the query that scores it.

    The number above each pair is their difference, which is the distance in cache positions.
    """
    # Rotations of the query, and for each slot the index of the one that scores it.
    numbers, way = query_rotations(state.ring, plan(state.ring, 1, jnp.int32(1)))
    query = np.asarray(numbers[way])[: state.ring.slots]  # [C]
    # The slot of the next token counts as written, since a token attends to itself.
    kind = slots(state).kind
    itself = int(state.ring.next_slot)
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
