"""`generate`: text on standard output as it is made, everything else on standard error."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from sllm_jax.cli import options as o
from sllm_jax.cli import stdin
from sllm_jax.cli.console import progress
from sllm_jax.cli.writing import Speed, both, check_options, load_model, note_end, sampling_options, show
from sllm_jax.common.errors import SllmError
from sllm_jax.common.signals import deferred_signals, raise_stopped
from sllm_jax.loading.bundle import DEFAULT_MODEL

if TYPE_CHECKING:
    from sllm_jax.streams.stream import Stream


def generate(
    text: Annotated[
        str | None,
        Argument(metavar="PROMPT", help='The text to continue; "-" reads standard input.', show_default=False),
    ] = None,
    model: o.Model = DEFAULT_MODEL,
    prompt: Annotated[str | None, Option("--prompt", "-p", help="The prompt as an option.")] = None,
    max_tokens: Annotated[
        int | None, Option(help="Write at most this many tokens.", show_default="until the end of text, or Ctrl-C")
    ] = None,
    stop: o.Stop = None,
    ignore_eos: Annotated[bool, Option("--ignore-eos", help="Write on past the end-of-text token.")] = False,
    control_tokens: o.ControlTokens = False,
    as_json: o.Json = False,
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

    Stops at the end of text (unless --ignore-eos), after --max-tokens, or with Ctrl-C. Memory and speed do not change
    however long it runs: the model sees the first START_SIZE and the last RECENT_SIZE tokens, and nothing that was
    evicted. Without a prompt, bundled models continue an opening of their own; others start from nothing.
    """
    from sllm_jax.streams.stream import Stream

    given = _prompt(text, prompt)
    chosen = sampling_options(greedy, temperature, top_k, top_p, min_p, repetition_penalty)
    check_options(mode, start_size, recent_size, max_tokens, stop or (), chosen)
    loaded, loaded_tokenizer = load_model(model, revision, tokenizer, dtype, weights)
    stream = Stream(loaded, loaded_tokenizer, start_size, recent_size, mode, seed, control_tokens=control_tokens)
    opening = loaded.generation_config.get("opening") if given is None else None
    start, speed, written = given or opening, Speed(stream), Written(stream)
    with deferred_signals(raise_stopped) as check:
        try:
            if start is not None:
                with progress("reading") as bar:
                    stream.feed(start, both(bar, check))
            pieces = written.watch(speed.watch(stream.generate(max_tokens, stop or (), ignore_eos, **chosen)))
            if as_json:
                for _ in pieces:
                    check()
            else:
                sys.stdout.write(opening or "")
                show(pieces, check)
        finally:
            if as_json:
                print(json.dumps({"model": model, "prompt": start, "seed": seed, **written.as_json()}))
            note_end(stream, speed)


class Written:
    """What a stream has written: the text, its token ids, and how long it took."""

    def __init__(self, stream: Stream) -> None:
        """Of a stream that has written nothing yet."""
        self._stream = stream
        self._text, self._ids = "", list[int]()
        self._read = 0
        self._seconds = 0.0

    def watch(self, pieces: Iterable[str]) -> Iterator[str]:
        """Yield the pieces of a text unchanged and keep them."""
        begin = time.perf_counter()
        for piece in pieces:
            self._text += piece
            self._keep_ids()
            self._seconds = time.perf_counter() - begin
            yield piece
        self._keep_ids()  # fewer, if a stop text was taken back

    def as_json(self) -> dict[str, object]:
        """The fields of `--json`; `end_reason` is null if the text was interrupted."""
        return {
            "text": self._text,
            "ids": self._ids,
            "end_reason": self._stream.end_reason,
            "prompt_tokens": self._stream.tokens_seen - len(self._ids),
            "tokens": len(self._ids),
            "seconds": round(self._seconds, 3),
        }

    def _keep_ids(self) -> None:
        new = self._stream.tokens_written - len(self._ids)
        self._ids = self._ids + self._stream.last_ids[-new:] if new > 0 else self._ids[: len(self._ids) + new]


def _prompt(argument: str | None, option: str | None) -> str | None:
    if argument is not None and option is not None:
        raise SllmError("there are two prompts, PROMPT and --prompt; give one of them")
    prompt = option if argument is None else argument
    if prompt == stdin.DASH:
        prompt = stdin.read()
    if prompt == "":
        raise SllmError("the prompt is empty; give some text, or leave the prompt out")
    return prompt
