"""Tensors to parameters and back, by a table; every problem of a checkpoint is found before any is reported."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from sllm_jax.convert.dtypes import FLOATS
from sllm_jax.convert.sources import Tensor
from sllm_jax.convert.table import Rule, Shape, Table
from sllm_jax.errors import SllmError
from sllm_jax.int8 import INT8, quantize, scale_of
from sllm_jax.model import parameter_shapes
from sllm_jax.progress import Progress, silent

_SHOWN = 50  # problems of one checkpoint
_BLOCK = 1 << 22  # elements looked at together
_ALIGNMENT = 64  # bytes: JAX takes over such an array on a CPU as it is, and copies any other


def shapes_of(module: Any, int8: bool = False) -> dict[str, Shape]:
    """The shape of each parameter of a module, under its path; with `int8` those of the scales too."""
    shapes = {path: leaf.shape for path, leaf in flatten_dict(parameter_shapes(module), sep="/").items()}
    scales = {scale: shape[:1] for path, shape in shapes.items() if int8 and (scale := scale_of(path))}
    return shapes | scales


def identity_table(module: Any, int8: bool = False) -> Table:
    """For checkpoints that are laid out as the module is; with `int8` there is a scale beside each weight."""
    return Table(tuple(Rule(path, (path,)) for path in shapes_of(module, int8)))


def assemble(
    tensors: Iterable[Tensor],
    table: Table,
    module: Any,
    dtype: np.dtype | None,
    place: Callable[[np.ndarray], Any],
    progress: Progress = silent,
    int8: bool = False,
) -> Any:
    """The module's tree of parameters, each cast to `dtype` (None: left as it is) and put in its place by `place`.

    `place` gets one array at a time, which nothing else refers to. With `int8` the weights of linear layers are
    quantized, unless they are int8 already. Raises one `SllmError` for all tensors that are unknown, missing,
    duplicate, misshapen, of another format than `FLOATS`, or not finite after the cast.
    """
    assembly = _Assembly(table, module, dtype, place, int8)
    for count, tensor in enumerate(tensors, 1):
        assembly.add(tensor)
        progress(count, max(count, len(assembly.rules)))
    return assembly.finish()


class _Assembly:
    """What has come so far of a checkpoint."""

    def __init__(
        self, table: Table, module: Any, dtype: np.dtype | None, place: Callable[[np.ndarray], Any], int8: bool
    ) -> None:
        self.config, self.dtype, self.place, self.int8 = module.config, dtype, place, int8
        self.shapes, self.drops = shapes_of(module, int8), table.drops
        self.scales = {scale for path in self.shapes if (scale := scale_of(path))} if int8 else set()
        self.rules = table.rules_for(self.shapes, module.config.num_hidden_layers)
        self.seen: set[str] = set()
        self.maker: dict[str, str] = {}  # path of a parameter -> name of the tensor that it came from
        self.params: dict[str, Any] = {}
        self.originals: dict[str, Tensor] = {}  # what copies are compared with
        self.copies: list[tuple[Tensor, str]] = []
        self.problems: list[str] = []

    def add(self, tensor: Tensor) -> None:
        """Take in one tensor."""
        if any(tensor.name == drop.copy_of for drop in self.drops):
            self.originals[tensor.name] = tensor
        rule = self.rules.get(tensor.name)
        if tensor.name in self.seen:
            self.problems.append(f"duplicate tensor {tensor.name}")
        elif rule is None:
            self._drop(tensor)
        elif taken := [target for target in rule.targets if target in self.maker]:
            self.problems.append(f"duplicate tensor {tensor.name}: {self.maker[taken[0]]} already gives {taken[0]}")
        else:
            self.maker |= dict.fromkeys(rule.targets, tensor.name)
            if misfit := self._misfit(tensor, rule):
                self.problems.append(misfit)
            else:
                self._make(tensor, rule)
        self.seen.add(tensor.name)

    def finish(self) -> Any:
        """The whole tree; raises the `SllmError`."""
        for copy, name in self.copies:
            if name in self.originals and not _equal(copy, self.originals[name]):
                self.problems.append(f"unknown tensor {copy.name}: the config ties it to {name}, but they differ")
        ruled = {target for rule in self.rules.values() for target in rule.targets}
        derived = self.scales - ruled  # come with their weights
        missing = {path: "no rule of the table" for path in self.shapes if path not in {*self.maker, *derived}}
        for rule in self.rules.values():
            shape = rule.source_shape(self.shapes, self.config)
            missing |= {path: f"{rule.source} of shape {shape}" for path in rule.targets if path in missing}
        self.problems += [f"missing tensor {what}" for what in dict.fromkeys(missing.values())]
        if self.problems:
            count = f"{len(self.problems)} tensors not as the config says:\n" if len(self.problems) > 1 else ""
            more = [f"and {len(self.problems) - _SHOWN} more"] if len(self.problems) > _SHOWN else []
            raise SllmError(count + "\n".join([*self.problems[:_SHOWN], *more]))
        return unflatten_dict(self.params, sep="/")

    def _drop(self, tensor: Tensor) -> None:
        drop = next((drop for drop in self.drops if drop.matches(tensor.name)), None)
        if drop is None:
            self.problems.append(f"unknown tensor {tensor.name} of shape {tensor.shape}")
        elif drop.copy_of is not None:
            self.copies.append((tensor, drop.copy_of))

    def _misfit(self, tensor: Tensor, rule: Rule) -> str | None:
        expected = rule.source_shape(self.shapes, self.config)
        if tensor.shape != expected:
            return f"misshapen tensor {tensor.name}: expected {expected}, got {tensor.shape}"
        if tensor.dtype not in FLOATS and not (self.int8 and tensor.dtype == INT8 and scale_of(tensor.name)):
            return f"tensor {tensor.name} of type {tensor.dtype}: expected one of {', '.join(FLOATS)}"
        return None

    def _make(self, tensor: Tensor, rule: Rule) -> None:
        for target, view in zip(rule.targets, rule.transform.forward(tensor.read(), self.config), strict=True):
            for path, array in self._arrays(tensor, target, view).items():
                self.maker[path] = tensor.name
                if bad := _count_not_finite(array):
                    overflow = " after the cast" if not _count_not_finite(np.asarray(view)) else ""
                    self.problems.append(
                        f"tensor {tensor.name}: {bad} of {array.size} not finite in {array.dtype}{overflow}"
                    )
                else:
                    self.params[path] = self.place(array)

    def _arrays(self, tensor: Tensor, target: str, view: np.ndarray) -> dict[str, np.ndarray]:
        """What is kept of a part of a tensor, by path: an array, or an int8 weight and its scale."""
        scale = scale_of(target) if self.int8 else None
        if scale is None:
            dtype = np.dtype(np.float32) if target in self.scales else self.dtype or FLOATS[tensor.dtype]
            return {target: _owned(view, dtype)}
        if tensor.dtype == INT8:
            return {target: _owned(view, np.dtype(INT8))}
        weight, by = quantize(view)
        return {target: _owned(weight, weight.dtype), scale: _owned(by, by.dtype)}


def disassemble(params: Any, table: Table, module: Any) -> Iterator[tuple[str, np.ndarray]]:
    """The inverse of `assemble`: the tensors of the checkpoint and their names, one at a time."""
    flat = flatten_dict(params, sep="/")
    for name, rule in table.rules_for(shapes_of(module), module.config.num_hidden_layers).items():
        arrays = tuple(np.asarray(flat[target]) for target in rule.targets)
        yield name, np.ascontiguousarray(rule.transform.inverse(arrays, module.config))


def _owned(view: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """A copy in memory of its own (not the file's), cast to `dtype`, in row-major order."""
    size = view.size * dtype.itemsize
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    array = memory[start : start + size].view(dtype).reshape(view.shape)
    with np.errstate(over="ignore"):  # reported as not finite
        array[...] = view
    return array


def _blocks(array: np.ndarray) -> Iterator[np.ndarray]:
    """An array in pieces, so that comparing it takes little memory."""
    flat = array.reshape(-1)
    return (flat[i : i + _BLOCK] for i in range(0, len(flat), _BLOCK))


def _count_not_finite(array: np.ndarray) -> int:
    return sum(block.size - int(np.count_nonzero(np.isfinite(block))) for block in _blocks(array))


def _equal(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape or not {one.dtype, other.dtype} <= FLOATS.keys():
        return False
    return all(np.array_equal(a, b) for a, b in zip(_blocks(one.read()), _blocks(other.read()), strict=True))
