"""Packing documents into one row of token ids, and cutting it into samples.

The order of the samples depends on the seed and the step only, so a resumed run continues with the same batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from sllm_jax.common.errors import SllmError
from sllm_jax.common.progress import Progress, silent
from sllm_jax.text.tokenizer import encode


def pack(tokenizer: Any, documents: Sequence[str], progress: Progress = silent) -> np.ndarray:
    """Token ids [N] of all documents, int32, with an end-of-text token before and after each.

    `progress` is called as progress(documents done, documents).
    """
    end = tokenizer.eos_token_id
    pieces: list[list[int]] = [[end]]
    for done, document in enumerate(documents):
        progress(done, len(documents))
        pieces.append([*encode(tokenizer, document, start=False), end])
    return np.concatenate([np.array(piece, np.int32) for piece in pieces])


def check_size(documents: Sequence[str], context: int) -> None:
    """Raises `SllmError` if the documents cannot fill one sample even with one token per byte."""
    most = 1 + sum(len(document.encode()) + 1 for document in documents)  # with end-of-text tokens
    if most <= context:
        raise _too_small(context, f"{most} at most")


def _too_small(context: int, found: str) -> SllmError:
    return SllmError(
        f"the text is too small: a sample takes {context + 1} tokens, and it has {found}; give more, or a config with "
        "a shorter context"
    )


@dataclass(frozen=True, eq=False)
class Samples:
    """The samples of a row of token ids [N]: slices of `context` + 1 tokens; neighbours share one token.

    A `sink_id` replaces the first token of each sample, which is never predicted, so the targets stay the same.
    """

    token_ids: np.ndarray
    context: int
    sink_id: int | None = None

    def __post_init__(self) -> None:
        """Raises `SllmError` if there is no complete sample."""
        if not len(self):
            raise _too_small(self.context, str(len(self.token_ids)))

    def __len__(self) -> int:
        """The number of complete samples."""
        return (len(self.token_ids) - 1) // self.context

    def take(self, indices: np.ndarray) -> np.ndarray:
        """The samples [B, context + 1] at these indices [B], int32."""
        # Sample i begins at token i * context.
        places = indices[:, None] * self.context + np.arange(self.context + 1)  # [B, context + 1]
        taken = self.token_ids[places].astype(np.int32)
        if self.sink_id is not None:
            taken[:, 0] = self.sink_id
        return taken

    def batch(self, seed: int, step: int, size: int) -> np.ndarray:
        """The samples [size, context + 1] of a step. Each epoch takes every sample once, in a new order."""
        numbers = np.arange(step * size, (step + 1) * size)  # counted from the first step, across epochs
        order = [_order(seed, int(number // len(self)), len(self))[number % len(self)] for number in numbers]
        return self.take(np.array(order))

    def evenly(self, count: int) -> np.ndarray:
        """Up to `count` samples, evenly spaced over the text: [min(count, len), context + 1]."""
        return self.take(np.linspace(0, len(self) - 1, min(count, len(self))).astype(int))


@lru_cache(maxsize=2)
def _order(seed: int, epoch: int, count: int) -> np.ndarray:
    """The order of the samples in an epoch [count]."""
    return np.random.default_rng((seed, epoch)).permutation(count)
