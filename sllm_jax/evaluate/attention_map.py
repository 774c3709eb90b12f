"""Attention maps, and the attention on the first positions (paper, section 3.1, figure 2).

`attend_and_measure` is `attend_causally` that returns a measurement in place of each layer's cache. Axis letters as in
`attention.py`, and B windows, N queries, L layers. Only the queries of the second half of a window count, because the
early ones see little besides the first positions.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from sllm_jax.common.progress import Progress, silent
from sllm_jax.core.attention import causal_block
from sllm_jax.core.blocks import block_scores, sink_logit_of, sink_softmax, weighted_sum
from sllm_jax.core.model import Model, check_finite
from sllm_jax.models.attend import Attend, LayerCache, attend_by_layer, no_caches
from sllm_jax.models.config import ModelConfig

Measure = Callable[[Array, Array], LayerCache]  # scores, weights [K, G, T, T] -> two arrays, like a layer's cache
FIRST = 4  # positions that are measured individually
_BATCH_TOKENS = 4096  # tokens per device call, over all windows


def attention_on_first(model: Model, windows: np.ndarray, progress: Progress = silent) -> tuple[np.ndarray, np.ndarray]:
    """Mean attention of the queries in the second halves of windows [B, T] of token ids; windows are independent.

    Returns the probability on each of the first 4 positions, [L, H, 4], and the scaled scores before the softmax,
    [L, H, 5]: one for each of these positions, and last the mean over the later positions that a query sees.
    `progress` is called as progress(windows done, windows).
    """
    return _mean(model, windows, _on_first, progress)


def attention_maps(model: Model, windows: np.ndarray, progress: Progress = silent) -> np.ndarray:
    """Mean attention maps over independent windows [B, T]: the weight of query i on key j, [L, H, T, T]."""
    return _mean(model, windows, _whole, progress)[0]


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
    """`attend_causally` that returns `measure(scores, weights)` in place of each layer's cache."""
    block_of = causal_block(config, length)

    def attend(
        cache: LayerCache, q: Float[Array, "T H D"], k: Float[Array, "T K D"], v: Float[Array, "T K D"]
    ) -> tuple[LayerCache, Float[Array, "T H D"]]:
        blocks = [block_of(q, k, v)]
        scores = block_scores(blocks, config.score_scale, dtype)  # [K, G, T, T]
        weights = sink_softmax(scores, sink_logit_of(config))  # [K, G, T, T]
        return measure(scores, weights), weighted_sum(weights, blocks, dtype)

    return attend


def _whole(scores: Float[Array, "K G T T"], weights: Float[Array, "K G T T"]) -> LayerCache:
    """All weights [H, T, T], and an empty second array."""
    return weights.reshape(-1, *weights.shape[2:]), jnp.zeros(0)


def _on_first(scores: Float[Array, "K G T T"], weights: Float[Array, "K G T T"]) -> LayerCache:
    """The mass [H, 4] and the scores [H, 5] of `attention_on_first`."""
    late = slice(first_query(length := weights.shape[-1]), None)
    mass = weights[:, :, late, :FIRST].mean(2)  # [K, G, 4], mean over queries
    logits = _first_and_rest(scores[:, :, late], length).mean(2)  # [K, G, 5]
    return mass.reshape(-1, FIRST), logits.reshape(-1, FIRST + 1)


def _first_and_rest(scores: Float[Array, "K G N T"], length: int) -> Float[Array, "K G N 5"]:
    """For the last N of T queries: scores of the first 4 positions, and the mean score of the later visible ones."""
    query, key = jnp.arange(first_query(length), length)[:, None], jnp.arange(length)
    rest = (key >= FIRST) & (key <= query)  # [N, T]: visible and not among the first
    # Mean over the visible keys: the masked sum divided by their number.
    mean_of_rest = jnp.where(rest, scores, 0).sum(-1, keepdims=True) / rest.sum(-1, keepdims=True)
    return jnp.concatenate([scores[..., :FIRST], mean_of_rest], axis=-1)


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
