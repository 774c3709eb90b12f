"""Compiled programs that write many tokens per call, and their time per token.

Axis letters: W tokens of a re-computed window, N tokens.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from sllm_jax.core.decode import CHUNK_SIZES, NO_TOKEN, Carry, decode_program, extend, init_carry, prefill
from sllm_jax.core.model import Model, check_finite, dense_logits
from sllm_jax.core.sampling import argmax, sampling

CALL_SECONDS = 0.5  # target duration of a call
MOST_STEPS = 256  # limit on the steps of a call


@dataclass(frozen=True)
class Program:
    """A compiled program that runs `steps` steps per call and maps a state to the next one."""

    call: Callable[[Any], Any]  # state -> state
    start: Any  # the first state
    steps: int
    memory: int  # bytes of arguments, results and temporary buffers; 0 if unknown
    compile_seconds: float


def streaming_program(
    model: Model, start_size: int, recent_size: int, streams: int = 1, seed: int = 0, steps: int | None = None
) -> Program:
    """`decode` starting from full caches of `streams` streams, which hold the same random tokens at different lengths.

    `steps` None chooses as many steps per call as take about `CALL_SECONDS`, which needs a second compilation.
    """
    tokens = random_tokens(model, start_size + recent_size, seed)
    carry = prefill(model, init_carry(model, start_size, recent_size, seed), tokens)
    check_finite(model, carry.logits, f"after {len(tokens)} tokens")
    if streams > 1:
        carry = jax.tree.map(lambda leaf: jnp.repeat(leaf[None], streams, axis=0), carry)  # add the axis of streams
        # Each stream reads a different number of further tokens.
        more = np.repeat(random_tokens(model, CHUNK_SIZES[0], seed)[None], streams, axis=0)
        carry = extend(model, carry, more, np.arange(streams) % CHUNK_SIZES[0])
    # Remaining arguments: greedy sampling, no end-of-text token, limit.
    rest = (sampling(), np.array([NO_TOKEN], np.int32), np.int32(MOST_STEPS))

    def compile_steps(start: Carry, steps: int) -> Program:
        begin = time.perf_counter()
        program = decode_program.lower(model, start, *rest, steps=steps).compile()
        seconds = time.perf_counter() - begin
        return Program(lambda carry: program(model, carry, *rest)[0], start, steps, memory_of(program), seconds)

    return compile_steps(carry, steps) if steps else _calibrated(compile_steps, carry)


def recompute_program(model: Model, width: int, seed: int = 0, steps: int | None = None) -> Program:
    """Sliding window with re-computation: a fresh forward pass over the last `width` tokens for each new one.

    `steps` as for `streaming_program`.
    """

    def compile_steps(start: Array, steps: int) -> Program:
        begin = time.perf_counter()
        program = recompute.lower(model, start, steps=steps).compile()
        seconds = time.perf_counter() - begin
        return Program(lambda tokens: program(model, tokens), start, steps, memory_of(program), seconds)

    tokens = jnp.asarray(random_tokens(model, width, seed))
    return compile_steps(tokens, steps) if steps else _calibrated(compile_steps, tokens)


@partial(jax.jit, static_argnames="steps", donate_argnames="tokens")
def recompute(model: Model, tokens: Int[Array, " W"], steps: int) -> Int[Array, " W"]:
    """Write `steps` tokens, each from a fresh pass over the last W tokens; return the last W tokens."""

    def step(tokens: Int[Array, " W"], _: None) -> tuple[Int[Array, " W"], None]:
        token = argmax(dense_logits(model, tokens, -1))
        return jnp.append(tokens[1:], token), None  # drop the oldest token, append the new one

    return jax.lax.scan(step, tokens, None, length=steps)[0]


def seconds_per_step(programs: Sequence[Program], rounds: int) -> np.ndarray:
    """The seconds per step of n programs, [rounds, n]. Their calls alternate; a warm-up round is left out."""
    states, seconds = [program.start for program in programs], np.zeros((rounds + 1, len(programs)))
    for i in range(rounds + 1):
        for j, program in enumerate(programs):
            begin = time.perf_counter()
            states[j] = jax.block_until_ready(program.call(states[j]))
            seconds[i, j] = (time.perf_counter() - begin) / program.steps
    return seconds[1:]


def random_tokens(model: Model, count: int, seed: int) -> np.ndarray:
    """Random token ids [N], int32; their values do not affect timing."""
    return np.random.default_rng(seed).integers(0, model.config.vocab_size, count, np.int32)


def memory_of(program: Any) -> int:
    """The bytes that a compiled program needs; donated buffers count once."""
    found = program.memory_analysis()
    needed = found.argument_size_in_bytes + found.output_size_in_bytes + found.temp_size_in_bytes
    return needed - found.alias_size_in_bytes


def _calibrated(compile_steps: Callable[[Any, int], Program], start: Any) -> Program:
    """The program with as many steps per call as take about `CALL_SECONDS`; there is never a second state in memory."""
    one = compile_steps(start, 1)
    state = jax.block_until_ready(one.call(one.start))  # warm-up
    begin = time.perf_counter()
    state = jax.block_until_ready(one.call(state))
    steps = min(int(CALL_SECONDS / (time.perf_counter() - begin)), MOST_STEPS)
    return compile_steps(state, steps) if steps > 1 else replace(one, start=state)
