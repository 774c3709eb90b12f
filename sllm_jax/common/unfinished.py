"""Unfinished files: a hidden temporary name beside the target, and a lock file that shows whether the writer is alive.

The writing process holds the lock. The kernel releases it when the process ends, even by SIGKILL. A lock file that can
be locked therefore belongs to a dead process, and its leftovers are removed. On a file system without locks this cannot
be known, and nothing is removed.
"""

from __future__ import annotations

import errno
import glob
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from uuid import uuid4

from filelock import FileLock, Timeout

from sllm_jax.common.inputs import is_folder
from sllm_jax.common.signals import before_leaving

_ID = "[0-9a-f]" * 8
_ATTEMPTS = 10
_IN_USE = ".lock"


class Mark:
    """A lock file that this process holds."""

    def __init__(self, path: Path, attempts: int = _ATTEMPTS) -> None:
        """Create and lock the file; each attempt takes up to a second.

        Raises OSError if that fails, and BlockingIOError if another process holds the lock.
        """
        self.path = path
        self._lock = FileLock(path)
        for _ in range(attempts):
            path.touch()  # filelock waits forever if it may not create the file, and creates missing folders
            try:
                self._lock.acquire(timeout=1)
            except Timeout:  # held by a writer, or briefly by a process that looks for abandoned files
                continue
            except (OSError, NotImplementedError) as error:
                if not _means_no_locks(error):
                    raise
                path.touch()
            if path.exists():  # not removed as abandoned before it was locked
                return
            self._lock.release()
        raise BlockingIOError(f"{path} is held, or removed again and again, by another process")

    def remove(self) -> None:
        """Remove the file, then release the lock; on Windows in reverse order."""
        try:
            self.path.unlink(missing_ok=True)
        except PermissionError:
            self._lock.release()
            self.path.unlink(missing_ok=True)
        self._lock.release()


def _means_no_locks(error: Exception) -> bool:
    """Whether a filelock error means that the file system does not support locks."""
    return not isinstance(error, OSError) or error.errno in (
        errno.ENOLCK,
        errno.ENOSYS,
        errno.ENOTSUP,
        errno.EOPNOTSUPP,
    )


def abandoned(marks: Iterable[Path]) -> Iterator[Path]:
    """The lock files in `marks` whose process has ended. Each is locked while yielded, then removed."""
    for path in marks:
        lock = FileLock(path)
        try:
            lock.acquire(timeout=0)
        except (Timeout, OSError, NotImplementedError):
            continue
        yield path
        with suppress(OSError):
            path.unlink()
        lock.release()


@contextmanager
def unfinished(path: Path) -> Iterator[Path]:
    """Yield a hidden temporary name beside `path`; remove what exists there at the end, also after a signal.

    After a SIGKILL, `remove_abandoned` removes it. Raises OSError if nothing can be written beside `path`.
    """
    name = f".{path.name}.{uuid4().hex[:8]}"
    temporary, marked = path.with_name(f"{name}.tmp"), path.with_name(f"{name}.lock")
    forget = before_leaving(partial(_remove, temporary, marked))
    try:
        mark = Mark(marked)
        try:
            yield temporary
        finally:
            _remove(temporary)
            mark.remove()
    finally:
        forget()


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Hold an exclusive lock on `folder`; remove the folder at the end if it is empty.

    The lock file lies in the folder and is also removed after a signal. Raises BlockingIOError if another process holds
    the lock, and OSError if the folder cannot be written. File systems without locks keep nobody out.
    """
    if (path := folder / _IN_USE).exists() and not path.is_file():
        raise FileExistsError(f"{path} is not a file")
    mark = Mark(path, attempts=1)
    forget = before_leaving(partial(_leave, path))
    try:
        yield
    finally:
        forget()
        mark.remove()
        with suppress(OSError):
            folder.rmdir()


def _leave(mark: Path) -> None:
    _remove(mark)
    with suppress(OSError):
        mark.parent.rmdir()


def remove_abandoned(folder: Path, name: str | None = None) -> None:
    """Remove what killed processes left in `folder` under hidden names derived from `name`, or from any name."""
    if not is_folder(folder):
        return
    pattern = f".{'*' if name is None else glob.escape(name)}.{_ID}"
    for mark in abandoned(sorted(folder.glob(f"{pattern}.lock"))):
        _remove(mark.with_suffix(".tmp"))
    for temporary in folder.glob(f"{pattern}.tmp"):
        if not temporary.with_suffix(".lock").exists():  # written by a thread while its process was ending
            _remove(temporary)


def _remove(*paths: Path) -> None:
    """Remove files or folders, retrying because other threads may still be writing to them."""
    for path in paths:
        for _ in range(_ATTEMPTS):
            with suppress(OSError):
                path.unlink(missing_ok=True)
            shutil.rmtree(path, ignore_errors=True)
            if not path.exists():
                break
