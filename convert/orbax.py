"""The converted checkpoint: parameters as an Orbax checkpoint in `params/`, config and tokenizer beside it."""

from __future__ import annotations

import logging
import math
import os
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from sllm_jax.convert.sources import Tensor
from sllm_jax.errors import SllmError
from sllm_jax.inputs import check_file, is_folder

PARAMS = "params"  # a folder


def is_converted(folder: Path) -> bool:
    """Whether `folder` holds a converted checkpoint."""
    return is_folder(folder / PARAMS)


def save(folder: Path, params: Any) -> None:
    """Write a tree of NumPy arrays into `folder`; raises `SllmError` if that fails, and leaves nothing there."""
    try:
        with _without_late_writes(folder), _orbax().PyTreeCheckpointer() as checkpointer:
            checkpointer.save(folder.absolute() / PARAMS, params)
    except Exception as error:  # whatever TensorStore meets on a full or broken disk
        raise SllmError(f"the checkpoint could not be written: {str(error).partition(chr(10))[0]}") from error


@contextmanager
def _without_late_writes(folder: Path) -> Iterator[None]:
    """When a write fails, Orbax gives up the others without waiting for them; here they leave no trace.

    Each would bring back the folder that was removed, for TensorStore makes one that is missing, and give a traceback
    of its own: Orbax logs them, Python writes them where nobody hears. Some come so late that the silence goes on after
    a failure.
    """
    heard, sys.unraisablehook = sys.unraisablehook, _deaf_to_late_writes(sys.unraisablehook)
    logged = logging.root.manager.disable
    logging.disable()
    try:
        yield
        sys.unraisablehook = heard
    except BaseException:
        _remove_until_it_stays_away(folder)
        logging.getLogger("asyncio").addFilter(_is_no_late_write)
        raise
    finally:
        logging.disable(logged)


def _deaf_to_late_writes(hook: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def hear(unraisable: Any) -> None:
        if "Event loop is closed" not in str(unraisable.exc_value):
            hook(unraisable)

    return hear


def _is_no_late_write(record: logging.LogRecord) -> bool:
    message = record.getMessage()
    return not ("exception was never retrieved" in message and "orbax" in message)


def _remove_until_it_stays_away(folder: Path) -> None:
    """Remove what Orbax wrote into `folder`, until there was nothing for 0.2 s; 5 s at most."""
    quiet, deadline = 0, time.monotonic() + 5
    while quiet < 10 and time.monotonic() < deadline:
        left = list(folder.glob(f"{PARAMS}*"))
        for path in left:
            shutil.rmtree(path, ignore_errors=True)
        quiet = 0 if left else quiet + 1
        time.sleep(0.02)


def tensors(folder: Path) -> Iterator[Tensor]:
    """The parameters of a converted checkpoint, under their paths; raises `SllmError` if it cannot be read."""
    ocp = _orbax()
    path = folder.absolute() / PARAMS
    with ocp.PyTreeCheckpointer() as checkpointer:
        try:
            _check_index(path)
            with _unheard():
                metadata = flatten_dict(checkpointer.metadata(path).item_metadata.tree, sep="/")
        except SllmError:
            raise
        except Exception as error:  # whatever Orbax meets in a broken folder
            raise SllmError(f"{path} is not a complete Orbax checkpoint; convert the model again") from error
        found = [
            Tensor(name, tuple(leaf.shape), str(leaf.dtype), partial(_read, checkpointer, path, name))
            for name, leaf in metadata.items()
        ]
        yield from sorted(found, key=lambda tensor: -math.prod(tensor.shape))  # large ones while memory is free


@contextmanager
def _unheard() -> Iterator[None]:
    """In a broken folder Orbax logs what it meets, and gives up coroutines, of which Python warns."""
    logged = logging.root.manager.disable
    logging.disable()
    try:
        with warnings.catch_warnings(action="ignore", category=RuntimeWarning):
            yield
    finally:
        logging.disable(logged)


def check_layout(folder: Path) -> None:
    """Raises `SllmError` for parameters as the first version named them, their weights the other way round."""
    if any(tensor.name.endswith("/kernel") for tensor in tensors(folder)):
        raise SllmError(f"{folder} was made by an earlier version of sllm-jax; convert or train the model again")


def _check_index(path: Path) -> None:
    """Raises if the store of arrays is broken; Orbax, which opens all at once, would litter standard error.

    And if there is something else than files in it: a pipe would be waited for.
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
    return import_module("orbax.checkpoint")  # takes a second: not before it is needed


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
    except Exception as error:  # whatever TensorStore meets in a broken file
        raise SllmError(f"{path} is damaged: {name} cannot be read; convert the model again") from error
