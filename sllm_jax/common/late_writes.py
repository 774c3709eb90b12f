"""Cleaning up after a failed Orbax write, whose other writes may still be running.

Orbax (as of 0.12) runs writes with `asyncio.gather`, which raises the first failure without waiting for the others, and
returns no handle to wait for them. Their later failures are reported where no caller can catch them: by the `asyncio`
logger and by `sys.unraisablehook`. This file is the only one that replaces that hook.
"""

from __future__ import annotations

import logging
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_QUIET_CHECKS, _CHECK_SECONDS, _MAX_SECONDS = 10, 0.02, 5


@contextmanager
def no_late_writes(folder: Path, prefix: str) -> Iterator[None]:
    """Run a write into `folder`; if it fails, remove whatever it leaves there under names that begin with `prefix`.

    A write that Orbax has dropped would create the removed folder again (TensorStore creates missing folders) and print
    a traceback. Such a write can finish long after the failure, so after a failure its messages stay suppressed.
    """
    hook, sys.unraisablehook = sys.unraisablehook, _ignore_late_writes(sys.unraisablehook)
    disabled = logging.root.manager.disable
    logging.disable()
    try:
        yield
        sys.unraisablehook = hook
    except BaseException:
        _remove_until_quiet(folder, prefix)
        logging.getLogger("asyncio").addFilter(_is_no_late_write)
        raise
    finally:
        logging.disable(disabled)


def _ignore_late_writes(hook: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The hook, without the exceptions of coroutines whose event loop is closed."""

    def filtered(unraisable: Any) -> None:
        if "Event loop is closed" not in str(unraisable.exc_value):
            hook(unraisable)

    return filtered


def _is_no_late_write(record: logging.LogRecord) -> bool:
    message = record.getMessage()
    return not ("exception was never retrieved" in message and "orbax" in message)


def _remove_until_quiet(folder: Path, prefix: str) -> None:
    """Remove what appears in `folder` until nothing has appeared for 0.2 s; give up after 5 s."""
    quiet, deadline = 0, time.monotonic() + _MAX_SECONDS
    while quiet < _QUIET_CHECKS and time.monotonic() < deadline:
        found = list(folder.glob(f"{prefix}*"))
        for path in found:
            shutil.rmtree(path, ignore_errors=True)
        quiet = 0 if found else quiet + 1
        time.sleep(_CHECK_SECONDS)
