"""Figure 10: time per token and memory of streaming against sliding-window re-computation, by the size of the cache.

Both write text greedily with the same model, in the same process and precision, from a full cache on, in compiled
programs that have run before; their blocks take turns, so that a busy machine slows both.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from sllm_jax.decode import NO_TOKEN, decode, init_carry, read
from sllm_jax.errors import SllmError
from sllm_jax.model import dense_logits
from sllm_jax.reproduce import paper
from sllm_jax.reproduce.report import Report, Table
from sllm_jax.reproduce.subject import Subject
from sllm_jax.sampling import sampling

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CACHES = (256, 512, 1024, 2048, 4096)  # tokens, sinks and window
ROUNDS = 5  # blocks of each side that are timed, in turns
BLOCK_SECONDS = 0.5  # that a block takes, about
_MOST_STEPS = 256


@dataclass(frozen=True)
class Side:
    """A compiled program that writes tokens: what it takes and gives, and how many bytes it needs."""

    write: Callable[[Any], Any]
    start: Any
    steps: int
    memory: int


def run(subject: Subject) -> Report:
    """The median time a token takes on either side, for each size of the cache."""
    start_size = subject.options.start_size
    if start_size >= CACHES[0]:
        raise SllmError(f"fig10 needs a start_size below its smallest cache, {CACHES[0]} tokens; got {start_size}")
    rows = []
    for i, cache in enumerate(CACHES):
        subject.progress(i, len(CACHES))
        sides = [_streaming(subject, start_size, cache - start_size), _recomputing(subject, cache + 1)]
        streaming, recomputing = _times(sides)
        memory = [side.memory / 2**20 for side in sides]
        rows.append((cache, 1e3 * streaming, 1e3 * recomputing, recomputing / streaming, *memory))
    columns = ("cache (tokens)", "streaming (ms a token)", "re-computation (ms a token)", "speed-up")
    table = Table((*columns, "streaming (MB)", "re-computation (MB)"), rows)
    return Report(
        title="fig10: streaming against sliding-window re-computation",
        tables=[table, paper.FIG10],
        settings=subject.settings()
        | {
            "streaming": f"{start_size} sinks and a window, full; a step attends to one token more than the cache",
            "re-computation": "for each token a fresh forward pass over as many tokens as a step of streaming sees",
            "time": f"median of {ROUNDS} blocks each, in turns, after a first one that is not counted; greedy, batch 1",
            "memory": "arguments, results and temporary buffers of the compiled program, parameters included",
            "paper": paper.SOURCE,
        },
        figures=table,
        draw=lambda figure: _draw(figure, rows),
    )


def _streaming(subject: Subject, start_size: int, recent_size: int) -> Side:
    """`decode` from a full cache on."""
    module, params = subject.model.module, subject.model.params
    carry = read(
        module, params, init_carry(module, start_size, recent_size), _tokens(subject, start_size + recent_size)
    )
    rest = (sampling(), np.array([NO_TOKEN], np.int32), np.int32(_MOST_STEPS))

    def side(steps: int) -> Side:
        program = decode.lower(module, params, carry, *rest, steps=steps).compile()
        return Side(lambda carry: program(params, carry, *rest)[0], carry.copy(), steps, _memory(program))

    return _of_block_length(side)


def _recomputing(subject: Subject, width: int) -> Side:
    """A forward pass over the last `width` tokens for each new one."""
    module, params = subject.model.module, subject.model.params
    tokens = jnp.asarray(_tokens(subject, width))

    def side(steps: int) -> Side:
        program = _recompute.lower(module, params, tokens, steps=steps).compile()
        return Side(lambda tokens: program(params, tokens), tokens.copy(), steps, _memory(program))

    return _of_block_length(side)


@partial(jax.jit, static_argnames=("module", "steps"), donate_argnames="tokens")
def _recompute(module: Any, params: Any, tokens: Int[Array, " W"], steps: int) -> Int[Array, " W"]:
    """Write `steps` tokens, each from a fresh pass over the last W; the last W then."""

    def step(tokens: Int[Array, " W"], _: None) -> tuple[Int[Array, " W"], None]:
        token = dense_logits(module, params, tokens, -1).argmax().astype(jnp.int32)
        return jnp.append(tokens[1:], token), None

    return jax.lax.scan(step, tokens, None, length=steps)[0]


def _of_block_length(side: Callable[[int], Side]) -> Side:
    """The side with as many steps a call as take about `BLOCK_SECONDS`."""
    one = side(1)
    carry = jax.block_until_ready(one.write(one.start))
    begin = time.perf_counter()
    jax.block_until_ready(one.write(carry))
    steps = int(BLOCK_SECONDS / (time.perf_counter() - begin))
    return side(min(max(steps, 1), _MOST_STEPS))


def _times(sides: list[Side]) -> list[float]:
    """The median seconds a token of each side, whose blocks take turns."""
    states, times = [side.start for side in sides], np.zeros((ROUNDS + 1, len(sides)))
    for i in range(ROUNDS + 1):
        for j, side in enumerate(sides):
            begin = time.perf_counter()
            states[j] = jax.block_until_ready(side.write(states[j]))
            times[i, j] = (time.perf_counter() - begin) / side.steps
    return np.median(times[1:], axis=0).tolist()


def _tokens(subject: Subject, count: int) -> np.ndarray:
    """Tokens [N] to begin with: what they are changes no time."""
    return np.random.default_rng(subject.options.seed).integers(0, subject.model.config.vocab_size, count, np.int32)


def _memory(program: Any) -> int:
    """Bytes that a compiled program needs."""
    found = program.memory_analysis()
    needed = found.argument_size_in_bytes + found.output_size_in_bytes + found.temp_size_in_bytes
    return needed - found.alias_size_in_bytes


def _draw(figure: Figure, rows: list[tuple[float, ...]]) -> None:
    from matplotlib.ticker import LogFormatter

    caches = [row[0] for row in rows]
    left, right = figure.subplots(1, 2)
    for axes, first, label in ((left, 1, "Time per token (ms)"), (right, 4, "Memory (MB)")):
        axes.plot(caches, [row[first] for row in rows], "o-", color="#00487A", label="streaming")
        axes.plot(caches, [row[first + 1] for row in rows], "s--", color="#E8743B", label="re-computation")
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        for formatter in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
            formatter(LogFormatter(minor_thresholds=(1.5, 0.5)))
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
