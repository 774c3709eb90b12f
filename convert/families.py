"""The supported families: the config, module, checkpoint table and published models of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp

from sllm_jax.common.errors import SllmError
from sllm_jax.convert.falcon import FALCON
from sllm_jax.convert.gemma import GEMMA
from sllm_jax.convert.gpt_neox import GPT_NEOX
from sllm_jax.convert.llama import LLAMA
from sllm_jax.convert.mpt import MPT as MPT_TABLE
from sllm_jax.convert.phi3 import PHI3
from sllm_jax.convert.table import Table
from sllm_jax.models.config import ModelConfig
from sllm_jax.models.falcon import Falcon, FalconConfig
from sllm_jax.models.gemma import Gemma, GemmaConfig
from sllm_jax.models.gpt_neox import GPTNeoX, GPTNeoXConfig
from sllm_jax.models.layers import Decoder
from sllm_jax.models.llama import Llama, LlamaConfig
from sllm_jax.models.mpt import MPT, MPTConfig
from sllm_jax.models.phi3 import Phi3Config


class Published(NamedTuple):
    """What users see of one `model_type`."""

    models: str
    options: str  # of the config, besides sizes


@dataclass(frozen=True)
class Family:
    """Models that share one implementation. Its own name is `config.family`."""

    config: type[ModelConfig]
    module: type[Decoder]
    table: Table  # of checkpoint tensors
    model_types: Mapping[str, Published]  # by Hugging Face's model_type


_LLAMA = "num_key_value_heads, head_dim, tie_word_embeddings, hidden_act, rope_scaling"
_GEMMA = (
    "num_key_value_heads, head_dim, query_pre_attn_scalar, final_logit_softcapping, sliding_window, layer_types, "
    "attention_bias, hidden_activation, tie_word_embeddings"
)
_QWEN_WINDOW = "use_sliding_window, max_window_layers, layer_types"

FAMILIES: dict[str, Family] = {
    "llama": Family(
        LlamaConfig,
        Llama,
        LLAMA,
        {
            "llama": Published(
                "Llama 1, 2, 3, 3.1, 3.2, TinyLlama, Vicuna, Yi, SmolLM 1, 2", f"{_LLAMA}, attention_bias, mlp_bias"
            ),
            "mistral": Published("Mistral 7B", f"{_LLAMA}, sliding_window, layer_types"),
            "qwen2": Published("Qwen2, Qwen2.5", f"{_LLAMA}, {_QWEN_WINDOW}"),
            "smollm3": Published(
                "SmolLM3", f"{_LLAMA}, attention_bias, mlp_bias, no_rope_layers, no_rope_layer_interval, layer_types"
            ),
            "qwen3": Published("Qwen3", f"{_LLAMA}, attention_bias, {_QWEN_WINDOW}"),
        },
    ),
    "gemma": Family(
        GemmaConfig,
        Gemma,
        GEMMA,
        {
            "gemma2": Published("Gemma 2", f"{_GEMMA}, attn_logit_softcapping"),
            "gemma3_text": Published(
                "Gemma 3 270M, 1B, and the text models of the larger ones",
                f"{_GEMMA}, sliding_window_pattern, rope_local_base_freq, rope_scaling",
            ),
        },
    ),
    "phi3": Family(
        Phi3Config,
        Llama,
        PHI3,
        {
            "phi3": Published(
                "Phi-3 mini and medium, Phi-3.5 mini, Phi-4, Phi-4 mini",
                "num_key_value_heads, tie_word_embeddings, hidden_act, sliding_window, partial_rotary_factor, "
                "rope_scaling: longrope",
            )
        },
    ),
    "gpt_neox": Family(
        GPTNeoXConfig,
        GPTNeoX,
        GPT_NEOX,
        {
            "gpt_neox": Published(
                "Pythia, GPT-NeoX-20B, RedPajama-INCITE, StableLM-alpha, Dolly v2",
                "rotary_pct, rotary_emb_base, use_parallel_residual, attention_bias, "
                "hidden_act, tie_word_embeddings, rope_scaling",
            )
        },
    ),
    "falcon": Family(
        FalconConfig,
        Falcon,
        FALCON,
        {
            "falcon": Published(
                "Falcon 7B, 40B, 180B, Falcon-RW, Falcon2-11B",
                "multi_query, new_decoder_architecture, num_kv_heads, num_ln_in_parallel_attn, parallel_attn, alibi, "
                "bias, activation, ffn_hidden_size, tie_word_embeddings, rope_scaling",
            ),
            "RefinedWebModel": Published("Falcon 7B, Falcon-RW as first published", "as falcon"),
            "RefinedWeb": Published("Falcon 40B as first published", "as falcon"),
        },
    ),
    "mpt": Family(
        MPTConfig,
        MPT,
        MPT_TABLE,
        {
            "mpt": Published(
                "MPT 7B, 30B, StoryWriter",
                "attn_config: clip_qkv, qk_ln, softmax_scale, alibi_bias_max; expansion_ratio, tie_word_embeddings",
            )
        },
    ),
}


def published() -> dict[str, Published]:
    """The supported model types."""
    return {name: entry for family in FAMILIES.values() for name, entry in family.model_types.items()}


def supported(model_type: Any) -> str:
    """`model_type` itself if a family serves it; raises `SllmError` that lists what is supported."""
    if not isinstance(model_type, str) or model_type not in published():
        raise SllmError(f"model_type {model_type!r:.80} is not supported; supported are {', '.join(published())}")
    return model_type


def family_of(hf_config: Mapping[str, Any]) -> Family:
    """The family that serves a Hugging Face `config.json`; raises `SllmError` that lists what is supported."""
    model_type = supported(hf_config.get("model_type"))
    return next(family for family in FAMILIES.values() if model_type in family.model_types)


def module_for(hf_config: Mapping[str, Any], dtype: Any) -> Any:
    """The family's Linen module for a Hugging Face `config.json`; raises `SllmError` for what is not supported."""
    family = family_of(hf_config)
    return family.module(family.config.from_hf(hf_config), jnp.dtype(dtype))
