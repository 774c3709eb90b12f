"""What is being written: under a hidden name beside its place, with a mark that shows that its process still runs.

The mark is a file that the process holds locked. The kernel gives the lock up when the process ends, by SIGKILL too, so
a mark that can be locked is of a process that is gone, and what it has left is removed. On a file system without
locks nobody can tell, and nothing is removed.
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

from sllm_jax.inputs import is_folder
from sllm_jax.signals import before_leaving

_ID = "[0-9a-f]" * 8
_ATTEMPTS = 10
_IN_USE = ".lock"


class Mark:
    """A file that this process holds locked."""

    def __init__(self, path: Path, attempts: int = _ATTEMPTS) -> None:
        """Make the file; each attempt takes up to a second.

        Raises OSError if that fails, and BlockingIOError if another process holds it.
        """
        self.path = path
        self._lock = FileLock(path)
        for _ in range(attempts):
            path.touch()  # filelock waits for ever where it may not make the file, and makes folders that are missing
            try:
                self._lock.acquire(timeout=1)
            except Timeout:  # another process works, or looks for a moment whether the file is abandoned
                continue
            except (OSError, NotImplementedError) as error:
                if not _means_no_locks(error):
                    raise
                path.touch()
            if path.exists():  # and was not taken for abandoned before it was locked
                return
            self._lock.release()
        raise BlockingIOError(f"{path} is held, or removed again and again, by another process")

    def remove(self) -> None:
        """Remove the file, then give up the lock; on Windows the other way round."""
        try:
            self.path.unlink(missing_ok=True)
        except PermissionError:
            self._lock.release()
            self.path.unlink(missing_ok=True)
        self._lock.release()


def _means_no_locks(error: Exception) -> bool:
    """Whether an error of filelock says that the file system has no locks."""
    return not isinstance(error, OSError) or error.errno in (
        errno.ENOLCK,
        errno.ENOSYS,
        errno.ENOTSUP,
        errno.EOPNOTSUPP,
    )


def abandoned(marks: Iterable[Path]) -> Iterator[Path]:
    """Those of `marks` whose process is gone; each is held meanwhile, and then removed."""
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
    """A hidden name beside `path`; what it names at the end of the block is removed, after a signal too.

    After a SIGKILL `remove_abandoned` removes it. Raises OSError if nothing can be written beside `path`.
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
    """Keep other processes that ask for the same out of `folder`; at the end it is removed if it is empty.

    It is marked meanwhile by a file in it, which is removed after a signal too. Raises BlockingIOError if another
    process is in it, and OSError if nothing can be written in it. Without locks nobody is kept out.
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
    """Remove what killed processes have left in `folder` under hidden names of `name`, or of any name."""
    if not is_folder(folder):
        return
    pattern = f".{'*' if name is None else glob.escape(name)}.{_ID}"
    for mark in abandoned(sorted(folder.glob(f"{pattern}.lock"))):
        _remove(mark.with_suffix(".tmp"))
    for temporary in folder.glob(f"{pattern}.tmp"):
        if not temporary.with_suffix(".lock").exists():  # a thread wrote on while its process was leaving
            _remove(temporary)


def _remove(*paths: Path) -> None:
    """Files or folders; each several times, for other threads may still write into it."""
    for path in paths:
        for _ in range(_ATTEMPTS):
            with suppress(OSError):
                path.unlink(missing_ok=True)
            shutil.rmtree(path, ignore_errors=True)
            if not path.exists():
                break
