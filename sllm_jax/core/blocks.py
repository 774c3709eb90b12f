"""Attention over blocks of keys: scores, masks, one softmax over all blocks, and the weighted sum of the values.

Axis letters: T queries, n keys, K key/value heads, G query heads per key/value head, H = K G query heads, D head
dimension.
"""

from __future__ import annotations

from functools import partial, reduce
from itertools import accumulate
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from sllm_jax.models.config import ModelConfig
from sllm_jax.models.linear import precision_of

# Finite, so that a row that is masked entirely (padding) gets a uniform softmax and not NaN, which would spread to
# valid rows. It protects scores only: a masked key still needs a finite value, since 0 * NaN is NaN.
MASKED = -1e30


class Block(NamedTuple):
    """A block of attention: queries and keys, both already rotated, and values.

    `mask` marks the keys that each query attends to; `bias` is added to the scores (ALiBi).
    """

    q: Float[Array, "K G T D"]
    k: Float[Array, "K n D"]
    v: Float[Array, "K n D"]
    mask: Bool[Array, "T n"]
    bias: Float[Array, "K G T n"] | None = None


def attend_to_blocks(blocks: list[Block], config: ModelConfig, dtype: Any) -> Float[Array, "T H D"]:
    """Attention with one softmax over the keys of all blocks. `dtype` is that of the weights and of the output."""
    weights = sink_softmax(block_scores(blocks, config, dtype), sink_logit_of(config))
    return weighted_sum(weights, blocks, dtype)


def block_scores(blocks: list[Block], config: ModelConfig, dtype: Any) -> Float[Array, "K G T n"]:
    """The masked scores of all blocks in float32, concatenated: here n is the number of keys of all blocks together."""
    product = partial(jnp.einsum, "kgtd,knd->kgtn", precision=precision_of(dtype), preferred_element_type=jnp.float32)
    scores = [masked_scores(product(block.q, block.k), block.mask, config, block.bias) for block in blocks]
    return jnp.concatenate(scores, axis=-1)


def masked_scores(
    dot_products: Float[Array, "K G *T n"],
    mask: Bool[Array, "*T n"],
    config: ModelConfig,
    bias: Float[Array, "K G *T n"] | None,
) -> Float[Array, "K G *T n"]:
    """Scale dot products of queries and keys, cap them softly, add the position bias, and mask with `MASKED`.

    Only models with a `score_cap` have a cap.
    """
    scores = dot_products * config.score_scale
    if config.score_cap is not None:
        scores = config.score_cap * jnp.tanh(scores / config.score_cap)
    if bias is not None:
        scores += bias
    return jnp.where(mask, scores, MASKED)


def sink_softmax(
    scores: Float[Array, "*batch n"], sink_logits: Float[Array, "#*batch"] | None = None
) -> Float[Array, "*batch n"]:
    """Softmax over the last axis.

    With `sink_logits`, broadcast over the scores, each row has one extra logit whose value vector is zero: it takes
    part in the normalization only, so the n weights sum to less than 1 (paper, equation 2, where the logit is 0).
    """
    if sink_logits is None:
        return jax.nn.softmax(scores, axis=-1)
    sink = sink_logits[..., None]  # [*batch, 1]
    # Subtracting the maximum changes neither the result nor its gradient, so its own gradient is stopped.
    top = jax.lax.stop_gradient(jnp.maximum(scores.max(axis=-1, keepdims=True), sink))
    weights = jnp.exp(scores - top)
    return weights / (jnp.exp(sink - top) + weights.sum(axis=-1, keepdims=True))


def sink_logit_of(config: ModelConfig) -> Float[Array, ""] | None:
    """The extra logit of every softmax of the model (`attention_sink` "zero", softmax-off-by-one), or None."""
    return jnp.float32(0) if config.attention_sink == "zero" else None


def weighted_sum(weights: Float[Array, "K G T n"], blocks: list[Block], dtype: Any) -> Float[Array, "T H D"]:
    """The attention output: the weighted sum of the values of all blocks, whose weights are concatenated."""
    # Split the weights where one block ends and the next begins.
    ends = list(accumulate(block.k.shape[1] for block in blocks))[:-1]
    parts = jnp.split(weights.astype(dtype), ends, axis=-1)
    product = partial(jnp.einsum, "kgtn,knd->kgtd", precision=precision_of(dtype), preferred_element_type=jnp.float32)
    output = reduce(jnp.add, [product(w, block.v) for w, block in zip(parts, blocks, strict=True)])
    # Back to the model's layout: [K, G, T, D] -> [T, K, G, D] -> [T, H, D].
    K, G, T, D = output.shape  # noqa: N806
    return output.transpose(2, 0, 1, 3).reshape(T, K * G, D).astype(dtype)


def position_bias(
    config: ModelConfig, key_position: Int[Array, "#T n"], query_position: Int[Array, "T 1"]
) -> Float[Array, "K G T n"] | None:
    """The ALiBi bias of the scores, given the cache positions of keys and queries; None for a model without ALiBi."""
    if config.alibi is None:
        return None
    bias = config.alibi.bias(key_position, query_position)  # [H, T, n]
    kv_heads = config.num_key_value_heads
    # [H, T, n] -> [K, G, T, n]
    return bias.reshape(kv_heads, config.num_attention_heads // kv_heads, *bias.shape[1:])


def heads_first(x: Float[Array, "T K D"]) -> Float[Array, "K T D"]:
    """Keys or values in the layout of `Block`: [T, K, D] -> [K, T, D]."""
    return x.swapaxes(0, 1)


def grouped(q: Float[Array, "T H D"], kv_heads: int) -> Float[Array, "K G T D"]:
    """Queries in the layout of `Block`: query head h belongs to key/value head h // G."""
    T, H, D = q.shape  # noqa: N806
    return q.reshape(T, kv_heads, H // kv_heads, D).transpose(1, 2, 0, 3)
