"""Signals that ask a process to stop: Ctrl-C, SIGTERM of a job scheduler, SIGHUP of a terminal that closes.

All three are treated alike, and exit codes are those of a shell: 130, 143, 129. A signal that the process was started
to ignore (`nohup`, a background job of a script) stays ignored. The file is light: it is imported before all others.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NoReturn

Handler = Callable[[int, FrameType | None], Any]

STOPPING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
STOPPED = (KeyboardInterrupt, SystemExit)  # what `raise_stopped` raises
_clean_ups: list[Callable[[], object]] = []


def raise_stopped(number: int, _: FrameType | None = None) -> NoReturn:
    """Raise KeyboardInterrupt for SIGINT, and for other signals SystemExit with their exit code."""
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + number)


def leave(number: int, _: FrameType | None = None) -> NoReturn:
    """Clean up and end the process at once, without an exception."""
    for clean_up in reversed(_clean_ups):
        with suppress(Exception):
            clean_up()
    os._exit(128 + number)


def before_leaving(clean_up: Callable[[], object]) -> Callable[[], None]:
    """Have `leave` call `clean_up`, until what is returned is called."""
    _clean_ups.append(clean_up)
    return lambda: _clean_ups.remove(clean_up)


def leave_on_signals() -> None:
    """From now on a signal ends the process at once: an exception in the middle of an import can crash it."""
    for number in STOPPING:
        if signal.getsignal(number) not in (signal.SIG_IGN, None):
            signal.signal(number, leave)


@contextmanager
def handled_by(handler: Handler) -> Iterator[dict[int, Handler]]:
    """Let `handler` receive the signals that Python code receives at present; yields their present handlers.

    Others stay as they are. Does nothing outside the main thread, which alone receives signals.
    """
    present = {number: signal.getsignal(number) for number in STOPPING}
    before: dict[int, Handler] = {number: one for number, one in present.items() if callable(one)}
    if threading.current_thread() is not threading.main_thread():
        before = {}
    try:
        for number in before:
            signal.signal(number, handler)
        yield before
    finally:
        for number, one in before.items():
            signal.signal(number, one)


@contextmanager
def deferred_signals(then: Handler | None = None) -> Iterator[Callable[..., None]]:
    """Hold back a signal that arrives in the block; yields a function that delivers it, whatever its arguments.

    It is delivered to `then`, at the end of the block at the latest; without `then` to the handler that was there
    before, and only by the function. A second signal does not wait: both go to that handler, for compiling a large
    model can take long.
    """
    held: list[int] = []

    def hold(number: int, frame: FrameType | None) -> None:
        held.append(number)
        if len(held) > 1:
            for one in held:
                before[one](one, frame)

    def deliver(*_: object) -> None:
        if held:
            number = held.pop(0)
            (then or before[number])(number, None)

    with handled_by(hold) as before:
        yield deliver
    if then:
        deliver()
