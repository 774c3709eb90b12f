"""All figures of one model on the machine at hand."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sllm_jax.benchmark.blocks import Block, random_tokens, seconds_per_step, streaming
from sllm_jax.benchmark.limit import bandwidth, bytes_per_step
from sllm_jax.decode import CHUNK_SIZES, NO_TOKEN, decode, extend, init_carry, read
from sllm_jax.errors import SllmError
from sllm_jax.model import Model
from sllm_jax.progress import Progress, silent
from sllm_jax.result_table import Table
from sllm_jax.sampling import sampling
from sllm_jax.version import __version__

PROMPT = 128  # tokens that are read before the first one is written


@dataclass(frozen=True)
class Settings:
    """What is measured: cache sizes, numbers of streams side by side, and how many blocks of each are timed."""

    start_size: int
    recent_size: int
    streams: Sequence[int] = (1,)
    rounds: int = 7
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be measured."""
        if not self.streams or min(self.streams) < 1:
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
        """For people."""
        return [_rows(self.decode), _rows(self.prefill), _rows([self.start])]


def measure(model: Model, settings: Settings, load_seconds: float, progress: Progress = silent) -> Results:
    """Decode by number of streams, prefill by chunk, and the way to the first token, which comes first: it is cold."""
    total = 2 + len(settings.streams)
    progress(0, total)
    start = _start(model, settings, load_seconds)
    progress(1, total)
    prefill = _prefill(model, settings)
    found, speeds = [], bandwidth()
    for i, streams in enumerate(settings.streams):
        progress(2 + i, total)
        block = streaming(model, settings.start_size, settings.recent_size, streams, settings.seed)
        found.append(decode_figures(model, settings, streams, block, seconds_per_step([block], settings.rounds)[:, 0]))
    for figures in found:
        figures["fraction_of_limit"] = figures["gb_per_second"] / max(speeds.values()) * 1e9
    start["peak_memory_mb"] = _peak_memory() / 2**20
    return Results(_about(model, settings, speeds), found, prefill, start)


def decode_figures(
    model: Model, settings: Settings, streams: int, block: Block, seconds: np.ndarray
) -> dict[str, float]:
    """Of steps with a full cache, given the seconds of a step in each round [n]."""
    step, cache_size = float(np.median(seconds)), settings.start_size + settings.recent_size
    needed = bytes_per_step(model, cache_size, streams)
    return {
        "streams": streams,
        "ms_per_step": 1e3 * step,
        "tokens_per_second": streams / step,
        "mb_read_per_step": needed / 2**20,
        "gb_per_second": needed / step / 1e9,
        "program_memory_mb": block.memory / 2**20,
        "compile_seconds": block.compile_seconds,
    }


def _start(model: Model, settings: Settings, load_seconds: float) -> dict[str, float]:
    """From a prompt to the first token that is written: with the programs still to be compiled, and without."""
    prompt = random_tokens(model, PROMPT, settings.seed)
    eos = np.array([NO_TOKEN], np.int32)

    def first_token() -> float:
        begin = time.perf_counter()
        carry = init_carry(model.module, settings.start_size, settings.recent_size)
        carry = read(model.module, model.params, carry, prompt)
        _, tokens = decode(model.module, model.params, carry, sampling(), eos, np.int32(1), 1)
        np.asarray(tokens)
        return time.perf_counter() - begin

    cold, *warm = (first_token() for _ in range(1 + settings.rounds))
    return {
        "load_seconds": load_seconds,
        "first_token_cold_seconds": cold,
        "first_token_warm_seconds": float(np.median(warm)),
    }


def _prefill(model: Model, settings: Settings) -> list[dict[str, float]]:
    """Tokens a second that are read into a full cache, by the size of the chunks."""
    found = []
    for size in CHUNK_SIZES:
        chunk, seconds = random_tokens(model, size, settings.seed), []
        carry = init_carry(model.module, settings.start_size, settings.recent_size)
        carry = read(
            model.module, model.params, carry, random_tokens(model, settings.start_size + settings.recent_size, 0)
        )
        for _ in range(1 + settings.rounds):
            begin = time.perf_counter()
            carry = jax.block_until_ready(extend(model.module, model.params, carry, chunk, np.int32(size)))
            seconds.append(time.perf_counter() - begin)
        found.append({"chunk_tokens": size, "tokens_per_second": size / float(np.median(seconds[1:]))})
    return found


def _about(model: Model, settings: Settings, speeds: dict[str, float]) -> dict[str, Any]:
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
