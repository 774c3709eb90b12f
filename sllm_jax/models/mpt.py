"""MPT: 7B and 30B, StoryWriter among them.

`alibi_bias_max`, `expansion_ratio` and `qk_ln` are those of MosaicML's own code; transformers ignores them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float

from sllm_jax.common.errors import SllmError
from sllm_jax.models.alibi import mpt_alibi
from sllm_jax.models.config import ModelConfig
from sllm_jax.models.layers import MLP, Attention, Decoder, Heads, Layer, Norm, Parts, layer_norm
from sllm_jax.models.options import options, size
from sllm_jax.models.position import Rope
from sllm_jax.models.unsupported import refuse_unknown

# Options of attn_config with their defaults; 0 means no clipping and the ordinary scale.
_ATTENTION = {"clip_qkv": 0.0, "qk_ln": False, "softmax_scale": 0.0, "alibi_bias_max": 8.0}
# Options of which only these values are supported: the published models have no others.
_FIXED: dict[str, tuple[Any, ...]] = {
    "no_bias": (True,),
    "norm_type": ("low_precision_layernorm", "layernorm"),
    "attn_config.alibi": (True,),
    "attn_config.attn_type": ("multihead_attention",),
    "attn_config.sliding_window_size": (-1,),
    "attn_config.fused_qkv": (True,),
    "attn_config.rope": (False,),
    "attn_config.qk_gn": (False,),
    "attn_config.prefix_lm": (False,),
    "attn_config.attn_uses_sequence_id": (False,),
    "ffn_config.ffn_type": ("mptmlp",),
    "ffn_config.ffn_act_fn": ({"name": "gelu", "approximate": "none"}, {"name": "gelu"}),
}
# The other options of each part. Those of RoPE have no effect in a model with ALiBi.
_PARTS = {
    "attn_config": (*_ATTENTION, "rope_theta", "rope_impl", "rope_dail_config", "rope_hf_config"),
    "ffn_config": (),
}


@dataclass(frozen=True, kw_only=True)
class MPTConfig(ModelConfig):
    """Sizes and options of an MPT. Those that other families share have the shared names."""

    family: ClassVar[str] = "mpt"
    names: ClassVar[Mapping[str, str]] = {
        "hidden_size": "d_model",
        "num_hidden_layers": "n_layers",
        "num_attention_heads": "n_heads",
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
            "learned_pos_emb": None,  # has no effect in a model with ALiBi
        }
    }

    intermediate_size: int
    layer_norm_epsilon: float
    clip_qkv: float  # 0: no clipping
    qk_ln: bool  # layer norm of queries and keys, over all heads together

    @classmethod
    def position(cls, config: Mapping[str, Any], heads: int, head_dim: int) -> dict[str, Any]:
        """ALiBi; no dimension is rotated."""
        bias_max = options(_part(config, "attn_config"), _ATTENTION)["alibi_bias_max"]
        rope = Rope(dim=0, max_position_embeddings=size(config, "max_seq_len", 2048))
        return {"rope": rope, "alibi": mpt_alibi(heads, bias_max)}

    @classmethod
    def own_options(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """The options of `attn_config`, and the width of the feed-forward network."""
        _check_fixed(config)
        attention = options(_part(config, "attn_config"), _ATTENTION)
        return {
            "clip_qkv": attention["clip_qkv"],
            "qk_ln": attention["qk_ln"],
            "softmax_scale": attention["softmax_scale"] or None,
            "intermediate_size": size(config, "expansion_ratio", 4) * config["d_model"],
        }


def _part(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """The object `name` of the config, or an empty one; raises `SllmError` for another value."""
    part = config.get(name) or {}
    if not isinstance(part, Mapping):
        raise SllmError(f"{name} in config.json must be an object; got {part!r:.80}")
    return part


def _check_fixed(config: Mapping[str, Any]) -> None:
    """Raises `SllmError` for values that are not in `_FIXED`, and for unknown options in a part of the config."""
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
        """Clip, apply layer norms, then split into heads."""
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

    def parts(self) -> Parts:
        """Layer norms without biases."""
        config, dtype = self.config, self.dtype
        return Parts(
            layer_norm(config.layer_norm_epsilon, dtype, "input_layernorm", use_bias=False),
            MPTAttention(config, dtype, name="self_attn"),
            layer_norm(config.layer_norm_epsilon, dtype, "post_attention_layernorm", use_bias=False),
            MLP(config, dtype, config.intermediate_size, "gelu", name="mlp"),
        )


class MPT(Decoder):
    """The MPT language model."""

    layer = MPTLayer

    def norm(self) -> Norm:
        """The final norm, a layer norm without a bias."""
        return layer_norm(self.config.layer_norm_epsilon, self.dtype, "norm", use_bias=False)
