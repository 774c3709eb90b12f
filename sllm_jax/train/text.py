"""Text files to documents, and the split into what is learned and what is held back."""

from __future__ import annotations

import lzma
from collections.abc import Sequence
from pathlib import Path

from sllm_jax.errors import SllmError

FORM_FEED = "\f"  # stands between the documents (books) of a file


def read_documents(paths: Sequence[Path]) -> list[str]:
    """The documents of UTF-8 text files, `.xz` files included; raises `SllmError` for what cannot be read."""
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
    try:
        content = path.read_bytes()
        return (lzma.decompress(content) if path.suffix == ".xz" else content).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SllmError(f"{path} is not UTF-8 text: {error}") from error
    except (OSError, lzma.LZMAError) as error:
        raise SllmError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
