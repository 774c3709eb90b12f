"""Output of `generate` and `chat`: the text, and a summary at its end."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from sllm_jax.cli.console import note
from sllm_jax.common.progress import Progress

if TYPE_CHECKING:
    from sllm_jax.streams.stream import Stream


class Speed:
    """Tokens per second, excluding the time to the first piece of each text (compilation and prompt)."""

    def __init__(self, stream: Stream) -> None:
        """Measure all texts of this stream."""
        self._stream = stream
        self._tokens, self._seconds = 0, 0.0

    def watch(self, pieces: Iterable[str]) -> Iterator[str]:
        """Yield the pieces of a text unchanged and time them."""
        since = None
        for piece in pieces:
            now = time.perf_counter(), self._stream.tokens_written
            if since is not None:
                self._seconds += now[0] - since[0]
                self._tokens += now[1] - since[1]
            since = now
            yield piece

    def __str__(self) -> str:
        """The number of tokens written, and the rate if it is known."""
        rate = f", {self._tokens / self._seconds:.1f} tokens/s" if self._tokens else ""
        return f"{self._stream.tokens_written} tokens{rate}"


def show(pieces: Iterable[str], check: Callable[[], None]) -> None:
    """Print pieces as they arrive, and a line break at the end."""
    try:
        for piece in pieces:
            sys.stdout.write(piece)
            sys.stdout.flush()
            check()
    finally:
        sys.stdout.write("\n")
        sys.stdout.flush()


def both(first: Progress, second: Progress) -> Progress:
    """A progress callback that calls both."""

    def tell(done: int, total: int) -> None:
        first(done, total)
        second(done, total)

    return tell


def summary(stream: Stream, speed: Speed) -> str:
    """One line: tokens written, speed, cache, tokens seen."""
    return f"{speed}, cache {stream.cache_in_use} of {stream.cache_size} tokens, {stream.tokens_seen} tokens seen"


def note_end(stream: Stream, speed: Speed) -> None:
    """Print the summary, and a note if a dense stream is full."""
    note(summary(stream, speed))
    if stream.full:
        context = stream.model.config.max_position_embeddings
        note(f"dense attention ends at the trained context of {context} tokens; --mode streaming has no limit")
