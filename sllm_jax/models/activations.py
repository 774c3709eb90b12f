"""Activation functions, under their Hugging Face names."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from jaxtyping import Array

from sllm_jax.common.errors import SllmError

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu_fast": jax.nn.gelu,
    "gelu_new": jax.nn.gelu,
    "gelu_pytorch_tanh": jax.nn.gelu,
    "relu": jax.nn.relu,
}


def check_activation(name: str, value: Any) -> str:
    """`value` itself if it is a key of `ACTIVATIONS`; raises `SllmError` if not. `name` is the option in the config."""
    if not isinstance(value, str) or value not in ACTIVATIONS:
        raise SllmError(f"{name} {value!r:.80} is not supported; supported are {', '.join(ACTIVATIONS)}")
    return value
