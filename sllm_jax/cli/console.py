"""Notes, warnings and progress, on standard error."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

FIRST_LINE, NEXT_LINE = 10.0, 30.0  # seconds before the first progress line, and between later ones


def note(text: str) -> None:
    """Print a line on standard error; does nothing if it is closed."""
    with suppress(OSError):  # closed terminal
        print(text, file=sys.stderr, flush=True)


def label(text: str, end: str = " ") -> None:
    """Print the label of a text, in bold on a terminal."""
    Console(stderr=True).print(f"[bold]{text}[/bold]", end=end, highlight=False)


def print_warnings() -> None:
    """Show warnings as one line, without their location in the code."""

    def show(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        if category is UserWarning:
            note(f"warning: {message}")

    warnings.showwarning = show


class Bar:
    """A progress bar on a terminal."""

    def __init__(self, progress: Progress, label: str) -> None:
        """`label` is shown before the bar."""
        self._progress = progress
        self._task = progress.add_task(label, total=None, info="")

    def __call__(self, done: int, total: int, info: str = "") -> None:
        """Show that `done` of `total` are done, with `info` after the bar."""
        self._progress.update(self._task, completed=done, total=total, info=info)


class Lines:
    """Progress lines for logs: the first after 10 s, then one every 30 s."""

    def __init__(
        self, label: str, tell: Callable[[str], None] = note, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`tell` is called with each line; `clock` returns seconds."""
        self._label, self._tell, self._clock = label, tell, clock
        self._due = clock() + FIRST_LINE
        self._first: tuple[float, int] | None = None  # time and `done` of the first call

    def __call__(self, done: int, total: int, info: str = "") -> None:
        """Print a line if one is due; `total` is 0 if unknown."""
        now = self._clock()
        if self._first is None:
            self._first = now, done
        if now < self._due:
            return
        self._due = now + NEXT_LINE
        amount = f"{done} of {total} ({done / total:.0%})" if total else str(done)
        self._tell(f"{self._label}: {', '.join([amount, *([info] if info else []), *self._pace(now, done, total)])}")

    def _pace(self, now: float, done: int, total: int) -> list[str]:
        """Rate and remaining time, if known."""
        assert self._first is not None
        since, before = self._first
        if done <= before:
            return []
        rate = (done - before) / (now - since)
        left = [f"{timedelta(seconds=round((total - done) / rate))} left"] if total > done else []
        return [f"{rate:.3g}/s", *left]


@contextmanager
def progress(label: str) -> Iterator[Bar | Lines]:
    """A bar that disappears at the end; lines if standard error is not a terminal."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield Lines(label)
        return
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(
        TextColumn("{task.description}"), *columns, TextColumn("{task.fields[info]}"), console=console, transient=True
    ) as shown:
        yield Bar(shown, label)
