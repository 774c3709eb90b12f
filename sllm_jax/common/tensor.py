"""A checkpoint array that has not been read yet."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Tensor:
    """The name, shape and dtype of an array in a file, and how to read it."""

    name: str
    shape: Shape
    dtype: str  # as the checkpoint names it; may be one that cannot be read
    read: Callable[[], np.ndarray]  # a memory-mapped view where possible
