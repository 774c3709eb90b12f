"""Llama 1, 2, 3, 3.1, 3.2 and what shares their architecture (TinyLlama, Vicuna).

Shapes: T tokens, E hidden size, H query heads, K key/value heads, D head dimension, F feed-forward size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from sllm_jax.errors import SllmError
from sllm_jax.models.common import (
    ACTIVATIONS,
    Attend,
    LayerCache,
    activation,
    attention_sink,
    dense,
    head,
    layer_of,
    option,
    required_sizes,
    tied_logits,
)
from sllm_jax.position import Rope


@dataclass(frozen=True)
class LlamaConfig:
    """Sizes and options of a Llama, under their Hugging Face names."""

    model_type: ClassVar[str] = "llama"

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rope: Rope
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-6
    hidden_act: str = "silu"
    attention_bias: bool = False
    mlp_bias: bool = False
    tie_word_embeddings: bool = False
    attention_sink: str = "none"

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> LlamaConfig:
        """Read a Hugging Face `config.json`; raises `SllmError` for sizes that do not fit and options not supported."""
        sizes = required_sizes(
            config, "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"
        )
        heads = sizes["num_attention_heads"]
        kv_heads = option(config, "num_key_value_heads", heads)
        if kv_heads == 0 or heads % kv_heads:
            raise SllmError(f"num_attention_heads {heads} is not a multiple of num_key_value_heads {kv_heads}")
        head_dim = option(config, "head_dim", sizes["hidden_size"] // heads)
        rope = Rope.from_hf(config, head_dim)
        if rope.dim != head_dim or head_dim % 2 or head_dim == 0:
            raise SllmError(f"Llama rotates whole heads of even size; got {rope.dim} of {head_dim} dimensions")
        options = {name: option(config, name, default) for name, default in _OPTIONAL.items()}
        return cls(
            **sizes,
            **options,
            num_key_value_heads=kv_heads,
            head_dim=head_dim,
            rope=rope,
            hidden_act=activation(config, "silu"),
            attention_sink=attention_sink(config),
            max_position_embeddings=rope.max_position_embeddings,
        )


_OPTIONAL = {"rms_norm_eps": 1e-6, "attention_bias": False, "mlp_bias": False, "tie_word_embeddings": False}


class Llama(nn.Module):
    """Token ids to logits; attention and what it keeps between calls come from outside."""

    config: LlamaConfig
    dtype: Any = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(
        self, token_ids: Int[Array, " T"], caches: Sequence[LayerCache], attend: Attend, rows: Any = slice(None)
    ) -> tuple[Float[Array, "*t V"], tuple[LayerCache, ...]]:
        """Logits (float32) of the tokens that `rows` selects of the T, and the caches passed on, one a layer."""
        config, dtype = self.config, self.dtype
        embed = nn.Embed(config.vocab_size, config.hidden_size, dtype=dtype, param_dtype=dtype, name="embed_tokens")
        layer, hidden, kept = layer_of(LlamaLayer, self.remat), embed(token_ids), []  # hidden [T, E]
        for i, cache in zip(range(config.num_hidden_layers), caches, strict=True):
            hidden, cache = layer(config, dtype, name=f"layers_{i}")(hidden, cache, attend)  # [T, E]
            kept.append(cache)
        hidden = _norm(config, dtype, "norm")(hidden[rows])
        logits = tied_logits(embed, hidden) if config.tie_word_embeddings else head(config.vocab_size, dtype)(hidden)
        return logits, tuple(kept)


class LlamaLayer(nn.Module):
    """Attention, then the feed-forward network, each on a normed input and added to it."""

    config: LlamaConfig
    dtype: Any

    @nn.compact
    def __call__(
        self, hidden: Float[Array, "T E"], cache: LayerCache, attend: Attend
    ) -> tuple[Float[Array, "T E"], LayerCache]:
        """The layer's output, and its cache passed on."""
        config, dtype = self.config, self.dtype
        mixed, cache = LlamaAttention(config, dtype, name="self_attn")(
            _norm(config, dtype, "input_layernorm")(hidden), cache, attend
        )
        hidden = hidden + mixed
        normed = _norm(config, dtype, "post_attention_layernorm")(hidden)
        return hidden + LlamaMLP(config, dtype, name="mlp")(normed), cache


class LlamaAttention(nn.Module):
    """Grouped-query attention between its four linear layers."""

    config: LlamaConfig
    dtype: Any

    @nn.compact
    def __call__(
        self, hidden: Float[Array, "T E"], cache: LayerCache, attend: Attend
    ) -> tuple[Float[Array, "T E"], LayerCache]:
        """The mixture of values for each token, and the layer's cache passed on."""
        config = self.config

        def project(name: str, heads: int) -> Float[Array, "T heads D"]:
            flat = dense(heads * config.head_dim, config.attention_bias, self.dtype, name)(hidden)
            return flat.reshape(-1, heads, config.head_dim)

        q = project("q_proj", config.num_attention_heads)  # [T, H, D]
        k = project("k_proj", config.num_key_value_heads)  # [T, K, D]
        v = project("v_proj", config.num_key_value_heads)  # [T, K, D]
        cache, mixed = attend(cache, q, k, v)  # [T, H, D]
        output = dense(config.hidden_size, config.attention_bias, self.dtype, "o_proj")
        return output(mixed.reshape(len(hidden), -1)), cache


class LlamaMLP(nn.Module):
    """Gated feed-forward network."""

    config: LlamaConfig
    dtype: Any

    @nn.compact
    def __call__(self, hidden: Float[Array, "T E"]) -> Float[Array, "T E"]:
        """SwiGLU, or another activation in its place."""
        config = self.config
        gate = dense(config.intermediate_size, config.mlp_bias, self.dtype, "gate_proj")(hidden)  # [T, F]
        up = dense(config.intermediate_size, config.mlp_bias, self.dtype, "up_proj")(hidden)  # [T, F]
        return dense(config.hidden_size, config.mlp_bias, self.dtype, "down_proj")(
            ACTIVATIONS[config.hidden_act](gate) * up
        )


def _norm(config: LlamaConfig, dtype: Any, name: str) -> nn.RMSNorm:
    return nn.RMSNorm(epsilon=config.rms_norm_eps, dtype=dtype, param_dtype=dtype, name=name)
