"""Negative log-likelihood of a text, token by token, in the four ways of the paper (section 4.1, figure 3).

`streaming` keeps sinks and a window, `window` a window alone, `dense` everything; all three are one machine with
different sizes, read a chunk at a time: the result is that of single tokens, whatever the chunk. `recompute` is the
sliding window with re-computation: a fresh forward pass over the last tokens for each one.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from sllm_jax.attention import attend_chunk
from sllm_jax.decode import forward
from sllm_jax.errors import SllmError
from sllm_jax.kv_cache import check_sizes
from sllm_jax.kv_state import KVState, advance, init_state
from sllm_jax.model import Model, dense_logits, nll_of

MODES = ("streaming", "window", "dense", "recompute")
CHUNK_SIZE = 256
_WINDOW_TOKENS = 4096  # tokens of all windows that are recomputed in one call


def token_nll(
    model: Model,
    token_ids: np.ndarray,
    mode: str = "streaming",
    start_size: int = 4,
    recent_size: int = 2000,
    chunk_size: int = CHUNK_SIZE,
    stride: int = 1,
) -> Iterator[np.ndarray]:
    """Pieces of nll [T - 1] float32 for token ids [T]: nll[i] = -log p(token i + 1 | tokens up to i), in nats.

    `window` takes 0 for the start size, `dense` ignores both sizes. `recompute` looks at the last `cache_size` + 1
    tokens, as many as a step of the others attends to. With a `stride` the pieces are those of nll[::stride];
    `recompute`, where each is a pass of its own, makes no others. Raises `SllmError` for ids, sizes or a mode that
    cannot be used.
    """
    token_ids = check_token_ids(token_ids, model.config.vocab_size)
    check_sizes(start_size, recent_size)
    if chunk_size < 1:
        raise SllmError(f"chunk size must be 1 or more; got {chunk_size}")
    if stride < 1:
        raise SllmError(f"stride must be 1 or more; got {stride}")
    chunk_size = min(chunk_size, len(token_ids) - 1)
    match mode:
        case "streaming":
            return _in_chunks(model, token_ids, start_size, recent_size, chunk_size, stride)
        case "window":
            return _in_chunks(model, token_ids, 0, recent_size, chunk_size, stride)
        case "dense":
            return _in_chunks(model, token_ids, 0, len(token_ids) - 1, chunk_size, stride)
        case "recompute":
            return _recomputed(model, token_ids, start_size + recent_size + 1, chunk_size, stride)
    raise SllmError(f"mode {mode!r} is not one of {', '.join(MODES)}")


def perplexity(nll: np.ndarray) -> float:
    """exp of the mean negative log-likelihood."""
    return float(np.exp(np.mean(nll, dtype=np.float64)))


def bits_per_byte(nll: np.ndarray | float, token_bytes: float) -> float:
    """The mean negative log-likelihood of tokens that are `token_bytes` UTF-8 bytes long on average, in bits."""
    return float(np.mean(nll, dtype=np.float64) / np.log(2) / token_bytes)


def check_token_ids(token_ids: np.ndarray, vocab_size: int) -> np.ndarray:
    """The ids as int32; raises `SllmError` unless they are two or more integers of the vocabulary in one row."""
    if token_ids.ndim != 1 or not np.issubdtype(token_ids.dtype, np.integer):
        raise SllmError(f"token ids must be one row of integers; got {token_ids.dtype} of shape {token_ids.shape}")
    if len(token_ids) < 2:
        raise SllmError(f"a perplexity needs 2 tokens or more; got {len(token_ids)}")
    outside = (token_ids < 0) | (token_ids >= vocab_size)
    if outside.any():
        place = int(outside.argmax())
        raise SllmError(f"token id {token_ids[place]} at index {place} is outside the vocabulary of {vocab_size}")
    return token_ids.astype(np.int32)


def _in_chunks(
    model: Model, token_ids: np.ndarray, start_size: int, recent_size: int, chunk_size: int, stride: int
) -> Iterator[np.ndarray]:
    state = init_state(model.config, start_size, recent_size, model.dtype)
    for start in range(0, len(token_ids) - 1, chunk_size):
        taken = token_ids[start : start + chunk_size + 1]
        count = len(taken) - 1
        chunk = np.pad(taken, (0, chunk_size - count))
        state, nll = _score_chunk(model.module, model.params, state, chunk, np.int32(count))
        yield np.asarray(nll)[-start % stride : count : stride]


def _recomputed(model: Model, token_ids: np.ndarray, width: int, chunk_size: int, stride: int) -> Iterator[np.ndarray]:
    yield from _in_chunks(model, token_ids[: width + 1], 0, width - 1, min(chunk_size, width), stride)
    if len(token_ids) <= width + 1:
        return
    windows = np.lib.stride_tricks.sliding_window_view(token_ids, width + 1)[1:]  # each with the token that follows
    windows = windows[-width % stride :: stride]
    batch = max(1, _WINDOW_TOKENS // width)
    for start in range(0, len(windows), batch):
        taken = windows[start : start + batch]
        padded = np.pad(taken, ((0, batch - len(taken)), (0, 0)))
        yield np.asarray(_score_windows(model.module, model.params, padded))[: len(taken)]


@partial(jax.jit, static_argnames="module", donate_argnames="state")
def _score_chunk(
    module: Any, params: Any, state: KVState, tokens: Int[Array, " N"], count: Int[Array, ""]
) -> tuple[KVState, Float[Array, " T"]]:
    """Read the first T = N - 1 of the tokens; the nll of each one's successor."""
    token_ids = tokens[:-1]
    attend = attend_chunk(module.config, module.dtype, state, len(token_ids), count)
    state, logits = forward(module, params, state, token_ids, attend, rows=slice(None))
    return advance(state, token_ids, count), nll_of(logits, tokens[1:])


@partial(jax.jit, static_argnames="module")
def _score_windows(module: Any, params: Any, windows: Int[Array, "B N"]) -> Float[Array, " B"]:
    """The nll of the last token of each window, given those before it."""

    def last_logits(window: Int[Array, " N"]) -> Float[Array, " V"]:
        return dense_logits(module, params, window[:-1], -1)

    return nll_of(jax.vmap(last_logits)(windows), windows[:, -1])
