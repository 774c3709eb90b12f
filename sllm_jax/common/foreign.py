"""Parsing of untrusted files: any exception that a parser raises becomes one `SllmError`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sllm_jax.common.errors import SllmError

MAX_REASON = 200  # characters kept of a parser's message; some messages quote the whole file

# Exceptions that say nothing about the file.
_PASSED_THROUGH = (SllmError, KeyboardInterrupt, SystemExit, GeneratorExit)


@contextmanager
def foreign(what: str, remedy: str, problem: str = "cannot be read") -> Iterator[None]:
    """Turn any exception of the block into one `SllmError`: "{what} {problem} (reason); {remedy}".

    On bad input parsers raise `ValueError`, `RecursionError`, `OverflowError`, `MemoryError`, their own exceptions, and
    the `PanicException` of Rust libraries, which derives from `BaseException` only. An `OSError` always says "cannot
    be read", whatever the `problem`. `SllmError`, `KeyboardInterrupt`, `SystemExit` and `GeneratorExit` pass through.
    """
    try:
        yield
    except _PASSED_THROUGH:
        raise
    except OSError as error:
        raise SllmError(f"{what} cannot be read ({reason(error)}); {remedy}") from error
    except BaseException as error:
        raise SllmError(f"{what} {problem} ({reason(error)}); {remedy}") from error


def reason(error: BaseException) -> str:
    """The first line of an exception's message, cut to `MAX_REASON` characters; the type name if it is empty."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, MemoryError):
        return "not enough memory"
    message = str(error).strip().partition("\n")[0] or type(error).__name__
    return message if len(message) <= MAX_REASON else f"{message[:MAX_REASON]} ..."
