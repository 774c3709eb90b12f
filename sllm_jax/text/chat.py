"""Chat on a stream that is never reset: the tokens of one turn, and conversations read from a file.

Earlier turns are already in the cache, unless they were evicted, so each turn consists of its own tokens only.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, SupportsIndex

import numpy as np

from sllm_jax.common.errors import SllmError
from sllm_jax.common.foreign import foreign
from sllm_jax.common.inputs import read_whole
from sllm_jax.text.plain_text import Part, encode_parts, spells
from sllm_jax.text.template import render
from sllm_jax.text.tokenizer import control_token_ids, encode

USER = "USER:"  # labels of the paper's demo, for tokenizers without a chat template
ASSISTANT = "ASSISTANT:"

# Placeholder contents, rendered to see what the template puts around them.
_QUESTION, _ANSWER, _NEXT, _SYSTEM = "sllmQuestion", "sllmAnswer", "sllmNext", "sllmSystem"


class TurnEnd(NamedTuple):
    """What ends an answer besides the end-of-text tokens: control token ids and stop texts."""

    token_ids: tuple[int, ...]
    texts: tuple[str, ...]


def render_turn(
    tokenizer: Any,
    message: str,
    system: str | None = None,
    first: bool = True,
    last_ids: Sequence[SupportsIndex] | np.ndarray = (),
    control_tokens: bool = False,
) -> np.ndarray:
    """Token ids [N], int32, of one user message, up to where the answer begins.

    With a chat template, the turns and answers concatenated equal the rendered conversation, provided that the template
    renders a turn independently of its position. Without one, a turn is "USER: message", "ASSISTANT:". The `system`
    text is part of the first turn only; pass it with later turns too, since some templates require it.

    `last_ids` are the last few ids of the stream, empty at its start. If the previous answer ends with its closing
    token, the turn does not repeat it; if the answer was cut off, the turn closes it.

    A control token spelled in a message or system text is encoded as plain text, unless `control_tokens` is set. Raises
    `SllmError` if the template refuses the conversation, or rewrites a text that spells a control token.
    """
    if tokenizer.chat_template is None:
        text = _plain_turn(tokenizer, message, system, first, last_ids)
        return encode(tokenizer, text, start=len(last_ids) == 0, control_tokens=control_tokens)
    turn = _template_turn(tokenizer, message, system, first, last_ids)
    control = control_token_ids(tokenizer)
    if control_tokens or not any(spells(control, text) for text in (message, system or "")):
        return encode(tokenizer, turn, start=False, control_tokens=True)
    frame = _template_turn(tokenizer, _NEXT, None if system is None else _SYSTEM, first, last_ids)
    return encode_parts(tokenizer, _parts(frame, {_NEXT: message, _SYSTEM: system or ""}, turn))


def render_answer(tokenizer: Any, answer: str) -> np.ndarray:
    """Token ids [N], int32, of an answer that follows a turn, without its closing token: the next turn adds it."""
    turn = [{"role": "user", "content": _QUESTION}]
    if tokenizer.chat_template is None:
        before, space = f"{USER} {_QUESTION}\n\n{ASSISTANT}", " "
    else:
        before = render(tokenizer, turn, prompt=True)
        answered = render(tokenizer, [*turn, {"role": "assistant", "content": answer}], prompt=False)
        space = " " if answered.startswith(f"{before} ") else ""
    frame = Part(before, plain=False)
    whole = encode_parts(tokenizer, [frame, Part(f"{space}{answer}", plain=True)])
    return whole[len(encode_parts(tokenizer, [frame])) :]


def turn_end(tokenizer: Any, system: str | None = None) -> TurnEnd:
    """What ends an answer under the chat template: the control token after it, or else the text before the next turn.

    Without a template, the user label ends it. A template that refuses a second turn gives no end.
    """
    if tokenizer.chat_template is None:
        return TurnEnd((), (f"\n\n{USER}", USER))
    following = ""
    with suppress(SllmError):
        _, _, following = render(tokenizer, _second_turn(_NEXT, system), prompt=True).partition(_ANSWER)
    between, found, _ = following.partition(_NEXT)
    control = control_token_ids(tokenizer)
    for name, token_id in sorted(control.items(), key=lambda item: -len(item[0])):
        if between.lstrip().startswith(name):
            return TurnEnd((token_id,), ())
    if not found or not between.strip() or spells(control, between):
        return TurnEnd((), ())
    has_words = re.search(r"\w", between) is not None
    return TurnEnd((), (between.rstrip(), between.strip()) if has_words else (between,))


def read_prompts(path: Path) -> list[list[str]]:
    """The conversations of a JSONL file, each as a list of user messages.

    Each line is an object with `turns` (a list of texts, as in MT-Bench), or with a single text as `prompt` or `text`.
    Other fields and empty lines are ignored. Raises `SllmError` for anything else.
    """
    with foreign(f"the prompts {path}", "give JSON lines in UTF-8", "are not UTF-8 text"):
        lines = read_whole(path).decode("utf-8-sig").split("\n")
    conversations = [_conversation(line, f"{path}, line {i}") for i, line in enumerate(lines, 1) if line.strip()]
    if not conversations:
        raise SllmError(f'{path} has no prompts; expected a JSON object per line, such as {{"turns": ["...", "..."]}}')
    return conversations


def _conversation(line: str, where: str) -> list[str]:
    with foreign(where, "give a JSON object on each line", "is not JSON"):
        fields = json.loads(line)
    if isinstance(fields, dict):
        one = fields.get("prompt", fields.get("text"))
        turns = fields.get("turns", None if one is None else [one])
        if isinstance(turns, list) and turns and all(isinstance(turn, str) and turn.strip() for turn in turns):
            return turns
    raise SllmError(f'{where} must be an object with "turns", a list of texts, or with one text as "prompt" or "text"')


def _plain_turn(
    tokenizer: Any, message: str, system: str | None, first: bool, last_ids: Sequence[SupportsIndex] | np.ndarray
) -> str:
    if first:
        opening = f"{system}\n\n{USER} " if system else f"{USER} "
    elif _ends_with_special_token(tokenizer, last_ids):
        opening = f"{USER} "
    else:
        opening = f"\n\n{USER} "
    return f"{opening}{message}\n\n{ASSISTANT}"


def _template_turn(
    tokenizer: Any, message: str, system: str | None, first: bool, last_ids: Sequence[SupportsIndex] | np.ndarray
) -> str:
    if first:
        return render(tokenizer, [*_head(system), {"role": "user", "content": message}], prompt=True)
    _, found, turn = render(tokenizer, _second_turn(message, system), prompt=True).partition(_ANSWER)
    if not found:
        raise SllmError("the chat template omits earlier answers; a stream cannot be continued with it")
    return _without_closing(tokenizer, turn, last_ids)


def _second_turn(message: str, system: str | None) -> list[dict[str, str]]:
    """A conversation whose second user message is `message`."""
    before = [{"role": "user", "content": _QUESTION}, {"role": "assistant", "content": _ANSWER}]
    return [*_head(system), *before, {"role": "user", "content": message}]


def _head(system: str | None) -> list[dict[str, str]]:
    return [] if system is None else [{"role": "system", "content": system}]


def _parts(frame: str, texts: dict[str, str], turn: str) -> list[Part]:
    """Split a turn into template parts and plain texts; `frame` is the turn rendered with placeholders for the texts.

    Raises `SllmError` if the template changes a text other than by stripping it.
    """
    pieces = re.split(f"({'|'.join(texts)})", frame)
    for stripped in (False, True):
        contents = {name: text.strip() if stripped else text for name, text in texts.items()}
        parts = [Part(contents.get(piece, piece), piece in texts) for piece in pieces if piece]
        if "".join(part.text for part in parts) == turn:
            return parts
    raise SllmError(
        "the message spells a control token, and the chat template rewrites messages, so the spelling cannot be kept "
        "as plain text; remove it, or encode it as the token (--control-tokens)"
    )


def _without_closing(tokenizer: Any, turn: str, last_ids: Sequence[SupportsIndex] | np.ndarray) -> str:
    """The turn without the closing token of the previous answer, if that answer already ends with it."""
    if not _ends_with_special_token(tokenizer, last_ids):
        return turn
    before, closed, after = turn.partition(tokenizer.convert_ids_to_tokens(int(last_ids[-1])))
    return after if closed and not before.strip() else turn


def _ends_with_special_token(tokenizer: Any, last_ids: Sequence[SupportsIndex] | np.ndarray) -> bool:
    last = tokenizer.added_tokens_decoder.get(int(last_ids[-1])) if len(last_ids) else None
    return last is not None and last.special
