"""What people see besides the text: notes, warnings and progress, all on standard error."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


def note(text: str) -> None:
    """One line on standard error, if anybody can read it."""
    with suppress(OSError):  # a terminal that has closed
        print(text, file=sys.stderr, flush=True)


def print_warnings() -> None:
    """Show a warning as one line, without the place in the code that gave it."""

    def show(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        if category is UserWarning:
            note(f"warning: {message}")

    warnings.showwarning = show


class Bar:
    """One progress bar; silent where standard error is not a terminal."""

    def __init__(self, progress: Progress, label: str) -> None:
        """`label` stands before the bar."""
        self._progress = progress
        self._task = progress.add_task(label, total=None, info="")

    def __call__(self, done: int, total: int, info: str = "") -> None:
        """Show that `done` of `total` are done; `info` stands behind the bar."""
        self._progress.update(self._task, completed=done, total=total, info=info)


@contextmanager
def progress(label: str) -> Iterator[Bar]:
    """A bar that vanishes when its work is done."""
    console = Console(stderr=True)
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(
        TextColumn("{task.description}"),
        *columns,
        TextColumn("{task.fields[info]}"),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as shown:
        yield Bar(shown, label)
