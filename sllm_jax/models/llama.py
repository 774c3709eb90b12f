"""Llama 1, 2, 3, 3.1, 3.2 (TinyLlama, Vicuna, Yi, SmolLM) and its kin: Mistral, Qwen2, Qwen2.5, Qwen3."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from flax import linen as nn
from jaxtyping import Array, Float

from sllm_jax.common.errors import SllmError
from sllm_jax.models.config import (
    ModelConfig,
    attention_sink,
    grouped,
    option,
    optional_size,
    options,
    refuse_unsupported,
    required_sizes,
    rotary,
    size,
)
from sllm_jax.models.layers import ACTIVATIONS, Attention, Decoder, Heads, Layer, Norm, activation, rms_norm
from sllm_jax.models.linear import Linear


@dataclass(frozen=True, kw_only=True)
class LlamaConfig(ModelConfig):
    """Sizes and options of a Llama or one of its kin, under their Hugging Face names."""

    model_type: ClassVar[str] = "llama"

    intermediate_size: int
    rms_norm_eps: float = 1e-6
    hidden_act: str = "silu"
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False  # queries and keys are normed, each head for itself

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> LlamaConfig:
        """As `ModelConfig.from_hf`."""
        kind = config.get("model_type", "llama")
        config = {**_DEFAULTS.get(kind, {}), **config}
        sizes = required_sizes(
            config, "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"
        )
        heads = sizes["num_attention_heads"]
        head_dim = size(config, "head_dim", sizes["hidden_size"] // heads)
        return cls(
            **sizes,
            **options(config, rms_norm_eps=1e-6, tie_word_embeddings=False),
            **_OWN[kind](config),
            num_key_value_heads=grouped(heads, option(config, "num_key_value_heads", heads)),
            head_dim=head_dim,
            rope=rotary(config, head_dim),
            hidden_act=activation(config, "hidden_act", "silu"),
            attention_sink=attention_sink(config),
        )


def _llama(config: Mapping[str, Any]) -> dict[str, Any]:
    refuse_unsupported(config, "use_sliding_window")
    bias = option(config, "attention_bias", False)
    return {"qkv_bias": bias, "output_bias": bias, "mlp_bias": option(config, "mlp_bias", False)}


def _mistral(config: Mapping[str, Any]) -> dict[str, Any]:
    refuse_unsupported(config, "attention_bias", "mlp_bias")
    window = optional_size(config, "sliding_window")
    slides = [window is not None] * config["num_hidden_layers"]
    return {"sliding_window": window if _all_slide(config, slides) else None}


def _qwen2(config: Mapping[str, Any]) -> dict[str, Any]:
    refuse_unsupported(config, "mlp_bias")
    return {"qkv_bias": True, "sliding_window": _qwen_window(config)}


def _qwen3(config: Mapping[str, Any]) -> dict[str, Any]:
    refuse_unsupported(config, "mlp_bias")
    bias = option(config, "attention_bias", False)
    return {"qkv_bias": bias, "output_bias": bias, "qk_norm": True, "sliding_window": _qwen_window(config)}


_DEFAULTS: dict[str, dict[str, int]] = {  # of transformers, where they are not Llama's
    "mistral": {"num_key_value_heads": 8, "max_position_embeddings": 131072, "sliding_window": 4096},
    "qwen2": {"num_key_value_heads": 32, "max_position_embeddings": 32768, "sliding_window": 4096},
    "qwen3": {"num_key_value_heads": 32, "max_position_embeddings": 32768, "sliding_window": 4096, "head_dim": 128},
}
_OWN: dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {  # what each model_type has of its own
    "llama": _llama,
    "mistral": _mistral,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
}


def _qwen_window(config: Mapping[str, Any]) -> int | None:
    """The sliding window, which the layers from number `max_window_layers` on have if it is switched on."""
    window = optional_size(config, "sliding_window") if option(config, "use_sliding_window", False) else None
    first = option(config, "max_window_layers", 28)
    slides = [bool(window) and i >= first for i in range(config["num_hidden_layers"])]
    return window if _all_slide(config, slides) else None


def _all_slide(config: Mapping[str, Any], slides: list[bool]) -> bool:
    """Whether all layers have the sliding window, or none; raises `SllmError` for a mixture.

    `slides` is what follows where the config has no `layer_types`.
    """
    if layer_types := config.get("layer_types"):
        known = {"full_attention": False, "sliding_attention": True}
        is_list = isinstance(layer_types, list) and len(layer_types) == len(slides)
        if not is_list or any(not isinstance(kind, str) or kind not in known for kind in layer_types):
            raise SllmError(
                f"layer_types in config.json must be a list of {len(slides)} of {', '.join(known)}; "
                f"got {layer_types!r:.80}"
            )
        slides = [known[kind] for kind in layer_types]
    if len(set(slides)) > 1:
        raise SllmError(
            f"{sum(slides)} of {len(slides)} layers have a sliding window (layer_types, max_window_layers); supported "
            "are models in which all layers have it, or none"
        )
    return slides[0]


class LlamaAttention(Attention):
    """Grouped-query attention; Qwen3 norms its queries and keys."""

    def prepare(self, q: Float[Array, "T HD"], k: Float[Array, "T KD"], v: Float[Array, "T KD"]) -> Heads:
        """Cut into heads, and norm each head of queries and keys."""
        q, k, v = super().prepare(q, k, v)
        if self.config.qk_norm:
            epsilon, dtype = self.config.rms_norm_eps, self.dtype
            q, k = rms_norm(epsilon, dtype, "q_norm")(q), rms_norm(epsilon, dtype, "k_norm")(k)
        return q, k, v


class LlamaMLP(nn.Module):
    """Gated feed-forward network: SwiGLU, or another activation in its place."""

    config: LlamaConfig
    dtype: Any

    @nn.compact
    def __call__(self, hidden: Float[Array, "T E"]) -> Float[Array, "T E"]:
        """Position-wise."""
        config, size = self.config, self.config.intermediate_size
        gate = Linear(size, config.mlp_bias, self.dtype, name="gate_proj")(hidden)  # [T, F]
        up = Linear(size, config.mlp_bias, self.dtype, name="up_proj")(hidden)  # [T, F]
        down = Linear(config.hidden_size, config.mlp_bias, self.dtype, name="down_proj")
        return down(ACTIVATIONS[config.hidden_act](gate) * up)


class LlamaLayer(Layer):
    """Attention, then the feed-forward network."""

    def parts(self) -> tuple[Norm, nn.Module, Norm, nn.Module]:
        """Root-mean-square norms, and a gated feed-forward network."""
        config, dtype = self.config, self.dtype
        return (
            rms_norm(config.rms_norm_eps, dtype, "input_layernorm"),
            LlamaAttention(config, dtype, config.qkv_bias, config.output_bias, name="self_attn"),
            rms_norm(config.rms_norm_eps, dtype, "post_attention_layernorm"),
            LlamaMLP(config, dtype, name="mlp"),
        )


class Llama(Decoder):
    """Token ids to logits."""

    layer = LlamaLayer

    def norm(self) -> Norm:
        """Root-mean-square norm."""
        return rms_norm(self.config.rms_norm_eps, self.dtype, "norm")
