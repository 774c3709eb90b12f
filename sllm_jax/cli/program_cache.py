"""Cache compiled programs on disk, so that later starts need not compile them again.

JAX writes each program in place, into the folder `JAX_COMPILATION_CACHE_DIR`. A killed process or a full disk leaves an
incomplete file, which every later start would read and skip. Each process therefore puts a lock file into the folder.
An abandoned lock file shows that its process was killed; everything written since that process started is removed. A
process whose own writes failed removes, when it ends, everything written since it started.
"""

from __future__ import annotations

import atexit
import hashlib
import os
import platform
import sys
import time
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from sllm_jax.common.signals import before_leaving
from sllm_jax.common.unfinished import Mark, abandoned

WORTH_KEEPING = "0.1"  # minimum compilation time, in seconds
MOST_BYTES = 2**30  # size limit, per kind of processor
WRITING = 10  # time limit for writing a program, in seconds
_FAILED = "Error writing persistent compilation cache entry"
_OWN_CHOICE = (
    "JAX_COMPILATION_CACHE_DIR",
    "JAX_ENABLE_COMPILATION_CACHE",
)  # set by users who configure JAX's cache themselves


def keep_programs() -> None:
    """Enable JAX's compilation cache; call before JAX is imported. Does nothing if the folder cannot be written."""
    if "jax" in sys.modules or any(name in os.environ for name in _OWN_CHOICE):
        return
    try:
        folder = _folder()
        folder.mkdir(parents=True, exist_ok=True)
        _remove_half_written(folder)
        _remove_oldest(folder)
        mark = Mark(folder / f"{uuid4().hex}.running")
    except (OSError, RuntimeError):  # RuntimeError: the user has no home folder
        return
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", WORTH_KEEPING)
    failures = _hear_of_failures()
    atexit.register(_end, mark, failures)
    before_leaving(lambda: _leave(mark, failures))


def _folder() -> Path:
    """A folder in the user's cache, one per kind of processor: programs compiled for another may not run."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "sllm-jax" / "programs" / hashlib.sha256(_processor().encode()).hexdigest()[:16]


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    return "".join([platform.machine(), *(line for line in lines if line.startswith(("flags", "Features")))][:2])


def _hear_of_failures() -> list[str]:
    """Hide JAX's warnings about its cache; the returned list collects those of failed writes."""
    warnings.filterwarnings("ignore", "Error reading persistent compilation cache entry")
    warnings.filterwarnings("always", _FAILED)
    show, failures = warnings.showwarning, []

    def hear(message: Warning | str, *rest: Any, **more: Any) -> None:
        if str(message).startswith(_FAILED):
            failures.append(str(message))
        else:
            show(message, *rest, **more)

    warnings.showwarning = hear
    return failures


def _end(mark: Mark, failures: list[str]) -> None:
    """Clean up after a normal end of the process."""
    if failures:
        with suppress(OSError):
            _remove_since(mark.path.parent, mark.path.stat().st_mtime)
    mark.remove()


def _leave(mark: Mark, failures: list[str]) -> None:
    """Clean up after a signal: only files of the last `WRITING` seconds may be incomplete."""
    if not failures:
        os.utime(mark.path, (time.time() - WRITING, time.time() - WRITING))


def _remove_half_written(folder: Path) -> None:
    """Remove what was written since a killed process started; complete files cannot be told from incomplete ones."""
    began = dict(_by_time(folder, "*.running"))
    for mark in abandoned(began):
        _remove_since(folder, began[mark])


def _remove_since(folder: Path, began: float) -> None:
    for entry, written in _by_time(folder, "*-cache"):
        if written >= began:
            entry.unlink(missing_ok=True)


def _remove_oldest(folder: Path) -> None:
    """Remove the oldest programs until at most `MOST_BYTES` are left."""
    left = 0
    for entry, _ in reversed(_by_time(folder, "*-cache")):
        with suppress(FileNotFoundError):
            left += entry.stat().st_size
        if left > MOST_BYTES:
            entry.unlink(missing_ok=True)


def _by_time(folder: Path, pattern: str) -> list[tuple[Path, float]]:
    """Files and their modification times, oldest first; other processes may remove files meanwhile."""
    found = []
    for path in folder.glob(pattern):
        with suppress(FileNotFoundError):
            found.append((path, path.stat().st_mtime))
    return sorted(found, key=lambda one: one[1])
