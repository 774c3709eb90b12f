"""Comparisons for decoding: PyTorch transformers on the same weights, and sliding-window re-computation.

The PyTorch model is compiled, has a static cache, and attends to the same number of keys.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.util import find_spec
from inspect import signature
from typing import Any

import numpy as np

from sllm_jax.benchmark.programs import Program, random_tokens, recompute_program, seconds_per_step, streaming_program
from sllm_jax.benchmark.run import BenchmarkSettings
from sllm_jax.common.errors import SllmError
from sllm_jax.common.extras import how_to_install
from sllm_jax.common.files import scratch_folder
from sllm_jax.convert import to_huggingface
from sllm_jax.core.model import Model

STEPS = 16  # tokens per call
_COUNT = "cumulative_length_int"  # what transformers' static layers with a sliding window count besides


def check_against(names: Sequence[str]) -> None:
    """Raises `SllmError` for an unknown name, or if PyTorch is needed and not installed."""
    if unknown := [name for name in names if name not in COMPARISONS]:
        raise SllmError(f"--against {', '.join(unknown)} is not supported; give {' or '.join(COMPARISONS)}")
    if "hf" in names and find_spec("torch") is None:
        raise SllmError(f"--against hf needs PyTorch; {how_to_install('torch')}")


def compare(model: Model, settings: BenchmarkSettings, names: Sequence[str]) -> dict[str, dict[str, float]]:
    """Time our decoding in alternation with each comparison; the `ratio_figures` of each, keyed by name."""
    cache_size, found = settings.start_size + settings.recent_size, {}
    for name in names:
        ours = streaming_program(model, settings.start_size, settings.recent_size, seed=settings.seed)
        found[name] = ratio_figures(ours, COMPARISONS[name](model, cache_size, settings.seed), settings.rounds)
    return found


def ratio_figures(ours: Program, theirs: Program, rounds: int) -> dict[str, float]:
    """The median times per step in ms, and the median over rounds of the ratio of the two."""
    seconds = seconds_per_step([ours, theirs], rounds)
    return {
        "ours_ms_per_step": 1e3 * float(np.median(seconds[:, 0])),
        "their_ms_per_step": 1e3 * float(np.median(seconds[:, 1])),
        "ratio_to_ours": float(np.median(seconds[:, 1] / seconds[:, 0])),
    }


def huggingface(model: Model, cache_size: int, seed: int) -> Program:
    """A compiled PyTorch model that writes `STEPS` tokens per call; its state is the last token.

    It has a static cache of `cache_size` + 1 keys.
    """
    torch, transformers = import_module("torch"), import_module("transformers")
    transformers.utils.logging.disable_progress_bar()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with scratch_folder() as folder:
        to_huggingface(model, folder / "model")
        network = transformers.AutoModelForCausalLM.from_pretrained(
            folder / "model", dtype=getattr(torch, np.dtype(model.dtype).name), local_files_only=True
        )
    network = network.to(device).eval()
    # Earlier versions name the argument `past_key_values`.
    keyword = "cache" if "cache" in signature(network.forward).parameters else "past_key_values"
    cache = transformers.StaticCache(config=network.config, max_cache_len=cache_size + 1)
    prompt = torch.tensor(random_tokens(model, cache_size + 1 - STEPS, seed)[None], dtype=torch.int64, device=device)
    step = torch.compile(network.forward, mode="reduce-overhead" if device == "cuda" else None, fullgraph=True)
    with torch.inference_mode():
        network(prompt, **{keyword: cache}, use_cache=True)

    def write(token: Any) -> Any:
        with torch.inference_mode():
            before = _lengths(cache)
            for _ in range(STEPS):
                logits = step(input_ids=token, **{keyword: cache}, use_cache=True).logits
                token = logits[:, -1:].argmax(-1)
            int(token)  # wait for the device
            _set_lengths(cache, before)
        return token

    begin = time.perf_counter()
    token = write(prompt[:, -1:])
    return Program(write, token, STEPS, memory=0, compile_seconds=time.perf_counter() - begin)


def _lengths(cache: Any) -> list[tuple[Any, int | None]]:
    """The number of tokens in each layer of a static cache. A layer with a sliding window counts them twice."""
    return [(layer.cumulative_length.clone(), getattr(layer, _COUNT, None)) for layer in cache.layers]


def _set_lengths(cache: Any, lengths: list[tuple[Any, int | None]]) -> None:
    """Rewind the cache. Its `crop` does so too, but not past a sliding window, and transformers 5.17 lacks it."""
    for layer, (length, count) in zip(cache.layers, lengths, strict=True):
        layer.cumulative_length.copy_(length)
        if count is not None:
            setattr(layer, _COUNT, count)


def _recompute(model: Model, cache_size: int, seed: int) -> Program:
    return recompute_program(model, cache_size + 1, seed)


COMPARISONS: dict[str, Callable[[Model, int, int], Program]] = {"recompute": _recompute, "hf": huggingface}
