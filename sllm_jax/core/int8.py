"""Int8 weight-only quantization of linear layers: a quarter of float32, half of bfloat16.

An output head that is not tied to the embedding is one of them. Embeddings, norms and biases keep their dtype.
Symmetric, per output channel: scale = max|w| / 127. The rounding error is at most scale / 2.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from sllm_jax.common.errors import SllmError
from sllm_jax.core.model import Model

INT8 = "int8"
_WEIGHT, _SCALE = "/weight", "/scale"


def check_weights(weights: str | None) -> bool:
    """Whether `weights` asks for int8; raises `SllmError` unless it is "int8" or None."""
    if weights not in (None, INT8):
        raise SllmError(f"weights must be {INT8} or left out; got {weights!r}")
    return weights == INT8


def scale_path(path: str) -> str | None:
    """The path of the scale of the int8 weight at `path`; None for parameters that are not quantized."""
    return path.removesuffix(_WEIGHT) + _SCALE if path.endswith(_WEIGHT) else None


def quantize(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A weight [out, in] as int8, and the scale [out] (float32) by which each of its rows is multiplied."""
    weight = weight.astype(np.float32)
    scale = np.abs(weight).max(axis=1, initial=0) / 127
    with np.errstate(invalid="ignore"):  # a non-finite weight makes its scale non-finite, and is reported later
        return np.rint(weight / np.where(scale > 0, scale, 1)[:, None]).astype(np.int8), scale


def quantize_model(model: Model) -> Model:
    """The same model with int8 weights."""
    params: dict[str, Any] = {}
    for path, leaf in flatten_dict(model.params, sep="/").items():
        beside = scale_path(path)
        if beside is None or leaf.dtype == jnp.int8:
            params[path] = leaf
        else:
            weight, scale = quantize(np.asarray(leaf))
            params[path], params[beside] = jnp.asarray(weight), jnp.asarray(scale)
    return replace(model, params=unflatten_dict(params, sep="/"))


def is_quantized(params: Any) -> bool:
    """Whether any weight is int8."""
    return any(leaf.dtype == jnp.int8 for leaf in flatten_dict(params).values())
