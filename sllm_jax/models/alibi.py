"""Attention with linear biases (ALiBi, arXiv 2108.12409): a penalty on distance instead of a rotation.

The bias is the head's slope times the distance between key and query in cache positions. Inside the window that is the
true distance in the text, for sinks it is smaller, and it is bounded however long the stream. Falcon and MPT in
transformers leave the query's position out. Subtracting it keeps scores near 0 and does not change an ordinary softmax;
with the extra logit of `attention_sink` "zero", which is not shifted, it is part of the model's definition.

Axis letters: T queries, n keys, H query heads.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


@dataclass(frozen=True)
class Alibi:
    """The biases of one model."""

    slopes: tuple[float, ...]  # one per query head
    in_bfloat16: bool = False  # round slopes, positions and their products, as Falcon does
    scale: float = 1.0  # factor of the biases; Falcon scales them like the scores

    def bias(self, key_position: Int[Array, "#T n"], query_position: Int[Array, "T 1"]) -> Float[Array, "H T n"]:
        """The bias of each scaled score, given the cache positions of keys and queries."""
        slopes = jnp.array(self.slopes, jnp.float32)[:, None, None]
        if not self.in_bfloat16:
            return slopes * (key_position - query_position) * self.scale
        rounded = _rounded_product(slopes, key_position) - _rounded_product(slopes, query_position)
        return rounded * self.scale


def falcon_alibi(heads: int, head_dim: int) -> Alibi:
    """ALiBi as in `FalconForCausalLM`: in bfloat16, and scaled like the scores.

    If the number of heads is not a power of two, the slopes of the next lower power come first, then every other slope
    of the next higher one.
    """
    lower = 2 ** math.floor(math.log2(heads))
    slopes = np.concatenate([_geometric(lower, 8.0), _geometric(2 * lower, 8.0)[: 2 * (heads - lower) : 2]])
    return Alibi(tuple(slopes.tolist()), in_bfloat16=True, scale=head_dim**-0.5)


def mpt_alibi(heads: int, bias_max: float) -> Alibi:
    """ALiBi as in `MptForCausalLM`: not rounded.

    If the number of heads is not a power of two, the slopes of the next higher power are used: the 2nd, 4th, ... first,
    then the 1st, 3rd, ...
    """
    slopes = _geometric(2 ** math.ceil(math.log2(heads)), bias_max)
    if len(slopes) != heads:
        slopes = np.concatenate([slopes[1::2], slopes[::2]])[:heads]
    return Alibi(tuple(slopes.tolist()))


def _geometric(heads: int, bias_max: float) -> np.ndarray:
    """2^-(m/n), 2^-(2m/n), ..., 2^-m for n heads and the bias maximum m."""
    return 2.0 ** (-np.arange(1, heads + 1) * bias_max / heads)


def _rounded_product(
    slopes: Float[Array, "H 1 1"], position: Int[Array, "rows columns"]
) -> Float[Array, "H rows columns"]:
    """Slopes times the positions of keys [1 or T, n] or queries [T, 1]; factors and product are rounded to bfloat16."""
    return _in_bfloat16(_in_bfloat16(slopes) * _in_bfloat16(position.astype(jnp.float32)))


def _in_bfloat16(x: Float[Array, ...]) -> Float[Array, ...]:
    """Round to the precision of bfloat16. XLA may remove a conversion there and back, but not this."""
    return jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)
