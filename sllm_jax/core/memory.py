"""Memory that is free, and memory that arrays need: what does not fit is refused before it is allocated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import psutil

from sllm_jax.common.errors import SllmError

_CGROUP = Path("/sys/fs/cgroup")  # of a container that limits memory (version 2)


def bytes_of(tree: Any) -> int:
    """Bytes of all arrays in a tree, or of the `jax.ShapeDtypeStruct` in their place."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def free_memory() -> int:
    """Free bytes: of the default device, or of the machine (and the container) where the device has none of its own."""
    statistics = jax.devices()[0].memory_stats()
    if statistics is not None:
        return statistics["bytes_limit"] - statistics["bytes_in_use"]
    return min(psutil.virtual_memory().available, _free_in_container())


def check_free(needed: int, what: str, remedy: str) -> None:
    """Raises `SllmError` if more bytes are needed than are free: "{what} takes ... of memory, ...; {remedy}"."""
    if needed > (free := free_memory()):
        raise SllmError(f"{what} takes {gigabytes(needed)} of memory, and {gigabytes(free)} are free; {remedy}")


def _free_in_container() -> float:
    """What a container may still take; infinite where there is no limit. Cached files are given back on demand."""
    try:
        limit, used, statistics = (
            (_CGROUP / f"memory.{name}").read_text(encoding="ascii") for name in ("max", "current", "stat")
        )
        files = next(int(line.split()[1]) for line in statistics.splitlines() if line.startswith("inactive_file "))
        return int(limit) - int(used) + files
    except (OSError, ValueError, StopIteration):  # no such files; the limit is "max"
        return float("inf")


def gigabytes(count: float) -> str:
    """A number of bytes for people."""
    return f"{count / 2**30:.3g} GiB" if count < 2**50 else f"{count / 2**30:.1e} GiB"
