"""All figures of one model on the machine at hand."""

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

PROMPT = 128  # tokens that are read before the first one is written


@dataclass(frozen=True)
class BenchmarkSettings:
    """What is measured: cache sizes, numbers of streams side by side, and how many calls of each are timed.

    `streams` None: 1, 2, 4, ... for as long as there is memory.
    """

    start_size: int
    recent_size: int
    streams: Sequence[int] | None = (1,)
    rounds: int = 7
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be measured."""
        if self.streams is not None and min(self.streams, default=0) < 1:
            raise SllmError(f"streams must be 1 or more; got {', '.join(map(str, self.streams)) or 'none'}")
        if self.rounds < 1:
            raise SllmError(f"rounds must be 1 or more; got {self.rounds}")


@dataclass(frozen=True)
class Results:
    """What was measured: plain data, to be written as JSON, and its tables."""

    about: dict[str, Any]
    decode: list[dict[str, float]]
    prefill: list[dict[str, float]]
    start: dict[str, float]

    def as_json(self) -> dict[str, Any]:
        """Units are in the names."""
        return {**self.about, "decode": self.decode, "prefill": self.prefill, "start": self.start}

    def tables(self) -> list[Table]:
        """For people: about the run, decoding, reading, and the start."""
        about = [(name.replace("_", " "), value) for name, value in self.about.items()]
        return [Table(("about", "value"), about), _rows(self.decode), _rows(self.prefill), _rows([self.start])]


def run_benchmark(
    model: Model, settings: BenchmarkSettings, load_seconds: float, progress: Progress = silent
) -> Results:
    """Decode by number of streams, prefill by chunk, and the way to the first token, which comes first: it is cold."""
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
    """Each number of streams and its program; None ends where so many would not fit."""
    sizes, needed = (settings.start_size, settings.recent_size), 0
    for streams in settings.streams or (2**i for i in itertools.count()):
        if settings.streams is None and needed > free_memory():
            return
        try:
            program = streaming_program(model, *sizes, streams, settings.seed)
        except jax.errors.JaxRuntimeError as error:
            if settings.streams is None and streams > 1:
                return
            raise SllmError(f"no memory for {streams} streams; give fewer, or a smaller recent_size") from error
        yield streams, program
        one = bytes_of(jax.eval_shape(lambda: init_carry(model, *sizes)))  # which all others are copies of
        needed = one + 2 * max(program.memory - bytes_of(model.params), 0)  # by twice as many
        del program


def decode_figures(
    model: Model, settings: BenchmarkSettings, streams: int, program: Program, seconds: np.ndarray
) -> dict[str, float]:
    """Of steps with a full cache, given the seconds in each round of a step, a copy and a read of memory [n, 3]."""
    step, cache_size = float(np.median(seconds[:, 0])), settings.start_size + settings.recent_size
    needed = bytes_per_step(model, cache_size, streams)
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
    """From a prompt to the first token that is written: with the programs still to be compiled, and without."""
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
    """Tokens a second that are read into a full cache, by the size of the chunks."""
    return [
        {"chunk_tokens": size, "tokens_per_second": tokens_read_per_second(model, settings, size)}
        for size in CHUNK_SIZES
    ]


def tokens_read_per_second(model: Model, settings: BenchmarkSettings, size: int, streams: int | None = None) -> float:
    """The rate at which chunks of `size` tokens are read into the full caches of `streams` streams, of all together.

    None: one stream, without an axis of streams.
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
    """Bytes: of the device's arrays, or where it has no memory of its own of the process."""
    statistics = jax.devices()[0].memory_stats()
    if statistics is not None:
        return statistics["peak_bytes_in_use"]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def _rows(figures: Sequence[dict[str, float]]) -> Table:
    return Table([name.replace("_", " ") for name in figures[0]], [list(row.values()) for row in figures])
