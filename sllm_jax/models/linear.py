"""Linear layers. Weights have PyTorch's layout, [out, in], and the model's dtype or int8.

At batch 1 the time of a product is the time to read its weight. A CPU reads [out, in], whose rows each give one output,
faster than [in, out].

A layer with a `scale` has an int8 weight: symmetric, one scale for each output channel. See `sllm_jax.core.int8`.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int8


def precision_of(dtype: Any) -> jax.lax.Precision:
    """The precision of matrix products. float32 means float32 on every backend: never TF32 or bfloat16 passes."""
    return jax.lax.Precision.HIGHEST if jnp.dtype(dtype) == jnp.float32 else jax.lax.Precision.DEFAULT


def times(x: Float[Array, "*t in"], weight: Float[Array, "out in"], out_dtype: Any) -> Float[Array, "*t out"]:
    """`x` times the transposed weight."""
    precision = precision_of(weight.dtype)
    return jnp.einsum("...i,oi->...o", x, weight, precision=precision, preferred_element_type=out_dtype)


def times_int8(
    x: Float[Array, "*t in"], weight: Int8[Array, "out in"], scale: Float[Array, " out"], out_dtype: Any
) -> Float[Array, "*t out"]:
    """`x` times the transposed int8 weight, scaled.

    GPU and TPU compilers fuse the conversion into the product and read the weight as int8. A CPU's matrix product would
    write the weight out in floats first, so there a single vector is multiplied and summed instead.
    """

    def product(x: Array, weight: Array) -> Array:
        return times(x, weight.astype(x.dtype), jnp.float32)

    def on_cpu(x: Array, weight: Array) -> Array:
        # Without the barrier the conversion is hoisted out of the loop over steps, and floats are kept.
        x, weight = jax.lax.optimization_barrier((x, weight))
        if math.prod(x.shape[:-1]) > 1:
            return product(x, weight)
        return (x.reshape(-1).astype(jnp.float32) * weight.astype(jnp.float32)).sum(-1).reshape(*x.shape[:-1], -1)

    return (jax.lax.platform_dependent(x, weight, cpu=on_cpu, default=product) * scale).astype(out_dtype)


class Linear(nn.Module):
    """A linear layer. Parameters have the given dtype, and so has the output unless `out_dtype` is given."""

    features: int
    use_bias: bool
    dtype: Any
    out_dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "*t in"]) -> Float[Array, "*t out"]:
        """Position-wise."""
        x, out_dtype = x.astype(self.dtype), self.out_dtype or self.dtype
        init = nn.initializers.lecun_normal(in_axis=-1, out_axis=-2)
        weight = self.param("weight", init, (self.features, x.shape[-1]), self.dtype)
        if self.has_variable("params", "scale"):
            out = times_int8(x, weight, self.get_variable("params", "scale"), out_dtype)
        else:
            out = times(x, weight, out_dtype)
        return out + self.param("bias", nn.initializers.zeros, (self.features,), self.dtype) if self.use_bias else out
