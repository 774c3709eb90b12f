"""MPT: 7B and 30B, StoryWriter among them.

`alibi_bias_max`, `expansion_ratio` and `qk_ln` are those of MosaicML's own code; transformers ignores them.
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
from sllm_jax.models.config import ModelConfig
from sllm_jax.models.layers import MLP, Attention, Decoder, Heads, Layer, Norm, layer_norm
from sllm_jax.models.options import options, size
from sllm_jax.models.position import Rope
from sllm_jax.models.unsupported import refuse_unknown

_ATTENTION = {"clip_qkv": 0.0, "qk_ln": False, "softmax_scale": 0.0, "alibi_bias_max": 8.0}  # of attn_config; 0: none
_FIXED: dict[str, tuple[Any, ...]] = {  # options that have one value in all published models, or equivalent ones
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
    "ffn_config.ffn_act_fn": ({"name": "gelu", "approximate": "none"}, {"name": "gelu"}),
}
_PARTS = {  # the options of each part besides `_FIXED`; those of RoPE have no effect beside ALiBi
    "attn_config": (*_ATTENTION, "rope_theta", "rope_impl", "rope_dail_config", "rope_hf_config"),
    "ffn_config": (),
}


@dataclass(frozen=True, kw_only=True)
class MPTConfig(ModelConfig):
    """Sizes and options of an MPT; those that other families have too, under their names there."""

    family: ClassVar[str] = "mpt"
    names: ClassVar[Mapping[str, str]] = {
        **{"hidden_size": "d_model", "num_hidden_layers": "n_layers", "num_attention_heads": "n_heads"},
        "max_position_embeddings": "max_seq_len",
    }
    defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "mpt": {
            "max_seq_len": 2048,
            "expansion_ratio": 4,
            "layer_norm_epsilon": 1e-5,
            "tie_word_embeddings": True,
            "attn_config": None,  # None: `_ATTENTION`
            "ffn_config": None,
            "no_bias": None,
            "norm_type": None,
            "learned_pos_emb": None,  # has no effect beside ALiBi
        }
    }

    intermediate_size: int
    layer_norm_epsilon: float
    clip_qkv: float  # 0: no clipping
    qk_ln: bool  # layer norm of queries and keys, over all heads together

    @classmethod
    def position(cls, config: Mapping[str, Any], heads: int, head_dim: int) -> dict[str, Any]:
        """ALiBi."""
        bias_max = options(_part(config, "attn_config"), _ATTENTION)["alibi_bias_max"]
        rope = Rope(dim=0, max_position_embeddings=size(config, "max_seq_len", 2048))
        return {"rope": rope, "alibi": mpt_alibi(heads, bias_max)}

    @classmethod
    def own_options(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """What `attn_config` says, and the width of the feed-forward network."""
        _check_fixed(config)
        attention = options(_part(config, "attn_config"), _ATTENTION)
        return {
            "clip_qkv": attention["clip_qkv"],
            "qk_ln": attention["qk_ln"],
            "softmax_scale": attention["softmax_scale"] or None,
            "intermediate_size": size(config, "expansion_ratio", 4) * config["d_model"],
        }


def _part(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    part = config.get(name) or {}
    if not isinstance(part, Mapping):
        raise SllmError(f"{name} in config.json must be an object; got {part!r:.80}")
    return part


def _check_fixed(config: Mapping[str, Any]) -> None:
    """Raises `SllmError` for a config that differs from `_FIXED`, or has more in a part than is known here."""
    for path, allowed in _FIXED.items():
        part, _, name = path.rpartition(".")
        value = (_part(config, part) if part else config).get(name)
        if value is not None and value not in allowed:
            expected = " or ".join(map(repr, allowed))
            raise SllmError(f"MPT with {path} {value!r:.80} is not supported; expected {expected}")
    for part, names in _PARTS.items():
        fixed = [path.removeprefix(f"{part}.") for path in _FIXED]
        refuse_unknown(_part(config, part), {*names, *fixed}, f"{part} of MPT")


class MPTAttention(Attention):
    """Attention with optional clipping of queries, keys and values, and layer norm of queries and keys."""

    def prepare(self, q: Float[Array, "T HD"], k: Float[Array, "T KD"], v: Float[Array, "T KD"]) -> Heads:
        """Clip, norm, then split into heads."""
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
