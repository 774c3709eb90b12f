"""Where the attention goes: whole maps, and how much the first positions receive (paper, section 3.1, figure 2).

`attend_and_measure` is `attend_causally` that keeps, in the place of each layer's cache, what was measured there.
Axis letters as in `attention.py`, and B windows, L layers. Queries are those of the second half of a text: the first
ones have little else to look at.
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
from sllm_jax.core.blocks import block_scores, mix_values, sink_logits_of, sink_softmax
from sllm_jax.core.model import Model, check_finite
from sllm_jax.models.attend import Attend, LayerCache, attend_by_layer, no_caches
from sllm_jax.models.config import ModelConfig

Measure = Callable[[Array, Array], LayerCache]  # of scores and weights [K, G, T, T]; two arrays, as a layer's cache is
FIRST = 4  # positions that are looked at one by one
_BATCH_TOKENS = 4096  # tokens of all windows that are read in one call


def attention_on_first(model: Model, windows: np.ndarray, progress: Progress = silent) -> tuple[np.ndarray, np.ndarray]:
    """Mean attention over the second halves of windows [B, T] of token ids, each read from nothing.

    Returns the probability that each of the first 4 positions receives, [L, H, 4], and the scaled score before the
    softmax of each of them and, last, of all later ones that a query sees, [L, H, 5].
    """
    return _mean(model, windows, _on_first, progress)


def attention_maps(model: Model, windows: np.ndarray, progress: Progress = silent) -> np.ndarray:
    """Mean attention over windows [B, T], each read from nothing: what query i gives to key j, [L, H, T, T]."""
    return _mean(model, windows, _whole, progress)[0]


def _mean(model: Model, windows: np.ndarray, measure: Measure, progress: Progress) -> tuple[np.ndarray, np.ndarray]:
    """What `measure` finds in each layer, [L, ...], as a mean over the windows."""
    batch = max(1, _BATCH_TOKENS // windows.shape[1])
    sums = []
    for start in range(0, len(windows), batch):
        taken = windows[start : start + batch]
        padded = np.pad(taken, ((0, batch - len(taken)), (0, 0)))
        found = _measure(model, padded, measure)
        check_finite(model, found[0], f"in windows {start} to {start + len(taken) - 1} of {len(windows)}")
        sums.append([np.asarray(values)[: len(taken)].sum(0, dtype=np.float64) for values in found])
        progress(start + len(taken), len(windows))
    first, second = (np.sum(values, axis=0) / len(windows) for values in zip(*sums, strict=True))
    return first, second


def first_query(length: int) -> int:
    """The position of the first query that counts."""
    return length // 2


def uniform_mass(length: int) -> float:
    """What one position receives from the same queries if each looks at all it sees alike."""
    return float(np.mean(1 / (np.arange(first_query(length), length) + 1)))


def attend_and_measure(config: ModelConfig, dtype: Any, length: int, measure: Measure) -> Attend:
    """`attend_causally` that keeps what `measure` finds in the scores and weights of each layer."""
    block_of = causal_block(config, length)

    def attend(
        cache: LayerCache, q: Float[Array, "T H D"], k: Float[Array, "T K D"], v: Float[Array, "T K D"]
    ) -> tuple[LayerCache, Float[Array, "T H D"]]:
        blocks = [block_of(q, k, v)]
        scores = block_scores(blocks, config.score_scale, dtype)
        weights = sink_softmax(scores, sink_logits_of(config))
        return measure(scores, weights), mix_values(weights, blocks, dtype)

    return attend


def _whole(scores: Float[Array, "K G T T"], weights: Float[Array, "K G T T"]) -> LayerCache:
    """All weights [H, T, T]."""
    return weights.reshape(-1, *weights.shape[2:]), jnp.zeros(0)


def _on_first(scores: Float[Array, "K G T T"], weights: Float[Array, "K G T T"]) -> LayerCache:
    """The mass [H, 4] and the scores [H, 5] of `attention_on_first`."""
    late = slice(first_query(length := weights.shape[-1]), None)
    mass = weights[:, :, late, :FIRST].mean(2)
    logits = _first_and_rest(scores[:, :, late], length).mean(2)
    return mass.reshape(-1, FIRST), logits.reshape(-1, FIRST + 1)


def _first_and_rest(scores: Float[Array, "K G N T"], length: int) -> Float[Array, "K G N 5"]:
    """For the last N of T queries: the scores of the first 4 positions, and the mean of the later ones that it sees."""
    query, key = jnp.arange(first_query(length), length)[:, None], jnp.arange(length)
    rest = (key >= FIRST) & (key <= query)
    mean_of_rest = jnp.where(rest, scores, 0).sum(-1, keepdims=True) / rest.sum(-1, keepdims=True)
    return jnp.concatenate([scores[..., :FIRST], mean_of_rest], axis=-1)


@partial(jax.jit, static_argnames="measure")
def _measure(
    model: Model, windows: Int[Array, "B T"], measure: Measure
) -> tuple[Float[Array, "B L *found"], Float[Array, "B L *others"]]:
    attend = partial(attend_and_measure, dtype=model.dtype, length=windows.shape[1], measure=measure)
    attends, nothing = attend_by_layer(model.config, attend), no_caches(model.config)

    def kept(window: Int[Array, " T"]) -> tuple[LayerCache, ...]:
        return model.module.apply({"params": model.params}, window, nothing, attends, -1)[1]

    first, second = zip(*jax.vmap(kept)(windows), strict=True)
    return jnp.stack(first, 1), jnp.stack(second, 1)
