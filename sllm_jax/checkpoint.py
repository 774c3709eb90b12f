"""The state of long work on disk: one Orbax checkpoint a folder, named by its step, whole or not there at all."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sllm_jax.convert import orbax
from sllm_jax.errors import SllmError
from sllm_jax.files import new_folder
from sllm_jax.inputs import is_folder
from sllm_jax.unfinished import remove_abandoned

LAYOUT = 3  # of parameters and states; what was saved in another is not restored
_DIGEST = "sha256"  # an array beside those of the state


def save(folder: Path, step: int, state: Any) -> None:
    """Write a tree of arrays as `folder`/STEP, then remove earlier ones; raises `SllmError` if that fails."""
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
    """The state of the last step that was saved, or `initial` if there is none.

    Raises `SllmError` for a state that is not, bit for bit, one that was saved with the arrays of `initial`.
    """
    remove_abandoned(folder)
    saved = _all(folder)
    if not saved:
        return initial
    leaves, tree = jax.tree.flatten(initial)
    try:
        found = {tensor.name: tensor.read() for tensor in orbax.tensors(saved[-1])}
    except SllmError:
        found = {}
    digest = found.pop(_DIGEST, None)
    expected = {_name(i): (leaf.shape, leaf.dtype) for i, leaf in enumerate(leaves)}
    same = {name: (array.shape, array.dtype) for name, array in found.items()} == expected
    if not same or digest is None or not np.array_equal(digest, _digest(found)):
        raise SllmError(f"{saved[-1]} is damaged, or not of this run; remove it to start from the beginning")
    return jax.tree.unflatten(tree, jax.device_put([found[name] for name in expected]))


def _digest(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """Of names, types, shapes and contents; uint8 [32]."""
    digest = sha256()
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return np.frombuffer(digest.digest(), np.uint8)


def _name(i: int) -> str:
    return f"{LAYOUT}-{i:05}"


def _all(folder: Path) -> list[Path]:
    return sorted((path for path in folder.glob("[0-9]*") if is_folder(path)), key=lambda path: int(path.name))
