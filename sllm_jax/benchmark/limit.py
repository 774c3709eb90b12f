"""The bandwidth limit of decoding: each step reads every weight and every cached key and value once."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sllm_jax.benchmark.programs import Program
from sllm_jax.core.kv_state import layer_sizes
from sllm_jax.core.memory import bytes_of
from sllm_jax.core.model import Model
from sllm_jax.models.config import ModelConfig

PROBE_BYTES = 2**29  # size of the probed array, far larger than any processor cache
_WIDTH = 4096
_CPU_STEPS, _STEPS = 4, 64  # steps per call; on a GPU a step takes 0.2 ms, launching a call tens of microseconds


def bytes_per_step(model: Model, start_size: int, recent_size: int, streams: int) -> int:
    """The bytes that a decode step must read: all weights, and the keys and values that each stream attends to.

    The input embeddings count only if they are tied to the output layer.
    """
    config, itemsize = model.config, np.dtype(model.dtype).itemsize
    weights = bytes_of(model.params)
    if not config.tie_word_embeddings:
        weights -= config.vocab_size * config.hidden_size * itemsize
    keys = _keys_attended(config, start_size, recent_size)
    return weights + streams * 2 * config.num_key_value_heads * config.head_dim * keys * itemsize


def flops_per_token(model: Model, start_size: int, recent_size: int) -> int:
    """Floating-point operations per token: two per weight (input embeddings excluded), and those of attention."""
    config = model.config
    weights = sum(leaf.size for leaf in jax.tree.leaves(model.params))
    if not config.tie_word_embeddings:
        weights -= config.vocab_size * config.hidden_size
    keys = _keys_attended(config, start_size, recent_size)
    # Attention: one multiply-add per head dimension for the score, and one for mixing the value.
    return 2 * weights + 4 * config.num_attention_heads * config.head_dim * keys


def _keys_attended(config: ModelConfig, start_size: int, recent_size: int) -> int:
    """The keys that a token attends to once the cache is full, its own included, over all layers."""
    layers = range(config.num_hidden_layers)
    return sum(sum(layer_sizes(config.at_layer(i), start_size, recent_size)) + 1 for i in layers)


def probes() -> list[Program]:
    """Programs that measure memory bandwidth, run in alternation with decoding; a step moves `PROBE_BYTES`.

    The first copies an array onto itself (each byte is read and written once). The second reads a large float32 matrix
    in a product with a vector, as decoding does.
    """
    matrix = jnp.ones((PROBE_BYTES // 4 // _WIDTH, _WIDTH), jnp.float32)  # [m, n]: n = _WIDTH, 4 bytes each
    steps = _CPU_STEPS if jax.default_backend() == "cpu" else _STEPS

    def read(matrix: Float[Array, "m n"]) -> Float[Array, "m n"]:
        jax.block_until_ready(_read(matrix, steps))
        return matrix

    def copy(matrix: Float[Array, "m n"]) -> Float[Array, "m n"]:
        return _copy(matrix, steps)

    # Reading and writing the array counts as two steps. The copy donates its argument, so it gets an array of its own.
    return [
        Program(copy, matrix.copy(), 2 * steps, memory=0, compile_seconds=0),
        Program(read, matrix, steps, memory=0, compile_seconds=0),
    ]


@partial(jax.jit, static_argnames="steps", donate_argnames="matrix")
def _copy(matrix: Float[Array, "m n"], steps: int) -> Float[Array, "m n"]:
    # A negation, because XLA could elide a plain copy.
    return jax.lax.fori_loop(0, steps, lambda _, matrix: -matrix, matrix)


@partial(jax.jit, static_argnames="steps")
def _read(matrix: Float[Array, "m n"], steps: int) -> Float[Array, " n"]:
    def step(_: Any, vector: Float[Array, " n"]) -> Float[Array, " n"]:
        product = matrix @ vector  # [m]
        return jnp.full_like(vector, product.mean() / product.max())  # the next product depends on this one

    return jax.lax.fori_loop(0, steps, step, jnp.ones(matrix.shape[1], matrix.dtype))
