"""Estimates of free and required memory, to refuse an allocation that would not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import psutil

from sllm_jax.common.errors import SllmError

_CGROUP = Path("/sys/fs/cgroup")  # the limits of the container, cgroup version 2


def bytes_of(tree: Any) -> int:
    """Bytes of all arrays in a tree, or of the arrays that its `jax.ShapeDtypeStruct` leaves stand for."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def free_memory() -> int:
    """Free bytes of the default device; of the machine and its container if the device reports no limit of its own."""
    statistics = jax.devices()[0].memory_stats() or {}
    if "bytes_limit" in statistics:
        return statistics["bytes_limit"] - statistics["bytes_in_use"]
    return min(psutil.virtual_memory().available, _free_in_container())


def check_free(needed: int, what: str, remedy: str) -> None:
    """Raises `SllmError` if more bytes are needed than are free.

    `what` and `remedy` are parts of the message, "{what} takes ... of memory, and ... are free; {remedy}".
    """
    if needed > (free := free_memory()):
        raise SllmError(f"{what} takes {format_gib(needed)} of memory, and {format_gib(free)} are free; {remedy}")


def _free_in_container() -> float:
    """Free bytes under the limit of the container, or infinity without one.

    Page cache counts as free, since the kernel reclaims it.
    """
    try:
        limit, used, statistics = (
            (_CGROUP / f"memory.{name}").read_text(encoding="ascii") for name in ("max", "current", "stat")
        )
        page_cache = next(int(line.split()[1]) for line in statistics.splitlines() if line.startswith("inactive_file "))
        return int(limit) - int(used) + page_cache
    except (OSError, ValueError, StopIteration):  # no such files; the limit is "max"
        return float("inf")


def format_gib(count: float) -> str:
    """Format a number of bytes as GiB."""
    return f"{count / 2**30:.3g} GiB" if count < 2**50 else f"{count / 2**30:.1e} GiB"
