"""The contract between a model and its attention: `attend` gets queries, keys and values, and owns the cache.

Modules know nothing of sinks, windows or positions. They pass each layer's cache to `attend` without reading it.

Shapes: T tokens, H query heads, K key/value heads, D head dimension.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import jax.numpy as jnp
from jaxtyping import Array, Float

from sllm_jax.models.config import ModelConfig

LayerCache = tuple[Array, Array]  # what `attend` keeps of one layer between calls


@runtime_checkable
class Attend(Protocol):
    """The attention of one layer."""

    def __call__(
        self, cache: LayerCache, q: Float[Array, "T H D"], k: Float[Array, "T K D"], v: Float[Array, "T K D"]
    ) -> tuple[LayerCache, Float[Array, "T H D"]]:
        """The new cache, and the attention output of each query. Queries and keys are those before rotary embedding."""
        ...


def attend_by_layer(config: ModelConfig, attend_for: Callable[[ModelConfig], Attend]) -> tuple[Attend, ...]:
    """An `attend` for each layer, made from the layer's own config. Layers with equal configs share one."""
    cached = functools.cache(attend_for)
    return tuple(cached(config.at_layer(i)) for i in range(config.num_hidden_layers))


def no_caches(config: ModelConfig) -> tuple[LayerCache, ...]:
    """Empty caches, one per layer, for an `attend` that keeps nothing."""
    return ((jnp.zeros(0), jnp.zeros(0)),) * config.num_hidden_layers
