"""Weights as int8: a quarter of float32, half of bfloat16. Embeddings, norms and biases stay as they are.

Symmetric, one scale for each output channel: the largest weight of a channel becomes 127, so that no weight is off by
more than half a step, 1/254 of the largest.
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
    """Whether the weights are to be int8; raises `SllmError` if `weights` is neither that nor None."""
    if weights not in (None, INT8):
        raise SllmError(f"weights must be {INT8} or left out; got {weights!r}")
    return weights == INT8


def scale_of(path: str) -> str | None:
    """The path of the scale that an int8 weight at `path` has beside it; None for all other parameters."""
    return path.removesuffix(_WEIGHT) + _SCALE if path.endswith(_WEIGHT) else None


def quantize(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A weight [out, in] as int8, and the scale [out] (float32) by which each of its rows is multiplied."""
    weight = weight.astype(np.float32)
    scale = np.abs(weight).max(axis=1, initial=0) / 127
    with np.errstate(invalid="ignore"):  # what is not finite makes the scale so
        return np.rint(weight / np.where(scale > 0, scale, 1)[:, None]).astype(np.int8), scale


def quantized(model: Model) -> Model:
    """The same model with int8 weights."""
    params: dict[str, Any] = {}
    for path, leaf in flatten_dict(model.params, sep="/").items():
        scale = scale_of(path)
        if scale is None or leaf.dtype == jnp.int8:
            params[path] = leaf
        else:
            params[path], params[scale] = map(jnp.asarray, quantize(np.asarray(leaf)))
    return replace(model, params=unflatten_dict(params, sep="/"))


def is_quantized(params: Any) -> bool:
    """Whether any weight is int8."""
    return any(leaf.dtype == jnp.int8 for leaf in flatten_dict(params).values())
