"""Reading the tensors of a Hugging Face checkpoint, one at a time and memory-mapped. Nothing in it is executed."""

from __future__ import annotations

import json
import os
import pickle
import warnings
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

from sllm_jax.common import orbax
from sllm_jax.common.errors import SllmError
from sllm_jax.common.extras import how_to_install
from sllm_jax.common.files import existing_folder, load_json, other_format
from sllm_jax.common.foreign import foreign
from sllm_jax.common.gguf_file import gguf_in, is_gguf
from sllm_jax.common.inputs import check_file, is_file, is_there
from sllm_jax.common.tensor import Shape, Tensor
from sllm_jax.convert.dtypes import READABLE

SAFETENSORS, PICKLE = "model.safetensors", "pytorch_model.bin"
WEIGHT_FILES = (SAFETENSORS, f"{SAFETENSORS}.index.json", PICKLE, f"{PICKLE}.index.json")  # in order of preference
_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_NESTED = ("state_dict", "model_state_dict", "model", "module")  # keys under which training scripts save a model
_DEPTH = 4  # maximum nesting of these


def existing_source(path: Path | str) -> Path:
    """The folder or GGUF file at `path`, with `~` expanded; a folder whose only weights are GGUF stands for that file.

    Raises `SllmError` if there is no folder and no GGUF file, or if the folder has several GGUF models.
    """
    path = Path(os.path.expanduser(path))
    if is_gguf(path):
        return path
    folder = existing_folder(path)
    has_weights = orbax.is_converted(folder) or any(is_there(folder / name) for name in WEIGHT_FILES)
    return folder if has_weights else gguf_in(folder) or folder


def tensors(folder: Path) -> Iterator[Tensor]:
    """All tensors of the checkpoint in `folder`; raises `SllmError` for weights that are missing or cannot be read."""
    read = read_pickle if _weights(folder).name.startswith(PICKLE) else read_safetensors
    for path in weight_files(folder):
        yield from read(path)


def weight_files(folder: Path) -> list[Path]:
    """The weights files in `folder`; raises `SllmError` if there are none, or some are missing."""
    found = _weights(folder)
    return shards(found) if found.suffix == ".json" else [check_file(found)]


def _weights(folder: Path) -> Path:
    """The weights file or its index."""
    found = next((folder / name for name in WEIGHT_FILES if is_there(folder / name)), None)
    if found is None:
        instead = other_format(path.name for path in folder.iterdir())
        raise SllmError(
            f"{folder} has no weights{instead}; expected one of {', '.join(WEIGHT_FILES)}, or a converted checkpoint"
        )
    return found


def shards(index: Path) -> list[Path]:
    """The files that an index names; raises `SllmError` if the index is broken or one of them is absent."""
    weight_map = load_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise SllmError(f"{index} must map the name of each tensor to a file under 'weight_map'")
    names = sorted(set(weight_map.values()))
    if outside := [name for name in names if Path(name).name != name]:
        raise SllmError(f"{index} names files outside its folder: {', '.join(name[:80] for name in outside[:10])}")
    if absent := [name for name in names if not is_file(index.parent / name)]:
        listed = ", ".join(name[:80] for name in absent[:10])
        raise SllmError(f"{index} names missing files: {listed}; download the checkpoint again")
    return [index.parent / name for name in names]


def read_safetensors(path: Path) -> Iterator[Tensor]:
    """The tensors of one safetensors file, memory-mapped; raises `SllmError` if it is truncated or corrupt."""
    with foreign(str(check_file(path)), "download it again", "is truncated or not a safetensors file"):
        with safe_open(path, framework="np"):  # checks the header, and that it covers the whole file
            pass
        found = _entries(np.memmap(path, np.uint8, "r"))
    yield from found


def _entries(data: np.ndarray) -> list[Tensor]:
    """The tensors that the header of a safetensors file [bytes] describes."""
    start = 8 + int.from_bytes(data[:8].tobytes(), "little")
    found = []
    for name, entry in json.loads(data[8:start].tobytes(), object_pairs_hook=list):  # keeps duplicate names
        if name != "__metadata__":
            about: dict[str, Any] = dict(entry)
            dtype, shape = _DTYPES.get(about["dtype"], about["dtype"]), tuple(about["shape"])
            begin, end = (start + offset for offset in about["data_offsets"])
            found.append(Tensor(name, shape, dtype, partial(_view, name, data[begin:end], dtype, shape)))
    return found


def _view(name: str, data: np.ndarray, dtype: str, shape: Shape) -> np.ndarray:
    with foreign(
        f"the tensor {name:.200}", "download the checkpoint again"
    ):  # safetensors checks only one of two with the same name
        return np.asarray(data).view(READABLE[dtype]).reshape(shape)


def read_pickle(path: Path) -> Iterator[Tensor]:
    """The tensors of one PyTorch file. Raises `SllmError` if it holds anything else, or PyTorch is not installed."""
    state = _tensors_of(_unpickle(path), path)
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise SllmError(f"{path} must hold tensors by name; got {type(state).__name__}")
    while state:
        name = next(iter(state))
        value = state.pop(name)
        dtype = str(getattr(value, "dtype", type(value).__name__)).removeprefix("torch.")
        yield Tensor(name, tuple(getattr(value, "shape", ())), dtype, partial(_to_numpy, name, value, dtype))


def _tensors_of(state: Any, path: Path) -> Any:
    """The model within a training script's file; raises `SllmError` if it cannot be identified."""
    for _ in range(_DEPTH):
        if not isinstance(state, dict):
            return state
        state = next((state[name] for name in _NESTED if isinstance(state.get(name), dict)), state)
    if not isinstance(state, dict) or _has_tensors(state):
        return state
    if parts := [repr(name)[:80] for name, part in state.items() if isinstance(part, dict) and _has_tensors(part)]:
        raise SllmError(f"{path} has several groups of tensors ({', '.join(parts[:5])}); save only the model's")
    return state


def _has_tensors(state: dict[Any, Any]) -> bool:
    return any(hasattr(value, "shape") for value in state.values())


def _unpickle(path: Path) -> Any:
    try:
        import torch
    except ImportError:
        raise SllmError(f"reading {path} needs PyTorch; {how_to_install('torch')}") from None
    try:
        with warnings.catch_warnings(action="ignore"):  # PyTorch warns of unusual pickles
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise SllmError(
            f"{path} is refused: it is corrupt, or holds something other than tensors, which could run code "
            "(nothing in it was executed); use a safetensors version of the checkpoint"
        ) from error
    except Exception as error:  # PyTorch raises many types for a broken file
        raise SllmError(f"{path} is truncated or not a PyTorch file; download it again") from error


def _to_numpy(name: str, value: Any, dtype: str) -> np.ndarray:
    import torch

    # Sparse, nested and quantized tensors have no contiguous memory.
    with foreign(f"the tensor {name:.200}", "save it as an ordinary tensor"):
        integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}[value.element_size()]  # NumPy has no bfloat16
        return value.detach().contiguous().view(integers).numpy().view(READABLE[dtype])
