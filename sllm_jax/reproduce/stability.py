"""Figure 5: perplexity, memory and speed along a text of millions of tokens."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING

import jax
import numpy as np
import psutil

from sllm_jax.common.progress import Progress
from sllm_jax.common.result_table import Table
from sllm_jax.evaluate.perplexity import CHUNK_SIZE, perplexity, token_nll
from sllm_jax.reproduce.experiment_inputs import ExperimentInputs
from sllm_jax.reproduce.passes import check_longer, total_cache
from sllm_jax.reproduce.report import Report, Work

if TYPE_CHECKING:
    from matplotlib.figure import FigureBase

STRETCHES = 100  # parts of the text, one row each
_COLUMNS = ("tokens", "perplexity", "running_perplexity", "tokens_per_second", "resident_mb", "device_mb")


def plan(inputs: ExperimentInputs) -> Work:
    """Check the inputs; the work reads the text in one stream and measures each hundredth of it."""
    text = inputs.text_tokens()
    check_longer(inputs, text, total_cache(inputs, inputs.options.start_size + 1))
    return partial(_run, inputs, np.concatenate([inputs.start_tokens(), text]))


def _run(inputs: ExperimentInputs, ids: np.ndarray, progress: Progress) -> Report:
    start_size, recent_size = inputs.sizes
    sizes = ("streaming", start_size, recent_size)
    next(token_nll(inputs.model, ids, *sizes))  # compiles
    count = len(ids) - 1
    rows: list[tuple] = []
    done, nats, done_before, nats_before, since = 0, 0.0, 0, 0.0, time.perf_counter()
    for piece in token_nll(inputs.model, ids, *sizes):
        done, nats = done + len(piece), nats + float(piece.sum(dtype=np.float64))
        progress(done, count)
        if done < count * (len(rows) + 1) // STRETCHES:
            continue
        now, added = time.perf_counter(), done - done_before
        found = np.exp((nats - nats_before) / added), np.exp(nats / done)
        rows.append((done, *map(float, found), added / (now - since), *_memory()))
        done_before, nats_before, since = done, nats, now
    return Report(
        title="stability: a stream of millions of tokens",
        tables=[_summary(rows)],
        settings=inputs.settings()
        | {
            "predicted": f"{count} tokens in one stream, {CHUNK_SIZE} at a time",
            "cache": f"{start_size} + {recent_size} tokens kept; a step also attends to its own token",
            "memory": "resident memory of the process, and memory of its arrays on an accelerator",
        },
        figures=Table(_COLUMNS, rows),
        draw=lambda figure: _draw(figure, rows),
    )


def _memory() -> tuple[float, float | None]:
    """Resident memory of the process, and memory of its arrays on a device with separate memory, in MB."""
    statistics = jax.devices()[0].memory_stats()
    device = None if statistics is None else statistics["bytes_in_use"] / 2**20
    return psutil.Process().memory_info().rss / 2**20, device


def _summary(rows: list[tuple]) -> Table:
    """A table of the beginning, middle and end of the stream."""
    tenth = max(1, len(rows) // 10)
    middle = (len(rows) - tenth) // 2
    parts = {"first tenth": rows[:tenth], "middle": rows[middle : middle + tenth], "last tenth": rows[-tenth:]}
    chosen: list[list[str | float | None]] = []
    for name, part in parts.items():
        nll, speed = np.log([row[1] for row in part]), [row[3] for row in part]
        chosen.append([name, part[-1][0], perplexity(nll), float(np.median(speed)), part[-1][4], part[-1][5]])
    chosen.append(["all", rows[-1][0], rows[-1][2], float(np.median([row[3] for row in rows])), None, None])
    columns = ("part of the stream", "tokens, up to", "perplexity", "tokens/s", "resident memory (MB)")
    return Table((*columns, "device memory (MB)"), chosen)


def _draw(figure: FigureBase, rows: list[tuple]) -> None:
    """Three panels that share the axis of tokens: perplexity, speed, memory."""
    tokens = [row[0] / 1e6 for row in rows]
    top, middle, bottom = figure.subplots(3, 1, sharex=True)
    top.plot(tokens, [row[1] for row in rows], color="#9FB8C8", label="of each stretch")
    top.plot(tokens, [row[2] for row in rows], color="#00487A", linewidth=2, label="so far")
    top.legend(fontsize=9, ncols=2, loc="lower right")
    middle.plot(tokens, [row[3] for row in rows], color="#00487A")
    bottom.plot(tokens, [row[4] for row in rows], color="#00487A", label="process")
    if rows[0][5] is not None:
        bottom.plot(tokens, [row[5] for row in rows], color="#E8743B", linestyle="--", label="device")
        bottom.legend(fontsize=9)
    for axes, label in ((top, "Perplexity"), (middle, "Tokens/s"), (bottom, "Memory (MB)")):
        axes.set_ylabel(label, fontsize=10)
        axes.set_ylim(0, 1.1 * axes.dataLim.y1)
    bottom.set(xlabel="Tokens read (millions)", xlim=(0, None))
    figure.align_ylabels()
