"""Measure the speed-up of perplexity in chunks over token by token (not a test).

    python tests/measure_perplexity.py [--chunk-size 256] [--rounds 5]

Uses the bundled Llama at 4 + 251 and a random one of 110 million parameters at 4 + 1020, in float32, with full caches.
Chunks, chunks of one, `decode` (the fastest program for single tokens) and a plain matrix product alternate, so that
load on the machine affects all of them. Reports medians of the rounds.
"""

import argparse
import time
from statistics import median

import jax
import jax.numpy as jnp
import numpy as np

from sllm_jax import load
from sllm_jax.benchmark.limit import flops_per_token
from sllm_jax.convert.families import module_for
from sllm_jax.core.decode import NO_TOKEN, decode, init_carry, prefill
from sllm_jax.core.model import Model, init_params
from sllm_jax.core.sampling import sampling
from sllm_jax.evaluate.perplexity import Reading, token_nll_batch

LLAMA_110M = {
    "model_type": "llama",
    "vocab_size": 32000,
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 2048,
}
MATRIX = 2048


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--chunk-size", type=int, default=256)
    options.add_argument("--rounds", type=int, default=5)
    asked = options.parse_args()
    module = module_for(LLAMA_110M, jnp.float32)
    compare("bundled:llama", load(dtype="float32")[0], (4, 251), asked, single=200)
    compare("random Llama, 110M", Model(module, init_params(module)), (4, 1020), asked, single=20)


def compare(name: str, model: Model, sizes: tuple[int, int], asked: argparse.Namespace, single: int) -> None:
    in_chunks = Reader(model, sizes, asked.chunk_size)
    one_by_one = Reader(model, sizes, 1)
    writer = Writer(model, sizes)
    times = {"chunks": [], "single": [], "decode": [], "product": []}
    for _ in range(asked.rounds):
        times["chunks"].append(in_chunks.seconds(4 * asked.chunk_size))
        times["single"].append(one_by_one.seconds(single))
        times["decode"].append(writer.seconds())
        times["product"].append(1 / product_rate())
    chunks, single_step, written, product = (median(values) for values in times.values())
    rate = flops_per_token(model, *sizes) / chunks
    print(f"{name}, cache {sizes[0]} + {sizes[1]}, chunks of {asked.chunk_size}:")
    print(f"  {1 / chunks:.0f} tokens/s in chunks, {1 / single_step:.0f} one by one: {single_step / chunks:.1f} x")
    print(f"  {1 / written:.0f} by the program that writes text: {written / chunks:.1f} x")
    print(
        f"  {rate / 1e9:.0f} GFLOP/s, {rate * product:.2f} of the {1e-9 / product:.0f} of a {MATRIX} x {MATRIX} product"
    )


class Reader:
    """A stream that reads random tokens, its cache full."""

    def __init__(self, model: Model, sizes: tuple[int, int], chunk_size: int) -> None:
        self.model, self.sizes, self.chunk_size = model, sizes, chunk_size
        self.ids = np.random.default_rng(0).integers(0, model.config.vocab_size, 200_000)
        self.reading: Reading | None = None
        self.seconds(sum(sizes) + 1, 256)
        self.seconds(chunk_size)

    def seconds(self, tokens: int, chunk_size: int | None = None) -> float:
        """That one token takes, over `tokens` more."""
        begin, done = time.perf_counter(), 0 if self.reading is None else self.reading.done[0]
        for reading in token_nll_batch(
            self.model, [self.ids], "streaming", *self.sizes, chunk_size or self.chunk_size, since=self.reading
        ):
            self.reading = reading
            if reading.done[0] - done >= tokens:
                return (time.perf_counter() - begin) / (reading.done[0] - done)
        raise SystemExit("the random text is over; ask for fewer rounds")


class Writer:
    """A stream that writes, its cache full."""

    def __init__(self, model: Model, sizes: tuple[int, int], steps: int = 32) -> None:
        self.model, self.steps = model, steps
        ids = np.random.default_rng(0).integers(0, model.config.vocab_size, sum(sizes) + 1, np.int32)
        self.carry = prefill(model, init_carry(model, *sizes), ids)
        self.seconds()

    def seconds(self) -> float:
        """That one token takes, over `steps` more."""
        begin, no_eos = time.perf_counter(), np.array([NO_TOKEN], np.int32)
        self.carry, tokens = decode(self.model, self.carry, sampling(), no_eos, np.int32(self.steps), self.steps)
        tokens.block_until_ready()
        return (time.perf_counter() - begin) / self.steps


def product_rate() -> float:
    """Floating-point operations a second of a float32 matrix product."""
    a = jnp.ones((MATRIX, MATRIX), jnp.float32)
    multiply(a).block_until_ready()
    begin = time.perf_counter()
    for _ in range(5):
        product = multiply(a)
    product.block_until_ready()
    return 5 * 2 * MATRIX**3 / (time.perf_counter() - begin)


@jax.jit
def multiply(a: jax.Array) -> jax.Array:
    return jnp.matmul(a, a, precision="highest")


if __name__ == "__main__":
    main()
