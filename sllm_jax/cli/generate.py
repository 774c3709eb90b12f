"""`generate`: text is streamed to standard output, everything else goes to standard error."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

from typer import Option

from sllm_jax.cli import options as o
from sllm_jax.cli import stdin
from sllm_jax.cli.console import progress
from sllm_jax.cli.option_groups import expand_groups
from sllm_jax.cli.writing import Speed, both, note_end, show
from sllm_jax.common.errors import SllmError
from sllm_jax.common.signals import deferred_signals, raise_stopped

if TYPE_CHECKING:
    from sllm_jax.streams.stream import Stream


@expand_groups
def generate(
    text: o.PromptArgument = None,
    *,
    source: o.ModelGroup,
    prompt: o.PromptOption = None,
    max_tokens: Annotated[
        int | None, Option(help="Maximum number of new tokens.", show_default="until the end of text or Ctrl-C")
    ] = None,
    stop: o.Stop = None,
    ignore_eos: Annotated[bool, Option("--ignore-eos", help="Continue past end-of-text tokens.")] = False,
    control_tokens: o.ControlTokens = False,
    as_json: o.Json = False,
    cache: o.CacheGroup,
    sampling: o.SamplingGroup,
) -> None:
    """Generate text, optionally without end.

    Stops at the end of text (unless --ignore-eos), after --max-tokens, or on Ctrl-C. Memory and speed stay constant:
    the model sees the first START_SIZE and the last RECENT_SIZE tokens, and nothing that was evicted. Without a prompt,
    bundled models continue their own opening; other models start from an empty text.
    """
    from sllm_jax.streams.stream import Stream, check_end

    given = one_prompt(text, prompt)
    cache.check()
    check_end(max_tokens, stop or ())
    sampling.check()
    model, tokenizer = source.load()
    stream = Stream(model, tokenizer, **asdict(cache), seed=sampling.seed, control_tokens=control_tokens)
    opening = model.generation_config.get("opening") if given is None else None
    start, speed, written = given or opening, Speed(stream), Written(stream)
    with deferred_signals(raise_stopped) as check:
        try:
            if start is not None:
                with progress("reading") as bar:
                    stream.feed(start, both(bar, check))
            pieces = stream.generate(max_tokens, stop or (), ignore_eos, **sampling.chosen())
            pieces = written.watch(speed.watch(pieces))
            if as_json:
                for _ in pieces:
                    check()
            else:
                sys.stdout.write(opening or "")
                show(pieces, check)
        finally:
            if as_json:
                about = {"model": source.model, "prompt": start, "seed": sampling.seed}
                print(json.dumps(about | written.as_json()))
            note_end(stream, speed)


class Written:
    """The output of a stream: text, token ids, and seconds."""

    def __init__(self, stream: Stream) -> None:
        """`stream` has not generated anything yet."""
        self._stream = stream
        self._text, self._ids = "", list[int]()
        self._read = 0
        self._seconds = 0.0

    def watch(self, pieces: Iterable[str]) -> Iterator[str]:
        """Yield the pieces of a text unchanged and record them."""
        begin = time.perf_counter()
        for piece in pieces:
            self._text += piece
            self._keep_ids()
            self._seconds = time.perf_counter() - begin
            yield piece
        self._keep_ids()  # fewer if a stop text was removed

    def as_json(self) -> dict[str, object]:
        """The fields of `--json`; `end_reason` is null after an interruption."""
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


def one_prompt(argument: str | None, option: str | None) -> str | None:
    """The prompt, as an argument or as an option; `-` reads it. Raises `SllmError` for two, and for an empty one."""
    if argument is not None and option is not None:
        raise SllmError("got both PROMPT and --prompt; give one of them")
    prompt = option if argument is None else argument
    if prompt == stdin.DASH:
        prompt = stdin.read()
    if prompt == "":
        raise SllmError("the prompt is empty; give some text, or no prompt")
    return prompt
