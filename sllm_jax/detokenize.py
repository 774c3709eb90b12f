"""Token ids to text while they are made: every piece as soon as it is certain, never part of a character.

A character may be spread over several tokens, so the text of a token can depend on the next ones. The pieces joined are
what decoding all the ids at once gives. Memory and work per token are constant, whatever the tokens are.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Sequence
from typing import Any, SupportsIndex

import numpy as np

from sllm_jax.errors import SllmError

# A run of byte tokens is decoded as a whole: one broken byte at its end turns every byte of it into U+FFFD. So a run is
# held back until it ends or breaks, or until this many bytes of it are held back, some 300 characters of a rare script.
MAX_HELD_BYTES = 1024


class Detokenizer:
    """Joined, the pieces that `add` returns and the rest that `flush` returns are the text of the ids after a context.

    That is `decode(context + ids)[len(decode(context)):]`, whatever the ids. What is added after a `flush` begins a new
    character.
    """

    def __init__(self, tokenizer: Any, context: Sequence[SupportsIndex] | np.ndarray = ()) -> None:
        """Begin behind a context: the tokens before the first one that is added, as many as are at hand.

        With it the text goes on with its leading space, which SentencePiece tokenizers leave out where a text starts.
        Raises `SllmError` if the tokenizer is not one of the fast ones of `transformers`.
        """
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise SllmError(
                f"a {type(tokenizer).__name__} cannot be decoded token by token; expected a fast tokenizer of "
                "transformers, such as sllm_jax.load_tokenizer returns"
            )
        self._backend = backend
        self._special = frozenset(i for i, token in tokenizer.added_tokens_decoder.items() if token.special)
        self._text = _Bytes() if "ByteLevel" in str(backend.decoder) else _Runs(backend, self._special)
        self._skip = 0  # characters to come that the text of the context holds already, as replacement characters
        self.add(context)
        self._skip = len(self._text.rest())

    def add(self, ids: Iterable[SupportsIndex] | np.ndarray) -> str:
        """The text that has become certain with some more ids."""
        tokens = ((int(i), self._backend.id_to_token(int(i))) for i in ids if int(i) not in self._special)
        return self._new("".join(self._text.add(i, token) for i, token in tokens if token is not None))

    def flush(self) -> str:
        """The text that was held back, an unfinished character as U+FFFD."""
        rest = self._text.rest()
        self._text.end()
        return self._new(rest)

    def _new(self, text: str) -> str:
        skipped = min(self._skip, len(text))
        self._skip -= skipped
        return text[skipped:]


class _Bytes:
    """Byte-level BPE: the tokens are bytes, and all of them together are UTF-8."""

    def __init__(self) -> None:
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, _: int, token: str) -> str:
        known = all(letter in _BYTES for letter in token)
        return self._utf8.decode(bytes(_BYTES[letter] for letter in token) if known else token.encode())

    def rest(self) -> str:
        return self._utf8.getstate()[0].decode("utf-8", "replace")

    def end(self) -> None:
        self._utf8.reset()


class _Runs:
    """Tokens of whole characters, between them runs of byte tokens if the tokenizer falls back to bytes.

    A run is UTF-8 as a whole, or each of its bytes is U+FFFD. The text of a token is what it adds behind another one.
    """

    def __init__(self, backend: Any, special: frozenset[int]) -> None:
        self._backend = backend
        self._byte_tokens = re.compile("<0x([0-9A-Fa-f]{2})>" if "ByteFallback" in str(backend.decoder) else "(?!)")
        self._word = self._find_word(special)
        self._before: list[int] = []  # empty at the start of the text, then the word
        self._run: list[int] = []  # byte tokens held back
        self._broken = False  # whether the run is broken, and so not held back any more
        self._utf8 = codecs.getincrementaldecoder("utf-8")()

    def add(self, token_id: int, token: str) -> str:
        if byte := self._byte_tokens.fullmatch(token):
            return self._add_byte(token_id, bytes.fromhex(byte[1]))
        ended = self.rest()
        self.end()
        return ended + self._release([token_id])

    def rest(self) -> str:
        return self._behind(self._run)

    def end(self) -> None:
        self._release(self._run)
        self._run = []
        self._broken = False
        self._utf8.reset()

    def _add_byte(self, token_id: int, byte: bytes) -> str:
        if self._broken:
            return "\ufffd"
        self._run.append(token_id)
        try:
            self._utf8.decode(byte)
        except UnicodeDecodeError:
            self._broken = True
            unfinished = 0
        else:
            if len(self._run) < MAX_HELD_BYTES:
                return ""
            unfinished = len(self._utf8.getstate()[0])
        certain = len(self._run) - unfinished
        text = self._release(self._run[:certain])
        self._run = self._run[certain:]
        return text

    def _release(self, ids: list[int]) -> str:
        text = self._behind(ids)
        if ids:
            self._before = self._word
        return text

    def _behind(self, ids: list[int]) -> str:
        if not ids:
            return ""
        return self._backend.decode(self._before + ids)[len(self._backend.decode(self._before)) :]

    def _find_word(self, special: frozenset[int]) -> list[int]:
        """Some token that makes text, to put before others."""
        for token_id in range(self._backend.get_vocab_size()):
            token = self._backend.id_to_token(token_id)
            if token is None or token_id in special or self._byte_tokens.fullmatch(token):
                continue
            if self._backend.decode([token_id]).strip():
                return [token_id]
        return []


def _alphabet() -> dict[str, int]:
    """GPT-2's letters for bytes: printable bytes stand for themselves, the others are U+0100 and on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


_BYTES = _alphabet()
