"""A model ready to run, and the shapes of its parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from sllm_jax.common.errors import SllmError
from sllm_jax.core.attention import attend_causally
from sllm_jax.models.attend import LayerCache, attend_by_layer, no_caches
from sllm_jax.models.config import ModelConfig


class _Files(NamedTuple):
    """The JSON files of a model, as static data of a pytree: equal by content, and hashable though dicts are not."""

    hf_config: Mapping[str, Any]
    generation_config: Mapping[str, Any]

    def __hash__(self) -> int:
        """The same for all: programs are told apart by the module."""
        return 0


@jax.tree_util.register_pytree_node_class
@dataclass(frozen=True, eq=False)
class Model:
    """A Linen module of one of the families, its parameters, and the JSON files that came with them.

    A pytree whose leaves are the parameters, so that jitted functions take it whole. The rest is static.
    """

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

    def tree_flatten(self) -> tuple[tuple[Any], tuple[Any, _Files]]:
        """The parameters, and what is static."""
        return (self.params,), (self.module, _Files(self.hf_config, self.generation_config))

    @classmethod
    def tree_unflatten(cls, static: tuple[Any, _Files], children: tuple[Any]) -> Model:
        """The inverse of `tree_flatten`."""
        module, files = static
        return cls(module, *children, *files)


@partial(jax.jit, static_argnames="module")
def init_params(module: Any, seed: int | Int[Array, ""] = 0) -> Any:
    """Random parameters."""

    def attend(cache: LayerCache, q: Array, k: Array, v: Array) -> tuple[LayerCache, Array]:
        return cache, q  # it has no parameters

    config = module.config
    attends = (attend,) * config.num_hidden_layers
    return module.init(jax.random.key(seed), jnp.zeros(1, jnp.int32), no_caches(config), attends)["params"]


def parameter_shapes(module: Any) -> Any:
    """The tree of `init_params` with a `jax.ShapeDtypeStruct` for each array; allocates nothing.

    All layers have the same shapes, and only one is traced: a layer takes tens of milliseconds.
    """
    one = module.clone(config=replace(module.config, num_hidden_layers=1))
    shapes = jax.eval_shape(lambda: init_params(one))
    layer = shapes.pop("layers_0")
    layers = {f"layers_{i}": layer for i in range(module.config.num_hidden_layers)}
    return dict(sorted({**layers, **shapes}.items()))


def dense_logits(model: Model, token_ids: Int[Array, " T"], rows: Any = slice(None)) -> Float[Array, "*t V"]:
    """Logits (float32) after the tokens that `rows` selects of a text of T tokens, read with dense causal attention."""
    attend = partial(attend_causally, dtype=model.dtype, length=len(token_ids))
    attends = attend_by_layer(model.config, attend)
    return model.module.apply({"params": model.params}, token_ids, no_caches(model.config), attends, rows)[0]


def nll_of(logits: Float[Array, "*t V"], token_ids: Int[Array, "*t"]) -> Float[Array, "*t"]:
    """Negative log-likelihood of each token, in nats, under the logits before it."""
    chosen = jnp.take_along_axis(logits, token_ids[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - chosen


def check_finite(model: Model, values: Any, where: str) -> None:
    """Raises `SllmError` unless every value that the model computed is a finite number; `where` says at which token."""
    if np.isfinite(np.asarray(values)).all():
        return
    dtype = jnp.dtype(model.dtype).name
    remedy = {
        "float16": "many models overflow float16; choose bfloat16 or float32 (--dtype)",
        "bfloat16": "the weights may be damaged: fetch the checkpoint again, or try float32 (--dtype)",
    }.get(dtype, "the weights may be damaged: fetch the checkpoint again")
    raise SllmError(f"the model computed numbers that are not finite (NaN or infinity) {where}, in {dtype}; {remedy}")
