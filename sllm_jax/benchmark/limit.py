"""The limit of decoding: every weight and every cached key and value is read once a step."""

from __future__ import annotations

import math
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sllm_jax.model import Model

_BYTES = 2**29  # of the arrays that are read and copied, far more than any processor caches
_ROUNDS = 7


def bytes_per_step(model: Model, cache_size: int, streams: int) -> int:
    """What a decode step must read: all weights, and the keys and values that each stream attends to.

    The table of input embeddings counts only where it gives the logits too.
    """
    config, itemsize = model.config, np.dtype(model.dtype).itemsize
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(model.params))
    if not config.tie_word_embeddings:
        weights -= config.vocab_size * config.hidden_size * itemsize
    cached = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * (cache_size + 1) * itemsize
    return weights + streams * cached


def bandwidth() -> dict[str, float]:
    """Bytes a second of the device's memory: of a plain copy, and of the reading that a decode step is made of.

    `copy`: a large array, each byte read once and written once. `read`: a large float32 matrix times a vector.
    """
    width = 4096
    matrix = jnp.ones((_BYTES // 4 // width, width), jnp.float32)
    return {
        "copy": 2 * matrix.nbytes / _fastest(_copy, matrix),
        "read": matrix.nbytes / _fastest(_times_vector, matrix),
    }


@jax.jit
def _copy(matrix: Float[Array, "m n"]) -> Float[Array, "m n"]:
    return -matrix


@jax.jit
def _times_vector(matrix: Float[Array, "m n"]) -> Float[Array, " m"]:
    return matrix @ jnp.ones(matrix.shape[1], matrix.dtype)


def _fastest(function: Any, matrix: Float[Array, "m n"]) -> float:
    """Seconds of the fastest of a few calls."""
    fastest = math.inf
    for _ in range(_ROUNDS):
        begin = time.perf_counter()
        jax.block_until_ready(function(matrix))
        fastest = min(fastest, time.perf_counter() - begin)
    return fastest
