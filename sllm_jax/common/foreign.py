"""The one door for what other people wrote: whatever a parser raises on a foreign file becomes one `SllmError`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sllm_jax.common.errors import SllmError

MAX_REASON = 200  # characters of a parser's own message; some quote the whole file

# What a parser may raise that is not its opinion of the file.
_NOT_ABOUT_THE_FILE = (SllmError, KeyboardInterrupt, SystemExit, GeneratorExit)


@contextmanager
def foreign(what: str, remedy: str, problem: str = "cannot be read") -> Iterator[None]:
    """Turn any exception of the block into one `SllmError`: "{what} {problem} (reason); {remedy}".

    Parsers raise more than `ValueError` on bad input: `RecursionError`, `OverflowError`, `MemoryError`, errors of their
    own, and the `PanicException` of Rust libraries, which is a `BaseException` and no `Exception`. What the system does
    not allow (OSError) "cannot be read", whatever the `problem`. An `SllmError` passes through, and so do Ctrl-C and
    the end of the process.
    """
    try:
        yield
    except _NOT_ABOUT_THE_FILE:
        raise
    except OSError as error:
        raise SllmError(f"{what} cannot be read ({reason(error)}); {remedy}") from error
    except BaseException as error:
        raise SllmError(f"{what} {problem} ({reason(error)}); {remedy}") from error


def reason(error: BaseException) -> str:
    """The first line of an exception's message, cut to `MAX_REASON` characters; its type's name if it has none."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, MemoryError):
        return "it takes more memory than there is"
    message = str(error).strip().partition("\n")[0] or type(error).__name__
    return message if len(message) <= MAX_REASON else f"{message[:MAX_REASON]} ..."
