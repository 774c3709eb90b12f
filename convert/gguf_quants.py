"""Tensors of GGUF files as arrays of floats."""

from __future__ import annotations

import math
from functools import cache

import ml_dtypes
import numpy as np

from sllm_jax.common.gguf_file import Entry, bytes_of

_FLOATS = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype(ml_dtypes.bfloat16)}
_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def dtype_of(entry: Entry) -> str:
    """The dtype of `dequantized(entry)`; the name of the GGML type if the `gguf` package cannot dequantize it."""
    from gguf import GGMLQuantizationType

    if entry.type not in set(GGMLQuantizationType):
        return f"number {entry.type}"
    name = GGMLQuantizationType(entry.type).name
    return _DTYPES.get(name, "float32" if _is_readable(entry.type) else name)


def dequantized(entry: Entry) -> np.ndarray:
    """The tensor in the layout of the file: a memory-mapped view of floats, or float32 made from a quantized one."""
    from gguf import GGMLQuantizationType, quants

    kind, size = GGMLQuantizationType(entry.type), bytes_of(entry)
    content = np.memmap(entry.path, np.uint8, "r")[entry.begin :][:size]
    if kind.name in _FLOATS:
        return np.asarray(content).view(_FLOATS[kind.name]).reshape(entry.shape)
    rows = np.asarray(content).reshape(math.prod(entry.shape[:-1]), -1)
    return quants.dequantize(rows, kind).reshape(entry.shape)


@cache
def _is_readable(kind: int) -> bool:
    """Whether the package can dequantize a type: tried with a block of zeros."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants

    block, size = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
    try:
        quants.dequantize(np.zeros((1, size), np.uint8), GGMLQuantizationType(kind))
    except NotImplementedError:
        return False
    return block > 1
