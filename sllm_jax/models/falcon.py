"""Falcon: 7B, 40B, 180B, Falcon-RW, Falcon2-11B; also as first published, under the name RefinedWeb."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from flax import linen as nn

from sllm_jax.common.errors import SllmError
from sllm_jax.models.alibi import falcon_alibi
from sllm_jax.models.config import (
    ModelConfig,
    attention_sink,
    grouped,
    head_size,
    option,
    options,
    refuse_unsupported,
    required_sizes,
    rotary,
    size,
)
from sllm_jax.models.layers import MLP, Attention, Decoder, Layer, Norm, activation, layer_norm
from sllm_jax.models.position import Rope

_FIRST_NAMES = {  # name in the first configs: name today
    **{"n_head": "num_attention_heads", "n_layer": "num_hidden_layers", "n_head_kv": "num_kv_heads"},
    "n_embed": "hidden_size",
}


@dataclass(frozen=True, kw_only=True)
class FalconConfig(ModelConfig):
    """Sizes and options of a Falcon, under their Hugging Face names."""

    model_type: ClassVar[str] = "falcon"

    ffn_hidden_size: int
    layer_norm_epsilon: float = 1e-5
    activation: str = "gelu"
    bias: bool = False
    parallel_attn: bool = True
    norms: tuple[str, str] = ("input_layernorm", "input_layernorm")  # before attention and the feed-forward network

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> FalconConfig:
        """As `ModelConfig.from_hf`."""
        config = cls.today(config)
        refuse_unsupported(config, "apply_residual_connection_post_layernorm")
        sizes = required_sizes(config, "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
        heads = sizes["num_attention_heads"]
        head_dim = head_size(sizes["hidden_size"], heads)
        with_alibi, context = option(config, "alibi", False), size(config, "max_position_embeddings", 2048)
        return cls(
            **sizes,
            **options(config, layer_norm_epsilon=1e-5, bias=False, parallel_attn=True, tie_word_embeddings=True),
            num_key_value_heads=_kv_heads(config, heads),
            head_dim=head_dim,
            rope=Rope(dim=0, max_position_embeddings=context) if with_alibi else rotary(config, head_dim),
            alibi=falcon_alibi(heads, head_dim) if with_alibi else None,
            ffn_hidden_size=size(config, "ffn_hidden_size", 4 * sizes["hidden_size"]),
            activation=activation(config, "activation", "gelu"),
            norms=_norms(config),
            attention_sink=attention_sink(config),
        )

    @classmethod
    def today(cls, config: Mapping[str, Any]) -> Mapping[str, Any]:
        """As `ModelConfig.today`: from `RefinedWebModel` (7B and RW as first published) or `RefinedWeb` (40B).

        What named the code that came with those checkpoints is left out.
        """
        kind = config.get("model_type")
        renamed = {new: config[old] for old, new in _FIRST_NAMES.items() if config.get(old) is not None}
        if kind == "falcon":
            return {**renamed, **config, "hidden_size": config.get("n_embed") or config.get("hidden_size")}
        of_40b = kind == "RefinedWeb"
        return {
            **{name: value for name, value in config.items() if name not in (*_FIRST_NAMES, "auto_map")},
            **renamed,
            "model_type": "falcon",
            "architectures": ["FalconForCausalLM"],
            "new_decoder_architecture": of_40b,
            "multi_query": option(config, "multi_query", of_40b),
            "parallel_attn": option(config, "parallel_attn", of_40b),
        }


def _kv_heads(config: Mapping[str, Any], heads: int) -> int:
    if option(config, "new_decoder_architecture", False):
        return grouped(heads, option(config, "num_kv_heads", heads))
    return 1 if option(config, "multi_query", True) else heads


def _norms(config: Mapping[str, Any]) -> tuple[str, str]:
    """The norms before attention and the feed-forward network; raises `SllmError` for what Falcon itself cannot run."""
    new, parallel = option(config, "new_decoder_architecture", False), option(config, "parallel_attn", True)
    norms = option(config, "num_ln_in_parallel_attn", 2 if new else 1)
    if norms not in (1, 2) or (norms == 2 and not new) or (new and not parallel):
        raise SllmError(
            "Falcon has num_ln_in_parallel_attn 1, or with new_decoder_architecture 1 or 2 and parallel_attn true; got "
            f"num_ln_in_parallel_attn {norms}, new_decoder_architecture {new}, parallel_attn {parallel}"
        )
    if not parallel:
        return "input_layernorm", "post_attention_layernorm"
    return ("ln_attn", "ln_mlp") if norms == 2 else ("input_layernorm", "input_layernorm")


class FalconLayer(Layer):
    """Attention and the feed-forward network, on one norm or two of the same input, or one after the other."""

    def parts(self) -> tuple[Norm, nn.Module, Norm, nn.Module]:
        """Layer norms, and linear layers that all have biases or none."""
        config, dtype = self.config, self.dtype
        norms = {name: layer_norm(config.layer_norm_epsilon, dtype, name) for name in set(config.norms)}
        return (
            norms[config.norms[0]],
            Attention(config, dtype, config.bias, config.bias, name="self_attn"),
            norms[config.norms[1]],
            MLP(config, dtype, config.ffn_hidden_size, config.activation, config.bias, name="mlp"),
        )

    def is_parallel(self) -> bool:
        """The config's `parallel_attn`."""
        return self.config.parallel_attn


class Falcon(Decoder):
    """Token ids to logits."""

    layer = FalconLayer

    def norm(self) -> Norm:
        """Layer norm."""
        return layer_norm(self.config.layer_norm_epsilon, self.dtype, "norm")
