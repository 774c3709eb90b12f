"""Llama 1, 2, 3, 3.1, 3.2 (TinyLlama, Vicuna, Yi, SmolLM), Mistral, Qwen2, Qwen2.5, Qwen3, SmolLM3."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from flax import linen as nn
from jaxtyping import Array, Float

from sllm_jax.common.errors import SllmError
from sllm_jax.models.activations import ACTIVATIONS
from sllm_jax.models.config import LayerKind, ModelConfig
from sllm_jax.models.layers import Attention, Decoder, Heads, Layer, Norm, Parts, rms_norm
from sllm_jax.models.linear import Linear
from sllm_jax.models.position import Rope

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
    """Sizes and options of a Llama, Mistral, Qwen2, Qwen3 or SmolLM3, under their Hugging Face names."""

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
        "smollm3": _COMMON
        | {
            "num_key_value_heads": 4,
            "max_position_embeddings": 32768,
            "attention_bias": False,
            "mlp_bias": False,
            "tie_word_embeddings": True,
            "use_sliding_window": False,
            "sliding_window": None,
            "layer_types": None,
            "no_rope_layers": None,
            "no_rope_layer_interval": 4,
        },
    }

    intermediate_size: int
    rms_norm_eps: float
    hidden_act: str
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool = False
    qk_norm: bool = False  # RMSNorm of each query and key head

    @classmethod
    def position(cls, config: Mapping[str, Any], heads: int, head_dim: int) -> dict[str, Any]:
        """RoPE of whole heads. The base of SmolLM3 has another default."""
        if config["model_type"] == "smollm3":
            config = {**config, "rope_theta": config["rope_theta"] or 2_000_000.0}
        return super().position(config, heads, head_dim)

    @classmethod
    def layer_kinds(cls, config: Mapping[str, Any], windows: list[int | None], rope: Rope) -> dict[str, Any]:
        """SmolLM3 has layers without RoPE. If it has a sliding window, it is in these layers by default."""
        if config["model_type"] != "smollm3":
            return super().layer_kinds(config, windows, rope)
        rotates = _layers_with_rope(config)
        if not config["layer_types"]:
            windows = [None if has_rope else window for has_rope, window in zip(rotates, windows, strict=True)]
        no_rope = replace(rope, dim=0, attention_factor=1.0)
        kinds = zip(windows, rotates, strict=True)
        layers = tuple(LayerKind(window, rope if has_rope else no_rope) for window, has_rope in kinds)
        return {"sliding_window": None, "layers": layers}

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


def _layers_with_rope(config: Mapping[str, Any]) -> list[bool]:
    """Whether each layer of a SmolLM3 has RoPE: 1 in `no_rope_layers`; by default all but every fourth layer.

    Raises `SllmError` for another value.
    """
    layers, stated = config["num_hidden_layers"], config["no_rope_layers"]
    if stated is None:
        if not (interval := config["no_rope_layer_interval"]):
            raise SllmError("no_rope_layer_interval in config.json must be positive; got 0")
        return [(i + 1) % interval != 0 for i in range(layers)]
    if not isinstance(stated, list) or len(stated) < layers or any(one not in (0, 1) for one in stated):
        raise SllmError(f"no_rope_layers in config.json must be a list of {layers} of 0, 1; got {stated!r:.80}")
    return [bool(one) for one in stated[:layers]]


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

    def parts(self) -> Parts:
        """RMSNorm before attention and before a gated feed-forward network."""
        config, dtype = self.config, self.dtype
        return Parts(
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
