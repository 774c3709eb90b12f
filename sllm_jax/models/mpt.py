"""MPT: 7B and 30B, StoryWriter among them.

`alibi_bias_max`, `expansion_ratio` and `qk_ln` mean what they mean in MosaicML's own code; transformers ignores them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from sllm_jax.common.errors import SllmError
from sllm_jax.models.alibi import mpt_alibi
from sllm_jax.models.config import (
    ModelConfig,
    attention_sink,
    head_size,
    option,
    options,
    refuse_unsupported,
    required_sizes,
    size,
)
from sllm_jax.models.layers import MLP, Attention, Decoder, Heads, Layer, Norm, layer_norm
from sllm_jax.models.position import Rope

_NAMES = {"hidden_size": "d_model", "num_hidden_layers": "n_layers", "num_attention_heads": "n_heads"}
_FIXED: dict[str, tuple[Any, ...]] = {  # what all these models have, the first where the config does not say it
    "no_bias": (True,),
    "norm_type": ("low_precision_layernorm", "layernorm"),
    "attn_config.alibi": (True,),
    "attn_config.attn_type": ("multihead_attention",),
    "attn_config.sliding_window_size": (-1,),
    "attn_config.fused_qkv": (True,),
    **dict.fromkeys(
        [f"attn_config.{name}" for name in ("rope", "qk_gn", "prefix_lm", "attn_uses_sequence_id")], (False,)
    ),
    "ffn_config.ffn_type": ("mptmlp",),
}


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
        attention = _part(config, "attn_config")
        _check_fixed(config)
        refuse_unsupported(config)
        named = required_sizes(config, "vocab_size", *_NAMES.values())
        sizes = {"vocab_size": named["vocab_size"], **{name: named[theirs] for name, theirs in _NAMES.items()}}
        heads = sizes["num_attention_heads"]
        context = size(config, "max_seq_len", 2048)
        return cls(
            **sizes,
            **options(config, layer_norm_epsilon=1e-5, tie_word_embeddings=True),
            **options(attention, clip_qkv=0.0, qk_ln=False),
            num_key_value_heads=heads,
            head_dim=head_size(sizes["hidden_size"], heads),
            rope=Rope(dim=0, max_position_embeddings=context),
            alibi=mpt_alibi(heads, option(attention, "alibi_bias_max", 8.0)),
            softmax_scale=option(attention, "softmax_scale", 0.0) or None,
            intermediate_size=size(config, "expansion_ratio", 4) * sizes["hidden_size"],
            attention_sink=attention_sink(config),
        )


def _part(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    part = config.get(name) or {}
    if not isinstance(part, Mapping):
        raise SllmError(f"{name} in config.json must be an object; got {part!r:.80}")
    return part


def _check_fixed(config: Mapping[str, Any]) -> None:
    """Raises `SllmError` for a config that differs from `_FIXED`."""
    for path, allowed in _FIXED.items():
        part, _, name = path.rpartition(".")
        value = (_part(config, part) if part else config).get(name)
        if value is not None and value not in allowed:
            expected = " or ".join(map(repr, allowed))
            raise SllmError(f"MPT with {path} {value!r:.80} is not supported; expected {expected}")


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
