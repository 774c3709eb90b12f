"""The limit of decoding: every weight and every cached key and value is read once a step."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sllm_jax.benchmark.programs import Program
from sllm_jax.memory import bytes_of
from sllm_jax.model import Model

PROBE_BYTES = 2**29  # of the arrays that are read and copied, far more than any processor caches
_WIDTH = 4096
_STEPS = 4


def bytes_per_step(model: Model, cache_size: int, streams: int) -> int:
    """What a decode step must read: all weights, and the keys and values that each stream attends to.

    The table of input embeddings counts only where it gives the logits too.
    """
    config, itemsize = model.config, np.dtype(model.dtype).itemsize
    weights = bytes_of(model.params)
    if not config.tie_word_embeddings:
        weights -= config.vocab_size * config.hidden_size * itemsize
    cached = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * (cache_size + 1) * itemsize
    return weights + streams * cached


def probes() -> list[Program]:
    """What takes turns with decoding to show what the device's memory can do at the time; a step is `PROBE_BYTES`.

    A copy onto itself (each byte read once and written once), and the reading that decoding is made of (a large float32
    matrix times a vector).
    """
    matrix = jnp.ones((PROBE_BYTES // 4 // _WIDTH, _WIDTH), jnp.float32)

    def read(matrix: Float[Array, "m n"]) -> Float[Array, "m n"]:
        for _ in range(_STEPS):
            jax.block_until_ready(_times_vector(matrix))  # two at a time would share what they read
        return matrix

    def copy(matrix: Float[Array, "m n"]) -> Float[Array, "m n"]:
        for _ in range(_STEPS):
            matrix = _negate(matrix)
        return matrix

    return [
        Program(copy, matrix.copy(), 2 * _STEPS, memory=0, compile_seconds=0),
        Program(read, matrix, _STEPS, memory=0, compile_seconds=0),
    ]


@partial(jax.jit, donate_argnums=0)
def _negate(matrix: Float[Array, "m n"]) -> Float[Array, "m n"]:
    return -matrix


@jax.jit
def _times_vector(matrix: Float[Array, "m n"]) -> Float[Array, " m"]:
    return matrix @ jnp.ones(matrix.shape[1], matrix.dtype)
