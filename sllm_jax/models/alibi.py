"""Attention with linear biases (ALiBi, arXiv 2108.12409): a penalty for distance in the place of a rotation.

The bias of a key is the slope of the head times the key's cache position, so that it is the true distance inside the
window, and bounded, however long the stream. The query's own share is taken off: a softmax does not see it, and scores
stay near 0.

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

    slopes: tuple[float, ...]  # one a query head
    in_bfloat16: bool = False  # slopes, positions and their products are rounded, as Falcon's are
    scale: float = 1.0  # what the biases are multiplied by; Falcon's scale is that of the scores

    def bias(self, key: Int[Array, "#T n"], query: Int[Array, "T 1"]) -> Float[Array, "H T n"]:
        """What is added to the scaled score of each query and key, given their cache positions."""
        slopes = jnp.array(self.slopes, jnp.float32)[:, None, None]
        if not self.in_bfloat16:
            return slopes * (key - query) * self.scale
        return (_rounded_product(slopes, key) - _rounded_product(slopes, query)) * self.scale


def falcon_alibi(heads: int, head_dim: int) -> Alibi:
    """As `FalconForCausalLM` has it: in bfloat16, and scaled with the scores.

    For a number of heads that is no power of two the slopes of the next lower one come first, then every other one of
    those of the next higher one.
    """
    lower = 2 ** math.floor(math.log2(heads))
    slopes = np.concatenate([_geometric(lower, 8.0), _geometric(2 * lower, 8.0)[: 2 * (heads - lower) : 2]])
    return Alibi(tuple(slopes.tolist()), in_bfloat16=True, scale=head_dim**-0.5)


def mpt_alibi(heads: int, bias_max: float) -> Alibi:
    """As `MptForCausalLM` has it: exact.

    For a number of heads that is no power of two: of the next higher one every other slope, the second one first.
    """
    slopes = _geometric(2 ** math.ceil(math.log2(heads)), bias_max)
    if len(slopes) != heads:
        slopes = np.concatenate([slopes[1::2], slopes[::2]])[:heads]
    return Alibi(tuple(slopes.tolist()))


def _geometric(heads: int, bias_max: float) -> np.ndarray:
    """2^-(m/n), 2^-(2m/n), ..., 2^-m for n heads and the bias maximum m."""
    return 2.0 ** (-np.arange(1, heads + 1) * bias_max / heads)


def _rounded_product(slopes: Float[Array, "H 1 1"], position: Int[Array, "t n"]) -> Float[Array, "H t n"]:
    return _in_bfloat16(_in_bfloat16(slopes) * _in_bfloat16(position.astype(jnp.float32)))


def _in_bfloat16(x: Float[Array, ...]) -> Float[Array, ...]:
    """Rounded to the precision of bfloat16; a conversion there and back may be optimized away."""
    return jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)
