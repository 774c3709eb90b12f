"""Phi-3, Phi-3.5 and Phi-4: Llamas with longrope, whose checkpoints stack projections."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from sllm_jax.common.errors import SllmError
from sllm_jax.models.config import rotary
from sllm_jax.models.llama import LlamaConfig

_KINDS = ("default", "longrope")
_OLD_NAMES = {"su": "longrope", "yarn": "longrope"}  # transformers reads them so in this family


@dataclass(frozen=True, kw_only=True)
class Phi3Config(LlamaConfig):
    """Sizes and options of a Phi-3, under their Hugging Face names."""

    family: ClassVar[str] = "phi3"
    defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "phi3": {
            "rms_norm_eps": 1e-5,
            "hidden_act": "silu",
            "num_key_value_heads": None,
            "head_dim": None,
            "max_position_embeddings": 4096,
            "original_max_position_embeddings": 4096,
            "sliding_window": None,
            # transformers ignores these two of Phi-4-mini.
            "full_attn_mod": None,
            "interpolate_factor": None,
        },
    }

    @classmethod
    def with_current_names(cls, config: Mapping[str, Any]) -> Mapping[str, Any]:
        """Older configs have other names for longrope; raises `SllmError` for a RoPE type that no Phi-3 has."""
        name = "rope_scaling" if config.get("rope_scaling") else "rope_parameters"
        if not isinstance(scaling := config.get(name), Mapping):
            return config
        key = "rope_type" if "rope_type" in scaling else "type"
        kind = scaling.get(key, "default")
        kind = _OLD_NAMES.get(kind, kind) if isinstance(kind, str) else kind
        if kind not in _KINDS:
            raise SllmError(f"RoPE type {kind!r:.80} of 'phi3' is not supported; supported are {', '.join(_KINDS)}")
        return {**config, name: {**scaling, key: kind}}

    @classmethod
    def position(cls, config: Mapping[str, Any], heads: int, head_dim: int) -> dict[str, Any]:
        """RoPE of whole heads, or in Phi-4-mini of a part of each."""
        return {"rope": rotary(config, head_dim, whole_heads=False)}
