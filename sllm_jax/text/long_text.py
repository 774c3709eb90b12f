"""Tokenization of texts of any length in constant memory.

A text is tokenized in overlapping blocks. Two neighbours are joined at a place, far from either edge, where both have
the same tokens at the same offsets. The ids equal those of tokenizing the whole text at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sllm_jax.common.errors import SllmError
from sllm_jax.common.inputs import check_source, is_file
from sllm_jax.common.progress import Progress, silent
from sllm_jax.text.tokenizer import encodable, encode

BLOCK_SIZE = 2**18  # characters
MAX_TEXT = 2**28  # characters of a text that is read whole, for experiments (all of PG-19's test set: 2**25)
OVERLAP = 2**12  # characters shared by neighbouring blocks
_AGREEING = 8  # tokens on which two blocks must agree to be joined


class Tokens(NamedTuple):
    """The N tokens of a text: ids, and the character offsets where each begins and ends."""

    ids: np.ndarray
    starts: np.ndarray
    ends: np.ndarray


class TextBlock(NamedTuple):
    """Consecutive tokens of a text, and the characters that they encode."""

    text: str
    tokens: Tokens


def encode_blocks(
    tokenizer: Any, text: Iterator[str], overlap: int = OVERLAP, control_tokens: bool = False
) -> Iterator[TextBlock]:
    """The tokens of a text given in blocks: the ids of `encode` without `start`."""
    window, begin = next(text, ""), 0  # characters of the window before `begin` are done
    tokens = _tokens(tokenizer, window, control_tokens)
    for block in text:
        shift = max(begin, len(window) - overlap)
        following = _tokens(tokenizer, window[shift:] + block, control_tokens)
        joint = _joint(tokens, following, shift, max(begin, shift + overlap // 4), len(window) - overlap // 4)
        if joint is None:  # no common tokens: extend the window
            window += block
            tokens = _tokens(tokenizer, window, control_tokens)
            continue
        yield _cut(window, tokens, begin, joint)
        window, tokens, begin = window[shift:] + block, following, joint - shift
    yield _cut(window, tokens, begin, len(window))


def file_blocks(path: Path, size: int = BLOCK_SIZE) -> Iterator[str]:
    """The text of a file or pipe in blocks. Raises `SllmError` if it is unreadable, not UTF-8, or empty."""
    check_source(path)
    empty = True
    try:
        with path.open(encoding="utf-8") as file:
            while block := file.read(size):
                empty = False
                yield block
    except OSError as error:
        raise SllmError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise SllmError(f"{path} is not UTF-8 text: {error}") from error
    if empty:
        raise SllmError(f"{path} is empty; give a text with at least two tokens")


def text_blocks(text: str, size: int = BLOCK_SIZE) -> Iterator[str]:
    """A text in blocks of `size` characters."""
    return (text[i : i + size] for i in range(0, len(text), size))


def read_text(path: Path) -> str:
    """The whole text of a file. Raises `SllmError` as `file_blocks` does, and for more than `MAX_TEXT` characters."""
    blocks, size = [], 0
    for block in file_blocks(path):
        blocks.append(block)
        size += len(block)
        if size > MAX_TEXT:
            raise SllmError(f"{path} has more than {MAX_TEXT} characters; give a part of it")
    return "".join(blocks)


class TokenFile(NamedTuple):
    """Token ids [N] int32, memory-mapped, and the number of UTF-8 bytes of all tokens but the first."""

    ids: np.ndarray
    predicted_bytes: int


def tokenize_file(
    tokenizer: Any,
    path: Path,
    target: Path,
    max_tokens: int | None = None,
    progress: Progress = silent,
    control_tokens: bool = False,
) -> TokenFile:
    """Write the token ids of a text file to `target`: the tokenizer's start tokens, then the text, up to `max_tokens`.

    `progress` is called as progress(bytes read, bytes of the file). `control_tokens` as in `encode`. Raises `SllmError`
    as `file_blocks` does.
    """
    start = encode(tokenizer, "", start=True)
    count, read, used, first = len(start), 0, 0, 0  # tokens written; bytes read, encoded, and of the first token
    size = path.stat().st_size if is_file(path) else 0
    with target.open("wb") as file:
        file.write(start.tobytes())
        for block in encode_blocks(tokenizer, file_blocks(path), control_tokens=control_tokens):
            left = None if max_tokens is None else max_tokens - count
            ids = block.tokens.ids[:left]
            if count == 0 and len(ids):
                first = _bytes(block.text[: block.tokens.ends[0]])
            file.write(ids.tobytes())
            whole = len(ids) == len(block.tokens.ids)
            used += _bytes(block.text if whole else block.text[: block.tokens.ends[len(ids) - 1] if len(ids) else 0])
            count, read = count + len(ids), read + _bytes(block.text)
            progress(read, size)
            if not whole:
                break
    return TokenFile(np.memmap(target, np.int32, "r", shape=(count,)), used - first)


def _bytes(text: str) -> int:
    return len(text.encode())


def _tokens(tokenizer: Any, text: str, control_tokens: bool) -> Tokens:
    with encodable():
        encoding = tokenizer(
            text,
            add_special_tokens=False,
            return_offsets_mapping=True,
            verbose=False,
            split_special_tokens=not control_tokens,
        )
    offsets = np.array(encoding["offset_mapping"], np.int64).reshape(-1, 2)
    return Tokens(np.array(encoding["input_ids"], np.int32), offsets[:, 0], offsets[:, 1])


def _cut(text: str, tokens: Tokens, begin: int, end: int) -> TextBlock:
    """The block of a text from character `begin` to `end`."""
    i, j = np.searchsorted(tokens.starts, (begin, end))
    if end == len(text):
        j = len(tokens.starts)
    ids, starts, ends = (values[i:j] for values in tokens)
    return TextBlock(text[begin:end], Tokens(ids, starts - begin, ends - begin))


def _joint(one: Tokens, other: Tokens, shift: int, low: int, high: int) -> int | None:
    """The offset of a token amid `_AGREEING` that both have, between characters `low` and `high` of `one`, or None."""
    i, end = np.searchsorted(one.starts, (low, high))
    mine = list(zip(one.starts[i:end].tolist(), one.ends[i:end].tolist(), one.ids[i:end].tolist(), strict=True))
    theirs = list(zip((other.starts + shift).tolist(), (other.ends + shift).tolist(), other.ids.tolist(), strict=True))
    places = {token: j for j, token in enumerate(theirs)}
    for k in range(len(mine) - _AGREEING + 1):
        j = places.get(mine[k])
        middle = k + _AGREEING // 2
        alone = mine[middle - 1][1] <= mine[middle][0]  # not in the middle of a character that spans several tokens
        if j is not None and alone and theirs[j : j + _AGREEING] == mine[k : k + _AGREEING]:
            return mine[middle][0]
    return None
