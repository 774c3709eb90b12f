"""Standard input: as one text, line by line, and as a file."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from sllm_jax.errors import SllmError

DASH = "-"  # stands for standard input


def lines() -> Iterator[bytes]:
    """Its lines as they arrive, without line breaks. Raises `SllmError` at once if it is closed."""
    _check_open()
    return (line.rstrip(b"\r\n") for line in sys.stdin.buffer)


def read() -> str:
    """All of it, without the last line break."""
    return text_of(b"\n".join(lines()))


def text_of(line: bytes) -> str:
    """Bytes as text; raises `SllmError` if they are not UTF-8."""
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise SllmError(f"standard input is not UTF-8 text: {error}") from error


def as_file(path: Path) -> Path:
    """The path itself, or a path that reads standard input if it is `-`. Raises `SllmError` if that is closed."""
    if str(path) != DASH:
        return path
    _check_open()
    return Path("/dev/stdin")


def _check_open() -> None:
    if sys.stdin is None:
        raise SllmError("standard input is closed; connect a terminal, a pipe or a file")
