"""Compiled programs that write tokens, many in a call, and the time that a token takes in each."""

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

CALL_SECONDS = 0.5  # that a call takes, about
MOST_STEPS = 256


@dataclass(frozen=True)
class Program:
    """Takes `steps` steps a call: what it takes and gives, what it needs, how long it was compiled."""

    call: Callable[[Any], Any]
    start: Any
    steps: int
    memory: int  # bytes: arguments, results and temporary buffers; 0 where it is not known
    compile_seconds: float


def streaming_program(
    model: Model, start_size: int, recent_size: int, streams: int = 1, seed: int = 0, steps: int | None = None
) -> Program:
    """`decode` from a full cache on: `streams` side by side, the same random tokens in all, of different lengths.

    `steps` of a call: None is as many as take about `CALL_SECONDS`, which is compiled twice.
    """
    tokens = random_tokens(model, start_size + recent_size, seed)
    carry = prefill(model, init_carry(model, start_size, recent_size, seed), tokens)
    check_finite(model, carry.logits, f"after {len(tokens)} tokens")
    if streams > 1:
        carry = jax.tree.map(lambda leaf: jnp.repeat(leaf[None], streams, axis=0), carry)
        more = np.repeat(random_tokens(model, CHUNK_SIZES[0], seed)[None], streams, axis=0)
        carry = extend(model, carry, more, np.arange(streams) % CHUNK_SIZES[0])
    rest = (sampling(), np.array([NO_TOKEN], np.int32), np.int32(MOST_STEPS))

    def compile_steps(start: Carry, steps: int) -> Program:
        begin = time.perf_counter()
        program = decode_program.lower(model, start, *rest, steps=steps).compile()
        seconds = time.perf_counter() - begin
        return Program(lambda carry: program(model, carry, *rest)[0], start, steps, memory_of(program), seconds)

    return compile_steps(carry, steps) if steps else _calibrated(compile_steps, carry)


def recompute_program(model: Model, width: int, seed: int = 0, steps: int | None = None) -> Program:
    """Sliding window with re-computation: a fresh forward pass over the last `width` tokens for each new one.

    `steps` as for `streaming`.
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
    """Write `steps` tokens, each from a fresh pass over the last W; the last W then."""

    def step(tokens: Int[Array, " W"], _: None) -> tuple[Int[Array, " W"], None]:
        token = argmax(dense_logits(model, tokens, -1))
        return jnp.append(tokens[1:], token), None

    return jax.lax.scan(step, tokens, None, length=steps)[0]


def seconds_per_step(programs: Sequence[Program], rounds: int) -> np.ndarray:
    """Of each of n programs in each round, [rounds, n]; they take turns, and a first round is not counted."""
    states, seconds = [program.start for program in programs], np.zeros((rounds + 1, len(programs)))
    for i in range(rounds + 1):
        for j, program in enumerate(programs):
            begin = time.perf_counter()
            states[j] = jax.block_until_ready(program.call(states[j]))
            seconds[i, j] = (time.perf_counter() - begin) / program.steps
    return seconds[1:]


def random_tokens(model: Model, count: int, seed: int) -> np.ndarray:
    """Tokens [N] to begin with: what they are changes no time."""
    return np.random.default_rng(seed).integers(0, model.config.vocab_size, count, np.int32)


def memory_of(program: Any) -> int:
    """Bytes that a compiled program needs; what it updates in place counts once."""
    found = program.memory_analysis()
    needed = found.argument_size_in_bytes + found.output_size_in_bytes + found.temp_size_in_bytes
    return needed - found.alias_size_in_bytes


def _calibrated(compile_steps: Callable[[Any, int], Program], start: Any) -> Program:
    """The program with as many steps as take about `CALL_SECONDS`. The state is passed on, so there is only one."""
    one = compile_steps(start, 1)
    state = jax.block_until_ready(one.call(one.start))
    begin = time.perf_counter()
    state = jax.block_until_ready(one.call(state))
    steps = min(int(CALL_SECONDS / (time.perf_counter() - begin)), MOST_STEPS)
    return compile_steps(state, steps) if steps > 1 else replace(one, start=state)
