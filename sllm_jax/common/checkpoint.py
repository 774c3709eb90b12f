"""Checkpoints of long-running work: one Orbax checkpoint per folder, named by its step and written atomically."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sllm_jax.common import orbax
from sllm_jax.common.errors import SllmError
from sllm_jax.common.files import new_folder
from sllm_jax.common.inputs import is_folder
from sllm_jax.common.unfinished import remove_abandoned

LAYOUT = 3  # version of the layout of parameters and states; other versions are not restored
_DIGEST = "sha256"  # name of the array that holds the digest of the others


def save(folder: Path, step: int, state: Any) -> None:
    """Write a tree of arrays as `folder`/STEP, then remove earlier steps. Raises `SllmError` on failure."""
    path = folder / f"{step:08}"
    earlier = _all(folder)
    if path in earlier:
        return
    arrays = {_name(i): np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(state))}
    with new_folder(path) as unfinished:
        orbax.save(unfinished, arrays | {_DIGEST: _digest(arrays)})
    for old in earlier:
        shutil.rmtree(old, ignore_errors=True)


def restore(folder: Path, initial: Any) -> Any:
    """The state of the last saved step, or `initial` if there is none.

    Raises `SllmError` if the digest does not match, or if names, shapes or dtypes differ from those of `initial`.
    """
    remove_abandoned(folder)
    saved = _all(folder)
    if not saved:
        return initial
    leaves, tree = jax.tree.flatten(initial)
    expected = {_name(i): (leaf.shape, str(leaf.dtype)) for i, leaf in enumerate(leaves)}
    found = _read(saved[-1], expected | {_DIGEST: ((sha256().digest_size,), "uint8")})
    digest = found.pop(_DIGEST, None)
    if digest is None or not np.array_equal(digest, _digest(found)):
        raise SllmError(f"{saved[-1]} is damaged or belongs to another run; remove it to start over")
    return jax.tree.unflatten(tree, jax.device_put([found[name] for name in expected]))


def _read(path: Path, expected: Mapping[str, tuple[tuple[int, ...], str]]) -> dict[str, np.ndarray]:
    """The arrays of a checkpoint; empty if it is broken or does not have the `expected` shapes and dtypes.

    Names, shapes and dtypes are compared before any array is read, because unexpected arrays may not fit in memory.
    """
    try:
        tensors = {tensor.name: tensor for tensor in orbax.tensors(path)}
        if {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()} != expected:
            return {}
        return {name: tensor.read() for name, tensor in tensors.items()}
    except SllmError:
        return {}


def _digest(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """SHA-256 of names, dtypes, shapes and contents; uint8 [32]."""
    digest = sha256()
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return np.frombuffer(digest.digest(), np.uint8)


def _name(i: int) -> str:
    return f"{LAYOUT}-{i:05}"


def _all(folder: Path) -> list[Path]:
    """The checkpoints in a folder, sorted by step; other names are ignored."""
    found = (path for path in folder.glob("[0-9]*") if re.fullmatch("[0-9]{8,}", path.name) and is_folder(path))
    return sorted(found, key=lambda path: int(path.name))
