"""An upper bound on how much a tokenizer can expand a text; tokenizers above the limit are refused on loading.

A tokenizer.json holds chains of rules that rewrite text: normalizers, pre-tokenizers, decoders. Ten rules that each
replace a letter by ten turn one letter into 10 GB. The bound is the product of the worst cases of all rules.
"""

from __future__ import annotations

import base64
import binascii
import math
import unicodedata
from collections.abc import Iterator, Mapping
from typing import Any

from sllm_jax.common.errors import SllmError

# Tokenizers of the supported families reach 8: four bytes per character times a space before each word. At 32, a block
# of `long_text` takes 2 GiB and a few seconds.
MAX_GROWTH = 32
MAX_NAME = 256  # characters of a text that replaces or surrounds a character: "<unk>", "##", "</w>"
_NAMES = ("unk_token", "continuing_subword_prefix", "end_of_word_suffix")
# The chains of rules, and the key of the rules nested in a sequence.
_CHAINS = {"normalizer": "normalizers", "pre_tokenizer": "pretokenizers", "decoder": "decoders"}
_TYPES = {  # growth of rules that contain no replacement text
    "ByteLevel": 4.0,  # one letter per byte of a character
    "Metaspace": 2.0,  # one letter before each word
    "BertNormalizer": 3.0,  # spaces around a character
    **dict.fromkeys(("WordPiece", "BPEDecoder", "CTC"), 2.0),  # a space between letters
}
# A Unicode normal form expands a character to at most 18 (U+FDFA), and applying it again changes nothing. All lengths
# are measured after normalization, so that only the rules of the tokenizer's author count.
_UNICODE_GROWTH = 18


def check_growth(tokenizer: Mapping[str, Any], where: str) -> None:
    """Raises `SllmError` if a tokenizer.json can make a text more than `MAX_GROWTH` times as long.

    Normalizer and pre-tokenizer run in sequence, the decoder separately. Invalid rules are ignored, because the library
    refuses them. `where` names the file in the message.
    """
    chains = {name: list(_rules(tokenizer.get(name), within)) for name, within in _CHAINS.items()}
    for names in (("normalizer", "pre_tokenizer"), ("decoder",)):
        if (growth := _growth([rule for name in names for rule in chains[name]])) > MAX_GROWTH:
            raise SllmError(
                f"{where}: its {' and '.join(names)} can make a text {growth:.3g} times as long; expected at most "
                f"{MAX_GROWTH}; use another tokenizer (--tokenizer)"
            )
    model = tokenizer.get("model")
    for name in _NAMES:
        text = model.get(name) if isinstance(model, dict) else None
        if isinstance(text, str) and len(text) > MAX_NAME:
            raise SllmError(
                f"{where}: {name} has {len(text)} characters; expected at most {MAX_NAME}; use another tokenizer "
                "(--tokenizer)"
            )


def _rules(rule: Any, within: str) -> Iterator[Mapping[str, Any]]:
    """A rule and all rules nested in it, in any order; `within` is the key of the rules of a sequence."""
    inside = [rule]
    while inside:
        one = inside.pop()
        if isinstance(one, dict):
            yield one
            others = one.get(within)
            inside += others if isinstance(others, list) else []


def _growth(rules: list[Mapping[str, Any]]) -> float:
    """The product of all rules. One table is free up to the growth of a normal form (SentencePiece's is NFKC)."""
    tables = [_table_growth(rule) for rule in rules]
    return math.prod(map(_rule_growth, rules)) * math.prod(tables) / min(_UNICODE_GROWTH, max(tables, default=1.0))


def _rule_growth(rule: Mapping[str, Any]) -> float:
    """The growth of one rule, from all of its keys: the library also accepts rules without a `type`."""
    kind, content, prepended = rule.get("type"), rule.get("content"), rule.get("prepend")
    growth = _TYPES.get(kind, 1.0) if isinstance(kind, str) else max(_TYPES.values())
    if rule.get("add_prefix_space") is True:
        growth *= 2
    if isinstance(prepended, str):
        growth *= 1 + _length(prepended)
    if "pattern" in rule and isinstance(content, str):
        pattern = rule["pattern"].get("String") if isinstance(rule["pattern"], dict) else None
        # A regular expression may match between any two characters, and an empty string always does.
        if isinstance(pattern, str) and pattern:
            growth *= max(1, _length(content) / len(pattern))
        else:
            growth *= 1 + _length(content)
    return growth


def _table_growth(rule: Mapping[str, Any]) -> float:
    """The longest replacement in SentencePiece's character table; 1 if the rule has no table."""
    table = rule.get("precompiled_charsmap")
    if not isinstance(table, str):
        return 1.0
    try:
        content = base64.b64decode(table)
    except (binascii.Error, ValueError):
        return 1.0
    # Layout: size of the index, index, zero-terminated replacement texts.
    texts = content[4 + int.from_bytes(content[:4], "little") :].split(b"\0")
    return float(max(1, *(_length(text.decode(errors="replace")) for text in texts)))


def _length(text: str) -> int:
    """Length in characters after NFKD normalization."""
    return len(unicodedata.normalize("NFKD", text))
