"""The sliding window of a config: one size for all layers, or none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sllm_jax.common.errors import SllmError
from sllm_jax.models.options import option, optional_size

_LAYER_TYPES = {"full_attention": False, "sliding_attention": True}  # layer type -> whether it has the window


def sliding_window(config: Mapping[str, Any], layers: int) -> int | None:
    """`sliding_window` in tokens, or None. Raises `SllmError` if only some layers have it.

    Qwen has a switch, `use_sliding_window`, and layers below `max_window_layers` attend to everything. `layer_types`
    states the layers one by one and overrides `max_window_layers`.
    """
    window = optional_size(config, "sliding_window") if option(config, "use_sliding_window", True) else None
    first = option(config, "max_window_layers", 0)
    is_sliding = [window is not None and i >= first for i in range(layers)]
    if layer_types := config.get("layer_types"):
        is_sliding = _checked_layer_types(layer_types, layers)
    if len(set(is_sliding)) > 1:
        raise SllmError(
            f"{sum(is_sliding)} of {layers} layers have a sliding window (layer_types, max_window_layers); supported "
            "are models in which all layers have it, or none"
        )
    return window if is_sliding[0] else None


def _checked_layer_types(layer_types: Any, layers: int) -> list[bool]:
    """For each layer, whether `layer_types` says that it has the window; raises `SllmError` for another value."""
    is_list = isinstance(layer_types, list) and len(layer_types) == layers
    if not is_list or any(not isinstance(kind, str) or kind not in _LAYER_TYPES for kind in layer_types):
        raise SllmError(
            f"layer_types in config.json must be a list of {layers} of {', '.join(_LAYER_TYPES)}; "
            f"got {layer_types!r:.80}"
        )
    return [_LAYER_TYPES[kind] for kind in layer_types]
