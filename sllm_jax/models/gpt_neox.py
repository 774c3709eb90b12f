"""GPT-NeoX: Pythia, GPT-NeoX-20B, RedPajama-INCITE, StableLM-alpha, Dolly v2."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from flax import linen as nn

from sllm_jax.models.config import (
    ModelConfig,
    attention_sink,
    head_size,
    option,
    options,
    refuse_unsupported,
    required_sizes,
    rotary,
)
from sllm_jax.models.layers import MLP, Attention, Decoder, Layer, Norm, activation, layer_norm


@dataclass(frozen=True, kw_only=True)
class GPTNeoXConfig(ModelConfig):
    """Sizes and options of a GPT-NeoX, under their Hugging Face names."""

    model_type: ClassVar[str] = "gpt_neox"

    intermediate_size: int
    layer_norm_eps: float = 1e-5
    hidden_act: str = "gelu"
    attention_bias: bool = True
    use_parallel_residual: bool = True

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> GPTNeoXConfig:
        """As `ModelConfig.from_hf`."""
        refuse_unsupported(config)
        sizes = required_sizes(
            config, "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"
        )
        heads = sizes["num_attention_heads"]
        head_dim = head_size(sizes["hidden_size"], heads)
        return cls(
            **sizes,
            **options(
                config, layer_norm_eps=1e-5, attention_bias=True, use_parallel_residual=True, tie_word_embeddings=False
            ),
            num_key_value_heads=heads,
            head_dim=head_dim,
            rope=rotary(_with_common_names(config), head_dim, whole_heads=False),
            hidden_act=activation(config, "hidden_act", "gelu"),
            attention_sink=attention_sink(config),
        )


def _with_common_names(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The config with the names that other families have for how much of a head turns, and how fast.

    Where both are there, the family's own count, as in transformers (which looks at no others).
    """
    share = option(config, "rotary_pct", option(config, "partial_rotary_factor", 0.25))
    theta = option(config, "rotary_emb_base", option(config, "rope_theta", 10_000.0))
    return {**config, "partial_rotary_factor": share, "rope_theta": theta}


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
