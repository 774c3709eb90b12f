"""Llama 1, 2, 3, 3.1, 3.2 (TinyLlama, Vicuna, Yi, SmolLM), Mistral, Qwen2, Qwen2.5, Qwen3."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from flax import linen as nn
from jaxtyping import Array, Float

from sllm_jax.models.activations import ACTIVATIONS
from sllm_jax.models.config import ModelConfig
from sllm_jax.models.layers import Attention, Decoder, Heads, Layer, Norm, rms_norm
from sllm_jax.models.linear import Linear

_COMMON = {
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "num_key_value_heads": None,  # None: as many as query heads
    "head_dim": None,  # None: hidden_size / num_attention_heads
}
_QWEN = _COMMON | {
    "num_key_value_heads": 32,
    "max_position_embeddings": 32768,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
    "layer_types": None,
}


@dataclass(frozen=True, kw_only=True)
class LlamaConfig(ModelConfig):
    """Sizes and options of a Llama, Mistral, Qwen2 or Qwen3, under their Hugging Face names."""

    family: ClassVar[str] = "llama"
    sizes: ClassVar[tuple[str, ...]] = ("intermediate_size",)
    defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "llama": _COMMON | {"attention_bias": False, "mlp_bias": False, "sliding_window": None},
        "mistral": _COMMON
        | {
            "num_key_value_heads": 8,
            "max_position_embeddings": 131072,
            "sliding_window": 4096,
            "layer_types": None,
        },
        "qwen2": _QWEN | {"attention_bias": True},
        "qwen3": _QWEN | {"head_dim": 128, "attention_bias": False},
    }

    intermediate_size: int
    rms_norm_eps: float
    hidden_act: str
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool = False
    qk_norm: bool = False  # RMSNorm of each query and key head

    @classmethod
    def own_options(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """The biases, and the options that only one `model_type` has."""
        bias = config.get("attention_bias", False)
        biases = {"qkv_bias": bias, "output_bias": bias}
        match config["model_type"]:
            case "llama":
                return biases | {"sliding_window": None}  # transformers ignores the option
            case "qwen2":
                return {"qkv_bias": True, "output_bias": False}  # transformers ignores attention_bias
            case "qwen3":
                return biases | {"qk_norm": True}
        return biases


class LlamaAttention(Attention):
    """Grouped-query attention; in Qwen3 with RMSNorm of queries and keys."""

    def prepare(self, q: Float[Array, "T HD"], k: Float[Array, "T KD"], v: Float[Array, "T KD"]) -> Heads:
        """Split into heads, and apply RMSNorm to each head of queries and keys."""
        q, k, v = super().prepare(q, k, v)
        if self.config.qk_norm:
            epsilon, dtype = self.config.rms_norm_eps, self.dtype
            q, k = rms_norm(epsilon, dtype, "q_norm")(q), rms_norm(epsilon, dtype, "k_norm")(k)
        return q, k, v


class LlamaMLP(nn.Module):
    """Gated feed-forward network: SwiGLU, or the same with another activation."""

    config: LlamaConfig
    dtype: Any

    @nn.compact
    def __call__(self, hidden: Float[Array, "T E"]) -> Float[Array, "T E"]:
        """Applies the network to each token."""
        config, size = self.config, self.config.intermediate_size
        gate = Linear(size, config.mlp_bias, self.dtype, name="gate_proj")(hidden)  # [T, F]
        up = Linear(size, config.mlp_bias, self.dtype, name="up_proj")(hidden)  # [T, F]
        down = Linear(config.hidden_size, config.mlp_bias, self.dtype, name="down_proj")
        return down(ACTIVATIONS[config.hidden_act](gate) * up)


class LlamaLayer(Layer):
    """Attention, then the feed-forward network."""

    def parts(self) -> tuple[Norm, nn.Module, Norm, nn.Module]:
        """RMSNorm before attention and before a gated feed-forward network."""
        config, dtype = self.config, self.dtype
        return (
            rms_norm(config.rms_norm_eps, dtype, "input_layernorm"),
            LlamaAttention(config, dtype, config.qkv_bias, config.output_bias, name="self_attn"),
            rms_norm(config.rms_norm_eps, dtype, "post_attention_layernorm"),
            LlamaMLP(config, dtype, name="mlp"),
        )


class Llama(Decoder):
    """The Llama language model."""

    layer = LlamaLayer

    def norm(self) -> Norm:
        """The final norm, an RMSNorm."""
        return rms_norm(self.config.rms_norm_eps, self.dtype, "norm")
