"""GPT-NeoX: Pythia, GPT-NeoX-20B, RedPajama-INCITE, StableLM-alpha, Dolly v2."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from flax import linen as nn

from sllm_jax.models.config import ModelConfig, rotary
from sllm_jax.models.layers import MLP, Attention, Decoder, Layer, Norm, layer_norm
from sllm_jax.models.options import option


@dataclass(frozen=True, kw_only=True)
class GPTNeoXConfig(ModelConfig):
    """Sizes and options of a GPT-NeoX, under their Hugging Face names."""

    family: ClassVar[str] = "gpt_neox"
    sizes: ClassVar[tuple[str, ...]] = ("intermediate_size",)
    defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "gpt_neox": {
            "layer_norm_eps": 1e-5,
            "hidden_act": "gelu",
            "attention_bias": True,
            "use_parallel_residual": True,
            "rotary_pct": None,  # None: partial_rotary_factor
            "partial_rotary_factor": 0.25,
            "rotary_emb_base": None,  # None: rope_theta
            "rope_theta": 10_000.0,
        }
    }

    intermediate_size: int
    layer_norm_eps: float
    hidden_act: str
    attention_bias: bool
    use_parallel_residual: bool

    @classmethod
    def position(cls, config: Mapping[str, Any], heads: int, head_dim: int) -> dict[str, Any]:
        """RoPE of a part of each head. The family's own names for share and base win, as in transformers."""
        share = option(config, "rotary_pct", config["partial_rotary_factor"])
        theta = option(config, "rotary_emb_base", config["rope_theta"])
        config = {**config, "partial_rotary_factor": share, "rope_theta": theta}
        return {"rope": rotary(config, head_dim, whole_heads=False)}


class GPTNeoXLayer(Layer):
    """Attention and the feed-forward network on two norms of the same input, or one after the other."""

    def parts(self) -> tuple[Norm, nn.Module, Norm, nn.Module]:
        """Layer norms, and biases in all linear layers, or in all but those of attention."""
        config, dtype = self.config, self.dtype
        return (
            layer_norm(config.layer_norm_eps, dtype, "input_layernorm"),
            Attention(config, dtype, config.attention_bias, config.attention_bias, name="self_attn"),
            layer_norm(config.layer_norm_eps, dtype, "post_attention_layernorm"),
            MLP(config, dtype, config.intermediate_size, config.hidden_act, use_bias=True, name="mlp"),
        )

    def is_parallel(self) -> bool:
        """The config's `use_parallel_residual`."""
        return self.config.use_parallel_residual


class GPTNeoX(Decoder):
    """Token ids to logits."""

    layer = GPTNeoXLayer

    def norm(self) -> Norm:
        """Layer norm."""
        return layer_norm(self.config.layer_norm_eps, self.dtype, "norm")
