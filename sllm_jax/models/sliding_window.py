"""The sliding window of a config: one size for all layers, or none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sllm_jax.common.errors import SllmError
from sllm_jax.models.options import option, optional_size

_LAYER_TYPES = {"full_attention": False, "sliding_attention": True}  # whether such a layer has the window


def sliding_window(config: Mapping[str, Any], layers: int) -> int | None:
    """`sliding_window` in tokens, or None. Raises `SllmError` if only some layers have it.

    Qwen has a switch, `use_sliding_window`, and layers below `max_window_layers` attend to everything. `layer_types`
    states the layers one by one and overrides `max_window_layers`.
    """
    window = optional_size(config, "sliding_window") if option(config, "use_sliding_window", True) else None
    first = option(config, "max_window_layers", 0)
    slides = [window is not None and i >= first for i in range(layers)]
    if layer_types := config.get("layer_types"):
        slides = _slides(layer_types, layers)
    if len(set(slides)) > 1:
        raise SllmError(
            f"{sum(slides)} of {layers} layers have a sliding window (layer_types, max_window_layers); supported "
            "are models in which all layers have it, or none"
        )
    return window if slides[0] else None


def _slides(layer_types: Any, layers: int) -> list[bool]:
    is_list = isinstance(layer_types, list) and len(layer_types) == layers
    if not is_list or any(not isinstance(kind, str) or kind not in _LAYER_TYPES for kind in layer_types):
        raise SllmError(
            f"layer_types in config.json must be a list of {layers} of {', '.join(_LAYER_TYPES)}; "
            f"got {layer_types!r:.80}"
        )
    return [_LAYER_TYPES[kind] for kind in layer_types]
