"""Chat on a stream that is never reset: what to feed for one more message, and lists of messages from a file.

Earlier turns are in the cache already, as far as they are still visible, so a turn is only its own tokens.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, SupportsIndex

import numpy as np

from sllm_jax.errors import SllmError
from sllm_jax.foreign import foreign
from sllm_jax.inputs import read_whole
from sllm_jax.plain_text import Part, encode_parts, spells
from sllm_jax.template import render
from sllm_jax.tokenizer import control_token_ids, encode

USER = "USER:"  # the original demo's words, for a tokenizer without a chat template
ASSISTANT = "ASSISTANT:"

# Contents of a conversation that is rendered only to see what the template puts around them.
_QUESTION, _ANSWER, _NEXT, _SYSTEM = "sllmQuestion", "sllmAnswer", "sllmNext", "sllmSystem"


class TurnEnd(NamedTuple):
    """What ends an answer besides the end-of-text tokens: control tokens, and texts."""

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
    """Token ids [N], int32, to feed for a message, up to where the answer begins.

    With a chat template, turns and answers fed one after another are what the template makes of the whole conversation,
    if it renders a turn alike wherever it stands. Without one, a turn reads "USER: message", "ASSISTANT:". The `system`
    text is fed with the first turn; give it with later turns too, since some templates demand it.

    `last_ids` are the last few ids of the stream, none at its beginning. If an answer ends with the token that closes
    it, the next turn does not close it again; if it was cut off, the next turn closes it.

    A message or system text that spells a control token is encoded letter by letter, unless `control_tokens` lets it
    stand for the token. Raises `SllmError` if the template refuses the conversation, or rewrites such a text.
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
    """Token ids [N], int32, of an answer as it stands behind a turn; the next turn closes it."""
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
    """Where the chat template ends an answer: at the control token behind it, or else at the text before the next turn.

    Without a template, where the model begins to write the user's part. A template that refuses a second turn says
    nothing about it here.
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
    """The conversations of a JSONL file, each the list of its user messages.

    A line is an object with `turns`, a list of texts, as in MT-Bench, or with one text as `prompt` or `text`; other
    fields are ignored, and so are empty lines. Raises `SllmError` for anything else.
    """
    with foreign(f"the prompts {path}", "give JSON lines in UTF-8", "are not UTF-8 text"):
        lines = read_whole(path).decode("utf-8-sig").split("\n")
    conversations = [_conversation(line, f"{path}, line {i}") for i, line in enumerate(lines, 1) if line.strip()]
    if not conversations:
        raise SllmError(f'{path} has no prompts; expected a JSON object a line, such as {{"turns": ["...", "..."]}}')
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
        raise SllmError("the chat template leaves earlier answers out; a stream cannot be continued with it")
    return _without_closing(tokenizer, turn, last_ids)


def _second_turn(message: str, system: str | None) -> list[dict[str, str]]:
    """A conversation in which the message is the second one."""
    before = [{"role": "user", "content": _QUESTION}, {"role": "assistant", "content": _ANSWER}]
    return [*_head(system), *before, {"role": "user", "content": message}]


def _head(system: str | None) -> list[dict[str, str]]:
    return [] if system is None else [{"role": "system", "content": system}]


def _parts(frame: str, texts: dict[str, str], turn: str) -> list[Part]:
    """The turn as parts of the template and plain texts; `frame` is the turn with names in the place of the texts.

    Raises `SllmError` if the template does more to a text than to strip it.
    """
    pieces = re.split(f"({'|'.join(texts)})", frame)
    for stripped in (False, True):
        contents = {name: text.strip() if stripped else text for name, text in texts.items()}
        parts = [Part(contents.get(piece, piece), piece in texts) for piece in pieces if piece]
        if "".join(part.text for part in parts) == turn:
            return parts
    raise SllmError(
        "the message spells a control token, and the chat template rewrites messages, so that the two cannot be told "
        "apart; leave the spelling out, or let it stand for the token (--control-tokens)"
    )


def _without_closing(tokenizer: Any, turn: str, last_ids: Sequence[SupportsIndex] | np.ndarray) -> str:
    """The turn without the token that closes the answer before, if the answer ends with it."""
    if not _ends_with_special_token(tokenizer, last_ids):
        return turn
    before, closed, after = turn.partition(tokenizer.convert_ids_to_tokens(int(last_ids[-1])))
    return after if closed and not before.strip() else turn


def _ends_with_special_token(tokenizer: Any, last_ids: Sequence[SupportsIndex] | np.ndarray) -> bool:
    last = tokenizer.added_tokens_decoder.get(int(last_ids[-1])) if len(last_ids) else None
    return last is not None and last.special
