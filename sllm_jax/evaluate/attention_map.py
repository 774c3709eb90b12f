"""Attention maps, and the attention on the first positions (paper, section 3.1, figure 2).

`attend_and_measure` is `attend_causally` that returns a measurement in place of each layer's cache. Axis letters as in
`attention.py`, and B windows, N queries, L layers. Only the queries of the second half of a window count, because the
early ones see little besides the first positions.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from sllm_jax.common.progress import Progress, silent
from sllm_jax.core.attention import causal_block
from sllm_jax.core.blocks import MASKED, Block, block_scores, sink_logit_of, sink_softmax, weighted_sum
from sllm_jax.core.model import Model, check_finite
from sllm_jax.models.attend import Attend, LayerCache, attend_by_layer, no_caches
from sllm_jax.models.config import ModelConfig

FIRST = 4  # positions that are measured individually
_BATCH_TOKENS = 4096  # tokens per device call, over all windows
_QUERIES = 256  # queries whose scores are in memory at a time


class Measure(NamedTuple):
    """What is measured in one layer."""

    # Scores and weights [K, G, N, T] of N queries and their positions [N] -> two arrays [N, ...].
    of_queries: Callable[[Array, Array, Array], LayerCache]
    # These of all T queries -> what is returned in place of the layer's cache.
    of_window: Callable[[Array, Array], LayerCache]


def attention_on_first(model: Model, windows: np.ndarray, progress: Progress = silent) -> tuple[np.ndarray, np.ndarray]:
    """Mean attention of the queries in the second halves of windows [B, T] of token ids; windows are independent.

    Returns the probability on each of the first 4 positions, [L, H, 4], and the scaled scores before the softmax,
    [L, H, 5]: one for each of these positions, and last the mean over the later positions that a query sees. A score
    is the mean over the queries that see the position, and NaN if their layer's sliding window hides it from all.
    `progress` is called as progress(windows done, windows).
    """
    return _mean(model, windows, ON_FIRST, progress)


def attention_maps(model: Model, windows: np.ndarray, progress: Progress = silent) -> np.ndarray:
    """Mean attention maps over independent windows [B, T]: the weight of query i on key j, [L, H, T, T]."""
    return _mean(model, windows, WHOLE, progress)[0]


def _mean(model: Model, windows: np.ndarray, measure: Measure, progress: Progress) -> tuple[np.ndarray, np.ndarray]:
    """The mean over the windows of what `measure` returns, for each layer: [L, ...]."""
    batch = max(1, _BATCH_TOKENS // windows.shape[1])
    sums = []
    for start in range(0, len(windows), batch):
        taken = windows[start : start + batch]
        padded = np.pad(taken, ((0, batch - len(taken)), (0, 0)))  # one shape, one program
        found = _measure(model, padded, measure)
        check_finite(model, found[0], f"in windows {start} to {start + len(taken) - 1} of {len(windows)}")
        # Padded windows are dropped; sums are float64.
        sums.append([np.asarray(values)[: len(taken)].sum(0, dtype=np.float64) for values in found])
        progress(start + len(taken), len(windows))
    first, second = (np.sum(values, axis=0) / len(windows) for values in zip(*sums, strict=True))
    return first, second


def first_query(length: int) -> int:
    """The position of the first query that is measured."""
    return length // 2


def uniform_mass(length: int) -> float:
    """The mean weight of one position if each measured query attends uniformly to all positions it sees."""
    return float(np.mean(1 / (np.arange(first_query(length), length) + 1)))


def attend_and_measure(config: ModelConfig, dtype: Any, length: int, measure: Measure) -> Attend:
    """`attend_causally` that returns a measurement in place of each layer's cache.

    Queries are taken `_QUERIES` at a time: the scores of a window of 4,096 tokens take 64 MB a head.
    """
    block_of, size = causal_block(config, length), min(length, _QUERIES)
    starts = jnp.arange(0, length, size)
    padding = len(starts) * size - length

    def attend(
        cache: LayerCache, q: Float[Array, "T H D"], k: Float[Array, "T K D"], v: Float[Array, "T K D"]
    ) -> tuple[LayerCache, Float[Array, "T H D"]]:
        whole = _pad_queries(block_of(q, k, v), padding)

        def of_some(start: Int[Array, ""]) -> tuple[LayerCache, Float[Array, "N H D"]]:
            block = _queries_of(whole, start, size)
            scores = block_scores([block], config, dtype)  # [K, G, N, T]
            weights = sink_softmax(scores, sink_logit_of(config))  # [K, G, N, T]
            found = measure.of_queries(scores, weights, start + jnp.arange(size))
            return found, weighted_sum(weights, [block], dtype)

        # Blocks of queries side by side, without the padding: [blocks, N, ...] -> [T, ...].
        found, mixed = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:length], jax.lax.map(of_some, starts))
        return measure.of_window(*found), mixed

    return attend


def _pad_queries(block: Block, count: int) -> Block:
    """The block with `count` more queries, which see nothing."""
    q = jnp.pad(block.q, ((0, 0), (0, 0), (0, count), (0, 0)))
    bias = None if block.bias is None else jnp.pad(block.bias, ((0, 0), (0, 0), (0, count), (0, 0)))
    return block._replace(q=q, mask=jnp.pad(block.mask, ((0, count), (0, 0))), bias=bias)


def _queries_of(block: Block, start: Int[Array, ""], size: int) -> Block:
    """The block with `size` of its queries, from `start` on."""
    taken = partial(jax.lax.dynamic_slice_in_dim, start_index=start, slice_size=size)
    bias = None if block.bias is None else taken(block.bias, axis=2)
    return block._replace(q=taken(block.q, axis=2), mask=taken(block.mask, axis=0), bias=bias)


def _weights_of_queries(
    scores: Float[Array, "K G N T"], weights: Float[Array, "K G N T"], query: Int[Array, " N"]
) -> LayerCache:
    """All weights [N, H, T], and nothing [N]."""
    return _by_query(weights), jnp.zeros(len(query))


def _weights_of_window(weights: Float[Array, "T H T"], nothing: Float[Array, " T"]) -> LayerCache:
    """Heads first: [H, T, T]."""
    return weights.swapaxes(0, 1), nothing


def _first_of_queries(
    scores: Float[Array, "K G N T"], weights: Float[Array, "K G N T"], query: Int[Array, " N"]
) -> LayerCache:
    """The mass [N, H, 4] on the first 4 positions; their scores and the mean score of the rest, [N, H, 5]."""
    seen = scores > MASKED
    rest = seen & (jnp.arange(scores.shape[-1]) >= FIRST)
    # Mean over the visible keys: the masked sum divided by their number, of which early queries have none.
    mean_of_rest = jnp.where(rest, scores, 0).sum(-1, keepdims=True) / jnp.maximum(rest.sum(-1, keepdims=True), 1)
    first = jnp.where(seen, scores, jnp.nan)[..., :FIRST]
    logits = jnp.concatenate([first, mean_of_rest], axis=-1)
    return _by_query(weights[..., :FIRST]), _by_query(logits)


def _first_of_window(mass: Float[Array, "T H 4"], logits: Float[Array, "T H 5"]) -> LayerCache:
    """The means over the queries of the second half: [H, 4] and [H, 5]."""
    late = slice(first_query(len(mass)), None)
    return mass[late].mean(0), jnp.nanmean(logits[late], axis=0)


def _by_query(x: Float[Array, "K G N any"]) -> Float[Array, "N H any"]:
    return x.reshape(-1, *x.shape[2:]).swapaxes(0, 1)


ON_FIRST = Measure(_first_of_queries, _first_of_window)
WHOLE = Measure(_weights_of_queries, _weights_of_window)


@partial(jax.jit, static_argnames="measure")
def _measure(
    model: Model, windows: Int[Array, "B T"], measure: Measure
) -> tuple[Float[Array, "B L *found"], Float[Array, "B L *others"]]:
    attend = partial(attend_and_measure, dtype=model.dtype, length=windows.shape[1], measure=measure)
    attends, nothing = attend_by_layer(model.config, attend), no_caches(model.config)

    def measured(window: Int[Array, " T"]) -> tuple[LayerCache, ...]:
        # The second output holds the caches, which `attend` has replaced by measurements.
        return model.module.apply({"params": model.params}, window, nothing, attends, -1)[1]

    first, second = zip(*jax.vmap(measured)(windows), strict=True)
    return jnp.stack(first, 1), jnp.stack(second, 1)  # layers become axis 1
