"""`generate` and `chat`: text on standard output as it is made, everything else on standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Option

from sllm_jax.bundle import DEFAULT_MODEL
from sllm_jax.cli import options as o
from sllm_jax.cli.console import note, progress
from sllm_jax.errors import SllmError
from sllm_jax.progress import Progress
from sllm_jax.signals import deferred_signals, handled_by, raise_stopped

if TYPE_CHECKING:
    from sllm_jax.sampling import SamplingOptions
    from sllm_jax.stream import Stream


def generate(
    model: o.Model = DEFAULT_MODEL,
    prompt: Annotated[
        str | None, Option(help='The text to go on from; "-" reads standard input. Without it: from nothing.')
    ] = None,
    max_tokens: Annotated[
        int | None, Option(help="Write this many tokens at most.", show_default="until the end of text, or Ctrl-C")
    ] = None,
    stop: o.Stop = None,
    ignore_eos: Annotated[bool, Option("--ignore-eos", help="Write on past the end-of-text token.")] = False,
    mode: o.Mode = "streaming",
    start_size: o.StartSize = 4,
    recent_size: o.RecentSize = None,
    temperature: o.Temperature = None,
    top_k: o.TopK = None,
    top_p: o.TopP = None,
    min_p: o.MinP = None,
    repetition_penalty: o.RepetitionPenalty = None,
    greedy: o.Greedy = False,
    seed: o.Seed = 0,
    revision: o.Revision = None,
    tokenizer: o.Tokenizer = None,
    dtype: o.Dtype = None,
    weights: o.Weights = None,
) -> None:
    """Write text, without end if you like.

    Stops at the end of text (unless --ignore-eos), after --max-tokens, or with Ctrl-C. Memory and speed stay as they
    are however long it runs: the model sees the first START_SIZE and the last RECENT_SIZE tokens, and nothing that was
    evicted.
    """
    if prompt == "-":
        prompt = sys.stdin.read().removesuffix("\n") if sys.stdin else ""
    if prompt == "":
        raise SllmError("the prompt is empty; give some text, or leave --prompt out to write from nothing")
    chosen = _sampling(greedy, temperature, top_k, top_p, min_p, repetition_penalty)
    _check(mode, start_size, recent_size, max_tokens, stop, chosen)
    stream = _open(model, revision, tokenizer, dtype, weights, mode, start_size, recent_size, seed)
    speed = Speed(stream)
    with deferred_signals(raise_stopped) as check:
        try:
            if prompt is not None:
                with progress("reading") as bar:
                    stream.feed(prompt, both(bar, check))
            show(speed.watch(stream.generate(max_tokens, stop or (), ignore_eos, **chosen)), check)
        finally:
            _end(stream, speed)


def chat(
    model: o.Model = DEFAULT_MODEL,
    system: Annotated[str | None, Option(help="What the model is told before the first message.")] = None,
    prompts: Annotated[
        Path | None,
        Option(help='Ask the messages of this JSONL file, {"turns": [...]} on each line, as in MT-Bench.'),
    ] = None,
    max_tokens: Annotated[int, Option(help="Write this many tokens an answer at most.")] = 1000,
    stop: o.Stop = None,
    mode: o.Mode = "streaming",
    start_size: o.StartSize = 4,
    recent_size: o.RecentSize = None,
    temperature: o.Temperature = None,
    top_k: o.TopK = None,
    top_p: o.TopP = None,
    min_p: o.MinP = None,
    repetition_penalty: o.RepetitionPenalty = None,
    greedy: o.Greedy = False,
    seed: o.Seed = 0,
    revision: o.Revision = None,
    tokenizer: o.Tokenizer = None,
    dtype: o.Dtype = None,
    weights: o.Weights = None,
) -> None:
    """Chat without end: one stream that is never reset, however many messages.

    Uses the tokenizer's chat template, or "USER: ... ASSISTANT:" if it has none. Ctrl-C ends an answer; Ctrl-C or
    Ctrl-D at the prompt ends the chat.
    """
    from sllm_jax.chat import read_prompts

    conversations = None if prompts is None else read_prompts(prompts)
    chosen = _sampling(greedy, temperature, top_k, top_p, min_p, repetition_penalty)
    _check(mode, start_size, recent_size, max_tokens, stop, chosen)
    stream = _open(model, revision, tokenizer, dtype, weights, mode, start_size, recent_size, seed)
    speed = Speed(stream)

    def answer(message: str) -> None:
        with deferred_signals(raise_stopped) as check:
            show(speed.watch(stream.chat(message, system, max_tokens, stop or (), **chosen)), check)

    try:
        if conversations is None:
            _converse(answer, stream)
        else:
            for message in (turn for turns in conversations for turn in turns):
                note(f"USER: {message}\nASSISTANT:")
                answer(message)
                if stream.full:
                    break
    finally:
        _end(stream, speed)


class Speed:
    """Tokens a second, without the time until the first piece of a text, which compiling and reading take."""

    def __init__(self, stream: Stream) -> None:
        """Of this stream, over all its texts."""
        self._stream = stream
        self._tokens, self._seconds = 0, 0.0

    def watch(self, pieces: Iterable[str]) -> Iterator[str]:
        """Pass the pieces of a text on as they come."""
        since = None
        for piece in pieces:
            now = time.perf_counter(), self._stream.tokens_written
            if since is not None:
                self._seconds += now[0] - since[0]
                self._tokens += now[1] - since[1]
            since = now
            yield piece

    def __str__(self) -> str:
        """All tokens written, and the rate if there were enough to tell."""
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
    """Progress that two hear."""

    def tell(done: int, total: int) -> None:
        first(done, total)
        second(done, total)

    return tell


def _sampling(
    greedy: bool,
    temperature: float | None,
    top_k: int | None,
    top_p: float | None,
    min_p: float | None,
    repetition_penalty: float | None,
) -> SamplingOptions:
    return {
        "temperature": 0.0 if greedy else temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
    }


def _check(
    mode: str,
    start_size: int,
    recent_size: int | None,
    max_tokens: int | None,
    stop: list[str] | None,
    chosen: SamplingOptions,
) -> None:
    """Refuse what cannot be before a model is loaded."""
    from sllm_jax.kv_cache import check_sizes
    from sllm_jax.sampling import sampling_for
    from sllm_jax.stream import check_end, check_mode

    check_mode(mode)
    check_sizes(start_size, recent_size or 0)
    check_end(max_tokens, stop or ())
    sampling_for({}, **chosen)


def _open(
    model: str,
    revision: str | None,
    tokenizer: str | None,
    dtype: str | None,
    weights: str | None,
    mode: str,
    start_size: int,
    recent_size: int | None,
    seed: int,
) -> Stream:
    from sllm_jax.loading import load
    from sllm_jax.stream import Stream

    with progress("loading") as bar:
        loaded, loaded_tokenizer = load(model, dtype, revision, tokenizer, bar, weights)
    return Stream(loaded, loaded_tokenizer, start_size, recent_size, mode, seed)


def _converse(answer: Callable[[str], None], stream: Stream) -> None:
    at_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    try:
        while not stream.full:
            with handled_by(raise_stopped):
                message = _ask(at_terminal)
            if message.strip():
                with suppress(KeyboardInterrupt):
                    answer(message)
    except (EOFError, KeyboardInterrupt):
        note("")


def _ask(at_terminal: bool) -> str:
    if at_terminal:
        return input("\nUSER: ")
    print("USER: ", end="", file=sys.stderr, flush=True)
    return input()


def _end(stream: Stream, speed: Speed) -> None:
    note(f"{speed}, cache {stream.cache_in_use} of {stream.cache_size} tokens, {stream.tokens_seen} tokens seen")
    if stream.full:
        context = stream.model.config.max_position_embeddings
        note(f"dense attention ends at the trained context of {context} tokens; --mode streaming goes on")
