"""Standard input as one text, line by line, or as a file."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from sllm_jax.common.errors import SllmError
from sllm_jax.common.inputs import MAX_WHOLE

DASH = "-"  # stands for standard input


def lines() -> Iterator[bytes]:
    """The lines as they arrive, without line breaks.

    Raises `SllmError` immediately if standard input is closed, and for a line of more than `MAX_WHOLE` bytes.
    """
    _check_open()
    arriving = iter(lambda: sys.stdin.buffer.readline(MAX_WHOLE + 1), b"")
    return (_bounded(line).rstrip(b"\r\n") for line in arriving)


def read() -> str:
    """The whole text without its last line break. Raises `SllmError` for more than `MAX_WHOLE` bytes."""
    _check_open()
    content = _bounded(sys.stdin.buffer.read(MAX_WHOLE + 1))
    return text_of(content.replace(b"\r\n", b"\n").removesuffix(b"\n"))


def text_of(line: bytes) -> str:
    """Decode a line. Raises `SllmError` if it is not UTF-8."""
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise SllmError(f"standard input is not UTF-8 text: {error}") from error


def as_file(path: Path) -> Path:
    """The path itself, or for `-` the path of standard input. Raises `SllmError` if that is closed."""
    if str(path) != DASH:
        return path
    _check_open()
    return Path("/dev/stdin")


def _bounded(content: bytes) -> bytes:
    if len(content) > MAX_WHOLE:
        raise SllmError(f"standard input has more than {MAX_WHOLE} bytes; give a shorter text")
    return content


def _check_open() -> None:
    if sys.stdin is None:
        raise SllmError("standard input is closed; connect a terminal, a pipe or a file")
