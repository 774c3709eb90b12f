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
from sllm_jax.core.arrays import IntArrayLike, check_in_range, int32_array
from sllm_jax.core.attention import attend_causally
from sllm_jax.models.attend import LayerCache, attend_by_layer, no_caches
from sllm_jax.models.config import ModelConfig


class _Files(NamedTuple):
    """The JSON files of a model, as static data of a pytree.

    Dicts cannot be hashed, so all instances hash alike, and jit falls back to `==`, which compares contents.
    """

    hf_config: Mapping[str, Any]
    generation_config: Mapping[str, Any]

    def __hash__(self) -> int:
        """Constant: equality decides."""
        return 0


@jax.tree_util.register_pytree_node_class
@dataclass(frozen=True, eq=False)
class Model:
    """A Linen module of one of the families, its parameters, and the JSON files that came with them.

    A pytree whose leaves are the parameters, so that it can be an argument of a jitted function. The rest is static.
    """

    module: Any
    params: Any
    hf_config: Mapping[str, Any] = field(default_factory=dict)  # config.json
    generation_config: Mapping[str, Any] = field(default_factory=dict)  # generation_config.json

    @property
    def config(self) -> ModelConfig:
        """The sizes and options of the model."""
        return self.module.config

    @property
    def dtype(self) -> Any:
        """The dtype of floating-point parameters, activations and cache."""
        return self.module.dtype

    def tree_flatten(self) -> tuple[tuple[Any], tuple[Any, _Files]]:
        """The parameters as the only child, and the static data."""
        return (self.params,), (self.module, _Files(self.hf_config, self.generation_config))

    @classmethod
    def tree_unflatten(cls, static: tuple[Any, _Files], children: tuple[Any]) -> Model:
        """The inverse of `tree_flatten`."""
        module, files = static
        return cls(module, *children, *files)


@partial(jax.jit, static_argnames="module")
def init_params(module: Any, seed: int | Int[Array, ""] = 0) -> Any:
    """Randomly initialized parameters of a family's module: a nested dict of arrays in `module.dtype`."""

    def attend(cache: LayerCache, q: Array, k: Array, v: Array) -> tuple[LayerCache, Array]:
        return cache, q  # stands in for attention, which has no parameters

    config = module.config
    attends = (attend,) * config.num_hidden_layers
    return module.init(jax.random.key(seed), jnp.zeros(1, jnp.int32), no_caches(config), attends)["params"]


def parameter_shapes(module: Any) -> Any:
    """The tree of `init_params` with a `jax.ShapeDtypeStruct` for each array; allocates nothing.

    Traces one layer and repeats its shapes, because tracing takes tens of milliseconds per layer.
    """
    one = module.clone(config=replace(module.config, num_hidden_layers=1))
    shapes = jax.eval_shape(lambda: init_params(one))
    layer = shapes.pop("layers_0")
    layers = {f"layers_{i}": layer for i in range(module.config.num_hidden_layers)}
    return dict(sorted({**layers, **shapes}.items()))  # in the order of `init_params`, whose dicts jit sorts


def dense_logits(model: Model, token_ids: IntArrayLike, rows: Any = slice(None)) -> Float[Array, "*t V"]:
    """Logits in float32 of a sequence of T tokens under dense causal attention.

    `rows` is an index or a slice over the T tokens that selects those to compute logits for; all by default. `*t` is no
    axis for an index, and one for a slice. Raises `SllmError` for token ids outside the vocabulary; in JAX arrays,
    which are not checked, they give NaN.
    """
    ids = int32_array(token_ids, 1, "token_ids")
    check_in_range(ids, 0, model.config.vocab_size, "token id")
    attend = partial(attend_causally, dtype=model.dtype, length=len(ids))
    attends = attend_by_layer(model.config, attend)
    return model.module.apply({"params": model.params}, jnp.asarray(ids), no_caches(model.config), attends, rows)[0]


def nll_of(logits: Float[Array, "*t V"], token_ids: Int[Array, "*t"]) -> Float[Array, "*t"]:
    """Negative log-likelihood, in nats, of `token_ids[i]` under `logits[i]`.

    The caller aligns them: `logits[i]` must predict `token_ids[i]`.
    """
    chosen = jnp.take_along_axis(logits, token_ids[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - chosen


def check_finite(model: Model, values: Any, where: str) -> None:
    """Raises `SllmError` unless every value that the model computed is finite.

    `where` is the part of the message that names the token, such as "after token 12".
    """
    if np.isfinite(np.asarray(values)).all():
        return
    dtype = jnp.dtype(model.dtype).name
    remedy = {
        "float16": "many models overflow float16; choose bfloat16 or float32 (--dtype)",
        "bfloat16": "the weights may be damaged: fetch the checkpoint again, or try float32 (--dtype)",
    }.get(dtype, "the weights may be damaged: fetch the checkpoint again")
    raise SllmError(f"the model computed numbers that are not finite (NaN or infinity) {where}, in {dtype}; {remedy}")
