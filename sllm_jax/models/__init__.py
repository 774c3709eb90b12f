"""What is supported: for each `model_type` its config, its module, and what users want to know of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from sllm_jax.common.errors import SllmError
from sllm_jax.models.config import ModelConfig
from sllm_jax.models.falcon import Falcon, FalconConfig
from sllm_jax.models.gpt_neox import GPTNeoX, GPTNeoXConfig
from sllm_jax.models.layers import Decoder
from sllm_jax.models.llama import Llama, LlamaConfig
from sllm_jax.models.mpt import MPT, MPTConfig


@dataclass(frozen=True)
class Kind:
    """One `model_type` of Hugging Face configs."""

    config: type[ModelConfig]
    module: type[Decoder]
    models: str  # that have it
    options: str  # of the config, besides sizes, that are honoured


_LLAMA = "num_key_value_heads, head_dim, tie_word_embeddings, hidden_act, rope_scaling"
_QWEN_WINDOW = "use_sliding_window (in all layers or none)"

KINDS: dict[str, Kind] = {
    "llama": Kind(
        LlamaConfig,
        Llama,
        "Llama 1, 2, 3, 3.1, 3.2, TinyLlama, Vicuna, Yi, SmolLM",
        f"{_LLAMA}, attention_bias, mlp_bias",
    ),
    "mistral": Kind(LlamaConfig, Llama, "Mistral 7B", f"{_LLAMA}, sliding_window"),
    "qwen2": Kind(LlamaConfig, Llama, "Qwen2, Qwen2.5", f"{_LLAMA}, {_QWEN_WINDOW}"),
    "qwen3": Kind(LlamaConfig, Llama, "Qwen3", f"{_LLAMA}, attention_bias, {_QWEN_WINDOW}"),
    "gpt_neox": Kind(
        GPTNeoXConfig,
        GPTNeoX,
        "Pythia, GPT-NeoX-20B, RedPajama-INCITE, StableLM-alpha, Dolly v2",
        "rotary_pct or partial_rotary_factor, rotary_emb_base, use_parallel_residual, attention_bias, hidden_act, "
        "tie_word_embeddings, rope_scaling",
    ),
    "falcon": Kind(
        FalconConfig,
        Falcon,
        "Falcon 7B, 40B, 180B, Falcon-RW, Falcon2-11B",
        "multi_query, new_decoder_architecture, num_kv_heads, num_ln_in_parallel_attn, parallel_attn, alibi, bias, "
        "activation, ffn_hidden_size, tie_word_embeddings, rope_scaling",
    ),
    "RefinedWebModel": Kind(FalconConfig, Falcon, "Falcon 7B, Falcon-RW as first published", "as falcon"),
    "RefinedWeb": Kind(FalconConfig, Falcon, "Falcon 40B as first published", "as falcon"),
    "mpt": Kind(
        MPTConfig,
        MPT,
        "MPT 7B, 30B, StoryWriter",
        "attn_config: clip_qkv, qk_ln, softmax_scale, alibi_bias_max; expansion_ratio, tie_word_embeddings",
    ),
}


def kind_of(hf_config: Mapping[str, Any]) -> Kind:
    """What a Hugging Face `config.json` is of; raises `SllmError` that lists what is supported."""
    return KINDS[supported(hf_config.get("model_type"))]


def supported(model_type: Any) -> str:
    """`model_type` itself if it is one of `KINDS`; raises `SllmError` that lists them."""
    if not isinstance(model_type, str) or model_type not in KINDS:
        raise SllmError(f"model_type {model_type!r:.80} is not supported; supported are {', '.join(KINDS)}")
    return model_type


def module_for(hf_config: Mapping[str, Any], dtype: Any) -> Any:
    """The family's Linen module for a Hugging Face `config.json`; raises `SllmError` for what is not supported."""
    kind = kind_of(hf_config)
    return kind.module(kind.config.from_hf(hf_config), jnp.dtype(dtype))
