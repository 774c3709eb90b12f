"""What the files of the families share: the contract with attention, layers of one precision, reading configs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from sllm_jax.errors import SllmError
from sllm_jax.position import Rope

LayerCache = tuple[Array, Array]  # whatever `attend` keeps of one layer; models only pass it on

SINKS = ("none", "zero", "learnable")  # how a model was trained to have somewhere to attend to (paper, section 3.3)
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu_new": jax.nn.gelu,
    "gelu_pytorch_tanh": jax.nn.gelu,
    "relu": jax.nn.relu,
}


@runtime_checkable
class ModelConfig(Protocol):
    """What the state, the programs and the loader ask of any family's config. Names are Hugging Face's."""

    model_type: ClassVar[str]
    vocab_size: int
    num_hidden_layers: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    rope: Rope
    attention_sink: str


@runtime_checkable
class Attend(Protocol):
    """Attention of one layer: takes what it kept of that layer and the chunk's queries, keys and values, unrotated."""

    def __call__(
        self, cache: LayerCache, q: Float[Array, "T H D"], k: Float[Array, "T K D"], v: Float[Array, "T K D"]
    ) -> tuple[LayerCache, Float[Array, "T H D"]]:
        """Returns what to keep, and for each query the mixture of values it attends to."""
        ...


def no_caches(config: ModelConfig) -> tuple[LayerCache, ...]:
    """For an `attend` that keeps nothing."""
    return ((jnp.zeros(0), jnp.zeros(0)),) * config.num_hidden_layers


def precision_of(dtype: Any) -> jax.lax.Precision:
    """float32 means float32: the highest matrix-product precision on every backend."""
    return jax.lax.Precision.HIGHEST if jnp.dtype(dtype) == jnp.float32 else jax.lax.Precision.DEFAULT


def dense(features: int, use_bias: bool, dtype: Any, name: str) -> nn.Dense:
    """A linear layer whose parameters and output have the given dtype."""
    return nn.Dense(features, use_bias, dtype=dtype, param_dtype=dtype, precision=precision_of(dtype), name=name)


def head(vocab_size: int, dtype: Any, name: str = "lm_head") -> nn.Dense:
    """The output layer: parameters in `dtype`, logits in float32."""
    in_float32 = partial(jax.lax.dot_general, preferred_element_type=jnp.float32)
    layer = partial(nn.Dense, vocab_size, use_bias=False, dtype=dtype, param_dtype=dtype, name=name)
    return layer(precision=precision_of(dtype), dot_general=in_float32)


def tied_logits(embed: nn.Embed, hidden: Float[Array, "*t E"]) -> Float[Array, "*t V"]:
    """Logits in float32 from the table of input embeddings."""
    table = embed.embedding
    precision = precision_of(table.dtype)
    return jnp.einsum("...e,ve->...v", hidden, table, precision=precision, preferred_element_type=jnp.float32)


def required_sizes(config: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """The sizes without which there is no model; raises `SllmError` naming all that are missing or not positive."""
    bad = [name for name in names if not isinstance(config.get(name), int) or config[name] <= 0]
    if bad:
        found = ", ".join(f"{name} = {config.get(name)!r}" for name in bad)
        raise SllmError(f"config.json needs a positive integer for each of {', '.join(bad)}; got {found}")
    return {name: config[name] for name in names}


def option(config: Mapping[str, Any], name: str, default: Any) -> Any:
    """An option of the type of its default: a number of 0 or more, or a bool; raises `SllmError` for anything else."""
    value, kind = config.get(name), type(default)
    if value is None:
        return default
    is_of_kind = isinstance(value, int | float) if kind is float else isinstance(value, kind)
    if not is_of_kind or isinstance(value, bool) != (kind is bool) or value < 0:
        expected = {bool: "true or false", int: "an integer of 0 or more", float: "a number of 0 or more"}[kind]
        raise SllmError(f"{name} in config.json must be {expected}; got {value!r}")
    return value


def attention_sink(config: Mapping[str, Any]) -> str:
    """How the model was trained, one of `SINKS`.

    `none`: ordinary. `zero`: every softmax has one more logit, fixed at 0. `learnable`: a dedicated sink token stands
    before every text; the tokenizer puts it there, the model itself is ordinary.
    """
    name = config.get("attention_sink") or "none"
    if name not in SINKS:
        raise SllmError(f"attention_sink in config.json must be one of {', '.join(SINKS)}; got {name!r}")
    return name


def layer_of(layer: type[nn.Module], remat: bool) -> Any:
    """The class of a layer; with `remat` backpropagation computes its insides again instead of keeping them."""
    return nn.remat(layer, static_argnums=(3,)) if remat else layer


def activation(config: Mapping[str, Any], default: str) -> str:
    """The name under `hidden_act`, if it is one of `ACTIVATIONS`."""
    name = config.get("hidden_act") or default
    if not isinstance(name, str) or name not in ACTIVATIONS:
        raise SllmError(f"hidden_act {name!r} is not supported; supported are {', '.join(ACTIVATIONS)}")
    return name
