"""What people see besides the text: notes, warnings and progress, all on standard error."""

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

FIRST_LINE, NEXT_LINE = 10.0, 30.0  # seconds until the first progress line, and between two


def note(text: str) -> None:
    """One line on standard error, if anybody can read it."""
    with suppress(OSError):  # a terminal that has closed
        print(text, file=sys.stderr, flush=True)


def label(text: str, end: str = " ") -> None:
    """A label before a text that follows, bold on a terminal."""
    Console(stderr=True).print(f"[bold]{text}[/bold]", end=end, highlight=False)


def print_warnings() -> None:
    """Show a warning as one line, without the place in the code that gave it."""

    def show(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        if category is UserWarning:
            note(f"warning: {message}")

    warnings.showwarning = show


class Bar:
    """Progress as a bar on a terminal."""

    def __init__(self, progress: Progress, label: str) -> None:
        """`label` stands before the bar."""
        self._progress = progress
        self._task = progress.add_task(label, total=None, info="")

    def __call__(self, done: int, total: int, info: str = "") -> None:
        """Show that `done` of `total` are done; `info` stands behind the bar."""
        self._progress.update(self._task, completed=done, total=total, info=info)


class Lines:
    """Progress as a line now and then, for logs: the first after 10 s of work, the next ones every 30 s."""

    def __init__(
        self, label: str, tell: Callable[[str], None] = note, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`tell` gets each line; `clock` counts seconds."""
        self._label, self._tell, self._clock = label, tell, clock
        self._due = clock() + FIRST_LINE
        self._first: tuple[float, int] | None = None  # time and amount of the first report

    def __call__(self, done: int, total: int, info: str = "") -> None:
        """Report `done` of `total`, 0 if unknown, if a line is due."""
        now = self._clock()
        if self._first is None:
            self._first = now, done
        if now < self._due:
            return
        self._due = now + NEXT_LINE
        amount = f"{done} of {total} ({done / total:.0%})" if total else str(done)
        self._tell(f"{self._label}: {', '.join([amount, *([info] if info else []), *self._pace(now, done, total)])}")

    def _pace(self, now: float, done: int, total: int) -> list[str]:
        """Rate and time left, as far as they are known."""
        assert self._first is not None
        since, before = self._first
        if done <= before:
            return []
        rate = (done - before) / (now - since)
        left = [f"{timedelta(seconds=round((total - done) / rate))} left"] if total > done else []
        return [f"{rate:.3g}/s", *left]


@contextmanager
def progress(label: str) -> Iterator[Bar | Lines]:
    """A bar that vanishes when its work is done; lines where standard error is not a terminal."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield Lines(label)
        return
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(
        TextColumn("{task.description}"), *columns, TextColumn("{task.fields[info]}"), console=console, transient=True
    ) as shown:
        yield Bar(shown, label)
