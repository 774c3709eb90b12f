"""Chat on a stream that is never reset: what to feed for one more message, and lists of messages from a file.

Earlier turns are in the cache already, as far as they are still visible, so a turn is only its own tokens.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np

from sllm_jax.errors import SllmError
from sllm_jax.tokenizer import encode

USER = "USER:"  # the original demo's words, for a tokenizer without a chat template
ASSISTANT = "ASSISTANT:"

_QUESTION, _ANSWER = "sllmQuestion", "sllmAnswer"  # stand for a turn before


def render_turn(
    tokenizer: Any,
    message: str,
    system: str | None = None,
    first: bool = True,
    last_ids: Sequence[SupportsIndex] | np.ndarray = (),
) -> np.ndarray:
    """Token ids [N], int32, to feed for a message, up to where the answer begins.

    With a chat template, turns and answers fed one after another are what the template makes of the whole conversation,
    if it renders a turn alike wherever it stands. Without one, a turn reads "USER: message", "ASSISTANT:". The `system`
    text is fed with the first turn; give it with later turns too, since some templates demand it.

    `last_ids` are the last few ids of the stream, none at its beginning. If an answer ends with the token that closes
    it, the next turn does not close it again; if it was cut off, the next turn closes it.

    Raises `SllmError` if the template refuses the conversation.
    """
    if tokenizer.chat_template is None:
        return _plain_turn(tokenizer, message, system, first, last_ids)
    now = [{"role": "user", "content": message}]
    before = [{"role": "user", "content": _QUESTION}, {"role": "assistant", "content": _ANSWER}]
    head = [] if system is None else [{"role": "system", "content": system}]
    if first:
        return encode(tokenizer, _render(tokenizer, head + now), start=False)
    _, found, turn = _render(tokenizer, head + before + now).partition(_ANSWER)
    if not found:
        raise SllmError("the chat template leaves earlier answers out; a stream cannot be continued with it")
    return encode(tokenizer, _without_closing(tokenizer, turn, last_ids), start=False)


def render_answer(tokenizer: Any, answer: str) -> np.ndarray:
    """Token ids [N], int32, of an answer as it stands behind a turn; the next turn closes it."""
    turn = [{"role": "user", "content": _QUESTION}]
    if tokenizer.chat_template is None:
        before, whole = f"{USER} {_QUESTION}\n\n{ASSISTANT}", f"{USER} {_QUESTION}\n\n{ASSISTANT} {answer}"
    else:
        before = _render(tokenizer, turn)
        answered = _render(tokenizer, [*turn, {"role": "assistant", "content": answer}], prompt=False)
        space = " " if answered.startswith(f"{before} ") else ""
        whole = f"{before}{space}{answer}"
    return encode(tokenizer, whole, start=False)[len(encode(tokenizer, before, start=False)) :]


def stop_texts(tokenizer: Any) -> tuple[str, ...]:
    """Texts that end an answer besides the end-of-text tokens, so that the model does not write the user's part too."""
    return (f"\n\n{USER}", USER) if tokenizer.chat_template is None else ()


def read_prompts(path: Path) -> list[list[str]]:
    """The conversations of a JSONL file, each the list of its user messages.

    A line is an object with `turns`, a list of texts, as in MT-Bench, or with one text as `prompt` or `text`; other
    fields are ignored, and so are empty lines. Raises `SllmError` for anything else.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise SllmError(f"the prompts {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise SllmError(f"the prompts {path} are not UTF-8 text: {error}") from error
    conversations = [_conversation(line, f"{path}, line {i}") for i, line in enumerate(lines, 1) if line.strip()]
    if not conversations:
        raise SllmError(f'{path} has no prompts; expected a JSON object a line, such as {{"turns": ["...", "..."]}}')
    return conversations


def _conversation(line: str, where: str) -> list[str]:
    try:
        fields = json.loads(line)
    except ValueError as error:
        raise SllmError(f"{where} is not JSON: {error}") from error
    if isinstance(fields, dict):
        one = fields.get("prompt", fields.get("text"))
        turns = fields.get("turns", None if one is None else [one])
        if isinstance(turns, list) and turns and all(isinstance(turn, str) and turn.strip() for turn in turns):
            return turns
    raise SllmError(f'{where} must be an object with "turns", a list of texts, or with one text as "prompt" or "text"')


def _plain_turn(
    tokenizer: Any, message: str, system: str | None, first: bool, last_ids: Sequence[SupportsIndex] | np.ndarray
) -> np.ndarray:
    if first:
        opening = f"{system}\n\n{USER} " if system else f"{USER} "
    elif _ends_with_special_token(tokenizer, last_ids):
        opening = f"{USER} "
    else:
        opening = f"\n\n{USER} "
    return encode(tokenizer, f"{opening}{message}\n\n{ASSISTANT}", start=len(last_ids) == 0)


def _render(tokenizer: Any, messages: list[dict[str, str]], prompt: bool = True) -> str:
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
    except Exception as error:  # a template may raise anything
        roles = ", ".join(message["role"] for message in messages)
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise SllmError(f"the chat template refuses a conversation of {roles}: {reason}") from error


def _without_closing(tokenizer: Any, turn: str, last_ids: Sequence[SupportsIndex] | np.ndarray) -> str:
    """The turn without the token that closes the answer before, if the answer ends with it."""
    if not _ends_with_special_token(tokenizer, last_ids):
        return turn
    before, closed, after = turn.partition(tokenizer.convert_ids_to_tokens(int(last_ids[-1])))
    return after if closed and not before.strip() else turn


def _ends_with_special_token(tokenizer: Any, last_ids: Sequence[SupportsIndex] | np.ndarray) -> bool:
    last = tokenizer.added_tokens_decoder.get(int(last_ids[-1])) if len(last_ids) else None
    return last is not None and last.special
