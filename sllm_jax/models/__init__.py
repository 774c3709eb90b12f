"""The supported families: for each `model_type` its config and its module."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from sllm_jax.errors import SllmError
from sllm_jax.models.llama import Llama, LlamaConfig

FAMILIES: dict[str, tuple[Any, type[nn.Module]]] = {"llama": (LlamaConfig, Llama)}


def supported(model_type: Any) -> str:
    """`model_type` itself if its family is supported; raises `SllmError` that lists those that are."""
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise SllmError(f"model_type {model_type!r} is not supported; supported are {', '.join(sorted(FAMILIES))}")
    return model_type


def module_for(hf_config: Mapping[str, Any], dtype: Any) -> Any:
    """The family's Linen module for a Hugging Face `config.json`; raises `SllmError` for what is not supported."""
    config, module = FAMILIES[supported(hf_config.get("model_type"))]
    return module(config.from_hf(hf_config), jnp.dtype(dtype))
