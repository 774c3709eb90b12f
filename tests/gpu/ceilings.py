"""The hardware limits: bandwidth of copies and reads, and floating-point throughput of matrix products."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from random_models import make_probes_small
from step import Record, run

from sllm_jax.benchmark import limit
from sllm_jax.benchmark.programs import Program, seconds_per_step

PRODUCTS = 16  # of a call


def measure(record: Record, tiny: bool) -> None:
    """Medians of 9 calls."""
    if tiny:
        make_probes_small()
    copy, read = np.median(limit.PROBE_BYTES / seconds_per_step(limit.probes(), 9), axis=0)
    record.note(copy_gb_per_second=copy / 1e9, read_gb_per_second=read / 1e9, probe_bytes=limit.PROBE_BYTES)
    for size, dtype in ((256, jnp.bfloat16),) if tiny else ((8192, jnp.bfloat16), (4096, jnp.float32)):
        name = jnp.dtype(dtype).name
        record.attempt("products", {"size": size, "dtype": name}, partial(product_figures, size, dtype))


def product_figures(size: int, dtype: jnp.dtype) -> dict[str, float]:
    """Of square matrices of random numbers, each product times the next one; float32 at the highest precision."""
    left, right = (jax.random.normal(jax.random.key(i), (size, size), dtype) for i in range(2))
    right = right * jnp.asarray(size**-0.5, dtype)
    call = partial(chain, right=right)
    seconds = float(np.median(seconds_per_step([Program(call, left, PRODUCTS, 0, 0)], 9)))
    return {"ms": 1e3 * seconds, "tflops": 2 * size**3 / seconds / 1e12}


@jax.jit
def chain(left: jax.Array, right: jax.Array) -> jax.Array:
    """`left` times `right`, `PRODUCTS` times; the sizes of its numbers stay."""
    precision = "highest" if left.dtype == jnp.float32 else None
    return jax.lax.fori_loop(0, PRODUCTS, lambda _, left: jnp.matmul(left, right, precision=precision), left)


if __name__ == "__main__":
    run(measure)
