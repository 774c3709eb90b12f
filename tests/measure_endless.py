"""Measure speed and memory of a long stream (not a test).

    python tests/measure_endless.py CHECKPOINT [--start-size 4] [--recent-size 252] [--old 100000] [--pairs 40]

Two copies of one stream, at 1,000 tokens and at the given number of tokens, alternate in blocks of tokens. The median
ratio of their times is robust against a noisy machine.
"""

import argparse
import time

import jax
import numpy as np
from memory import resident_megabytes

from sllm_jax import load
from sllm_jax.core.decode import NO_TOKEN, decode, init_carry, prefill
from sllm_jax.core.sampling import sampling

BLOCK, YOUNG = 500, 1000
NO_EOS = np.array([NO_TOKEN], np.int32)


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("checkpoint")
    options.add_argument("--start-size", type=int, default=4)
    options.add_argument("--recent-size", type=int, default=252)
    options.add_argument("--old", type=int, default=100_000)
    options.add_argument("--pairs", type=int, default=40)
    asked = options.parse_args()
    model, _ = load(asked.checkpoint)

    def write(carry, tokens):
        for _ in range(tokens // BLOCK):
            carry, _ = decode(model, carry, sampling(1.0), NO_EOS, np.int32(BLOCK), BLOCK)
        return jax.block_until_ready(carry)

    start = init_carry(model, asked.start_size, asked.recent_size)
    young = write(prefill(model, start, np.array([1])), YOUNG)
    old = young.copy()
    before = resident_megabytes()
    old = write(old, asked.old - YOUNG)
    print(f"resident memory: {before:.1f} MB at {YOUNG} tokens, {resident_megabytes():.1f} MB at {asked.old}")
    streams, times = {"young": young, "old": old}, {"young": [], "old": []}
    for pair in range(asked.pairs):
        for name in sorted(streams, reverse=pair % 2 == 0):  # each goes first in every other pair
            begin = time.perf_counter()
            streams[name] = write(streams[name], BLOCK)
            times[name].append(time.perf_counter() - begin)
    ratio = np.median(np.divide(times["old"], times["young"]))
    print(f"{1e3 * np.median(times['young']) / BLOCK:.4f} ms per token, young")
    print(f"{1e3 * np.median(times['old']) / BLOCK:.4f} ms per token, old")
    print(f"ratio old/young {ratio:.3f}, median of {asked.pairs} pairs of blocks of {BLOCK} tokens")


if __name__ == "__main__":
    main()
