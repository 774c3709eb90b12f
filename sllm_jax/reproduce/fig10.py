"""Figure 10: time per token and memory of streaming and of sliding-window re-computation, by cache size.

Both decode greedily with the same model, process and precision, starting from a full cache, in compiled and warmed-up
programs. Their calls alternate, so that load on the machine affects both.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from sllm_jax.benchmark.programs import recompute_program, seconds_per_step, streaming_program
from sllm_jax.common.errors import SllmError
from sllm_jax.common.progress import Progress
from sllm_jax.common.result_table import Table
from sllm_jax.reproduce import paper
from sllm_jax.reproduce.experiment_inputs import ExperimentInputs
from sllm_jax.reproduce.report import Report, Work

if TYPE_CHECKING:
    from matplotlib.figure import FigureBase

CACHES = (256, 512, 1024, 2048, 4096)  # default total sizes: sinks and window, in tokens
ROUNDS = 5  # timed calls of each program


def plan(inputs: ExperimentInputs) -> Work:
    """Check the cache sizes; the work measures the median time per token of both programs for each size."""
    start_size, caches = inputs.options.start_size, sorted(set(inputs.options.cache_sizes or CACHES))
    if start_size >= caches[0]:
        raise SllmError(f"fig10 needs a start_size below its smallest cache, {caches[0]} tokens; got {start_size}")
    inputs.check_memory(start_size, caches[-1] - start_size)
    return partial(_run, inputs, caches)


def _run(inputs: ExperimentInputs, caches: list[int], progress: Progress) -> Report:
    model, start_size, seed = inputs.model, inputs.options.start_size, inputs.options.seed
    rows = []
    for i, cache in enumerate(caches):
        progress(i, len(caches))
        programs = [
            streaming_program(model, start_size, cache - start_size, seed=seed),
            recompute_program(model, cache + 1, seed),
        ]
        fast, slow = np.median(seconds_per_step(programs, ROUNDS), axis=0).tolist()
        rows.append((cache, 1e3 * fast, 1e3 * slow, slow / fast, *(program.memory / 2**20 for program in programs)))
    columns = ("cache (tokens)", "streaming (ms per token)", "re-computation (ms per token)", "speed-up")
    table = Table((*columns, "streaming (MB)", "re-computation (MB)"), rows)
    return Report(
        title="fig10: streaming against sliding-window re-computation",
        tables=[table, paper.FIG10],
        settings=inputs.settings()
        | {
            "streaming": f"{start_size} sinks and a window, full; a step attends to one more token than the cache",
            "re-computation": "for each token a fresh forward pass over as many tokens as a streaming step attends to",
            "time": f"median of {ROUNDS} alternating calls each, after a warm-up call; greedy, batch size 1",
            "memory": "arguments, results and temporary buffers of the compiled program, including parameters",
            "paper": paper.SOURCE,
        },
        figures=table,
        draw=lambda figure: _draw(figure, rows),
    )


def _draw(figure: FigureBase, rows: list[tuple[float, ...]]) -> None:
    from matplotlib.ticker import LogFormatter, StrMethodFormatter

    caches = [row[0] for row in rows]
    left, right = figure.subplots(1, 2)
    for axes, first, label in ((left, 1, "Time per token (ms)"), (right, 4, "Memory (MB)")):
        axes.plot(caches, [row[first] for row in rows], "o-", color="#00487A", label="streaming")
        axes.plot(caches, [row[first + 1] for row in rows], "s--", color="#E8743B", label="re-computation")
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1.5, 0.5)))
        axes.set_xticks(caches, [f"{cache:.0f}" for cache in caches], rotation=45)
        axes.set(xlabel="Cache (tokens)", ylabel=label)
    for cache, row in zip(caches, rows, strict=True):
        left.annotate(
            f"{row[3]:.0f}x" if row[3] >= 10 else f"{row[3]:.1f}x",
            (cache, row[2]),
            (0, 6),
            textcoords="offset points",
            ha="center",
            fontsize=9,
        )
    left.margins(x=0.12, y=0.15)
    figure.legend(*left.get_legend_handles_labels(), loc="outside upper center", ncols=2)
