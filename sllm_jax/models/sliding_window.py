"""The sliding windows of a config: one size, in all layers, in some, or in none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sllm_jax.common.errors import SllmError
from sllm_jax.models.options import option, optional_size

_LAYER_TYPES = {"full_attention": False, "sliding_attention": True}  # layer type -> whether it has the window


def sliding_windows(config: Mapping[str, Any], layers: int) -> list[int | None]:
    """The window of each layer in tokens, or None for a layer that attends to everything.

    Qwen has a switch, `use_sliding_window`, and layers below `max_window_layers` attend to everything. `layer_types`
    states the layers one by one and overrides `max_window_layers`.
    """
    window = optional_size(config, "sliding_window") if option(config, "use_sliding_window", True) else None
    first = option(config, "max_window_layers", 0)
    is_sliding = [window is not None and i >= first for i in range(layers)]
    if layer_types := config.get("layer_types"):
        is_sliding = _checked_layer_types(layer_types, layers)
        if window is None and any(is_sliding):
            raise SllmError("layer_types in config.json has sliding_attention, but no sliding_window is in use")
    return [window if slides else None for slides in is_sliding]


def _checked_layer_types(layer_types: Any, layers: int) -> list[bool]:
    """For each layer, whether `layer_types` says that it has the window; raises `SllmError` for another value."""
    is_list = isinstance(layer_types, list) and len(layer_types) == layers
    if not is_list or any(not isinstance(kind, str) or kind not in _LAYER_TYPES for kind in layer_types):
        raise SllmError(
            f"layer_types in config.json must be a list of {layers} of {', '.join(_LAYER_TYPES)}; "
            f"got {layer_types!r:.80}"
        )
    return [_LAYER_TYPES[kind] for kind in layer_types]
