"""How long work tells what it has done, without knowing who shows it."""

from collections.abc import Callable

Progress = Callable[[int, int], None]  # called with how much is done, and of how much


def silent(done: int, total: int) -> None:
    """Tell nobody."""
