"""Signals that ask a process to stop: Ctrl-C, SIGTERM of a job scheduler, SIGHUP of a terminal that closes.

All three are handled alike. Exit codes follow shells: 130, 143, 129. A signal that the process was started to ignore
(`nohup`, a background job of a script) stays ignored. This file is imported before all others, so it must import fast.
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
STOPPED = (KeyboardInterrupt, SystemExit)  # exceptions that `raise_stopped` raises
_clean_ups: list[Callable[[], object]] = []


def raise_stopped(number: int, _: FrameType | None = None) -> NoReturn:
    """Raise KeyboardInterrupt for SIGINT, and SystemExit with the exit code for other signals."""
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + number)


def leave(number: int, _: FrameType | None = None) -> NoReturn:
    """Run the clean-ups and end the process immediately, without an exception."""
    for clean_up in reversed(_clean_ups):
        with suppress(Exception):
            clean_up()
    os._exit(128 + number)


def before_leaving(clean_up: Callable[[], object]) -> Callable[[], None]:
    """Register `clean_up` to be called by `leave`; returns a function that unregisters it."""
    _clean_ups.append(clean_up)
    return lambda: _clean_ups.remove(clean_up)


def leave_on_signals() -> None:
    """Make signals end the process immediately. An exception in the middle of an import could crash it."""
    for number in STOPPING:
        if signal.getsignal(number) not in (signal.SIG_IGN, None):
            signal.signal(number, leave)


@contextmanager
def handled_by(handler: Handler) -> Iterator[dict[int, Handler]]:
    """Install `handler` for all stopping signals that have a Python handler; yield the handlers it replaces.

    Ignored signals stay ignored. Does nothing outside the main thread, the only one that receives signals.
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
    """Defer a signal that arrives in the block; yield a function that delivers it and accepts any arguments.

    With `then`, the signal goes to `then`, at the end of the block at the latest. Without, it goes to the previous
    handler, and only when the function is called. A second signal is not deferred: both go to the previous handler at
    once, so that a long compilation can be interrupted.
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
