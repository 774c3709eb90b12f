"""Token ids of a template filled with untrusted text: only the template can contribute control tokens."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from uuid import uuid4

import numpy as np

from sllm_jax.text.tokenizer import check_unicode, control_token_ids, encodable, encode


class Part(NamedTuple):
    """A piece of text; if it is `plain`, control tokens that it spells are encoded as ordinary text."""

    text: str
    plain: bool


def encode_parts(tokenizer: Any, parts: Sequence[Part]) -> np.ndarray:
    """Token ids [N], int32, of the joined parts, without start tokens.

    If no plain part spells a control token, these are the ids of the joined text.
    """
    control = control_token_ids(tokenizer)
    if not any(spells(control, part.text) for part in parts if part.plain):
        return encode(tokenizer, "".join(part.text for part in parts), start=False, control_tokens=True)
    # In a copy of the tokenizer, control tokens are off, and each is replaced by a token with an unguessable spelling.
    backend, standins = copy.deepcopy(tokenizer.backend_tokenizer), {name: f"sllm{uuid4().hex}" for name in control}
    backend.encode_special_tokens = True
    backend.add_tokens([_standin(tokenizer.added_tokens_decoder[i], standins[name]) for name, i in control.items()])
    text = "".join(part.text if part.plain else _replaced(part.text, standins) for part in parts)
    check_unicode(text)
    original = {backend.token_to_id(standin): control[name] for name, standin in standins.items()}
    with encodable():
        ids = backend.encode(text, add_special_tokens=False).ids
    return np.array([original.get(i, i) for i in ids], np.int32)


def spells(control: Mapping[str, int], text: str) -> bool:
    """Whether a text contains the spelling of a control token."""
    return any(name in text for name in control)


def _standin(token: Any, spelling: str) -> Any:
    """A copy of the token under another spelling, not marked as a control token."""
    from tokenizers import AddedToken

    same = {name: getattr(token, name) for name in ("single_word", "lstrip", "rstrip", "normalized")}
    return AddedToken(spelling, special=False, **same)


def _replaced(text: str, standins: Mapping[str, str]) -> str:
    """The text with its control tokens replaced by their stand-ins, longest first."""
    names = sorted(standins, key=len, reverse=True)
    return re.sub("|".join(map(re.escape, names)), lambda found: standins[found[0]], text)
