"""The number formats that parameters come in and are kept in."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from sllm_jax.errors import SllmError

FLOATS: dict[str, np.dtype] = {name: jnp.dtype(name) for name in ("float32", "bfloat16", "float16")}


def as_dtype(dtype: Any) -> np.dtype:
    """One of `FLOATS` from its name or from a NumPy or JAX dtype; raises `SllmError` for anything else."""
    try:
        return FLOATS[jnp.dtype(dtype).name]
    except (TypeError, KeyError):
        raise SllmError(f"dtype must be one of {', '.join(FLOATS)}; got {dtype!r}") from None
