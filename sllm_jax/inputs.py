"""What is at a path, and how large it is, before anything is read from it.

A checkpoint, or a folder to go on from, holds files: reading a pipe there would wait without end. A text may come from
a file, a pipe or a terminal. A device such as /dev/zero never ends.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from sllm_jax.errors import SllmError
from sllm_jax.foreign import foreign, reason

MAX_WHOLE = 2**26  # bytes of what is read whole: prompts, questions; MT-Bench has 2**16, all of ARC 2**22
_PIECE = 2**20  # bytes
_SHOWN = 200  # characters of a name in a message
_NOTHING = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)  # errors that say that nothing is there
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def is_file(path: Path) -> bool:
    """Whether there is a regular file, no pipe; False for names that no file can have."""
    return _type(path) == stat.S_IFREG


def is_folder(path: Path) -> bool:
    """Whether there is a folder; False for names that none can have."""
    return _type(path) == stat.S_IFDIR


def is_there(path: Path) -> bool:
    """Whether there is anything; False for names that nothing can have."""
    return _type(path) is not None


def check_file(path: Path, largest: int | None = None, remedy: str = "give a file") -> Path:
    """The path; raises `SllmError` unless a regular file of at most `largest` bytes is there."""
    with foreign(shown(path), remedy):
        status = path.stat()
    if kind := _KINDS.get(stat.S_IFMT(status.st_mode)):
        raise SllmError(f"{shown(path)} is {kind}, not a file; {remedy}")
    if largest is not None and status.st_size > largest:
        raise SllmError(f"{shown(path)} has {status.st_size} bytes; expected at most {largest}")
    return path


def check_source(path: Path) -> Path:
    """The path; raises `SllmError` unless a file, a pipe or a terminal is there, from which a text can be read."""
    with foreign(shown(path), "give a file or a pipe"):
        kind = stat.S_IFMT(path.stat().st_mode)
        terminal = kind == stat.S_IFCHR and _is_terminal(path)
    if not terminal and kind not in (stat.S_IFREG, stat.S_IFIFO):
        raise SllmError(f"{shown(path)} is {_KINDS.get(kind, 'no file')}; expected a file or a pipe")
    return path


def read_whole(path: Path, largest: int | None = None) -> bytes:
    """The bytes of a file or pipe; raises `SllmError` if there are more than `largest` (`MAX_WHOLE`), or none."""
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
    """A path for a message."""
    name = str(path)
    return name if len(name) <= _SHOWN else f"{name[:_SHOWN]} ..."


def _type(path: Path) -> int | None:
    try:
        return stat.S_IFMT(path.stat().st_mode)
    except ValueError:  # a zero in the name
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
