"""What `generate` and `chat` share: their checks, the stream they open, and how they show a text."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from sllm_jax.cli.console import note, progress
from sllm_jax.common.progress import Progress

if TYPE_CHECKING:
    from sllm_jax.core.model import Model
    from sllm_jax.core.sampling import SamplingOptions
    from sllm_jax.streams.stream import Stream


def sampling_options(
    greedy: bool,
    temperature: float | None,
    top_k: int | None,
    top_p: float | None,
    min_p: float | None,
    repetition_penalty: float | None,
) -> SamplingOptions:
    """The options under the names that `Stream` takes."""
    return {
        "temperature": 0.0 if greedy else temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
    }


def check_options(
    mode: str,
    start_size: int,
    recent_size: int | None,
    max_tokens: int | None,
    stop: Sequence[str],
    chosen: SamplingOptions,
) -> None:
    """Raises `SllmError` for bad options; nothing is loaded yet."""
    from sllm_jax.core.sampling import sampling_for
    from sllm_jax.streams.kv_cache import check_sizes
    from sllm_jax.streams.stream import check_end, check_stream_mode

    check_stream_mode(mode)
    check_sizes(start_size, recent_size or 0)
    check_end(max_tokens, stop)
    sampling_for({}, **chosen)


def load_model(
    model: str, revision: str | None, tokenizer: str | None, dtype: str | None, weights: str | None
) -> tuple[Model, object]:
    """The model and its tokenizer, with a progress bar."""
    from sllm_jax.loading.pretrained import load

    with progress("loading") as bar:
        return load(model, dtype, revision, tokenizer, bar, weights)


class Speed:
    """Tokens per second, without the time to the first piece of each text (compilation and reading)."""

    def __init__(self, stream: Stream) -> None:
        """Counts all texts of this stream."""
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
        """The number of tokens written, and the rate if enough was timed."""
        rate = f", {self._tokens / self._seconds:.1f} tokens/s" if self._tokens else ""
        return f"{self._stream.tokens_written} tokens{rate}"


def show(pieces: Iterable[str], check: Callable[[], None]) -> None:
    """Print pieces as they come, and a line break at the end."""
    try:
        for piece in pieces:
            sys.stdout.write(piece)
            sys.stdout.flush()
            check()
    finally:
        sys.stdout.write("\n")
        sys.stdout.flush()


def both(first: Progress, second: Progress) -> Progress:
    """Report progress to two listeners."""

    def tell(done: int, total: int) -> None:
        first(done, total)
        second(done, total)

    return tell


def summary(stream: Stream, speed: Speed) -> str:
    """One line: tokens written, speed, cache, tokens seen."""
    return f"{speed}, cache {stream.cache_in_use} of {stream.cache_size} tokens, {stream.tokens_seen} tokens seen"


def note_end(stream: Stream, speed: Speed) -> None:
    """The summary, and the reason if a dense stream is full."""
    note(summary(stream, speed))
    if stream.full:
        context = stream.model.config.max_position_embeddings
        note(f"dense attention ends at the trained context of {context} tokens; --mode streaming goes on")
