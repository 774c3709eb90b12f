"""The state of long work on disk: one Orbax checkpoint a folder, named by its step, whole or not there at all."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sllm_jax.convert import orbax
from sllm_jax.errors import SllmError
from sllm_jax.files import new_folder
from sllm_jax.unfinished import remove_abandoned

LAYOUT = 2  # of parameters and states; what was saved in another is not restored


def save(folder: Path, step: int, state: Any) -> None:
    """Write a tree of arrays as `folder`/STEP, then remove earlier ones; raises `SllmError` if that fails."""
    path = folder / f"{step:08}"
    earlier = _all(folder)
    if path in earlier:
        return
    with new_folder(path) as unfinished:
        orbax.save(unfinished, {_name(i): np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(state))})
    for old in earlier:
        shutil.rmtree(old, ignore_errors=True)


def restore(folder: Path, initial: Any) -> Any:
    """The state of the last step that was saved, or `initial` if there is none."""
    remove_abandoned(folder)
    saved = _all(folder)
    if not saved:
        return initial
    leaves, tree = jax.tree.flatten(initial)
    try:
        found = {tensor.name: tensor.read() for tensor in orbax.tensors(saved[-1])}
    except SllmError:
        found = {}
    arrays = [found.pop(_name(i), None) for i in range(len(leaves))]
    same = [array is not None and array.shape == leaf.shape for array, leaf in zip(arrays, leaves, strict=True)]
    if found or not all(same):
        raise SllmError(f"{saved[-1]} is damaged, or not of this run; remove it to start from the beginning")
    return jax.tree.unflatten(tree, jax.device_put(arrays))


def _name(i: int) -> str:
    return f"{LAYOUT}-{i:05}"


def _all(folder: Path) -> list[Path]:
    return sorted((path for path in folder.glob("[0-9]*") if path.is_dir()), key=lambda path: int(path.name))
