"""Gemma 2, and the text models of Gemma 3."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from sllm_jax.common.errors import SllmError
from sllm_jax.models.config import LayerKind, ModelConfig, rotary
from sllm_jax.models.layers import Attention, Decoder, Heads, Layer, Norm, Parts
from sllm_jax.models.llama import LlamaMLP
from sllm_jax.models.options import option
from sllm_jax.models.position import Rope

_COMMON = {
    "rms_norm_eps": 1e-6,
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_act": None,  # in older configs; ignored, as by transformers
    "num_key_value_heads": 4,
    "head_dim": 256,
    "attention_bias": False,
    "query_pre_attn_scalar": 256.0,
    "sliding_window": 4096,
    "layer_types": None,
    "tie_word_embeddings": True,
}


@dataclass(frozen=True, kw_only=True)
class GemmaConfig(ModelConfig):
    """Sizes and options of a Gemma 2 or Gemma 3, under their Hugging Face names."""

    family: ClassVar[str] = "gemma"
    sizes: ClassVar[tuple[str, ...]] = ("intermediate_size",)
    defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "gemma2": _COMMON
        | {
            "sliding_window_size": None,  # in some published configs beside sliding_window; ignored by transformers
            "max_position_embeddings": 8192,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
        },
        "gemma3_text": _COMMON
        | {
            "max_position_embeddings": 131072,
            "final_logit_softcapping": None,
            "sliding_window_pattern": 6,
            "rope_local_base_freq": 10_000.0,
        },
    }

    intermediate_size: int
    rms_norm_eps: float
    hidden_act: str
    attention_bias: bool
    mlp_bias: bool = False
    qk_norm: bool = False  # RMSNorm of each query and key head
    final_logit_softcapping: float | None = None

    @classmethod
    def position(cls, config: Mapping[str, Any], heads: int, head_dim: int) -> dict[str, Any]:
        """The RoPE of layers without a sliding window; `layer_kinds` reads that of the others."""
        return {"rope": rotary(_global_rope(config), head_dim)}

    @classmethod
    def layer_kinds(cls, config: Mapping[str, Any], windows: list[int | None], rope: Rope) -> dict[str, Any]:
        """By default, every second layer of Gemma 2 and five of six layers of Gemma 3 have the sliding window.

        In Gemma 3 these layers also have a RoPE of their own.
        """
        if not config["layer_types"]:
            if None in windows:
                raise SllmError("sliding_window in config.json must be a positive integer; got null or 0")
            pattern = _positive(config, "sliding_window_pattern") if config["model_type"] == "gemma3_text" else 2
            windows = [window if (i + 1) % pattern else None for i, window in enumerate(windows)]
        local = rotary(_local_rope(config), rope.dim) if config["model_type"] == "gemma3_text" else rope
        kinds = tuple(LayerKind(window, rope if window is None else local) for window in windows)
        return {"sliding_window": None, "layers": kinds, "sinks_in_windows": False}

    @classmethod
    def own_options(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """The scale of scores, and the options that only one `model_type` has."""
        return {
            "hidden_act": config["hidden_activation"],
            "softmax_scale": _positive(config, "query_pre_attn_scalar") ** -0.5,
            "score_cap": _cap(config, "attn_logit_softcapping"),
            "final_logit_softcapping": _cap(config, "final_logit_softcapping"),
            "qk_norm": config["model_type"] == "gemma3_text",
        }


def _positive(config: Mapping[str, Any], name: str) -> Any:
    if config[name] == 0:
        raise SllmError(f"{name} in config.json must be positive; got 0")
    return config[name]


def _cap(config: Mapping[str, Any], name: str) -> float | None:
    """A soft cap, or None if the config has none, null or 0."""
    return option(config, name, 0.0) or None


def _global_rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """The options of RoPE in layers without a sliding window."""
    if config["model_type"] == "gemma2":
        return dict(config)
    own = _nested(config, "full_attention")
    if own and config["rope_scaling"]:
        raise SllmError("config.json has both rope_scaling and rope_parameters; remove one of them")
    return {**config, "rope_theta": config["rope_theta"] or 1_000_000.0, "rope_parameters": own}


def _local_rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """The options of RoPE in layers of Gemma 3 with a sliding window: never scaled, with a base of their own."""
    own = _nested(config, "sliding_attention")
    return {**config, "rope_theta": config["rope_local_base_freq"], "rope_parameters": own, "rope_scaling": None}


def _nested(config: Mapping[str, Any], kind: str) -> Any:
    """The entry of `rope_parameters` for layers of this kind (transformers 5); None where there is none."""
    parameters = config["rope_parameters"]
    if parameters is None:
        return None
    if not isinstance(parameters, Mapping):
        raise SllmError(f"rope_parameters in config.json must be an object; got {parameters!r:.80}")
    if unknown := [name for name in parameters if name not in ("full_attention", "sliding_attention")]:
        raise SllmError(
            f"rope_parameters of {config['model_type']!r} must have full_attention and sliding_attention; "
            f"got {', '.join(f'{name:.80}' for name in unknown[:10])}"
        )
    return parameters.get(kind)


class GemmaNorm(nn.Module):
    """RMSNorm with weights around 0: scales by 1 + weight, in float32."""

    epsilon: float
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "*t E"]) -> Float[Array, "*t E"]:
        """Normalizes the last axis."""
        scale = self.param("scale", nn.initializers.zeros, (x.shape[-1],), self.dtype)
        x = x.astype(jnp.float32)
        normalized = x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + self.epsilon)
        return (normalized * (1 + scale.astype(jnp.float32))).astype(self.dtype)


class GemmaAttention(Attention):
    """Grouped-query attention; in Gemma 3 with RMSNorm of queries and keys."""

    def prepare(self, q: Float[Array, "T HD"], k: Float[Array, "T KD"], v: Float[Array, "T KD"]) -> Heads:
        """Split into heads, and apply RMSNorm to each head of queries and keys."""
        q, k, v = super().prepare(q, k, v)
        if self.config.qk_norm:
            epsilon, dtype = self.config.rms_norm_eps, self.dtype
            q, k = GemmaNorm(epsilon, dtype, name="q_norm")(q), GemmaNorm(epsilon, dtype, name="k_norm")(k)
        return q, k, v


class GemmaLayer(Layer):
    """Attention, then the feed-forward network, each between two norms."""

    def parts(self) -> Parts:
        """RMSNorm before and after attention, and before and after a gated feed-forward network."""
        config, dtype = self.config, self.dtype

        def norm(name: str) -> GemmaNorm:
            return GemmaNorm(config.rms_norm_eps, dtype, name=name)

        return Parts(
            norm("input_layernorm"),
            GemmaAttention(config, dtype, config.attention_bias, config.attention_bias, name="self_attn"),
            norm("pre_feedforward_layernorm"),
            LlamaMLP(config, dtype, name="mlp"),
            norm("post_attention_layernorm"),
            norm("post_feedforward_layernorm"),
        )


class Gemma(Decoder):
    """The Gemma language model."""

    layer = GemmaLayer

    def embedded(self, hidden: Float[Array, "T E"]) -> Float[Array, "T E"]:
        """Embeddings are scaled by the square root of the hidden size, rounded to the dtype."""
        return hidden * jnp.asarray(self.config.hidden_size**0.5, self.dtype)

    def norm(self) -> Norm:
        """The final norm, an RMSNorm."""
        return GemmaNorm(self.config.rms_norm_eps, self.dtype, name="norm")

    def capped(self, logits: Float[Array, "*t V"]) -> Float[Array, "*t V"]:
        """Logits are softly capped, if the config says so."""
        cap = self.config.final_logit_softcapping
        return logits if cap is None else cap * jnp.tanh(logits / cap)
