"""The benchmark of one model on this machine: decoding, prefill, start-up, memory."""

from __future__ import annotations

import itertools
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sllm_jax.benchmark.limit import PROBE_BYTES, bytes_per_step, probes
from sllm_jax.benchmark.programs import Program, random_tokens, seconds_per_step, streaming_program
from sllm_jax.common.errors import SllmError
from sllm_jax.common.progress import Progress, silent
from sllm_jax.common.result_table import Table
from sllm_jax.common.version import __version__
from sllm_jax.core.decode import CHUNK_SIZES, NO_TOKEN, decode, extend, init_carry, prefill
from sllm_jax.core.memory import bytes_of, free_memory
from sllm_jax.core.model import Model
from sllm_jax.core.sampling import sampling

PROMPT = 128  # tokens of the prompt when the time to the first token is measured


@dataclass(frozen=True)
class BenchmarkSettings:
    """The settings of a benchmark: cache sizes, batch sizes (numbers of streams), timed calls of each, and seed.

    `streams` None measures 1, 2, 4, ... streams until memory is full.
    """

    start_size: int
    recent_size: int
    streams: Sequence[int] | None = (1,)
    rounds: int = 7
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises `SllmError` for invalid values."""
        if self.streams is not None and min(self.streams, default=0) < 1:
            raise SllmError(f"streams must be 1 or more; got {', '.join(map(str, self.streams)) or 'none'}")
        if self.rounds < 1:
            raise SllmError(f"rounds must be 1 or more; got {self.rounds}")


@dataclass(frozen=True)
class Results:
    """The results of a benchmark: plain data for JSON, and tables."""

    about: dict[str, Any]
    decode: list[dict[str, float]]
    prefill: list[dict[str, float]]
    start: dict[str, float]

    def as_json(self) -> dict[str, Any]:
        """All figures as one JSON object; units are part of the names."""
        return {**self.about, "decode": self.decode, "prefill": self.prefill, "start": self.start}

    def tables(self) -> list[Table]:
        """Tables of the environment, decoding, prefill, and start-up."""
        about = [(name.replace("_", " "), value) for name, value in self.about.items()]
        return [Table(("about", "value"), about), _rows(self.decode), _rows(self.prefill), _rows([self.start])]


def run_benchmark(
    model: Model, settings: BenchmarkSettings, load_seconds: float, progress: Progress = silent
) -> Results:
    """Measure the time to the first token (first, while programs are not compiled), prefill by chunk, and decoding.

    `load_seconds` is copied to the results. `progress` is called as progress(measurements done, measurements).
    """
    total = 2 + len(settings.streams or (1,))
    progress(0, total)
    start = _start(model, settings, load_seconds)
    progress(1, total)
    prefill = _prefill(model, settings)
    progress(2, total)
    start["peak_memory_mb"] = _peak_memory() / 2**20
    found, probed = [], []
    for streams, program in _numbers_of_streams(model, settings):
        seconds = seconds_per_step([program, *probes()], settings.rounds)
        found.append(decode_figures(model, settings, streams, program, seconds))
        probed.append(PROBE_BYTES / seconds[:, 1:])
        progress(2 + len(found), max(total, 2 + len(found)))
    copy, read = np.median(np.concatenate(probed), axis=0).tolist()
    return Results(_about(model, settings, {"copy": copy, "read": read}), found, prefill, start)


def _numbers_of_streams(model: Model, settings: BenchmarkSettings) -> Iterator[tuple[int, Program]]:
    """Yield each number of streams with its program; with `streams` None, until memory is full."""
    sizes, needed = (settings.start_size, settings.recent_size), 0
    for streams in settings.streams or (2**i for i in itertools.count()):
        if settings.streams is None and needed > free_memory():
            return
        try:
            program = streaming_program(model, *sizes, streams, settings.seed)
        except jax.errors.JaxRuntimeError as error:
            if settings.streams is None and streams > 1:
                return
            raise SllmError(f"not enough memory for {streams} streams; give fewer, or a smaller recent_size") from error
        yield streams, program
        one = bytes_of(jax.eval_shape(lambda: init_carry(model, *sizes)))  # the state that is repeated for all streams
        needed = one + 2 * max(program.memory - bytes_of(model.params), 0)  # estimate for twice as many streams
        del program


def decode_figures(
    model: Model, settings: BenchmarkSettings, streams: int, program: Program, seconds: np.ndarray
) -> dict[str, float]:
    """The figures of decoding; `seconds` [rounds, 3] are those of a step, a memory copy and a memory read."""
    step = float(np.median(seconds[:, 0]))
    needed = bytes_per_step(model, settings.start_size, settings.recent_size, streams)
    # Bandwidth of decoding divided by the bandwidth of each probe in the same round, then the median over rounds.
    of_copy, of_read = np.median(needed / seconds[:, :1] / (PROBE_BYTES / seconds[:, 1:]), axis=0).tolist()
    return {
        "streams": streams,
        "ms_per_step": 1e3 * step,
        "tokens_per_second": streams / step,
        "mb_read_per_step": needed / 2**20,
        "gb_per_second": needed / step / 1e9,
        "fraction_of_read_bandwidth": of_read,
        "fraction_of_copy_bandwidth": of_copy,
        "program_memory_mb": program.memory / 2**20,
        "compile_seconds": program.compile_seconds,
    }


def _start(model: Model, settings: BenchmarkSettings, load_seconds: float) -> dict[str, float]:
    """The time from a prompt to the first new token, with and without compilation."""
    prompt = random_tokens(model, PROMPT, settings.seed)

    def first_token() -> float:
        begin = time.perf_counter()
        carry = init_carry(model, settings.start_size, settings.recent_size)
        carry = prefill(model, carry, prompt)
        _, tokens = decode(model, carry, sampling(), [NO_TOKEN], 1, 1)
        np.asarray(tokens)
        return time.perf_counter() - begin

    cold, *warm = (first_token() for _ in range(1 + settings.rounds))
    return {
        "load_seconds": load_seconds,
        "first_token_cold_seconds": cold,
        "first_token_warm_seconds": float(np.median(warm)),
    }


def _prefill(model: Model, settings: BenchmarkSettings) -> list[dict[str, float]]:
    """Tokens per second read into a full cache, for each chunk size."""
    return [
        {"chunk_tokens": size, "tokens_per_second": tokens_read_per_second(model, settings, size)}
        for size in CHUNK_SIZES
    ]


def tokens_read_per_second(model: Model, settings: BenchmarkSettings, size: int, streams: int | None = None) -> float:
    """Tokens per second, over all streams, when chunks of `size` tokens are read into full caches.

    `streams` None measures one stream without a batch axis.
    """
    batch = () if streams is None else (streams,)
    carry = init_carry(model, settings.start_size, settings.recent_size, streams=streams)
    chunk = np.broadcast_to(random_tokens(model, size, settings.seed), (*batch, size))
    count, seconds = np.full(batch, size, np.int32), []
    for _ in range(-(-(settings.start_size + settings.recent_size) // size) + 1 + settings.rounds):
        begin = time.perf_counter()
        carry = jax.block_until_ready(extend(model, carry, chunk, count))
        seconds.append(time.perf_counter() - begin)
    return chunk.size / float(np.median(seconds[-settings.rounds :]))


def _about(model: Model, settings: BenchmarkSettings, speeds: dict[str, float]) -> dict[str, Any]:
    device = jax.devices()[0]
    return {
        "sllm_jax": __version__,
        "jax": jax.__version__,
        "device": f"{device.platform} ({device.device_kind})",
        "dtype": jnp.dtype(model.dtype).name,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(model.params)),
        "start_size": settings.start_size,
        "recent_size": settings.recent_size,
        **{f"{name}_gb_per_second": value / 1e9 for name, value in speeds.items()},
    }


def _peak_memory() -> int:
    """Peak memory in bytes: of the device's arrays, or of the process if the device has no separate memory."""
    statistics = jax.devices()[0].memory_stats()
    if statistics is not None:
        return statistics["peak_bytes_in_use"]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def _rows(figures: Sequence[dict[str, float]]) -> Table:
    return Table([name.replace("_", " ") for name in figures[0]], [list(row.values()) for row in figures])
