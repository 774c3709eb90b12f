"""The dtypes of checkpoints and of parameters."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from sllm_jax.common.errors import SllmError

FLOATS: dict[str, np.dtype] = {name: jnp.dtype(name) for name in ("float32", "bfloat16", "float16")}
READABLE = FLOATS | {"float64": np.dtype(np.float64)}  # dtypes of checkpoint tensors


def kept_as(dtype: str) -> np.dtype:
    """The dtype of the parameter made from a tensor of this `READABLE` dtype: its own, or float32 for float64."""
    return FLOATS.get(dtype, FLOATS["float32"])


def as_dtype(dtype: Any) -> np.dtype:
    """One of `FLOATS` from its name or from a NumPy, JAX or PyTorch dtype; raises `SllmError` for anything else."""
    name = str(dtype)
    try:
        return FLOATS[name.removeprefix("torch.") if name.startswith("torch.") else jnp.dtype(dtype).name]
    except (TypeError, KeyError):
        raise SllmError(f"dtype must be one of {', '.join(FLOATS)}; got {dtype!r:.80}") from None
