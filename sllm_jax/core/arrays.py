"""Types and checks of the arrays that callers pass to the public functions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from sllm_jax.common.errors import SllmError

# An array. Not annotated as one, because transformations of trees put other objects in its place: the
# `jax.ShapeDtypeStruct` of `jax.eval_shape`, the axis of `jax.vmap`.
Leaf = Any
IntArrayLike = ArrayLike | Sequence[Any]  # anything that `np.asarray` turns into integers


def int32_array(values: Any, ndim: int, what: str) -> Any:
    """`values` as int32, so that integers of every kind run the same compiled program.

    JAX arrays stay on their device; everything else becomes a NumPy array. Raises `SllmError` for a dtype that is not
    an integer, for another number of axes, and for NumPy or Python integers that int32 cannot hold.
    """
    if isinstance(values, jax.Array):
        _check_kind(values, ndim, what)
        return values.astype(jnp.int32)
    try:
        array = np.asarray(values)
    except ValueError as error:  # rows of different lengths
        raise SllmError(f"{what} must be an array; pad all rows to the same length") from error
    array = array if array.size else array.astype(np.int32)  # np.asarray([]) is float64
    _check_kind(array, ndim, what)
    check_in_range(array, -(2**31), 2**31, what)
    return array.astype(np.int32)


def check_in_range(values: Any, begin: int, end: int, what: str) -> None:
    """Raises `SllmError` unless `begin` <= values < `end`.

    The values of JAX arrays are not checked, since reading them would wait for the device.
    """
    if isinstance(values, np.ndarray) and values.size and not (begin <= values.min() and values.max() < end):
        bad = values.min() if values.min() < begin else values.max()
        raise SllmError(f"{what} must be from {begin} to {end - 1}; got {bad}")


def _check_kind(array: Any, ndim: int, what: str) -> None:
    """Raises `SllmError` unless the array holds integers and has `ndim` axes."""
    expected = None
    if not jnp.issubdtype(array.dtype, jnp.integer):
        expected = "integers"
    elif array.ndim != ndim:
        expected = f"integers with {ndim} {'axis' if ndim == 1 else 'axes'}" if ndim else "a single integer"
    if expected:
        raise SllmError(f"{what} must be {expected}; got {array.dtype} of shape {array.shape}")
