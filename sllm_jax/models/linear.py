"""Linear layers. Their weights are kept as PyTorch keeps them, [out, in].

At batch 1 a product is as fast as its weight is read, and a CPU reads rows that each give one number of the output
faster than rows that all outputs share.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float


def precision_of(dtype: Any) -> jax.lax.Precision:
    """float32 means float32: the highest matrix-product precision on every backend."""
    return jax.lax.Precision.HIGHEST if jnp.dtype(dtype) == jnp.float32 else jax.lax.Precision.DEFAULT


def times(x: Float[Array, "*t in"], weight: Float[Array, "out in"], out_dtype: Any) -> Float[Array, "*t out"]:
    """Each vector of `x` times a weight."""
    precision = precision_of(weight.dtype)
    return jnp.einsum("...i,oi->...o", x, weight, precision=precision, preferred_element_type=out_dtype)


class Linear(nn.Module):
    """A linear layer whose parameters have the given dtype, and its output too unless `out_dtype` says otherwise."""

    features: int
    use_bias: bool
    dtype: Any
    out_dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "*t in"]) -> Float[Array, "*t out"]:
        """One token at a time."""
        init = nn.initializers.lecun_normal(in_axis=-1, out_axis=-2)
        weight = self.param("weight", init, (self.features, x.shape[-1]), self.dtype)
        out = times(x.astype(self.dtype), weight, self.out_dtype or self.dtype)
        return out + self.param("bias", nn.initializers.zeros, (self.features,), self.dtype) if self.use_bias else out
