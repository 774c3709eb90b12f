"""Reading documents from text files, and splitting them into training and held-back documents."""

from __future__ import annotations

import lzma
from collections.abc import Sequence
from pathlib import Path

from sllm_jax.common.errors import SllmError
from sllm_jax.common.foreign import foreign
from sllm_jax.common.inputs import check_file, shown
from sllm_jax.core.memory import check_free

MAX_RATIO = 100  # limit on the xz compression ratio; novels have 3 to 5
_PIECE = 2**20  # bytes
_COPIES = 3  # copies of all texts in memory: bytes, text, documents
FORM_FEED = "\f"  # separates the documents (books) of a file


def read_documents(paths: Sequence[Path]) -> list[str]:
    """The documents of UTF-8 text files, optionally compressed (`.xz`).

    Raises `SllmError` if a file cannot be read or does not fit into memory. Pipes are refused, because a resumed run
    reads its texts again.
    """
    size = sum(check_file(path, remedy="save the text in a file").stat().st_size for path in paths)
    check_free(_COPIES * size, "reading these texts", "give fewer")
    documents = [part.strip() for path in paths for part in _read(path).split(FORM_FEED)]
    documents = [document for document in documents if document]
    if not documents:
        raise SllmError(f"there is no text in {', '.join(map(str, paths))}; give other files")
    return documents


def hold_back(documents: list[str], count: int) -> tuple[list[str], list[str]]:
    """Split documents into training documents and `count` held-back ones, evenly spaced in the list.

    A single document is split instead: its last tenth is held back. Raises `SllmError` if no training text is left.
    """
    if len(documents) == 1:
        cut = len(documents[0]) * 9 // 10
        return [documents[0][:cut]], [documents[0][cut:]]
    if count >= len(documents):
        raise SllmError(f"cannot hold back {count} of {len(documents)} documents; hold back fewer, or give more text")
    held = {int((i + 0.5) * len(documents) / count) for i in range(count)}
    learned = [document for i, document in enumerate(documents) if i not in held]
    return learned, [documents[i] for i in sorted(held)]


def _read(path: Path) -> str:
    remedy = "give a text, as it is or compressed by xz"
    with foreign(shown(path), remedy):
        content = _decompressed(path) if path.suffix == ".xz" else path.read_bytes()
    with foreign(str(path), remedy, "is not UTF-8 text"):
        return content.decode("utf-8-sig")


def _decompressed(path: Path) -> bytes:
    """The content of an .xz file. Raises `SllmError` if it expands by more than `MAX_RATIO`."""
    limit, content = max(path.stat().st_size * MAX_RATIO, _PIECE), bytearray()
    with lzma.open(path) as file:
        while piece := file.read(_PIECE):
            content += piece
            if len(content) > limit:
                raise SllmError(f"{path} is more than {MAX_RATIO} times as large decompressed; expected a text")
    return bytes(content)
