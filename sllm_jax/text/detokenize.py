"""Incremental detokenization: text is returned as soon as it is final, never part of a character.

A character may span several tokens. Its bytes are held back until the last one arrives: at most three bytes at any
time, so memory and work per token are constant. Invalid UTF-8 becomes U+FFFD without affecting the text around it.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Sequence
from typing import Any, SupportsIndex

import numpy as np

from sllm_jax.common.errors import SllmError
from sllm_jax.text.tokenizer import decodable


class Detokenizer:
    """Converts the tokens that follow a context into pieces of text.

    The pieces returned by `add` and `flush` join to the text of those tokens. A character that begins in the context
    and ends after it is returned whole, with its last token, so no character is lost at the boundary. Tokens added
    after a `flush` begin a new character.
    """

    def __init__(self, tokenizer: Any, context: Sequence[SupportsIndex] | np.ndarray = ()) -> None:
        """`context`: the tokens before the first added one, as many as are known.

        A SentencePiece tokenizer drops the leading space of a text only if there is no context. Raises `SllmError`
        unless the tokenizer is a fast tokenizer of `transformers`.
        """
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise SllmError(
                f"a {type(tokenizer).__name__} cannot be decoded token by token; expected a fast tokenizer of "
                "transformers, such as sllm_jax.load returns"
            )
        self._backend = backend
        self._special = frozenset(i for i, token in tokenizer.added_tokens_decoder.items() if token.special)
        self._text = _Bytes() if "ByteLevel" in str(backend.decoder) else _ByteFallback(backend, self._special)
        self.add(context)

    def add(self, ids: Iterable[SupportsIndex] | np.ndarray) -> str:
        """The text that becomes final with these ids. Special tokens have no text."""
        tokens = ((int(i), self._backend.id_to_token(int(i))) for i in ids if int(i) not in self._special)
        return "".join(self._text.add(i, token) for i, token in tokens if token is not None)

    def flush(self) -> str:
        """The text held back: an incomplete character, as U+FFFD."""
        rest = self._text.rest()
        self._text.end()
        return rest

    @property
    def held(self) -> str:
        """The text that `flush` would return."""
        return self._text.rest()


def text_lengths(tokenizer: Any, ids: Sequence[int]) -> list[int]:
    """The number of characters of the first 0, 1, ..., N of N tokens, counting an incomplete one."""
    detokenizer, shown, lengths = Detokenizer(tokenizer), 0, [0]
    for token_id in ids:
        shown += len(detokenizer.add([token_id]))
        lengths.append(shown + len(detokenizer.held))
    return lengths


class _Bytes:
    """Byte-level BPE: every token is a sequence of bytes, and their concatenation is UTF-8."""

    def __init__(self) -> None:
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, _: int, token: str) -> str:
        # A token outside the byte alphabet, such as an added token, is literal text.
        known = all(letter in _BYTES for letter in token)
        return self._utf8.decode(bytes(_BYTES[letter] for letter in token) if known else token.encode())

    def rest(self) -> str:
        return self._utf8.getstate()[0].decode("utf-8", "replace")

    def end(self) -> None:
        self._utf8.reset()


class _ByteFallback:
    """SentencePiece-style BPE: tokens of whole characters; a character without a token is spelled in byte tokens.

    The tokenizer's own decoder converts tokens to text; byte tokens are passed to it one complete character at a time.
    """

    def __init__(self, backend: Any, special: frozenset[int]) -> None:
        self._backend = backend
        # Byte tokens are <0x00> to <0xFF>; `(?!)` matches nothing.
        self._byte_tokens = re.compile("<0x([0-9A-Fa-f]{2})>" if "ByteFallback" in str(backend.decoder) else "(?!)")
        self._word = self._find_word(special)
        self._before: list[int] = []  # decoding context: empty at the start of the text, later `_word`
        self._pending: list[int] = []  # byte tokens of an incomplete character
        self._utf8 = codecs.getincrementaldecoder("utf-8")()

    def add(self, token_id: int, token: str) -> str:
        if byte := self._byte_tokens.fullmatch(token):
            return self._add_byte(token_id, bytes.fromhex(byte[1]))
        # A whole-character token ends an incomplete character.
        return self._broken() + self._decoded([token_id])

    def rest(self) -> str:
        return self._behind(self._pending)

    def end(self) -> None:
        self._broken()

    def _add_byte(self, token_id: int, byte: bytes) -> str:
        try:
            finished = self._utf8.decode(byte)
        except UnicodeDecodeError:
            # The byte either interrupts the pending character and is tried again, or is no first byte of a character.
            return self._broken() + self._add_byte(token_id, byte) if self._pending else self._decoded([token_id])
        self._pending.append(token_id)
        return self._finished() if finished else ""

    def _finished(self) -> str:
        text, self._pending = self._decoded(self._pending), []
        return text

    def _broken(self) -> str:
        """End an incomplete character; each of its bytes becomes U+FFFD."""
        self._utf8.reset()
        return self._finished()

    def _decoded(self, ids: list[int]) -> str:
        text = self._behind(ids)
        if ids:
            self._before = self._word
        return text

    def _behind(self, ids: list[int]) -> str:
        if not ids:
            return ""
        # Decoders treat the start of a text specially, so the text is the difference that the ids make after a word.
        return self._decode(self._before + ids)[len(self._decode(self._before)) :]

    def _decode(self, ids: list[int]) -> str:
        with decodable():
            return self._backend.decode(ids)

    def _find_word(self, special: frozenset[int]) -> list[int]:
        """Any token with visible text, as context in which other tokens are decoded."""
        for token_id in range(self._backend.get_vocab_size()):
            token = self._backend.id_to_token(token_id)
            if token is None or token_id in special or self._byte_tokens.fullmatch(token):
                continue
            if self._decode([token_id]).strip():
                return [token_id]
        return []


def _alphabet() -> dict[str, int]:
    """GPT-2's byte alphabet: printable bytes map to themselves, the others to U+0100 onwards."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


_BYTES = _alphabet()
