"""Parameters to safetensors files with the layout and names of Hugging Face."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from sllm_jax.common.errors import SllmError
from sllm_jax.convert.assemble import disassemble
from sllm_jax.convert.sources import SAFETENSORS
from sllm_jax.convert.table import Table

MAX_BYTES = 5 * 10**9  # per file


def write_safetensors(folder: Path, params: Any, table: Table, module: Any) -> None:
    """Write `model.safetensors`, or several files and their index.

    A file has at most `MAX_BYTES`, or a single tensor. Only the tensors of one file are in memory at a time.
    """
    files: list[list[str]] = []  # names of the tensors of each file
    total = 0
    for group in _groups(disassemble(params, table, module)):
        _save(group, folder / f"{len(files)}")
        files.append(list(group))
        total += sum(array.nbytes for array in group.values())
    if len(files) == 1:
        (folder / "0").rename(folder / SAFETENSORS)
        return
    weight_map: dict[str, str] = {}
    for number, names in enumerate(files):
        name = f"model-{number + 1:05}-of-{len(files):05}.safetensors"
        (folder / f"{number}").rename(folder / name)
        weight_map |= dict.fromkeys(names, name)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / f"{SAFETENSORS}.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _save(group: dict[str, np.ndarray], path: Path) -> None:
    path.touch()  # default permissions; safetensors would create the file for its owner only
    mode = path.stat().st_mode
    try:
        save_file(group, path, metadata={"format": "pt"})
    except SafetensorError as error:
        raise SllmError(f"the checkpoint could not be written: {error}") from error
    path.chmod(mode)


def _groups(tensors: Iterable[tuple[str, np.ndarray]]) -> Iterator[dict[str, np.ndarray]]:
    group: dict[str, np.ndarray] = {}
    size = 0
    for name, array in tensors:
        if group and size + array.nbytes > MAX_BYTES:
            yield group
            group, size = {}, 0
        group[name] = array
        size += array.nbytes
    yield group
