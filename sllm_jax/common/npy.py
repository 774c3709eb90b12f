"""Numeric arrays in .npy files. The header is checked against the file size before anything is allocated."""

from __future__ import annotations

import io
import math
import os
from pathlib import Path
from typing import Literal

import numpy as np

from sllm_jax.common.foreign import foreign
from sllm_jax.common.inputs import check_file, is_file, read_whole, shown

MAX_PIPED = 2**30  # bytes of an array read from a pipe; files of any size are memory-mapped
_VERSION = (1, 0)  # later versions only serve headers above 64 KiB, which numeric arrays never have


def map_array(path: Path, remedy: str, mode: Literal["r", "r+"] = "r") -> np.memmap:
    """The array in a .npy file, memory-mapped. Raises `SllmError` with the remedy unless it is numeric."""
    with foreign(shown(path), remedy, "is not a .npy file of numbers"):
        with check_file(path, remedy=remedy).open("rb") as file:
            _check_header(file)
        return np.lib.format.open_memmap(path, mode)


def read_array(path: Path, remedy: str) -> np.ndarray:
    """The array in a .npy file, memory-mapped; a pipe is read whole. Raises `SllmError` as `map_array` does."""
    if is_file(path):
        return map_array(path, remedy)
    with foreign(shown(path), remedy, "is not a .npy file of numbers"):
        file = io.BytesIO(read_whole(path, MAX_PIPED))
        _check_header(file)
        return np.lib.format.read_array(file, allow_pickle=False)


def _check_header(file: io.BufferedIOBase) -> None:
    """Raises ValueError unless the header describes numbers that fit the file. Rewinds the file."""
    if (version := np.lib.format.read_magic(file)) != _VERSION:
        raise ValueError(f"it has version {version} of the format, expected {_VERSION}")
    shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    if dtype.kind not in "biufc":
        raise ValueError(f"it holds {dtype}, expected numbers")
    if any(size < 0 for size in shape):
        raise ValueError(f"its shape is {shape!r:.80}")
    begin = file.tell()
    if (needed := math.prod(shape) * dtype.itemsize) > (held := file.seek(0, os.SEEK_END) - begin):
        raise ValueError(f"it has {held} bytes for numbers that take {needed}")
    file.seek(0)
