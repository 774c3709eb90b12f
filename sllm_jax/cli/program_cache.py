"""Compiled programs are kept on disk, so that the next start need not compile them again.

JAX keeps them where `JAX_COMPILATION_CACHE_DIR` says, but writes each in place: a process that is killed meanwhile
leaves half of one, and so does a full disk. It would be met, and passed over, at every start from then on. So each
process marks the folder. A mark of a process that is gone says that it was killed; what was written since it began is
removed. A process that could not write a program removes at its end what was written since it began.
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

WORTH_KEEPING = "0.1"  # seconds of compiling
MOST_BYTES = 2**30  # of programs for one kind of processor
WRITING = 10  # seconds that writing a program may take
_FAILED = "Error writing persistent compilation cache entry"
_OWN_CHOICE = ("JAX_COMPILATION_CACHE_DIR", "JAX_ENABLE_COMPILATION_CACHE")  # variables by which people decide


def keep_programs() -> None:
    """Let JAX keep compiled programs; it is not imported yet. Does nothing where no folder can be written."""
    if "jax" in sys.modules or any(name in os.environ for name in _OWN_CHOICE):
        return
    try:
        folder = _folder()
        folder.mkdir(parents=True, exist_ok=True)
        _remove_half_written(folder)
        _remove_oldest(folder)
        mark = Mark(folder / f"{uuid4().hex}.running")
    except (OSError, RuntimeError):  # RuntimeError: the user has no home
        return
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", WORTH_KEEPING)
    failures = _hear_of_failures()
    atexit.register(_end, mark, failures)
    before_leaving(lambda: _leave(mark, failures))


def _folder() -> Path:
    """In the user's cache folder, one for each kind of processor: programs of another may not run here."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "sllm-jax" / "programs" / hashlib.sha256(_processor().encode()).hexdigest()[:16]


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    return "".join([platform.machine(), *(line for line in lines if line.startswith(("flags", "Features")))][:2])


def _hear_of_failures() -> list[str]:
    """Keep JAX's warnings about this cache from people; those of writes that failed are in the list."""
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
    """The process ends as it should."""
    if failures:
        with suppress(OSError):
            _remove_since(mark.path.parent, mark.path.stat().st_mtime)
    mark.remove()


def _leave(mark: Mark, failures: list[str]) -> None:
    """The process ends in the middle of its work: only what is written just now may be half written."""
    if not failures:
        os.utime(mark.path, (time.time() - WRITING, time.time() - WRITING))


def _remove_half_written(folder: Path) -> None:
    """What was written since the beginning of a process that was killed; much of it whole, but that cannot be told."""
    began = dict(_by_time(folder, "*.running"))
    for mark in abandoned(began):
        _remove_since(folder, began[mark])


def _remove_since(folder: Path, began: float) -> None:
    for entry, written in _by_time(folder, "*-cache"):
        if written >= began:
            entry.unlink(missing_ok=True)


def _remove_oldest(folder: Path) -> None:
    """Until no more than `MOST_BYTES` are left."""
    left = 0
    for entry, _ in reversed(_by_time(folder, "*-cache")):
        with suppress(FileNotFoundError):
            left += entry.stat().st_size
        if left > MOST_BYTES:
            entry.unlink(missing_ok=True)


def _by_time(folder: Path, pattern: str) -> list[tuple[Path, float]]:
    """Files and when they were written, the oldest first; another process may remove them meanwhile."""
    found = []
    for path in folder.glob(pattern):
        with suppress(FileNotFoundError):
            found.append((path, path.stat().st_mtime))
    return sorted(found, key=lambda one: one[1])
