"""The header of a GGUF file, the format of llama.cpp: metadata, and where each tensor lies.

`gguf.GGUFReader` is not used: it takes 4 s for a vocabulary of 49,000 tokens (here 0.2 s), and it trusts the sizes in
the file. Here every size is compared with the bytes that are left before anything is allocated.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from sllm_jax.common.errors import SllmError
from sllm_jax.common.foreign import foreign
from sllm_jax.common.inputs import check_file, is_file, is_folder, shown
from sllm_jax.common.tensor import Shape

SUFFIX = ".gguf"
_MAGIC, _VERSIONS = b"GGUF", (2, 3)
_MAX_HEADER = 2**27  # bytes; the headers of the largest published vocabularies have about 2**24
_MAX_AXES, _MAX_NESTING = 4, 4
_ALIGNMENT = "general.alignment", 32
_SCALARS = {  # type in the file: NumPy dtype
    **{0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?"},
    **{10: "<u8", 11: "<i8", 12: "<f8"},
}
_STRING, _ARRAY = 8, 9
_PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")  # one file of a model in several


@dataclass(frozen=True)
class Entry:
    """A tensor in a GGUF file."""

    path: Path
    shape: Shape  # row-major; the file lists the axes in reverse
    type: int  # of `gguf.GGMLQuantizationType`
    begin: int  # byte in the file


@dataclass(frozen=True)
class Header:
    """Metadata by key, and tensors by name. Numbers are NumPy scalars, arrays are NumPy arrays or lists of strings."""

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, Entry]

    def get(self, key: str, kind: type | tuple[type, ...], default: Any = None) -> Any:
        """The value of `key`, or `default` if it is absent. Raises `SllmError` for a value of another type."""
        value = self.metadata.get(key)
        if value is None:
            return default
        if not isinstance(value, kind):
            kinds = kind if isinstance(kind, tuple) else (kind,)
            expected = " or ".join(one.__name__ for one in kinds)
            raise SllmError(f"{self.path}: {key:.80} must be of type {expected}; got {type(value).__name__}")
        return value


def is_gguf(path: Path) -> bool:
    """Whether `path` is a file that is named as a GGUF file, or begins as one (Ollama's blobs)."""
    if not is_file(path):
        return False
    if path.suffix.lower() == SUFFIX:
        return True
    with foreign(shown(path), "give a file"), path.open("rb") as file:
        return file.read(len(_MAGIC)) == _MAGIC


def gguf_in(folder: Path) -> Path | None:
    """The GGUF model in a folder, the first file if it has several parts; None if there is none.

    Raises `SllmError` if there is more than one.
    """
    names = models_among(path.name for path in folder.iterdir()) if is_folder(folder) else []
    if len(names) > 1:
        raise SllmError(f"{folder} has several GGUF files; give one of them: {', '.join(names[:10])}")
    return folder / names[0] if names else None


def models_among(names: Iterable[str]) -> list[str]:
    """The GGUF models among file names; one in several parts counts once, image encoders (mmproj) do not."""
    found = [name for name in names if name.lower().endswith(SUFFIX)]
    models = [name for name in found if not name.rpartition("/")[2].startswith(("mmproj", "."))]
    return sorted(name for name in models if not (part := _PART.fullmatch(name)) or int(part[2]) == 1)


def part_names(name: str, count: int) -> list[str]:
    """The names of the `count` files of a model, given that of one of them; raises `SllmError` for another name."""
    if count < 2:
        return [name]
    part = _PART.fullmatch(name)
    if part is None or int(part[3]) != count:
        raise SllmError(f"{name:.80} is one of {count} parts, but not named so; expected NAME-00001-of-{count:05}.gguf")
    return [f"{part[1]}-{number:05}-of-{count:05}{SUFFIX}" for number in range(1, count + 1)]


def parts_by_name(name: str) -> list[str]:
    """The names of all files of a model, given that of one of them."""
    part = _PART.fullmatch(name)
    return part_names(name, min(int(part[3]), 9999)) if part else [name]


def read_headers(path: Path) -> list[Header]:
    """The headers of all files of a model. Raises `SllmError` if one is absent, damaged, or of another version."""
    first = read_header(path)
    count = int(first.get("split.count", np.unsignedinteger, 1))
    names = part_names(path.name, count)
    if absent := [name for name in names if not is_file(path.with_name(name))]:
        raise SllmError(f"{path} is one of {count} parts; absent: {', '.join(absent[:10])}; fetch them too")
    return [first if name == path.name else read_header(path.with_name(name)) for name in names]


def read_header(path: Path) -> Header:
    """The header of one file. Raises `SllmError` if it is damaged, or of another version."""
    status = check_file(path).stat()
    return _read_header(path, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=32)  # config, tokenizer and tensors of a model are read one after another, each from the headers
def _read_header(path: Path, modified: int, size: int) -> Header:
    with foreign(str(path), "fetch it again", "is truncated or not a GGUF file"):
        return _Reader(path, np.memmap(path, np.uint8, "r")).header()


class _Reader:
    """A position in the bytes of a file. Whatever is wrong with them is a `ValueError`."""

    def __init__(self, path: Path, data: np.ndarray) -> None:
        self.path, self.size, self.at = path, len(data), 0
        self.buffer = data[:_MAX_HEADER].data

    def header(self) -> Header:
        """The whole header."""
        if self._take(4) != _MAGIC:
            raise ValueError("it does not begin with 'GGUF'")
        version = self._integer("<I")
        if version not in _VERSIONS:
            big_endian = version % 2**16 == 0
            found = "big-endian" if big_endian else f"version {version}"
            raise ValueError(f"it is {found}; expected little-endian and version {' or '.join(map(str, _VERSIONS))}")
        tensors, keys = self._integer("<Q"), self._integer("<Q")
        metadata: dict[str, Any] = {}
        for _ in range(self._possible(keys, 13)):  # length of a name, one letter at least, type
            key = self._string()
            if key in metadata:
                raise ValueError(f"{key:.80} stands twice")
            metadata[key] = self._value(self._integer("<I"))
        entries: dict[str, Entry] = {}
        for _ in range(self._possible(tensors, 25)):
            name = self._string()
            if name in entries:
                raise ValueError(f"the tensor {name:.80} stands twice")
            entries[name] = self._entry()
        return Header(self.path, metadata, self._placed(entries, metadata))

    def _placed(self, entries: dict[str, Entry], metadata: dict[str, Any]) -> dict[str, Entry]:
        """The tensors with their place in the file instead of that in its data section."""
        alignment = int(metadata.get(*_ALIGNMENT))
        if alignment <= 0 or alignment & (alignment - 1):
            raise ValueError(f"{_ALIGNMENT[0]} must be a power of two; got {alignment}")
        start = -(-self.at // alignment) * alignment
        placed = {name: replace(one, begin=start + one.begin) for name, one in entries.items()}
        for name, one in placed.items():
            if (size := bytes_of(one)) is not None and one.begin + size > self.size:
                raise ValueError(f"the tensor {name:.80} ends after the file")
        return placed

    def _entry(self) -> Entry:
        axes = self._integer("<I")
        if not 1 <= axes <= _MAX_AXES:
            raise ValueError(f"a tensor has {axes} axes")
        shape = tuple(self._integer("<Q") for _ in range(axes))[::-1]
        if not all(shape) or math.prod(shape) > 2**62:
            raise ValueError(f"a tensor has the shape {shape}")
        return Entry(self.path, shape, self._integer("<I"), self._integer("<Q"))

    def _value(self, kind: int, nesting: int = 0) -> Any:
        if kind in _SCALARS:
            return self._numbers(_SCALARS[kind], 1)[0]
        if kind == _STRING:
            return self._string()
        if kind != _ARRAY or nesting == _MAX_NESTING:
            raise ValueError(f"a value is of the unknown type {kind}")
        inner, count = self._integer("<I"), self._integer("<Q")
        if inner in _SCALARS:
            return self._numbers(_SCALARS[inner], count)
        smallest = 8 if inner == _STRING else 12
        return [self._value(inner, nesting + 1) for _ in range(self._possible(count, smallest))]

    def _numbers(self, dtype: str, count: int) -> np.ndarray:
        return np.frombuffer(self._take(count * np.dtype(dtype).itemsize), dtype)

    def _string(self) -> str:
        return self._take(self._integer("<Q")).decode("utf-8", "surrogateescape")

    def _integer(self, form: str) -> int:
        return struct.unpack(form, self._take(struct.calcsize(form)))[0]

    def _take(self, count: int) -> bytes:
        end = self.at + count
        if end > len(self.buffer):
            raise ValueError("it ends within its header" if end > self.size else "its header is too long")
        taken, self.at = bytes(self.buffer[self.at : end]), end
        return taken

    def _possible(self, count: int, smallest: int) -> int:
        """`count` if as many items of at least `smallest` bytes fit into the rest of the file."""
        if count * smallest > len(self.buffer) - self.at:
            raise ValueError(f"it promises {count} items in {len(self.buffer) - self.at} bytes")
        return count


def bytes_of(entry: Entry) -> int | None:
    """The size of a tensor in the file; None if its type is unknown. Raises `ValueError` for rows of broken blocks."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    if entry.type not in set(GGMLQuantizationType):
        return None
    block, size = GGML_QUANT_SIZES[GGMLQuantizationType(entry.type)]
    if entry.shape[-1] % block:
        raise ValueError(f"a tensor has rows of {entry.shape[-1]} numbers, which are not blocks of {block}")
    return math.prod(entry.shape) // block * size
