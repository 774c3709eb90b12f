"""The progress callback of long-running work."""

from collections.abc import Callable

Progress = Callable[[int, int], None]  # called as progress(done, total)


def silent(done: int, total: int) -> None:
    """Report nothing."""
