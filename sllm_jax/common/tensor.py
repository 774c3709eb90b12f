"""An array of a checkpoint that has not been read yet."""

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
    dtype: str  # the checkpoint's own word for it; not all formats can be read
    read: Callable[[], np.ndarray]  # a view of the file where it can be mapped
