"""Falcon: 7B, 40B, 180B, Falcon-RW, Falcon2-11B; also as first published, under the name RefinedWeb."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from sllm_jax.common.errors import SllmError
from sllm_jax.models.alibi import falcon_alibi
from sllm_jax.models.config import ModelConfig, rotary
from sllm_jax.models.layers import MLP, Attention, Decoder, Layer, Norm, Parts, layer_norm
from sllm_jax.models.options import checked_kv_heads, option, size
from sllm_jax.models.position import Rope

# Name in the first configs -> current name.
_FIRST_NAMES = {
    "n_head": "num_attention_heads",
    "n_layer": "num_hidden_layers",
    "n_head_kv": "num_kv_heads",
    "n_embed": "hidden_size",
}


@dataclass(frozen=True, kw_only=True)
class FalconConfig(ModelConfig):
    """Sizes and options of a Falcon, under their Hugging Face names."""

    family: ClassVar[str] = "falcon"
    defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "falcon": {
            "layer_norm_epsilon": 1e-5,
            "activation": "gelu",
            "bias": False,
            "alibi": False,
            "parallel_attn": True,
            "multi_query": True,
            "new_decoder_architecture": False,
            "num_kv_heads": None,  # None: as many as query heads
            "num_ln_in_parallel_attn": None,  # None: 2 with new_decoder_architecture, else 1
            "ffn_hidden_size": None,  # None: 4 * hidden_size
            "tie_word_embeddings": True,
        }
    }

    ffn_hidden_size: int
    layer_norm_epsilon: float
    activation: str
    bias: bool
    parallel_attn: bool
    norms: tuple[str, str]  # names of the norms before attention and before the feed-forward network

    @classmethod
    def position(cls, config: Mapping[str, Any], heads: int, head_dim: int) -> dict[str, Any]:
        """RoPE, or ALiBi if the config says so."""
        if not config["alibi"]:
            return {"rope": rotary(config, head_dim), "alibi": None}
        context = size(config, "max_position_embeddings", 2048)
        return {"rope": Rope(dim=0, max_position_embeddings=context), "alibi": falcon_alibi(heads, head_dim)}

    @classmethod
    def own_options(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """Key/value heads, norms, and the width of the feed-forward network."""
        return {
            "num_key_value_heads": _kv_heads(config),
            "norms": _norms(config),
            "ffn_hidden_size": size(config, "ffn_hidden_size", 4 * config["hidden_size"]),
        }

    @classmethod
    def with_current_names(cls, config: Mapping[str, Any]) -> Mapping[str, Any]:
        """As `ModelConfig.with_current_names`, from the first configs of Falcon.

        `RefinedWebModel` is Falcon 7B and RW, `RefinedWeb` Falcon 40B. `auto_map`, which names the code that came with
        those checkpoints, is removed.
        """
        renamed = {new: config[old] for old, new in _FIRST_NAMES.items() if config.get(old) is not None}
        kept = {name: value for name, value in config.items() if name not in _FIRST_NAMES}
        if config.get("model_type") == "falcon":
            # As in transformers: `n_embed` wins over `hidden_size`; the other first names lose to the current ones.
            return {**renamed, **kept, "hidden_size": config.get("n_embed") or config.get("hidden_size")}
        # In these configs the first names win.
        of_40b = config.get("model_type") == "RefinedWeb"
        return {
            **{name: value for name, value in kept.items() if name != "auto_map"},
            **renamed,
            "model_type": "falcon",
            "architectures": ["FalconForCausalLM"],
            "new_decoder_architecture": of_40b,
            "multi_query": option(config, "multi_query", of_40b),
            "parallel_attn": option(config, "parallel_attn", of_40b),
        }


def _kv_heads(config: Mapping[str, Any]) -> int:
    """The number of key/value heads."""
    heads = config["num_attention_heads"]
    if config["new_decoder_architecture"]:
        return checked_kv_heads(heads, option(config, "num_kv_heads", heads))
    return 1 if config["multi_query"] else heads


def _norms(config: Mapping[str, Any]) -> tuple[str, str]:
    """The norms before attention and the feed-forward network; raises `SllmError` for what Falcon itself cannot run."""
    new, parallel = config["new_decoder_architecture"], config["parallel_attn"]
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
    """Attention and the feed-forward network: sequential, or parallel with one shared norm (7B) or two (40B)."""

    def parts(self) -> Parts:
        """Layer norms. All linear layers have biases, or none has."""
        config, dtype = self.config, self.dtype
        norms = {name: layer_norm(config.layer_norm_epsilon, dtype, name) for name in dict.fromkeys(config.norms)}
        return Parts(
            norms[config.norms[0]],
            Attention(config, dtype, config.bias, config.bias, name="self_attn"),
            norms[config.norms[1]],
            MLP(config, dtype, config.ffn_hidden_size, config.activation, config.bias, name="mlp"),
        )

    def is_parallel(self) -> bool:
        """The config's `parallel_attn`."""
        return self.config.parallel_attn


class Falcon(Decoder):
    """The Falcon language model."""

    layer = FalconLayer

    def norm(self) -> Norm:
        """The final norm, a layer norm."""
        return layer_norm(self.config.layer_norm_epsilon, self.dtype, "norm")
