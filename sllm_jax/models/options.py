"""Reading single options of a Hugging Face config, with their types, bounds and defaults."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sllm_jax.common.errors import SllmError
from sllm_jax.models.activations import check_activation
from sllm_jax.models.bounds import check_largest
from sllm_jax.models.position import is_number

# null in the config means None, not the default
_NULLABLE = (
    *("num_key_value_heads", "head_dim", "sliding_window"),
    *("attn_logit_softcapping", "final_logit_softcapping"),
)
_EXPECTED = {bool: "true or false", int: "a non-negative integer", float: "a non-negative number"}


def required_sizes(config: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """Sizes without a default; raises `SllmError` for any that is missing, not a positive integer, or too large."""
    bad = [name for name in names if type(config.get(name)) is not int or config[name] <= 0]
    if bad:
        found = ", ".join(f"{name} = {config.get(name)!r:.80}" for name in bad)
        raise SllmError(f"config.json needs a positive integer for each of {', '.join(bad)}; got {found}")
    return {name: check_largest(name, config[name]) for name in names}


def option(config: Mapping[str, Any], name: str, default: Any) -> Any:
    """One option, or its default if the config has none or null. Raises `SllmError` for a value of another type.

    The default gives the type:

        bool          true or false
        int, float    a non-negative integer or number
        str           the name of an activation
        None          any value, unchecked
    """
    value, kind = config.get(name), type(default)
    if value is None:
        return default
    if default is None:
        return value
    if kind is str:
        return check_activation(name, value)
    is_of_kind = is_number(value) if kind is float else type(value) is kind
    if not is_of_kind or value < 0:
        raise SllmError(f"{name} in config.json must be {_EXPECTED[kind]}; got {value!r:.80}")
    return check_largest(name, value) if kind is int else value


def options(config: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The `option` of each name in `defaults`; but None for those of `_NULLABLE` that are null in the config."""
    nulls = {name for name in _NULLABLE if name in config and config[name] is None}
    return {name: None if name in nulls else option(config, name, default) for name, default in defaults.items()}


def size(config: Mapping[str, Any], name: str, default: int) -> int:
    """A size with a default; raises `SllmError` if it is not a positive integer."""
    return default if config.get(name) is None else required_sizes(config, name)[name]


def optional_size(config: Mapping[str, Any], name: str) -> int | None:
    """A positive integer, or None if the config has none, null or 0."""
    return option(config, name, 0) or None


def head_size(hidden_size: int, heads: int) -> int:
    """The hidden size divided by the number of heads; raises `SllmError` if it is not a multiple."""
    if hidden_size % heads:
        raise SllmError(f"hidden_size {hidden_size} is not a multiple of num_attention_heads {heads}")
    return hidden_size // heads


def checked_kv_heads(heads: int, kv_heads: int) -> int:
    """`kv_heads` itself; raises `SllmError` unless each key/value head serves the same number of query heads."""
    if kv_heads == 0 or heads % kv_heads:
        raise SllmError(f"num_attention_heads {heads} is not a multiple of num_key_value_heads {kv_heads}")
    return kv_heads
