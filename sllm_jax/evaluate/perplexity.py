"""Token-level negative log-likelihood of a text in the four modes of the paper (section 4.1, figure 3).

`streaming` keeps sinks and a window, `window` a window only, `dense` everything. All three use the same cache with
different sizes and read the text in chunks; the chunk size does not change the result. `recompute` is the sliding
window with re-computation: a fresh forward pass over the last tokens for each prediction. Memory is independent of the
length of the text, except in `dense` mode.

Axis letters: B texts or windows, T tokens of a chunk, N tokens including the last target, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from sllm_jax.common.errors import SllmError
from sllm_jax.core.decode import Carry, read_chunk
from sllm_jax.core.kv_state import KVState, check_sizes, init_state, over_streams
from sllm_jax.core.model import Model, check_finite, dense_logits, nll_of

EVALUATION_MODES = ("streaming", "window", "dense", "recompute")
CHUNK_SIZE = 256
_WINDOW_TOKENS = 4096  # tokens per device call of `recompute`, over all windows
_CHECKED = 2**20  # token ids checked at a time


@dataclass(frozen=True)
class Reading:
    """The progress of reading B texts, and the results of the last device call."""

    nll: Sequence[np.ndarray]  # new values of each text, in nats
    done: Sequence[int]  # tokens predicted so far of each text
    state: KVState | None  # state of the B streams, donated to the next call; None for `recompute`


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

    `window` ignores the start size, `dense` ignores both sizes. `recompute` reads the last `cache_size` + 1 tokens, as
    many as a step of the other modes attends to; if the model was trained with a sink token, the first token of the
    text replaces the first of them. With a `stride`, the result is nll[::stride], and `recompute` computes only these
    values. Raises `SllmError` for invalid ids, sizes or modes.
    """
    readings = token_nll_batch(model, [token_ids], mode, start_size, recent_size, chunk_size, stride)
    return (reading.nll[0] for reading in readings)


def token_nll_batch(
    model: Model,
    texts: Sequence[np.ndarray],
    mode: str = "streaming",
    start_size: int = 4,
    recent_size: int = 2000,
    chunk_size: int = CHUNK_SIZE,
    stride: int = 1,
    since: Reading | None = None,
) -> Iterator[Reading]:
    """`token_nll` of B texts in one batch, optionally continuing from an earlier reading (`since`).

    Raises `SllmError` as `token_nll` does, and at the first nll that is not finite.
    """
    if not texts:
        raise SllmError("there is no text to evaluate; give one")
    texts = [check_token_ids(ids, model.config.vocab_size) for ids in texts]
    check_sizes(start_size, recent_size)
    check_chunk_size(chunk_size)
    if stride < 1:
        raise SllmError(f"stride must be 1 or more; got {stride}")
    since = since or begin_reading(model, texts, mode, start_size, recent_size)
    chunk_size = min(chunk_size, max(map(len, texts)) - 1)
    if since.state is None:
        readings = _recomputed(model, texts, start_size + recent_size + 1, chunk_size, stride, since)
    else:
        readings = _in_chunks(model, texts, chunk_size, stride, since)
    return _checked(model, readings, since.done)


def _checked(model: Model, readings: Iterator[Reading], done: Sequence[int]) -> Iterator[Reading]:
    """Yield the readings. Raises `SllmError` for an nll that is not finite."""
    for reading in readings:
        for found, before, after in zip(reading.nll, done, reading.done, strict=True):
            check_finite(model, found, f"between tokens {before} and {after} of the text")
        done = reading.done
        yield reading


def begin_reading(model: Model, texts: Sequence[np.ndarray], mode: str, start_size: int, recent_size: int) -> Reading:
    """The initial reading: nothing predicted, an empty state."""
    sizes = {
        "streaming": (start_size, recent_size),
        "window": (0, recent_size),
        "dense": (0, max(map(len, texts)) - 1),
        "recompute": None,
    }
    check_evaluation_mode(mode)
    kept = sizes[mode]
    state = None if kept is None else init_state(model.config, *kept, model.dtype, len(texts))
    return Reading([], [0] * len(texts), state)


def perplexity(nll: np.ndarray) -> float:
    """exp of the mean negative log-likelihood."""
    return float(np.exp(np.mean(nll, dtype=np.float64)))


def bits_per_byte(nll: np.ndarray | float, token_bytes: float) -> float:
    """The mean of an nll in nats, in bits per byte; `token_bytes` is the mean UTF-8 length of a token."""
    return float(np.mean(nll, dtype=np.float64) / np.log(2) / token_bytes)


def check_evaluation_mode(mode: str) -> None:
    """Raises `SllmError` unless `mode` is one of `EVALUATION_MODES`."""
    if mode not in EVALUATION_MODES:
        raise SllmError(f"mode {mode!r} is not one of {', '.join(EVALUATION_MODES)}")


def check_chunk_size(chunk_size: int) -> None:
    """Raises `SllmError` unless `chunk_size` is 1 or more."""
    if chunk_size < 1:
        raise SllmError(f"chunk size must be 1 or more; got {chunk_size}")


