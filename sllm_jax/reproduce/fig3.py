"""Figure 3: log perplexity along a long text with dense, window and streaming caches, and with re-computation.

In this file, an nll array [T - 1] is NaN where a mode was not evaluated.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from sllm_jax.common.errors import SllmError
from sllm_jax.common.progress import Progress
from sllm_jax.common.result_table import Table
from sllm_jax.evaluate.perplexity import bits_per_byte
from sllm_jax.reproduce.experiment_inputs import ExperimentInputs
from sllm_jax.reproduce.passes import EvaluationPass, fresh_pass, nll_of_passes, perplexity_of, recompute_stride
from sllm_jax.reproduce.report import Report, Work
from sllm_jax.text.tokenizer import decode_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import FigureBase

DENSE_CONTEXTS = 4  # default length of dense attention, in trained contexts
_SMOOTHED = 25  # a curve is a running mean over 1/25 of its axis
_POINTS = 1500  # limit on the points of a curve
_LINES: dict[
    str, dict[str, Any]
] = {  # wide lines below narrow ones, so that equal curves all show; distinct in greyscale
    "recompute": {"color": "#E69F00", "linestyle": "-", "linewidth": 5},
    "streaming": {"color": "#00487A", "linestyle": "-", "linewidth": 2.2},
    "window": {"color": "#E8743B", "linestyle": (0, (4, 3)), "linewidth": 1.4},
    "dense": {"color": "#000000", "linestyle": (0, (1, 1.2)), "linewidth": 1.8},
}


def plan(inputs: ExperimentInputs) -> Work:
    """Check the inputs; the work computes the nll of every token in each mode, at one total cache size."""
    ids = np.concatenate([inputs.start_tokens(), inputs.text_tokens()])
    context, count, options = inputs.context, len(ids) - 1, inputs.options
    if count <= context:
        raise SllmError(f"fig3 needs a text longer than the trained context, {context} tokens; got {count}")
    start_size, recent_size = inputs.sizes
    cache_size = start_size + recent_size
    passes = {
        "dense": EvaluationPass(
            "dense", 0, cache_size, min(options.dense_tokens or DENSE_CONTEXTS * context, count), before=()
        ),
        "window": EvaluationPass("window", 0, cache_size, before=()),
        "streaming": EvaluationPass("streaming", start_size, recent_size, before=()),
        "recompute": EvaluationPass(
            "recompute", start_size, recent_size, stride=recompute_stride(options, count), before=()
        ),
    }
    inputs.check_memory(0, passes["dense"].tokens or count)
    return partial(_run, inputs, ids, passes)


def _run(inputs: ExperimentInputs, ids: np.ndarray, passes: dict[str, EvaluationPass], progress: Progress) -> Report:
    nll, context, count = nll_of_passes(inputs, ids, passes, progress), inputs.context, len(ids) - 1
    start_size, recent_size = passes["streaming"].start_size, passes["streaming"].recent_size
    settings = inputs.settings() | {
        "predicted": f"{count} tokens",
        "streaming": f"{start_size} + {recent_size} tokens kept; a step also attends to its own token",
        "window": f"0 + {start_size + recent_size} tokens kept, no sinks",
        "recompute": f"{fresh_pass(inputs, start_size + recent_size)}; one token in {passes['recompute'].stride}, "
        "so compare it on the same tokens; its curve is that of streaming plus their mean difference on these",
        "dense": f"everything kept; only the first {passes['dense'].tokens} tokens",
        "past the trained context": f"tokens with more than {context} tokens before them",
    }
    return Report(
        title="fig3: perplexity along a long text",
        tables=[
            _mode_table(nll, context, _token_bytes(inputs, ids, passes)),
            _same_tokens_table(nll, context, "recompute"),
            _same_tokens_table(nll, context, "dense"),
        ],
        settings=settings,
        figures=_token_table(nll),
        draw=lambda figure: _draw(figure, nll, context),
    )


def _token_bytes(inputs: ExperimentInputs, ids: np.ndarray, passes: dict[str, EvaluationPass]) -> dict[str, float]:
    """The UTF-8 bytes per token of the text that each mode predicts."""
    ends = {mode: one_pass.tokens or len(ids) - 1 for mode, one_pass in passes.items()}
    return {mode: len(decode_text(inputs.tokenizer, ids[1 : end + 1]).encode()) / end for mode, end in ends.items()}


def _mode_table(nll: dict[str, np.ndarray], context: int, token_bytes: dict[str, float]) -> Table:
    columns = ("mode", "tokens evaluated", "perplexity", "perplexity past the trained context", "bits per byte")
    rows = []
    for mode, values in nll.items():
        whole = perplexity_of(values)
        bits = None if whole is None else bits_per_byte(np.log(whole), token_bytes[mode])
        rows.append((mode, int(np.isfinite(values).sum()), whole, perplexity_of(values[context:]), bits))
    return Table(columns, rows)


def _same_tokens_table(nll: dict[str, np.ndarray], context: int, reference: str) -> Table:
    """Streaming and window compared with `reference`, on the tokens that `reference` was evaluated on."""
    sampled = np.isfinite(nll[reference])
    past = sampled & (np.arange(len(sampled)) >= context)
    rows: list[list[str | int | float | None]] = []
    for mode in (reference, "streaming", "window"):
        row: list[str | int | float | None] = [mode]
        for chosen in (sampled, past):
            found = perplexity_of(nll[mode][chosen])
            row += [int(chosen.sum()), found, *_ratio(nll[mode][chosen] - nll[reference][chosen])]
        rows.append(row)
    columns = ("on the same tokens", "tokens", "perplexity", f"ratio to {reference}", "95% interval of the ratio")
    return Table((*columns, *(f"{column}, past the trained context" for column in columns[1:])), rows)


def _ratio(difference: np.ndarray) -> tuple[float | None, str]:
    """The ratio of two perplexities and its 95% interval, from the difference of the nll of each token.

    The interval takes the tokens as independent, with a normal distribution of their mean.
    """
    if not len(difference):
        return None, ""
    mean = float(difference.mean())
    if len(difference) < 2 or not difference.any():
        return float(np.exp(mean)), ""
    error = 1.96 * float(difference.std(ddof=1)) / np.sqrt(len(difference))
    return float(np.exp(mean)), f"{np.exp(mean - error):#.4g} to {np.exp(mean + error):#.4g}"


def _token_table(nll: dict[str, np.ndarray]) -> Table:
    """One row per token; `position` is its index in the stream, which is the number of tokens before it."""
    columns = [[None if np.isnan(x) else x for x in values.tolist()] for values in nll.values()]
    return Table(["position", *nll], [[i + 1, *row] for i, row in enumerate(zip(*columns, strict=True))])


def _draw(figure: FigureBase, nll: dict[str, np.ndarray], context: int) -> None:
    """Two panels: the beginning, up to some trained contexts, and the whole text."""
    from matplotlib.ticker import MaxNLocator

    count, beginning = len(nll["window"]), DENSE_CONTEXTS * context
    panels = figure.subplots(1, 2 if count > beginning else 1, sharey=True, squeeze=False)[0]
    for axes, end in zip(panels, (min(beginning, count), count), strict=False):
        _draw_curves(axes, nll, end)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.axvline(context, color="0.35", linewidth=1, label=f"trained context: {context}")
        axes.set(xlim=(0, end), xlabel="Tokens read")
    panels[0].set(ylabel="Log perplexity (nats)")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=2, fontsize=10)


def _draw_curves(axes: Axes, nll: dict[str, np.ndarray], end: int) -> None:
    """Running means, from the first full span on; gaps where a mode was not evaluated."""
    span = max(1, end // _SMOOTHED)
    for mode, line in _LINES.items():
        curve = smoothed(nll, mode, span)[:end]
        at = np.arange(span - 1, len(curve), max(1, len(curve) // _POINTS))
        axes.plot(at + 1, curve[at], label=_label(nll, mode), **line)
    axes.set_title(f"mean over the last {span} tokens", fontsize=10)


def _label(nll: dict[str, np.ndarray], mode: str) -> str:
    """The mean of a mode, and the number of its tokens if it did not read the whole text."""
    whole, evaluated = smoothed(nll, mode, len(nll[mode])), np.isfinite(nll[mode])
    tokens = "" if evaluated.all() else f" ({evaluated.sum()} tokens)"
    return f"{mode}: mean {whole[np.isfinite(whole)][-1]:.3f}{tokens}"


def smoothed(nll: dict[str, np.ndarray], mode: str, span: int) -> np.ndarray:
    """The running mean of a mode's nll [T - 1]; NaN where it was not evaluated.

    Re-computation is evaluated on a sample of tokens, which may be easier or harder than the others. To cancel this,
    its curve is that of streaming plus the mean difference of the two over the sampled tokens of the span.
    """
    if mode != "recompute":
        return np.where(np.isfinite(nll[mode]), running_mean(nll[mode], span), np.nan)
    return running_mean(nll["streaming"], span) + running_mean(nll["recompute"] - nll["streaming"], span)


def running_mean(values: np.ndarray, span: int) -> np.ndarray:
    """The mean of the last `span` values at each index, ignoring NaN; NaN if all of them are."""
    present = np.isfinite(values)
    sums, counts = (_last_sums(x, span) for x in (np.where(present, values, 0.0), present.astype(float)))
    return np.divide(sums, counts, out=np.full(len(values), np.nan), where=counts > 0)


def _last_sums(values: np.ndarray, span: int) -> np.ndarray:
    """The sum of the last `span` values at each index, as a difference of two cumulative sums."""
    total = np.concatenate([np.zeros(span), np.cumsum(values)])
    return total[span:] - total[:-span]
