"""RoPE scaling as GGUF files have it: metadata, or for Llama 3 and Phi-3 tensors of factors."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sllm_jax.common.errors import SllmError
from sllm_jax.common.gguf_file import Entry
from sllm_jax.convert.gguf_quants import dequantized

FREQUENCIES = "rope_freqs.weight"  # float32 [head_dim / 2]: what each frequency is divided by
LONGROPE = {"short_factor": "rope_factors_short.weight", "long_factor": "rope_factors_long.weight"}
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
_TOLERANCE = 1e-5  # relative; the factors were computed in float32

Number = Callable[..., Any]  # the number under a key without the architecture's name, or a default


def rope_scaling(path: Path, factors: Entry | None, kind: str | None, number: Number) -> dict[str, Any] | None:
    """Hugging Face's `rope_scaling`, or None.

    `factors` is the tensor `FREQUENCIES`, `kind` the metadata `rope.scaling.type`, where the file has them. Raises
    `SllmError` for what is not supported.
    """
    if factors is not None and kind in (None, "none"):
        return _llama3(path, factors, number)
    kind = kind or ("linear" if number("rope.scale_linear", 1) != 1 else "none")
    if factors is not None:
        raise SllmError(f"{path}: {FREQUENCIES} beside rope.scaling.type {kind!r:.80} is not supported")
    factor = number("rope.scaling.factor", number("rope.scale_linear", 1.0))
    if kind == "none" or (kind == "linear" and factor in (0, 1)):
        return None
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor}
    if kind == "yarn":
        return {"rope_type": "yarn", "factor": factor} | _yarn(factor, number)
    raise SllmError(f"{path}: rope.scaling.type {kind!r:.80} is not supported; known: linear, yarn")


def longrope(path: Path, tensors: Mapping[str, Entry], pairs: int, number: Number) -> dict[str, Any] | None:
    """Hugging Face's `rope_scaling` of a Phi-3, or None if it has no factors.

    `pairs` is the number of frequencies. Raises `SllmError` unless there are two tensors with a factor for each.
    """
    entries = {name: tensors[tensor] for name, tensor in LONGROPE.items() if tensor in tensors}
    if not entries:
        return None
    if len(entries) != len(LONGROPE) or any(entry.shape != (pairs,) for entry in entries.values()):
        found = ", ".join(f"{LONGROPE[name]} {entry.shape!r:.80}" for name, entry in entries.items())
        expected = f"both {' and '.join(LONGROPE.values())}, with {pairs} factors each"
        raise SllmError(f"{path} must have {expected}; got {found}; fetch the file again")
    factors = {name: [float(str(one)) for one in dequantized(entry).reshape(-1)] for name, entry in entries.items()}
    return {"rope_type": "longrope", "attention_factor": number("rope.scaling.attn_factor", 1.0), **factors}


def _yarn(factor: float, number: Number) -> dict[str, Any]:
    options = {
        "original_max_position_embeddings": number("rope.scaling.original_context_length"),
        "beta_fast": number("rope.scaling.yarn_beta_fast"),
        "beta_slow": number("rope.scaling.yarn_beta_slow"),
    }
    if (scale := number("rope.scaling.attn_factor", 1.0)) != 1:  # llama.cpp multiplies its own factor by it
        options["attention_factor"] = scale * (0.1 * math.log(max(factor, 1)) + 1)
    return {key: value for key, value in options.items() if value is not None}


def _llama3(path: Path, entry: Entry, number: Number) -> dict[str, Any]:
    """The options of Llama 3.1 and 3.2 that give the factors in the file; raises `SllmError` if there are none."""
    factors = dequantized(entry).reshape(-1).astype(np.float64)
    theta, pairs = number("rope.freq_base", 10_000.0), len(factors)
    options = {"factor": float(factors.max()), **_LLAMA3}
    frequencies = theta ** (-np.arange(pairs) / pairs)
    turns = options["original_max_position_embeddings"] * frequencies / (2 * math.pi)
    ramp = np.clip((turns - 1) / (options["high_freq_factor"] - 1), 0, 1)
    expected = 1 / (ramp + (1 - ramp) / options["factor"])
    if not np.allclose(factors, expected, rtol=_TOLERANCE, atol=0):
        raise SllmError(f"{path}: the factors in {FREQUENCIES} are not those of Llama 3.1; this is not supported")
    return {"rope_type": "llama3", **options}
