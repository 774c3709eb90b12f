"""Ctrl-C in a command: it leaves at once, or where stopping is safe. Light, for it stands before every other import."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

from sllm_jax.cli.program_cache import leaving_at_once

INTERRUPTED = 130  # the exit code after Ctrl-C


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
