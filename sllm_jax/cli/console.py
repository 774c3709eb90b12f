"""What people see besides the text: notes, warnings and progress, all on standard error."""

from __future__ import annotations

import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from sllm_jax.cli.program_cache import leaving_at_once

INTERRUPTED = 130  # the exit code after Ctrl-C


def note(text: str) -> None:
    """One line on standard error."""
    print(text, file=sys.stderr, flush=True)


def print_warnings() -> None:
    """Show a warning as one line, without the place in the code that gave it."""

    def show(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        if category is UserWarning:
            note(f"warning: {message}")

    warnings.showwarning = show


class CtrlC:
    """While entered, a Ctrl-C waits for the next `check`, where stopping is safe; a second one waits no more."""

    def __enter__(self) -> CtrlC:
        """Take over the signal."""
        self._pressed = False
        self._before = signal.signal(signal.SIGINT, self._press)
        return self

    def __exit__(self, *_: object) -> None:
        """Give it back."""
        signal.signal(signal.SIGINT, self._before)

    def check(self, *_: object) -> None:
        """Raise the KeyboardInterrupt that is due, if any."""
        if self._pressed:
            raise KeyboardInterrupt

    def _press(self, *_: object) -> None:
        if self._pressed:
            _leave()
        self._pressed = True


def leave_at_once_on_ctrl_c(clean_up: Callable[[], None] = lambda: None) -> None:
    """From now on Ctrl-C ends the process there and then: an exception in the middle of an import can crash it."""

    def leave(*_: object) -> None:
        clean_up()
        _leave()

    signal.signal(signal.SIGINT, leave)


def _leave() -> None:
    leaving_at_once()
    os._exit(INTERRUPTED)


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
