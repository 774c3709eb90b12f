"""Linear layers. Their weights are kept as PyTorch keeps them, [out, in], in the model's dtype or as int8.

At batch 1 a product is as fast as its weight is read, and a CPU reads rows that each give one number of the output
faster than rows that all outputs share.

A weight is int8 if its layer also has a `scale`: symmetric, one scale for each output channel. See `sllm_jax.int8`.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int8


def precision_of(dtype: Any) -> jax.lax.Precision:
    """float32 means float32: the highest matrix-product precision on every backend."""
    return jax.lax.Precision.HIGHEST if jnp.dtype(dtype) == jnp.float32 else jax.lax.Precision.DEFAULT


def times(x: Float[Array, "*t in"], weight: Float[Array, "out in"], out_dtype: Any) -> Float[Array, "*t out"]:
    """Each vector of `x` times a weight."""
    precision = precision_of(weight.dtype)
    return jnp.einsum("...i,oi->...o", x, weight, precision=precision, preferred_element_type=out_dtype)


def times_int8(
    x: Float[Array, "*t in"], weight: Int8[Array, "out in"], scale: Float[Array, " out"], out_dtype: Any
) -> Float[Array, "*t out"]:
    """Each vector of `x` times an int8 weight, which is read as it is where the compiler takes in the conversion.

    A CPU's matrix product does not: it would write the weight out in floats first. For a single vector there, products
    are added up instead.
    """

    def product(x: Array, weight: Array) -> Array:
        return times(x, weight.astype(x.dtype), jnp.float32)

    def on_cpu(x: Array, weight: Array) -> Array:
        x, weight = jax.lax.optimization_barrier((x, weight))  # else the conversion is moved out of the loop over steps
        if math.prod(x.shape[:-1]) > 1:
            return product(x, weight)
        return (x.reshape(-1).astype(jnp.float32) * weight.astype(jnp.float32)).sum(-1).reshape(*x.shape[:-1], -1)

    return (jax.lax.platform_dependent(x, weight, cpu=on_cpu, default=product) * scale).astype(out_dtype)


class Linear(nn.Module):
    """A linear layer whose parameters have the given dtype, and its output too unless `out_dtype` says otherwise."""

    features: int
    use_bias: bool
    dtype: Any
    out_dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "*t in"]) -> Float[Array, "*t out"]:
        """One token at a time."""
        x, out_dtype = x.astype(self.dtype), self.out_dtype or self.dtype
        init = nn.initializers.lecun_normal(in_axis=-1, out_axis=-2)
        weight = self.param("weight", init, (self.features, x.shape[-1]), self.dtype)
        if self.has_variable("params", "scale"):
            out = times_int8(x, weight, self.get_variable("params", "scale"), out_dtype)
        else:
            out = times(x, weight, out_dtype)
        return out + self.param("bias", nn.initializers.zeros, (self.features,), self.dtype) if self.use_bias else out
