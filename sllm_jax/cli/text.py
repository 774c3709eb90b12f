"""`generate` and `chat`: text on standard output as it is made, everything else on standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Option

from sllm_jax.cli import options as o
from sllm_jax.cli.console import note, progress
from sllm_jax.errors import SllmError

if TYPE_CHECKING:
    from sllm_jax.stream import Stream


def generate(
    model: o.Model,
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
) -> None:
    """Write text, without end if you like.

    Stops at the end of text (unless --ignore-eos), after --max-tokens, or with Ctrl-C. Memory and speed stay as they
    are however long it runs: the model sees the first START_SIZE and the last RECENT_SIZE tokens, and nothing that was
    evicted.
    """
    if prompt == "-":
        prompt = sys.stdin.read().removesuffix("\n")
    if prompt == "":
        raise SllmError("the prompt is empty; give some text, or leave --prompt out to write from nothing")
    stream = _open(model, revision, tokenizer, dtype, mode, start_size, recent_size, seed)
    pieces = stream.generate(
        max_tokens,
        stop or (),
        ignore_eos,
        temperature=0.0 if greedy else temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
    )
    if prompt is not None:
        with progress("reading") as bar:
            stream.feed(prompt, bar)
    speed = Speed(stream)
    try:
        show(speed.watch(pieces))
    finally:
        _end(stream, speed)


def chat(
    model: o.Model,
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
) -> None:
    """Chat without end: one stream that is never reset, however many messages.

    Uses the tokenizer's chat template, or "USER: ... ASSISTANT:" if it has none. Ctrl-C ends an answer; Ctrl-C or
    Ctrl-D at the prompt ends the chat.
    """
    from sllm_jax.chat import read_prompts

    conversations = None if prompts is None else read_prompts(prompts)
    stream = _open(model, revision, tokenizer, dtype, mode, start_size, recent_size, seed)
    speed = Speed(stream)

    def answer(message: str) -> Iterator[str]:
        pieces = stream.chat(
            message,
            system,
            max_tokens,
            stop or (),
            temperature=0.0 if greedy else temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
        )
        return speed.watch(pieces)

    try:
        if conversations is None:
            _converse(answer)
        else:
            for message in (turn for turns in conversations for turn in turns):
                note(f"USER: {message}\nASSISTANT:")
                show(answer(message))
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


def show(pieces: Iterable[str]) -> None:
    """Print pieces as they come, and a line break at the end."""
    try:
        for piece in pieces:
            sys.stdout.write(piece)
            sys.stdout.flush()
    finally:
        sys.stdout.write("\n")
        sys.stdout.flush()


def _open(
    model: str,
    revision: str | None,
    tokenizer: str | None,
    dtype: str | None,
    mode: str,
    start_size: int,
    recent_size: int | None,
    seed: int,
) -> Stream:
    from sllm_jax.loading import load
    from sllm_jax.stream import Stream

    with progress("loading") as bar:
        loaded, loaded_tokenizer = load(model, dtype, revision, tokenizer, bar)
    return Stream(loaded, loaded_tokenizer, start_size, recent_size, mode, seed)


def _converse(answer: Callable[[str], Iterator[str]]) -> None:
    interactive = sys.stdin.isatty()
    while True:
        try:
            if interactive and sys.stdout.isatty():
                message = input("\nUSER: ")
            else:
                print("USER: ", end="", file=sys.stderr, flush=True)
                message = input()
        except (EOFError, KeyboardInterrupt):
            note("")
            return
        if not message.strip():
            continue
        try:
            show(answer(message))
        except KeyboardInterrupt:
            continue


def _end(stream: Stream, speed: Speed) -> None:
    note(f"{speed}, cache {stream.cache_in_use} of {stream.cache_size} tokens, {stream.tokens_seen} tokens seen")
    if stream.full:
        context = stream.model.config.max_position_embeddings
        note(f"dense attention ends at the trained context of {context} tokens; --mode streaming goes on")
