"""Figure 2: the attention of each head on the first positions of a text."""

from __future__ import annotations

from functools import partial
from itertools import product
from typing import TYPE_CHECKING

import numpy as np

from sllm_jax.common.errors import SllmError
from sllm_jax.common.plot import WIDTH, Plot
from sllm_jax.common.progress import Progress
from sllm_jax.common.result_table import Table
from sllm_jax.evaluate.attention_map import FIRST, attention_maps, attention_on_first, first_query, uniform_mass
from sllm_jax.reproduce.experiment_inputs import ExperimentInputs
from sllm_jax.reproduce.report import Report, Work, name_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Normalize
    from matplotlib.figure import FigureBase

LONGEST = 4096  # limit on the tokens of a window; attention is quadratic in it
_PAIRS = 2**27  # limit on the pairs of queries and keys in all windows: 8 windows of 4,096 tokens
_MAPS, _BRIGHTEST = 8, 0.5  # limit on the layers and heads drawn; probability of the brightest colour
_NUMBERS = (12, 8)  # layers and heads up to which the cells of a heat map have room for numbers
_GAMMA = 0.5  # exponent of the colour scale for probabilities
_LUMINANCE = (0.299, 0.587, 0.114)  # weights of red, green and blue


def plan(inputs: ExperimentInputs) -> Work:
    """Cut the text into windows of one trained context; the work measures the attention on the first 4 positions.

    Of long windows a sample is measured, so that no text takes hours.
    """
    windows = _windows(inputs, min(inputs.context, LONGEST))
    chosen = _evenly(len(windows), max(1, _PAIRS // windows.shape[1] ** 2))
    return partial(_run, inputs, windows[chosen], len(windows))


def _run(inputs: ExperimentInputs, windows: np.ndarray, whole: int, progress: Progress) -> Report:
    length = windows.shape[1]
    sample = "" if whole == len(windows) else f", evenly spaced among {whole}"
    mass, logits = attention_on_first(inputs.model, windows, progress)  # [L, H, 4], [L, H, 5]
    on_first, difference = mass.sum(-1), logits[..., 0] - logits[..., FIRST]  # [L, H]
    uniform = uniform_mass(length) * FIRST
    settings = inputs.settings() | {
        "windows": f"{len(windows)} of {length} tokens{sample}, each read independently with dense causal attention",
        "start tokens of each window": ", ".join(map(str, inputs.start_tokens())) or "none",
        "queries": f"positions {first_query(length)} to {length - 1} of each window (the second half)",
        "mass": "probability after the softmax, mean over queries and windows",
        "logit": f"scaled score before the softmax; the rest: mean over the visible positions from {FIRST} on; "
        "none where a sliding window hides position 0 from all queries",
        "uniform": f"mean of {FIRST} / (t + 1) over the query positions t",
    }
    return Report(
        title="fig2: attention on the first positions",
        tables=[_layer_table(mass, logits, uniform)],
        settings=settings,
        figures=_head_table(mass, logits),
        draw=lambda figure: _draw(figure, on_first, difference, uniform),
    )


def maps(inputs: ExperimentInputs, length: int = 16) -> Plot:
    """Mean attention maps of the heads, over the text cut into windows of `length` tokens.

    The maps show probabilities; the paper shows logits. At most 8 layers and 8 heads are drawn, evenly spaced. Raises
    `SllmError` if `length` exceeds the trained context, or the text is shorter than one window.
    """
    found = attention_maps(inputs.model, _windows(inputs, length))  # [L, H, T, T]
    layers, heads = (_evenly(count, _MAPS) for count in found.shape[:2])

    def draw(figure: FigureBase) -> None:
        from matplotlib.colors import PowerNorm

        panels = figure.subplots(len(layers), len(heads), sharex=True, sharey=True, squeeze=False)
        for axes, (layer, head) in zip(panels.flat, product(layers, heads), strict=True):
            seen = np.where(np.tri(length, dtype=bool), found[layer, head], np.nan)
            image = axes.imshow(seen, cmap="viridis", norm=PowerNorm(_GAMMA, 0, _BRIGHTEST))
            axes.set_title(f"layer {layer}, head {head}", fontsize=10 if len(heads) <= 4 else 7)
        figure.colorbar(image, ax=panels, label="Attention (probability)", extend="max")
        figure.supxlabel("Position attended to", fontsize=12)
        figure.supylabel("Position of the query", fontsize=12)

    return Plot(draw, 1.2 + WIDTH / (len(heads) + 1) * len(layers), name_of(inputs.names))


def _evenly(count: int, most: int) -> list[int]:
    """Up to `most` evenly spaced numbers below `count`, including the first and the last."""
    return sorted({round(x) for x in np.linspace(0, count - 1, min(count, most))})


def _windows(inputs: ExperimentInputs, length: int) -> np.ndarray:
    """The text cut into full windows [B, T], each beginning with the tokenizer's start tokens."""
    start, ids = inputs.start_tokens(), inputs.text_tokens()
    taken = length - len(start)
    if taken < 1 or length > inputs.context:
        raise SllmError(f"a window must have {len(start) + 1} to {inputs.context} tokens; got {length}")
    count = len(ids) // taken
    if count == 0:
        raise SllmError(f"fig2 needs a text of at least one window, {taken} tokens; got {len(ids)}")
    cut = ids[: count * taken].reshape(count, taken)
    return np.concatenate([np.tile(start, (count, 1)), cut], axis=1)


def _layer_table(mass: np.ndarray, logits: np.ndarray, uniform: float) -> Table:
    columns = ["layer", "mass on position 0", f"mass on the first {FIRST}", "of its strongest head", "uniform"]
    columns += ["logit of position 0", "logit of the rest", "difference"]
    rows: list[list[str | float | None]] = []
    for layer in [*range(len(mass)), slice(None)]:
        on_first = mass[layer].sum(-1)
        of_position_0, of_rest = logits[layer][..., 0], logits[layer][..., FIRST]
        seen = np.isfinite(of_position_0)  # by some query; elsewhere a sliding window hides it
        scores: list[float | None] = [None, float(of_rest.mean()), None]
        if seen.any():
            first, rest = float(of_position_0[seen].mean()), float(of_rest[seen].mean())
            scores = [first, rest, first - rest]
        masses = (mass[layer][..., 0].mean(), on_first.mean(), on_first.max(), uniform)
        rows.append([str(layer) if isinstance(layer, int) else "all", *map(float, masses), *scores])
    return Table(columns, rows)


def _head_table(mass: np.ndarray, logits: np.ndarray) -> Table:
    columns = ["layer", "head", *(f"mass_{i}" for i in range(FIRST)), *(f"logit_{i}" for i in range(FIRST))]
    # A position that a sliding window hides from all queries has no logit.
    shown = logits.astype(object)
    shown[~np.isfinite(logits)] = None
    rows = [
        [*index, *mass[index], *shown[index][:FIRST], mass[index].sum(), shown[index][FIRST]]
        for index in np.ndindex(mass.shape[:2])
    ]
    return Table([*columns, f"mass_first{FIRST}", "mean_logit_rest"], rows)


def _draw(figure: FigureBase, on_first: np.ndarray, difference: np.ndarray, uniform: float) -> None:
    """Probabilities on a power scale, which separates small values; differences on a scale centred at 0."""
    from matplotlib.colors import CenteredNorm, PowerNorm

    left, right = figure.subplots(1, 2, sharey=True)
    title = f"Attention on the first {FIRST} positions\n(uniform: {uniform:.3g})"
    _heat_map(figure, left, on_first, title, "viridis", PowerNorm(_GAMMA, 0, 1), 2)
    halfrange = max(float(np.abs(difference).max(initial=0, where=np.isfinite(difference))), 1e-6)
    title = "Logit of position 0\nabove the mean of the rest"
    _heat_map(figure, right, difference, title, "RdBu_r", CenteredNorm(0, halfrange), 1)
    left.set(ylabel="Layer")


def _heat_map(
    figure: FigureBase, axes: Axes, values: np.ndarray, title: str, colours: str, norm: Normalize, digits: int
) -> None:
    """A heat map of values [L, H], with numbers where they fit."""
    from matplotlib import colormaps
    from matplotlib.ticker import MaxNLocator

    image = axes.imshow(values, cmap=colours, norm=norm, aspect="auto")
    figure.colorbar(image, ax=axes)
    axes.set(title=title, xlabel="Head")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))
    if values.shape[0] > _NUMBERS[0] or values.shape[1] > _NUMBERS[1]:
        return
    for layer, head in np.argwhere(np.isfinite(values)):
        value = values[layer, head]
        brightness = np.dot(colormaps[colours](norm(value))[:3], _LUMINANCE)
        colour = "black" if brightness > 0.5 else "white"
        axes.text(head, layer, f"{value:.{digits}f}", ha="center", va="center", color=colour, fontsize=8)
