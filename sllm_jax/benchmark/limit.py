"""The limit of decoding: every weight and every cached key and value is read once a step."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sllm_jax.benchmark.programs import Program
from sllm_jax.core.memory import bytes_of
from sllm_jax.core.model import Model

PROBE_BYTES = 2**29  # of the arrays that are read and copied, far more than any processor caches
_WIDTH = 4096
_CPU_STEPS, _STEPS = 4, 64  # of a call; a GPU takes 0.2 ms for one, and tens of microseconds to start and end a call


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


def flops_per_token(model: Model, attended: int) -> int:
    """Floating-point operations: two for each weight but the input table's, and two products with each key and value.

    `attended`: keys that the token attends to.
    """
    config = model.config
    weights = sum(leaf.size for leaf in jax.tree.leaves(model.params))
    if not config.tie_word_embeddings:
        weights -= config.vocab_size * config.hidden_size
    return 2 * weights + 4 * config.num_hidden_layers * config.num_attention_heads * config.head_dim * attended


def probes() -> list[Program]:
    """What takes turns with decoding to show what the device's memory can do at the time; a step is `PROBE_BYTES`.

    A copy onto itself (each byte read once and written once), and the reading that decoding is made of (a large float32
    matrix times a vector).
    """
    matrix = jnp.ones((PROBE_BYTES // 4 // _WIDTH, _WIDTH), jnp.float32)
    steps = _CPU_STEPS if jax.default_backend() == "cpu" else _STEPS

    def read(matrix: Float[Array, "m n"]) -> Float[Array, "m n"]:
        jax.block_until_ready(_read(matrix, steps))
        return matrix

    def copy(matrix: Float[Array, "m n"]) -> Float[Array, "m n"]:
        return _copy(matrix, steps)

    return [
        Program(copy, matrix.copy(), 2 * steps, memory=0, compile_seconds=0),
        Program(read, matrix, steps, memory=0, compile_seconds=0),
    ]


@partial(jax.jit, static_argnames="steps", donate_argnames="matrix")
def _copy(matrix: Float[Array, "m n"], steps: int) -> Float[Array, "m n"]:
    return jax.lax.fori_loop(0, steps, lambda _, matrix: -matrix, matrix)


@partial(jax.jit, static_argnames="steps")
def _read(matrix: Float[Array, "m n"], steps: int) -> Float[Array, " n"]:
    def step(_: Any, vector: Float[Array, " n"]) -> Float[Array, " n"]:
        product = matrix @ vector
        return jnp.full_like(vector, product.mean() / product.max())  # the next product waits for this one

    return jax.lax.fori_loop(0, steps, step, jnp.ones(matrix.shape[1], matrix.dtype))
