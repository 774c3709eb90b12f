"""Ctrl-C between two steps, never within one: a state that a program has consumed must not be lost."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def deferred_interrupts() -> Iterator[Callable[[], None]]:
    """Hold back a Ctrl-C that arrives in the block; what is yielded raises it, once all is as it should be.

    A second one does not wait: compiling a large model can take long. Does nothing outside the main thread, which alone
    receives signals.
    """
    caught: list[int] = []

    def deliver() -> None:
        if caught:
            caught.clear()
            signal.raise_signal(signal.SIGINT)

    def catch(number: int, _: Any) -> None:
        if caught:
            raise KeyboardInterrupt
        caught.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield deliver
        return
    before = signal.signal(signal.SIGINT, catch)
    try:
        yield deliver
    finally:
        signal.signal(signal.SIGINT, before)
