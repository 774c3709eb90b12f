"""Tables 1, 2 and 6: perplexity of one text with different caches.

Every cache predicts the same tokens: all of the text except the first.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from sllm_jax.common.errors import SllmError
from sllm_jax.common.progress import Progress
from sllm_jax.common.result_table import Table
from sllm_jax.reproduce import paper
from sllm_jax.reproduce.experiment_inputs import ExperimentInputs
from sllm_jax.reproduce.passes import (
    EvaluationPass,
    check_longer,
    fresh_pass,
    nll_of_passes,
    perplexity_of,
    recompute_stride,
    total_cache,
)
from sllm_jax.reproduce.report import Report, Work
from sllm_jax.text.tokenizer import encode

if TYPE_CHECKING:
    from matplotlib.figure import FigureBase

SINK_COUNTS = (0, 1, 2, 4, 8)
PARTS = (8, 4, 2, 1)  # divisors of the largest cache, for table 6


def table1(inputs: ExperimentInputs) -> Work:
    """Whether the first tokens matter by content or position: sinks, line breaks instead, none, re-computation."""
    text, start_size = inputs.text_tokens(), inputs.options.start_size
    total = total_cache(inputs, start_size + 1)
    check_longer(inputs, text, total)
    window = total - start_size
    stride = recompute_stride(inputs.options, len(text) - 1)
    line_break = encode(inputs.tokenizer, "\n", start=False)[-1:].tolist()
    if not line_break:
        raise SllmError("table1 needs a token for a line break, and the tokenizer has none")
    passes = {
        f"0 + {total} (window)": EvaluationPass("window", 0, total),
        f"{start_size} + {window}": EvaluationPass("streaming", start_size, window),
        f'{start_size} "\\n" + {window}': EvaluationPass(
            "streaming", start_size, window, before=line_break * start_size
        ),
        "re-computation": EvaluationPass("recompute", start_size, window, stride=stride),
    }
    return partial(_table1, inputs, text, passes)


def _table1(
    inputs: ExperimentInputs, text: np.ndarray, passes: dict[str, EvaluationPass], progress: Progress
) -> Report:
    nll, start_size = nll_of_passes(inputs, text, passes, progress), inputs.options.start_size
    sampled = np.isfinite(nll["re-computation"])
    rows = [(name, int(np.isfinite(x).sum()), perplexity_of(x), perplexity_of(x[sampled])) for name, x in nll.items()]
    columns = ("cache", "tokens evaluated", "perplexity", "perplexity on the re-computed tokens")
    return Report(
        title="table1: the first tokens, line breaks instead, and none",
        tables=[Table(columns, rows), paper.TABLE1],
        settings=_settings(inputs, text)
        | {
            "line breaks": f"the text begins with {start_size} line-break tokens instead of its start tokens",
            "re-computation": f"{fresh_pass(inputs, sum(inputs.sizes))}, "
            f"for one token in {passes['re-computation'].stride}",
        },
        figures=Table(("cache", "tokens", "perplexity", "perplexity_on_recomputed"), rows),
        draw=lambda figure: _draw(figure, {row[0]: row[3] for row in rows}, "Perplexity on the re-computed tokens"),
    )


def table2(inputs: ExperimentInputs) -> Work:
    """The number of sinks, at one total cache size."""
    total = total_cache(inputs, SINK_COUNTS[-1] + 1)
    passes = [EvaluationPass("streaming", sinks, total - sinks) for sinks in SINK_COUNTS]
    return _plan_caches(inputs, "table2: the number of sinks, at one total cache size", passes, paper.TABLE2)


def table6(inputs: ExperimentInputs) -> Work:
    """The cache size up to the trained context, at one number of sinks."""
    start_size = inputs.options.start_size
    steps = total_cache(inputs, PARTS[0] * (start_size + 2)) + 1  # tokens that a step of the largest cache attends to
    passes = [EvaluationPass("streaming", start_size, steps // part - 1 - start_size) for part in PARTS]
    return _plan_caches(inputs, "table6: the size of the cache, at one number of sinks", passes, *paper.TABLE6)


def _plan_caches(inputs: ExperimentInputs, title: str, passes: list[EvaluationPass], *beside: Table) -> Work:
    """Plan one pass per cache; the paper's tables are shown beside the results."""
    text = inputs.text_tokens()
    check_longer(inputs, text, max(one_pass.start_size + one_pass.recent_size for one_pass in passes))
    return partial(_compare, inputs, title, text, passes, beside)


def _compare(
    inputs: ExperimentInputs,
    title: str,
    text: np.ndarray,
    passes: list[EvaluationPass],
    beside: tuple[Table, ...],
    progress: Progress,
) -> Report:
    nll = nll_of_passes(inputs, text, {one_pass.cache: one_pass for one_pass in passes}, progress)
    found = {name: perplexity_of(values) for name, values in nll.items()}
    figures = [(one_pass.start_size, one_pass.recent_size, found[one_pass.cache]) for one_pass in passes]
    return Report(
        title=title,
        tables=[Table(("cache", *found), [(inputs.names.get("model", "perplexity"), *found.values())]), *beside],
        settings=_settings(inputs, text),
        figures=Table(("start_size", "recent_size", "perplexity"), figures),
        draw=lambda figure: _draw(figure, found, "Perplexity"),
    )


def _settings(inputs: ExperimentInputs, text: np.ndarray) -> dict[str, str]:
    return inputs.settings() | {
        "predicted": f"{len(text) - 1} tokens, the same for every cache",
        "cache": "tokens kept, sinks + recent; a step also attends to its own token",
        "paper": paper.SOURCE,
    }


def _draw(figure: FigureBase, perplexities: Mapping[str, float | None], label: str) -> None:
    """A bar per cache, labelled with its perplexity."""
    axes = figure.subplots()
    bars = axes.barh([*perplexities], [value or 0.0 for value in perplexities.values()], color="#00487A")
    axes.bar_label(bars, fmt="%.4g", padding=4)
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set(xlabel=label, ylabel="Cache: sinks + recent tokens")
