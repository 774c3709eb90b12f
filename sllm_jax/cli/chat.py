"""`chat`: answers on standard output as they are made, everything else on standard error."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Option

from sllm_jax.cli import options as o
from sllm_jax.cli.console import note
from sllm_jax.cli.writing import check_options, load_model, note_end, sampling_options
from sllm_jax.loading.bundle import DEFAULT_MODEL


def chat(
    model: o.Model = DEFAULT_MODEL,
    system: Annotated[
        str | None,
        Option(
            help="What the model is told before the first message.", show_default="an opening, if the model has one"
        ),
    ] = None,
    prompts: Annotated[
        Path | None,
        Option(help='Ask the messages of this JSONL file, {"turns": [...]} on each line, as in MT-Bench.'),
    ] = None,
    max_tokens: Annotated[int, Option(help="Write at most this many tokens an answer.")] = 1000,
    stop: o.Stop = None,
    control_tokens: o.ControlTokens = False,
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

    Uses the tokenizer's chat template, or "USER: ... ASSISTANT:" if it has none. On a terminal messages can be edited,
    Alt-Enter begins a new line, and /help lists the commands; what you type is not kept on disk. Ctrl-C ends an answer;
    Ctrl-D, or Ctrl-C on an empty line, ends the chat. Without a terminal each line of standard input is a message.
    """
    from sllm_jax.cli.conversation import Conversation, answer_all, talk
    from sllm_jax.cli.messages import at_terminal, from_prompts, piped, typed
    from sllm_jax.streams.stream import Stream
    from sllm_jax.text.chat import read_prompts

    listed = None if prompts is None else from_prompts(read_prompts(prompts))
    chosen = sampling_options(greedy, temperature, top_k, top_p, min_p, repetition_penalty)
    check_options(mode, start_size, recent_size, max_tokens, stop or (), chosen)
    talking = prompts is None and at_terminal()
    messages = typed() if talking else listed or piped()
    loaded, loaded_tokenizer = load_model(model, revision, tokenizer, dtype, weights)

    def begin() -> Stream:
        return Stream(loaded, loaded_tokenizer, start_size, recent_size, mode, seed, control_tokens=control_tokens)

    opening = loaded.generation_config.get("opening") if system is None else None
    conversation = Conversation(model, begin, system or opening, max_tokens, stop or (), chosen)
    note(conversation.about())
    if opening:
        note(f"\n{opening}\n")
    if talking:
        note("/help lists the commands")
    try:
        (talk if talking else answer_all)(conversation, messages)
    finally:
        note_end(conversation.stream, conversation.speed)