def check_token_ids(token_ids: np.ndarray, vocab_size: int) -> np.ndarray:
    """The ids [T]. Raises `SllmError` unless they are a 1-D array of two or more ids within the vocabulary."""
    if token_ids.ndim != 1 or not np.issubdtype(token_ids.dtype, np.integer):
        raise SllmError(f"token ids must be one row of integers; got {token_ids.dtype} of shape {token_ids.shape}")
    if len(token_ids) < 2:
        raise SllmError(f"a perplexity needs 2 tokens or more; got {len(token_ids)}")
    for start in range(0, len(token_ids), _CHECKED):
        part = token_ids[start : start + _CHECKED]
        outside = (part < 0) | (part >= vocab_size)
        if outside.any():
            place = int(outside.argmax())
            raise SllmError(
                f"token id {part[place]} at index {start + place} is outside the vocabulary of {vocab_size}"
            )
    return token_ids


def _in_chunks(
    model: Model, texts: Sequence[np.ndarray], chunk_size: int, stride: int, since: Reading
) -> Iterator[Reading]:
    """Read all texts a chunk at a time, in step; texts that have ended are padded with a count of 0."""
    state, start, end = since.state, max(since.done), max(map(len, texts)) - 1
    while start < end:
        # One token more than a chunk: token i + 1 is the target of token i.
        taken = [ids[start : start + chunk_size + 1] for ids in texts]
        counts = np.array([max(len(ids) - 1, 0) for ids in taken], np.int32)
        chunks = np.stack([np.pad(ids, (0, chunk_size + 1 - len(ids))).astype(np.int32) for ids in taken])
        state, nll = _score_chunk(model, state, chunks, counts)
        # -start % stride: index in the chunk of the first multiple of `stride`.
        found = [row[-start % stride : count : stride] for row, count in zip(np.asarray(nll), counts, strict=True)]
        start += chunk_size
        yield Reading(found, [min(start, len(ids) - 1) for ids in texts], state)


def _recomputed(
    model: Model, texts: Sequence[np.ndarray], width: int, chunk_size: int, stride: int, since: Reading
) -> Iterator[Reading]:
    """First, for all texts in one dense pass, tokens with at most `width` tokens before them; then text by text."""
    done = list(since.done)
    if not any(done):
        heads = [ids[: width + 1] for ids in texts]
        dense = begin_reading(model, heads, "dense", 0, 0)
        pieces = [reading.nll for reading in _in_chunks(model, heads, min(chunk_size, width), stride, dense)]
        done = [len(ids) - 1 for ids in heads]
        yield Reading([np.concatenate(parts) for parts in zip(*pieces, strict=True)], done.copy(), None)
    batch = max(1, _WINDOW_TOKENS // width)
    for i, ids in enumerate(texts):
        targets = range(done[i] + -done[i] % stride, len(ids) - 1, stride)
        for start in range(0, len(targets), batch):
            ends = targets[start : start + batch]
            # The `width` tokens up to `end`, and the target after it: [n, width + 1].
            windows = np.stack([ids[end + 1 - width : end + 2] for end in ends]).astype(np.int32)
            if model.config.attention_sink == "learnable":
                windows[:, 0] = ids[0]
            padded = np.pad(windows, ((0, batch - len(windows)), (0, 0)))
            nll = np.asarray(_score_windows(model, padded))[: len(windows)]
            done[i] = ends[-1] + 1
            yield Reading([nll if j == i else nll[:0] for j in range(len(texts))], done.copy(), None)


@jax.jit
def option_nll(model: Model, carry: Carry, options: Int[Array, "B T"], counts: Int[Array, " B"]) -> Float[Array, " B"]:
    """The summed nll, in nats, of B alternative continuations of one stream, each the first `counts` of T tokens."""

    def score(option: Int[Array, " T"], count: Int[Array, ""]) -> Float[Array, ""]:
        _, logits = read_chunk(model, carry.state, option, count)
        before = jnp.concatenate([carry.logits[None], logits[:-1]])  # logits that predict each token
        return jnp.where(jnp.arange(len(option)) < count, nll_of(before, option), 0).sum()

    return jax.vmap(score)(options, counts)


@partial(jax.jit, donate_argnames="state")
def _score_chunk(
    model: Model, state: KVState, tokens: Int[Array, "B N"], counts: Int[Array, " B"]
) -> tuple[KVState, Float[Array, "B T"]]:
    """Read the first `counts` of T = N - 1 tokens of each stream; return the nll of each token's successor."""

    def score(state: KVState, tokens: Int[Array, " N"], count: Int[Array, ""]) -> tuple[KVState, Float[Array, " T"]]:
        state, logits = read_chunk(model, state, tokens[:-1], count)
        return state, nll_of(logits, tokens[1:])

    return over_streams(score, state)(state, tokens, counts)


@jax.jit
def _score_windows(model: Model, windows: Int[Array, "B N"]) -> Float[Array, " B"]:
    """The nll of the last token of each window, given the tokens before it."""

    def last_logits(window: Int[Array, " N"]) -> Float[Array, " V"]:
        return dense_logits(model, window[:-1], -1)

    return nll_of(jax.vmap(last_logits)(windows), windows[:, -1])
