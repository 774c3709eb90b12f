"""`chat`: answers are streamed to standard output, everything else goes to standard error."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated

from typer import Option

from sllm_jax.cli import options as o
from sllm_jax.cli.console import note
from sllm_jax.cli.option_groups import expand_groups
from sllm_jax.cli.writing import note_end


@expand_groups
def chat(
    *,
    source: o.ModelGroup,
    system: Annotated[
        str | None,
        Option(help="System text, read before the first message.", show_default="an opening, if the model has one"),
    ] = None,
    prompts: Annotated[
        Path | None,
        Option(help='Read messages from this JSONL file, {"turns": [...]} on each line, as in MT-Bench.'),
    ] = None,
    max_tokens: Annotated[int, Option(help="Maximum number of tokens per answer.")] = 1000,
    stop: o.Stop = None,
    control_tokens: o.ControlTokens = False,
    cache: o.CacheGroup,
    sampling: o.SamplingGroup,
) -> None:
    """Chat without end, in one stream that is never reset.

    Uses the tokenizer's chat template, or "USER: ... ASSISTANT:" if it has none. On a terminal, messages can be edited,
    Alt-Enter starts a new line, and /help lists the commands. Your input is not stored on disk. Ctrl-C stops an answer.
    Ctrl-D, or Ctrl-C on an empty line, ends the chat. Without a terminal, each line of standard input is a message.
    """
    from sllm_jax.cli.conversation import Conversation, answer_all, talk
    from sllm_jax.cli.messages import at_terminal, from_prompts, piped, typed
    from sllm_jax.streams.stream import Stream, check_end
    from sllm_jax.text.chat import read_prompts

    listed = None if prompts is None else from_prompts(read_prompts(prompts))
    cache.check()
    check_end(max_tokens, stop or ())
    sampling.check()
    talking = prompts is None and at_terminal()
    messages = typed() if talking else listed or piped()
    model, tokenizer = source.load()
    begin = partial(Stream, model, tokenizer, **asdict(cache), seed=sampling.seed, control_tokens=control_tokens)
    opening = model.generation_config.get("opening") if system is None else None
    conversation = Conversation(source.model, begin, system or opening, max_tokens, stop or (), sampling.chosen())
    note(conversation.about())
    if opening:
        note(f"\n{opening}\n")
    if talking:
        note("/help lists the commands")
    try:
        (talk if talking else answer_all)(conversation, messages)
    finally:
        note_end(conversation.stream, conversation.speed)
