"""Checks of the kind and size of an input path, made before anything is read.

Checkpoints and resume folders must hold regular files, because reading a pipe would block. Text may come from a file, a
pipe or a terminal. Devices such as /dev/zero never end and are refused.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from sllm_jax.common.errors import SllmError
from sllm_jax.common.foreign import foreign, reason

MAX_WHOLE = 2**26  # bytes of files that are read whole: prompts, questions (MT-Bench: 2**16, ARC: 2**22)
_PIECE = 2**20  # bytes
_SHOWN = 200  # characters of a path in a message
_NOTHING = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)  # errors for: no such path
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def is_file(path: Path) -> bool:
    """Whether `path` is a regular file; False for invalid names."""
    return _type(path) == stat.S_IFREG


def is_folder(path: Path) -> bool:
    """Whether `path` is a folder; False for invalid names."""
    return _type(path) == stat.S_IFDIR


def is_there(path: Path) -> bool:
    """Whether `path` exists; False for invalid names."""
    return _type(path) is not None


def check_file(path: Path, largest: int | None = None, remedy: str = "give a file") -> Path:
    """The path. Raises `SllmError` unless it is a regular file of at most `largest` bytes."""
    with foreign(shown(path), remedy):
        status = path.stat()
    if kind := _KINDS.get(stat.S_IFMT(status.st_mode)):
        raise SllmError(f"{shown(path)} is {kind}, not a file; {remedy}")
    if largest is not None and status.st_size > largest:
        raise SllmError(f"{shown(path)} has {status.st_size} bytes; expected at most {largest}")
    return path


def check_source(path: Path) -> Path:
    """The path. Raises `SllmError` unless it is a file, a pipe or a terminal, from which text can be read."""
    with foreign(shown(path), "give a file or a pipe"):
        kind = stat.S_IFMT(path.stat().st_mode)
        terminal = kind == stat.S_IFCHR and _is_terminal(path)
    if not terminal and kind not in (stat.S_IFREG, stat.S_IFIFO):
        raise SllmError(f"{shown(path)} is {_KINDS.get(kind, 'no file')}; expected a file or a pipe")
    return path


def read_whole(path: Path, largest: int | None = None) -> bytes:
    """All bytes of a file or pipe. Raises `SllmError` for more than `largest` (default `MAX_WHOLE`) bytes, or none."""
    check_source(path)
    largest = MAX_WHOLE if largest is None else largest
    content = bytearray()
    with foreign(shown(path), "give a file or a pipe"), path.open("rb") as file:
        while piece := file.read(_PIECE):
            content += piece
            if len(content) > largest:
                raise SllmError(f"{shown(path)} has more than {largest} bytes; give a smaller one")
    return bytes(content)


def shown(path: Path) -> str:
    """A path, shortened for messages."""
    name = str(path)
    return name if len(name) <= _SHOWN else f"{name[:_SHOWN]} ..."


def _type(path: Path) -> int | None:
    try:
        return stat.S_IFMT(path.stat().st_mode)
    except ValueError:  # null character in the path
        return None
    except OSError as error:
        if error.errno in _NOTHING:
            return None
        raise SllmError(f"{shown(path)} cannot be read ({reason(error)}); name another place") from error


def _is_terminal(path: Path) -> bool:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK)
    try:
        return os.isatty(descriptor)
    finally:
        os.close(descriptor)
