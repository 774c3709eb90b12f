"""Linear layers. Weights have PyTorch's layout, [out, in], and the model's dtype or int8.

At batch 1 the time of a product is the time to read its weight. A CPU reads [out, in], whose rows each give one output,
faster than [in, out].

A layer with a `scale` has an int8 weight: symmetric, one scale for each output channel.

Axes: *t any number of leading axes (usually the tokens), `in` and `out` features.
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


def matmul_t(x: Float[Array, "*t in"], weight: Float[Array, "out in"], out_dtype: Any) -> Float[Array, "*t out"]:
    """Matrix product of `x` and the transposed weight."""
    precision = precision_of(weight.dtype)
    return jnp.einsum("...i,oi->...o", x, weight, precision=precision, preferred_element_type=out_dtype)


def matmul_t_int8(
    x: Float[Array, "*t in"], weight: Int8[Array, "out in"], scale: Float[Array, " out"], out_dtype: Any
) -> Float[Array, "*t out"]:
    """Matrix product of `x` and the transposed int8 weight, times the scale of each output channel.

    On GPU and TPU, XLA fuses the conversion into the product and reads the weight as int8. On a CPU, the matrix product
    would first write a float copy of the weight, so there a single vector is multiplied and summed instead.
    """

    def product(x: Array, weight: Array) -> Array:
        return matmul_t(x, weight.astype(x.dtype), jnp.float32)

    def on_cpu(x: Array, weight: Array) -> Array:
        # Otherwise XLA hoists the conversion out of the decoding loop and keeps a float copy of the weights.
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
        """Applies the layer to the last axis."""
        x, out_dtype = x.astype(self.dtype), self.out_dtype or self.dtype
        init = nn.initializers.lecun_normal(in_axis=-1, out_axis=-2)
        weight = self.param("weight", init, (self.features, x.shape[-1]), self.dtype)
        if self.has_variable("params", "scale"):
            out = matmul_t_int8(x, weight, self.get_variable("params", "scale"), out_dtype)
        else:
            out = matmul_t(x, weight, out_dtype)
        return out + self.param("bias", nn.initializers.zeros, (self.features,), self.dtype) if self.use_bias else out
