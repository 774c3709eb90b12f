"""Text files to documents, and the split into what is learned and what is held back."""

from __future__ import annotations

import lzma
from collections.abc import Sequence
from pathlib import Path

from sllm_jax.errors import SllmError
from sllm_jax.foreign import foreign
from sllm_jax.inputs import check_file, shown
from sllm_jax.memory import check_free

MAX_RATIO = 100  # of the size of a text to its size compressed by xz; novels have 3 to 5
_PIECE = 2**20  # bytes
_COPIES = 3  # of all texts in memory: as bytes, as text, as documents
FORM_FEED = "\f"  # stands between the documents (books) of a file


def read_documents(paths: Sequence[Path]) -> list[str]:
    """The documents of UTF-8 text files, `.xz` files included; raises `SllmError` for what cannot be read.

    A pipe is refused: a run that goes on reads its texts again. So is what memory cannot hold.
    """
    size = sum(check_file(path, remedy="save the text in a file").stat().st_size for path in paths)
    check_free(_COPIES * size, "reading these texts", "give fewer")
    documents = [part.strip() for path in paths for part in _read(path).split(FORM_FEED)]
    documents = [document for document in documents if document]
    if not documents:
        raise SllmError(f"there is no text in {', '.join(map(str, paths))}; give files with something to learn")
    return documents


def hold_back(documents: list[str], count: int) -> tuple[list[str], list[str]]:
    """The documents to learn from, and `count` whole ones taken evenly from the list.

    A text of a single document loses its last tenth instead. Raises `SllmError` if nothing is left to learn from.
    """
    if len(documents) == 1:
        cut = len(documents[0]) * 9 // 10
        return [documents[0][:cut]], [documents[0][cut:]]
    if count >= len(documents):
        raise SllmError(
            f"{count} documents cannot be held back of {len(documents)}; hold back fewer, or give more text"
        )
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
    """The content of an .xz file, read in pieces; raises `SllmError` if it is far larger than a text can be."""
    limit, content = max(path.stat().st_size * MAX_RATIO, _PIECE), bytearray()
    with lzma.open(path) as file:
        while piece := file.read(_PIECE):
            content += piece
            if len(content) > limit:
                raise SllmError(f"{path} is more than {MAX_RATIO} times as large decompressed; texts are not")
    return bytes(content)
