"""GPT-NeoX: Pythia, GPT-NeoX-20B, RedPajama-INCITE, StableLM-alpha, Dolly v2."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from sllm_jax.models.config import ModelConfig, rotary
from sllm_jax.models.layers import MLP, Attention, Decoder, Layer, Norm, Parts, layer_norm


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
            "rotary_pct": 0.25,
            "rotary_emb_base": 10_000.0,
        }
    }

    intermediate_size: int
    layer_norm_eps: float
    hidden_act: str
    attention_bias: bool
    use_parallel_residual: bool

    @classmethod
    def position(cls, config: Mapping[str, Any], heads: int, head_dim: int) -> dict[str, Any]:
        """RoPE of a part of each head.

        Fraction and base come from `rope_parameters`, or else from the family's own options. As in transformers,
        `partial_rotary_factor` and `rope_theta` at the top level of the config are ignored.
        """
        own = {"partial_rotary_factor": config["rotary_pct"], "rope_theta": config["rotary_emb_base"]}
        config = {**config, **own}
        return {"rope": rotary(config, head_dim, whole_heads=False)}


class GPTNeoXLayer(Layer):
    """Attention and the feed-forward network: parallel, each with its own norm of the input, or sequential."""

    def parts(self) -> Parts:
        """Layer norms. The feed-forward network has biases; attention has them if the config says so."""
        config, dtype = self.config, self.dtype
        return Parts(
            layer_norm(config.layer_norm_eps, dtype, "input_layernorm"),
            Attention(config, dtype, config.attention_bias, config.attention_bias, name="self_attn"),
            layer_norm(config.layer_norm_eps, dtype, "post_attention_layernorm"),
            MLP(config, dtype, config.intermediate_size, config.hidden_act, use_bias=True, name="mlp"),
        )

    def is_parallel(self) -> bool:
        """The config's `use_parallel_residual`."""
        return self.config.use_parallel_residual


class GPTNeoX(Decoder):
    """The GPT-NeoX language model."""

    layer = GPTNeoXLayer

    def norm(self) -> Norm:
        """The final norm, a layer norm."""
        return layer_norm(self.config.layer_norm_eps, self.dtype, "norm")
