"""The supported families: for each `model_type` its config and its module."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from sllm_jax.errors import SllmError
from sllm_jax.models.config import ModelConfig
from sllm_jax.models.falcon import Falcon, FalconConfig
from sllm_jax.models.gpt_neox import GPTNeoX, GPTNeoXConfig
from sllm_jax.models.layers import Decoder
from sllm_jax.models.llama import Llama, LlamaConfig
from sllm_jax.models.mpt import MPT, MPTConfig

FAMILIES: dict[str, tuple[Any, type[Decoder]]] = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3"), (LlamaConfig, Llama)),
    "gpt_neox": (GPTNeoXConfig, GPTNeoX),
    **dict.fromkeys(("falcon", "RefinedWeb", "RefinedWebModel"), (FalconConfig, Falcon)),
    "mpt": (MPTConfig, MPT),
}


def read_config(hf_config: Mapping[str, Any]) -> ModelConfig:
    """The config of a family for a Hugging Face `config.json`; raises `SllmError` for what is not supported."""
    return _family(hf_config)[0].from_hf(hf_config)


def module_for(hf_config: Mapping[str, Any], dtype: Any) -> Any:
    """The family's Linen module for a Hugging Face `config.json`; raises `SllmError` for what is not supported."""
    return _family(hf_config)[1](read_config(hf_config), jnp.dtype(dtype))


def supported(model_type: Any) -> str:
    """`model_type` itself if its family is supported; raises `SllmError` that lists those that are."""
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise SllmError(f"model_type {model_type!r} is not supported; supported are {', '.join(FAMILIES)}")
    return model_type


def _family(hf_config: Mapping[str, Any]) -> tuple[Any, type[Decoder]]:
    return FAMILIES[supported(hf_config.get("model_type"))]
