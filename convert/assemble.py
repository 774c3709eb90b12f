"""Tensors to parameters and back, by a table. All problems of a checkpoint are reported together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from sllm_jax.common.errors import SllmError
from sllm_jax.common.progress import Progress, silent
from sllm_jax.common.tensor import Shape, Tensor
from sllm_jax.convert.diagnosis import looks_like, summary
from sllm_jax.convert.dtypes import READABLE, kept_as
from sllm_jax.convert.names import own_name
from sllm_jax.convert.table import Drop, Rule, Table
from sllm_jax.core.int8 import INT8, quantize, scale_path
from sllm_jax.core.model import parameter_shapes

_SHOWN = 10  # problems of one checkpoint
_LINE = 300  # characters of one problem
_BLOCK = 1 << 22  # elements compared at a time
_ALIGNMENT = 64  # bytes; JAX on a CPU uses an aligned array in place and copies any other


def shapes_of(module: Any, int8: bool = False) -> dict[str, Shape]:
    """The shape of each parameter of a module, by path; with `int8` also the shapes of the scales."""
    shapes = {path: leaf.shape for path, leaf in flatten_dict(parameter_shapes(module), sep="/").items()}
    scales = {scale: shape[:1] for path, shape in shapes.items() if int8 and (scale := scale_path(path))}
    return shapes | scales


def identity_table(module: Any, int8: bool = False) -> Table:
    """The table of checkpoints in the layout of the module; with `int8` each weight has a scale."""
    return Table(tuple(Rule(path, (path,)) for path in shapes_of(module, int8)))


def assemble(
    tensors: Iterable[Tensor],
    table: Table,
    module: Any,
    *,
    dtype: np.dtype | None,
    place: Callable[[np.ndarray], Any],
    progress: Progress = silent,
    int8: bool = False,
) -> Any:
    """The module's tree of parameters, each cast to `dtype` (None: its own) and passed through `place`.

    `place` is called with one array at a time and owns it. With `int8` the weights of linear layers are quantized,
    unless they are int8 already. Raises one `SllmError` for all tensors that are unknown, missing, duplicate,
    misshapen, of another format than `READABLE`, or not finite after the cast.

    Names may have the prefixes that training scripts add (`own_name`). If the head is tied to the embedding, the
    checkpoint may have either of them, or both if they are equal.
    """
    assembly = _Assembly(table, module, dtype, place, int8)
    for count, tensor in enumerate(tensors, 1):
        assembly.add(tensor)
        progress(count, max(count, len(assembly.rules)))
    return assembly.finish()


def is_tied(tensors: Iterable[Tensor], table: Table) -> bool:
    """False if the checkpoint has both head and embedding and they differ (a fine-tuned head)."""
    if table.tied is None:
        return True
    names = {table.tied.source, table.tied.copy_of}
    own = ((_own_name(tensor.name, names.__contains__, table), tensor) for tensor in tensors)
    found = {name: tensor for name, tensor in own if name in names}
    return len(found) < 2 or _equal(*found.values())


def _own_name(name: str, is_known: Callable[[str], bool], table: Table) -> str:
    """The name of a tensor in the table, without added prefixes, and with aliases resolved."""
    name = own_name(name, lambda name: is_known(table.aliases.get(name, name)), table.frame)
    return table.aliases.get(name, name)


class _Assembly:
    """The part of a checkpoint that has been read so far."""

    def __init__(
        self, table: Table, module: Any, dtype: np.dtype | None, place: Callable[[np.ndarray], Any], int8: bool
    ) -> None:
        self.config, self.dtype, self.place, self.int8 = module.config, dtype, place, int8
        self.shapes, self.table = shapes_of(module, int8), table
        self.scales = {scale for path in self.shapes if (scale := scale_path(path))} if int8 else set()
        self.rules = table.rules_for(self.shapes, module.config.num_hidden_layers)
        self.seen: dict[str, Shape] = {}
        self.maker: dict[str, str] = {}  # path of a parameter -> name of the tensor that it came from
        self.params: dict[str, Any] = {}
        self.embedding: Tensor | None = None  # the embedding that the head may be tied to
        self.head: Tensor | None = None  # a tied head
        self.problems: list[tuple[str, str]] = []  # the kind and the message of each

    def add(self, tensor: Tensor) -> None:
        """Add one tensor."""
        tensor = replace(tensor, name=_own_name(tensor.name, self._is_known, self.table))
        if self.table.tied and tensor.name == self.table.tied.copy_of:
            self.embedding = tensor
        rule = self.rules.get(tensor.name)
        if tensor.name in self.seen:
            self._problem("duplicate", f"duplicate tensor {tensor.name}")
        elif rule is None:
            self._drop(tensor)
        elif taken := [target for target in rule.targets if target in self.maker]:
            self._problem(
                "duplicate", f"duplicate tensor {tensor.name}: {self.maker[taken[0]]} already gives {taken[0]}"
            )
        else:
            self.maker |= dict.fromkeys(rule.targets, tensor.name)
            if not self._misfit(tensor, rule):
                self._make(tensor, rule)
        self.seen[tensor.name] = tensor.shape

    def finish(self) -> Any:
        """The tree of parameters; raises the `SllmError`."""
        self._settle_tied_head()
        ruled = {target for rule in self.rules.values() for target in rule.targets}
        derived = self.scales - ruled  # made together with their weights
        missing = {path: "no rule of the table" for path in self.shapes if path not in {*self.maker, *derived}}
        for rule in self.rules.values():
            shape = rule.source_shape(self.shapes, self.config)
            missing |= {path: f"{rule.source} of shape {shape}" for path in rule.targets if path in missing}
        for what in dict.fromkeys(missing.values()):
            self._problem("missing", f"missing tensor {what}")
        if self.problems:
            raise SllmError(self._report())
        return unflatten_dict(self.params, sep="/")

    def _settle_tied_head(self) -> None:
        """Use a head without an embedding as both; a head beside an embedding must be equal to it."""
        if self.head is None or self.table.tied is None:
            return
        name = str(self.table.tied.copy_of)
        if self.embedding is None:
            self.add(replace(self.head, name=name))
        elif not _equal(self.head, self.embedding):
            self._problem("unknown", f"unknown tensor {self.head.name}: the config ties it to {name}, but they differ")

    def _is_known(self, name: str) -> bool:
        return name in self.rules or any(drop.matches(name) for drop in self.table.drops)

    def _own(self, name: str) -> str | None:
        own = _own_name(name, self._is_known, self.table)
        return own if self._is_known(own) else None

    def _problem(self, kind: str, line: str) -> None:
        self.problems.append((kind, " ".join(line.split())[:_LINE]))

    def _report(self) -> str:
        """A summary and the first problems; for a single problem one sentence."""
        lines = [line for _, line in self.problems]
        embedding = self.shapes["embed_tokens/embedding"]
        what = looks_like(self.seen, self._own, self.table, embedding, self.config) if self.table.frame else None
        if len(lines) == 1:
            return lines[0] if what is None else f"{lines[0]}; this looks like {what}"
        more = [f"and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
        kinds = Counter(kind for kind, _ in self.problems)
        return "\n".join([f"{summary(kinds, what)}:", *lines[:_SHOWN], *more])

    def _drop(self, tensor: Tensor) -> None:
        drop: Drop | None = next((drop for drop in self.table.drops if drop.matches(tensor.name)), None)
        if drop is None:
            self._problem("unknown", f"unknown tensor {tensor.name} of shape {tensor.shape}")
        elif drop is self.table.tied:
            self.head = tensor

    def _misfit(self, tensor: Tensor, rule: Rule) -> bool:
        expected = rule.source_shape(self.shapes, self.config)
        is_weight = self.int8 and tensor.dtype == INT8 and scale_path(tensor.name)
        if tensor.shape != expected:
            self._problem("misshapen", f"misshapen tensor {tensor.name}: expected {expected}, got {tensor.shape}")
        elif tensor.dtype not in READABLE and not is_weight:
            what = f"tensor {tensor.name} of type {tensor.dtype}: expected one of {', '.join(READABLE)}"
            self._problem("unreadable", what)
        else:
            return False
        return True

    def _make(self, tensor: Tensor, rule: Rule) -> None:
        for target, view in zip(rule.targets, rule.transform.forward(tensor.read(), self.config), strict=True):
            if view.shape != self.shapes[target]:
                made = f"the transform {rule.transform.name!r} gives {view.shape} for {target}"
                self._problem("misshapen", f"tensor {tensor.name}: {made}, expected {self.shapes[target]}")
                continue
            for path, array in self._arrays(tensor, target, view).items():
                self.maker[path] = tensor.name
                if bad := _count_not_finite(array):
                    overflow = " after the cast" if not _count_not_finite(np.asarray(view)) else ""
                    what = f"tensor {tensor.name}: {bad} of {array.size} not finite in {array.dtype}{overflow}"
                    self._problem("damaged", what)
                else:
                    self.params[path] = self.place(array)

    def _arrays(self, tensor: Tensor, target: str, view: np.ndarray) -> dict[str, np.ndarray]:
        """The parameters made from a part of a tensor, by path: an array, or an int8 weight and its scale."""
        scale = scale_path(target) if self.int8 else None
        if scale is None:
            dtype = np.dtype(np.float32) if target in self.scales else self.dtype or kept_as(tensor.dtype)
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
    """A copy cast to `dtype`, in row-major order and aligned; it does not refer to the file."""
    size = view.size * dtype.itemsize
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    array = memory[start : start + size].view(dtype).reshape(view.shape)
    with np.errstate(over="ignore"):  # overflow is reported as not finite
        array[...] = view
    return array


def _blocks(array: np.ndarray) -> Iterator[np.ndarray]:
    """An array in pieces, so that comparisons need little memory."""
    flat = array.reshape(-1)
    return (flat[i : i + _BLOCK] for i in range(0, len(flat), _BLOCK))


def _count_not_finite(array: np.ndarray) -> int:
    return sum(block.size - int(np.count_nonzero(np.isfinite(block))) for block in _blocks(array))


def _equal(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape or not {one.dtype, other.dtype} <= READABLE.keys():
        return False
    return all(np.array_equal(a, b) for a, b in zip(_blocks(one.read()), _blocks(other.read()), strict=True))
