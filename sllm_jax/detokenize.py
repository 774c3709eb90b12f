"""Token ids to text as they are generated: each piece as soon as it is certain, never part of a character.

A character may be spread over several tokens. Its bytes are held back until the last of them arrives, so at most three
bytes are held at any time, and memory and work per token are constant. Bytes that are not UTF-8 become U+FFFD; the text
around them is not affected.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Sequence
from typing import Any, SupportsIndex

import numpy as np

from sllm_jax.errors import SllmError
from sllm_jax.tokenizer import decodable


class Detokenizer:
    """Turns the tokens after a context into pieces of text.

    Joined, the pieces that `add` and `flush` return are the text of the tokens after the context. A character that
    begins in the context and ends after it is returned whole, with its last token: no character is lost where a text is
    cut. What is added after a `flush` begins a new character.
    """

    def __init__(self, tokenizer: Any, context: Sequence[SupportsIndex] | np.ndarray = ()) -> None:
        """`context`: the tokens before the first one that is added, as many as are at hand.

        A SentencePiece tokenizer drops the leading space of a text, but not behind a context. Raises `SllmError` if the
        tokenizer is not one of the fast ones of `transformers`.
        """
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise SllmError(
                f"a {type(tokenizer).__name__} cannot be decoded token by token; expected a fast tokenizer of "
                "transformers, such as sllm_jax.load_tokenizer returns"
            )
        self._backend = backend
        self._special = frozenset(i for i, token in tokenizer.added_tokens_decoder.items() if token.special)
        self._text = _Bytes() if "ByteLevel" in str(backend.decoder) else _ByteFallback(backend, self._special)
        self.add(context)

    def add(self, ids: Iterable[SupportsIndex] | np.ndarray) -> str:
        """The text that becomes certain with these ids. Special tokens have no text."""
        tokens = ((int(i), self._backend.id_to_token(int(i))) for i in ids if int(i) not in self._special)
        return "".join(self._text.add(i, token) for i, token in tokens if token is not None)

    def flush(self) -> str:
        """The text that was held back: an unfinished character, as U+FFFD."""
        rest = self._text.rest()
        self._text.end()
        return rest

    @property
    def held(self) -> str:
        """What `flush` would return."""
        return self._text.rest()


def text_lengths(tokenizer: Any, ids: Sequence[int]) -> list[int]:
    """How many characters the first 0, 1, ..., N of N tokens stand for, an unfinished one included."""
    detokenizer, shown, lengths = Detokenizer(tokenizer), 0, [0]
    for token_id in ids:
        shown += len(detokenizer.add([token_id]))
        lengths.append(shown + len(detokenizer.held))
    return lengths


class _Bytes:
    """Byte-level BPE: tokens are bytes, and all of them together are UTF-8."""

    def __init__(self) -> None:
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, _: int, token: str) -> str:
        known = all(letter in _BYTES for letter in token)
        return self._utf8.decode(bytes(_BYTES[letter] for letter in token) if known else token.encode())

    def rest(self) -> str:
        return self._utf8.getstate()[0].decode("utf-8", "replace")

    def end(self) -> None:
        self._utf8.reset()


class _ByteFallback:
    """Tokens of whole characters; a character that has no token is spelled in byte tokens, if the tokenizer has them.

    The tokenizer's own decoder turns tokens into text, one whole character of byte tokens at a time.
    """

    def __init__(self, backend: Any, special: frozenset[int]) -> None:
        self._backend = backend
        self._byte_tokens = re.compile("<0x([0-9A-Fa-f]{2})>" if "ByteFallback" in str(backend.decoder) else "(?!)")
        self._word = self._find_word(special)
        self._before: list[int] = []  # decoded before each token: nothing at the start of the text, then the word
        self._pending: list[int] = []  # byte tokens of an unfinished character
        self._utf8 = codecs.getincrementaldecoder("utf-8")()

    def add(self, token_id: int, token: str) -> str:
        if byte := self._byte_tokens.fullmatch(token):
            return self._add_byte(token_id, bytes.fromhex(byte[1]))
        return self._broken() + self._decoded([token_id])

    def rest(self) -> str:
        return self._behind(self._pending)

    def end(self) -> None:
        self._broken()

    def _add_byte(self, token_id: int, byte: bytes) -> str:
        try:
            finished = self._utf8.decode(byte)
        except UnicodeDecodeError:
            # Either the byte breaks the character before it and begins anew, or it begins no character at all.
            return self._broken() + self._add_byte(token_id, byte) if self._pending else self._decoded([token_id])
        self._pending.append(token_id)
        return self._finished() if finished else ""

    def _finished(self) -> str:
        text, self._pending = self._decoded(self._pending), []
        return text

    def _broken(self) -> str:
        """The bytes of an unfinished character, each as U+FFFD."""
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
        return self._decode(self._before + ids)[len(self._decode(self._before)) :]

    def _decode(self, ids: list[int]) -> str:
        with decodable():
            return self._backend.decode(ids)

    def _find_word(self, special: frozenset[int]) -> list[int]:
        """Some token that has text, to decode others behind it."""
        for token_id in range(self._backend.get_vocab_size()):
            token = self._backend.id_to_token(token_id)
            if token is None or token_id in special or self._byte_tokens.fullmatch(token):
                continue
            if self._decode([token_id]).strip():
                return [token_id]
        return []


def _alphabet() -> dict[str, int]:
    """GPT-2's letters for bytes: printable bytes stand for themselves, the others are U+0100 and on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


_BYTES = _alphabet()
