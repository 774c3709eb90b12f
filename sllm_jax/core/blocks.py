"""Attention over blocks of keys: scores, masks, one softmax over all blocks, and the mixture of values.

Axis letters: T queries, n keys, K key/value heads, G query heads per key/value head, H = K G query heads, D head
dimension.
"""

from __future__ import annotations

from functools import partial, reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from sllm_jax.models.config import ModelConfig
from sllm_jax.models.linear import precision_of

MASKED = -1e30  # finite: a query with nothing to see must not become NaN and reach valid tokens through the next layer


class Block(NamedTuple):
    """T queries, n keys and their values, positions applied; which keys each query sees, and what its scores get."""

    q: Float[Array, "K G T D"]
    k: Float[Array, "K n D"]
    v: Float[Array, "K n D"]
    mask: Bool[Array, "T n"]
    bias: Float[Array, "K G T n"] | None = None


def attend_to_blocks(blocks: list[Block], config: ModelConfig, dtype: Any) -> Float[Array, "T H D"]:
    """Attention with one softmax over the keys of all blocks."""
    weights = sink_softmax(block_scores(blocks, config.score_scale, dtype), sink_logits_of(config))
    return mix_values(weights, blocks, dtype)


def block_scores(blocks: list[Block], scale: float, dtype: Any) -> Float[Array, "K G T n"]:
    """The masked scores of several blocks side by side; n counts the keys of all blocks. float32."""
    product = partial(jnp.einsum, "kgtd,knd->kgtn", precision=precision_of(dtype), preferred_element_type=jnp.float32)
    scores = [masked_scores(product(block.q, block.k), block.mask, scale, block.bias) for block in blocks]
    return jnp.concatenate(scores, axis=-1)


def masked_scores(
    products: Float[Array, "K G *T n"], mask: Bool[Array, "*T n"], scale: float, bias: Float[Array, "K G *T n"] | None
) -> Float[Array, "K G *T n"]:
    """Scale products of queries and keys, add the position bias, and set what a query does not see to `MASKED`."""
    scores = products * scale
    if bias is not None:
        scores += bias
    return jnp.where(mask, scores, MASKED)


def sink_softmax(
    scores: Float[Array, "*batch n"], sink_logits: Float[Array, "#*batch"] | None = None
) -> Float[Array, "*batch n"]:
    """Softmax over n keys, or over n keys and a sink: one more logit, whose value is 0 (paper, equation 2).

    `sink_logits` are broadcast over the scores; with them the n weights add up to less than 1.
    """
    if sink_logits is None:
        return jax.nn.softmax(scores, axis=-1)
    sink = sink_logits[..., None]  # [*batch, 1]
    # A softmax does not depend on what is subtracted, and neither does its gradient.
    top = jax.lax.stop_gradient(jnp.maximum(scores.max(axis=-1, keepdims=True), sink))
    weights = jnp.exp(scores - top)
    return weights / (jnp.exp(sink - top) + weights.sum(axis=-1, keepdims=True))


def sink_logits_of(config: ModelConfig) -> Float[Array, ""] | None:
    """The logit that every softmax of the model has besides those of its keys; None if there is none."""
    return jnp.float32(0) if config.attention_sink == "zero" else None


def mix_values(weights: Float[Array, "K G T n"], blocks: list[Block], dtype: Any) -> Float[Array, "T H D"]:
    """The weighted sum of the values of all blocks, which lie side by side in `weights`."""
    # Cut the weights where one block ends and the next begins.
    ends = [sum(block.k.shape[1] for block in blocks[: i + 1]) for i in range(len(blocks) - 1)]
    parts = jnp.split(weights.astype(dtype), ends, axis=-1)
    product = partial(jnp.einsum, "kgtn,knd->kgtd", precision=precision_of(dtype), preferred_element_type=jnp.float32)
    mixed = reduce(jnp.add, [product(w, block.v) for w, block in zip(parts, blocks, strict=True)])
    # Back to the model's layout: [K, G, T, D] -> [T, K, G, D] -> [T, H, D].
    K, G, T, D = mixed.shape  # noqa: N806
    return mixed.transpose(2, 0, 1, 3).reshape(T, K * G, D).astype(dtype)


def position_bias(
    config: ModelConfig, key: Int[Array, "#T n"], query: Int[Array, "T 1"]
) -> Float[Array, "K G T n"] | None:
    """The ALiBi bias of the scores at these cache positions of keys and queries; None for a model without ALiBi."""
    if config.alibi is None:
        return None
    bias = config.alibi.bias(key, query)  # [H, T, n]
    kv_heads = config.num_key_value_heads
    return bias.reshape(kv_heads, config.num_attention_heads // kv_heads, *bias.shape[1:])


def heads_first(x: Float[Array, "T K D"]) -> Float[Array, "K T D"]:
    """Keys or values in a block's layout."""
    return x.swapaxes(0, 1)


def grouped(q: Float[Array, "T H D"], kv_heads: int) -> Float[Array, "K G T D"]:
    """Queries in a block's layout: query head h belongs to key/value head h // G."""
    T, H, D = q.shape  # noqa: N806
    return q.reshape(T, kv_heads, H // kv_heads, D).transpose(1, 2, 0, 3)
