"""A model ready to run, and the shapes of its parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from sllm_jax.attention import attend_causally
from sllm_jax.models.common import ModelConfig, no_caches


@dataclass(frozen=True, eq=False)
class Model:
    """A Linen module of one of the families, its parameters, and the JSON files that came with them."""

    module: Any
    params: Any
    hf_config: Mapping[str, Any] = field(default_factory=dict)  # config.json
    generation_config: Mapping[str, Any] = field(default_factory=dict)  # generation_config.json

    @property
    def config(self) -> ModelConfig:
        """Sizes and options."""
        return self.module.config

    @property
    def dtype(self) -> Any:
        """Of parameters and cache."""
        return self.module.dtype


@partial(jax.jit, static_argnames="module")
def init_params(module: Any, seed: int = 0) -> Any:
    """Random parameters."""
    attend = attend_causally(module.config, module.dtype, 1)
    return module.init(jax.random.key(seed), jnp.zeros(1, jnp.int32), no_caches(module.config), attend)["params"]


def parameter_shapes(module: Any) -> Any:
    """The tree of `init_params` with a `jax.ShapeDtypeStruct` for each array; allocates nothing."""
    return jax.eval_shape(lambda: init_params(module))
