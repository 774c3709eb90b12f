"""Small models of three families, bundled and random, and their weights in other dtypes."""

from typing import Any

import jax
import jax.numpy as jnp

from sllm_jax import load
from sllm_jax.benchmark.random_weights import random_model
from sllm_jax.convert.families import module_for
from sllm_jax.core.int8 import quantize_model
from sllm_jax.core.model import Model

SIZES = {"vocab_size": 101, "hidden_size": 48, "max_position_embeddings": 64}
RANDOM: dict[str, dict[str, Any]] = {
    "random llama": SIZES
    | {
        "model_type": "llama",
        "intermediate_size": 76,
        "num_attention_heads": 6,
        "num_key_value_heads": 3,
        "head_dim": 10,
    },
    "random gpt_neox": SIZES
    | {"model_type": "gpt_neox", "intermediate_size": 76, "num_attention_heads": 3, "rotary_pct": 0.25},
    "random falcon": SIZES
    | {"model_type": "falcon", "ffn_hidden_size": 76, "num_attention_heads": 6, "multi_query": True},
    "random falcon, ALiBi": SIZES
    | {"model_type": "falcon", "ffn_hidden_size": 76, "num_attention_heads": 6, "alibi": True, "multi_query": False},
}
BUNDLED = ("bundled:llama", "bundled:gpt-neox", "bundled:falcon")


def small_model(name: str, precision: str, layers: int) -> Model:
    """`precision`: float32, bfloat16, or int8 with all else in bfloat16; `layers`: of random ones."""
    dtype = jnp.dtype("float32" if precision == "float32" else "bfloat16")
    if name in RANDOM:
        model = random_model(RANDOM[name] | {"num_hidden_layers": layers}, dtype)
    else:
        model, _ = load(name, dtype)
    return quantize_model(model) if precision == "int8" else model


def in_float32(model: Model) -> Model:
    """The very same weights, computed with in float32; int8 ones stay as they are."""
    params = jax.tree.map(lambda leaf: leaf if leaf.dtype == jnp.int8 else leaf.astype(jnp.float32), model.params)
    return Model(module_for(model.hf_config, jnp.float32), params, model.hf_config)


def on_device(model: Model, device: Any) -> Model:
    """The same model there."""
    return Model(model.module, jax.device_put(model.params, device), model.hf_config)
