"""MPT: MPT-1B, 7B and 30B."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from sllm_jax.alibi import mpt_alibi
from sllm_jax.errors import SllmError
from sllm_jax.models.config import (
    ModelConfig,
    attention_sink,
    head_size,
    option,
    options,
    refuse_unsupported,
    required_sizes,
)
from sllm_jax.models.layers import MLP, Attention, Decoder, Heads, Layer, Norm, layer_norm
from sllm_jax.position import Rope

_NAMES = {"hidden_size": "d_model", "num_hidden_layers": "n_layers", "num_attention_heads": "n_heads"}
_FIXED = {"no_bias": (True,), "norm_type": ("low_precision_layernorm", "layernorm")}  # what MPT models have
_FIXED_IN_ATTENTION = {"alibi": (True,), "attn_type": ("multihead_attention",)}


@dataclass(frozen=True, kw_only=True)
class MPTConfig(ModelConfig):
    """Sizes and options of an MPT; those that other families have too, under their names there."""

    model_type: ClassVar[str] = "mpt"
    context_name: ClassVar[str] = "max_seq_len"

    intermediate_size: int
    layer_norm_epsilon: float = 1e-5
    clip_qkv: float = 0.0  # 0: no clipping
    qk_ln: bool = False  # queries and keys are normed, all heads together

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> MPTConfig:
        """As `ModelConfig.from_hf`."""
        attention = config.get("attn_config") or {}
        _check_fixed(config, _FIXED)
        _check_fixed(attention, _FIXED_IN_ATTENTION)
        refuse_unsupported(config)
        refuse_unsupported({"model_type": "mpt", **attention}, "prefix_lm", "attn_uses_sequence_id")
        named = required_sizes(config, "vocab_size", *_NAMES.values())
        sizes = {"vocab_size": named["vocab_size"], **{name: named[theirs] for name, theirs in _NAMES.items()}}
        heads = sizes["num_attention_heads"]
        context = option(config, "max_seq_len", 2048)
        return cls(
            **sizes,
            **options(config, layer_norm_epsilon=1e-5, tie_word_embeddings=True),
            **options(attention, clip_qkv=0.0, qk_ln=False),
            num_key_value_heads=heads,
            head_dim=head_size(sizes["hidden_size"], heads),
            rope=Rope(dim=0, max_position_embeddings=context),
            alibi=mpt_alibi(heads, option(attention, "alibi_bias_max", 8.0)),
            softmax_scale=option(attention, "softmax_scale", 0.0) or None,
            intermediate_size=option(config, "expansion_ratio", 4) * sizes["hidden_size"],
            attention_sink=attention_sink(config),
        )


def _check_fixed(config: Mapping[str, Any], fixed: Mapping[str, tuple[Any, ...]]) -> None:
    for name, allowed in fixed.items():
        if config.get(name, allowed[0]) not in allowed:
            expected = " or ".join(map(repr, allowed))
            raise SllmError(f"MPT with {name} {config[name]!r} is not supported; expected {expected}")


class MPTAttention(Attention):
    """Attention whose queries, keys and values may be clipped, and queries and keys normed."""

    def prepare(self, q: Float[Array, "T HD"], k: Float[Array, "T KD"], v: Float[Array, "T KD"]) -> Heads:
        """Clip, norm, then cut into heads."""
        config, dtype = self.config, self.dtype
        if limit := config.clip_qkv:
            q, k, v = (jnp.clip(x, -limit, limit) for x in (q, k, v))
        if config.qk_ln:
            q, k = (
                layer_norm(config.layer_norm_epsilon, dtype, name, use_bias=False)(x)
                for name, x in (("q_ln", q), ("k_ln", k))
            )
        return super().prepare(q, k, v)


class MPTLayer(Layer):
    """Attention, then the feed-forward network; no biases anywhere."""

    def parts(self) -> tuple[Norm, nn.Module, Norm, nn.Module]:
        """Layer norms without biases."""
        config, dtype = self.config, self.dtype
        return (
            layer_norm(config.layer_norm_epsilon, dtype, "input_layernorm", use_bias=False),
            MPTAttention(config, dtype, name="self_attn"),
            layer_norm(config.layer_norm_epsilon, dtype, "post_attention_layernorm", use_bias=False),
            MLP(config, dtype, config.intermediate_size, "gelu", name="mlp"),
        )


class MPT(Decoder):
    """Token ids to logits."""

    layer = MPTLayer

    def norm(self) -> Norm:
        """Layer norm without a bias."""
        return layer_norm(self.config.layer_norm_epsilon, self.dtype, "norm", use_bias=False)
