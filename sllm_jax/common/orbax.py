"""The converted checkpoint: parameters as an Orbax checkpoint in `params/`, config and tokenizer beside it."""

from __future__ import annotations

import logging
import math
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from sllm_jax.common.errors import SllmError
from sllm_jax.common.inputs import check_file, is_folder
from sllm_jax.common.late_writes import no_late_writes
from sllm_jax.common.tensor import Tensor

PARAMS = "params"  # a folder


def is_converted(folder: Path) -> bool:
    """Whether `folder` holds a converted checkpoint."""
    return is_folder(folder / PARAMS)


def save(folder: Path, params: Any) -> None:
    """Write a tree of NumPy arrays into `folder`. Raises `SllmError` on failure and leaves nothing behind."""
    try:
        with no_late_writes(folder, PARAMS), _orbax().PyTreeCheckpointer() as checkpointer:
            checkpointer.save(folder.absolute() / PARAMS, params)
    except Exception as error:  # TensorStore raises many types on a full or broken disk
        raise SllmError(f"the checkpoint could not be written: {str(error).partition(chr(10))[0]}") from error


def tensors(folder: Path) -> Iterator[Tensor]:
    """The parameters of a converted checkpoint, named by their paths. Raises `SllmError` if it cannot be read."""
    ocp = _orbax()
    path = folder.absolute() / PARAMS
    with ocp.PyTreeCheckpointer() as checkpointer:
        try:
            _check_index(path)
            with _silenced():
                metadata = flatten_dict(checkpointer.metadata(path).item_metadata.tree, sep="/")
        except SllmError:
            raise
        except Exception as error:  # Orbax raises many types for a broken folder
            raise SllmError(f"{path} is not a complete Orbax checkpoint; convert the model again") from error
        found = [
            Tensor(name, tuple(leaf.shape), str(leaf.dtype), partial(_read, checkpointer, path, name))
            for name, leaf in metadata.items()
        ]
        yield from sorted(found, key=lambda tensor: -math.prod(tensor.shape))  # largest first, while memory is free


@contextmanager
def _silenced() -> Iterator[None]:
    """Suppress what a broken folder causes: log messages of Orbax, and warnings about coroutines never awaited."""
    logged = logging.root.manager.disable
    logging.disable()
    try:
        with warnings.catch_warnings(action="ignore", category=RuntimeWarning):
            yield
    finally:
        logging.disable(logged)


def check_layout(folder: Path) -> None:
    """Raises `SllmError` for parameters in an earlier layout: weights named `kernel` and transposed."""
    if any(tensor.name.endswith("/kernel") for tensor in tensors(folder)):
        raise SllmError(f"{folder} was made by an earlier version of sllm-jax; convert or train the model again")


def _check_index(path: Path) -> None:
    """Raises if the array store is broken, or holds anything but files: reading a pipe would block.

    Checked before Orbax opens the store, because Orbax prints errors of its own to standard error.
    """
    for place, _, names in os.walk(path):
        for name in names:
            check_file(Path(place, name))
    store = import_module("tensorstore").KvStore.open(
        {"driver": "ocdbt", "base": {"driver": "file", "path": f"{path}/"}}
    )
    if not store.result().list().result():
        raise FileNotFoundError(f"{path} holds no arrays")


def _orbax() -> Any:
    return import_module("orbax.checkpoint")  # lazy: the import takes a second


def _read(checkpointer: Any, path: Path, name: str) -> np.ndarray:
    ocp = _orbax()
    one = {name: ocp.RestoreArgs(restore_type=np.ndarray)}
    args = ocp.args.PyTreeRestore(
        item=unflatten_dict(dict.fromkeys(one, 0), sep="/"),
        restore_args=unflatten_dict(one, sep="/"),
        partial_restore=True,
    )
    try:
        return flatten_dict(checkpointer.restore(path, args=args), sep="/")[name]
    except Exception as error:  # TensorStore raises many types for a broken file
        raise SllmError(f"{path} is damaged: {name} cannot be read; convert the model again") from error
