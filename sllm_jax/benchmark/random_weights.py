"""Random weights for benchmarks, generated on the device one array at a time, optionally as int8.

Seven billion parameters take seconds. Generating all in one program and quantizing on the host takes minutes.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, PRNGKeyArray

from sllm_jax.convert.families import module_for
from sllm_jax.core.int8 import scale_path
from sllm_jax.core.memory import bytes_of, check_free
from sllm_jax.core.model import Model, init_params, parameter_shapes


def random_model(hf_config: Mapping[str, Any], dtype: Any, int8: bool = False, seed: int = 0) -> Model:
    """A model of this config with normal weights scaled to preserve the magnitude of activations.

    `int8` makes the weights of linear layers int8. Raises `SllmError` if the weights do not fit into memory.
    """
    module = module_for(hf_config, dtype)
    shapes = parameter_shapes(module)
    needed = bytes_of(shapes) // (jnp.dtype(dtype).itemsize if int8 else 1)
    check_free(needed, "a model of this config", "use a smaller model or another dtype")
    params = _vectors(module)
    for i, (path, leaf) in enumerate(flatten_dict(shapes, sep="/").items()):
        key, scale = jax.random.fold_in(jax.random.key(seed), i), scale_path(path)
        if path in params:
            continue
        if int8 and scale:
            params[path] = _integers(key, leaf.shape)
            params[scale] = jnp.full(
                leaf.shape[0], leaf.shape[-1] ** -0.5 / 73, jnp.float32
            )  # 73: standard deviation of the integers
        else:
            params[path] = _normal(key, leaf.shape, leaf.dtype)
    return Model(module, jax.block_until_ready(unflatten_dict(params, sep="/")), hf_config)


@partial(jax.jit, static_argnames="module")
def _vectors(module: Any) -> dict[str, Array]:
    """The initial norms and biases, by path. XLA drops the matrices, which are not returned."""
    return {path: leaf for path, leaf in flatten_dict(init_params(module), sep="/").items() if leaf.ndim < 2}


@partial(jax.jit, static_argnames="shape")
def _integers(key: PRNGKeyArray, shape: tuple[int, ...]) -> Array:
    return jax.random.randint(key, shape, -127, 128, jnp.int8)


@partial(jax.jit, static_argnames=("shape", "dtype"))
def _normal(key: PRNGKeyArray, shape: tuple[int, ...], dtype: Any) -> Array:
    return jax.random.normal(key, shape, dtype) * jnp.asarray(shape[-1] ** -0.5, dtype)
