"""The two jitted programs: `extend` reads tokens, `decode` writes them. Both consume the carry that they are given.

Each compiles once per shape and serves a stream of any length. A carry with an axis B in front of every array holds B
streams; they advance side by side, each with its own state.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float, Int

from sllm_jax.attention import attend_chunk, attend_one
from sllm_jax.kv_state import KVState, Leaf, advance, init_state, live, over_streams
from sllm_jax.models.layers import Attend
from sllm_jax.sampling import Sampling, sample

CHUNK_SIZES = (16, 128, 512)  # a prompt of any length is read in chunks of these sizes, the last one padded
NO_TOKEN = -1  # what a frozen stream writes
NOT_FINITE = -2  # what a stream writes whose logits are not numbers


class Carry(struct.PyTreeNode):
    """All that one stream carries from call to call; or B streams, with an axis B in front of every array.

    Every token that was read or written is in `state`, and `logits` say what may come next: they depend on the tokens
    of the stream alone, not on how it was cut into chunks, and how to sample from them is decided when writing.
    """

    state: KVState
    logits: Leaf  # [V] float32
    done: Leaf  # [] bool: the stream has written an end-of-text token and stands still until more is read
    key: Leaf  # [] random key

    def copy(self) -> Carry:
        """The same carry in arrays of its own."""
        return jax.tree.map(jnp.copy, self)


def init_carry(module: Any, start_size: int, recent_size: int, seed: int = 0, streams: int | None = None) -> Carry:
    """An empty stream, or `streams` of them, each with a random key of its own."""
    batch = () if streams is None else (streams,)
    key = jax.random.key(seed)
    return Carry(
        state=init_state(module.config, start_size, recent_size, module.dtype, streams),
        logits=jnp.zeros((*batch, module.config.vocab_size), jnp.float32),
        done=jnp.zeros(batch, bool),
        key=key if streams is None else jax.random.split(key, streams),
    )


@partial(jax.jit, static_argnames="module", donate_argnames="carry")
def extend(module: Any, params: Any, carry: Carry, token_ids: Int[Array, "*B T"], count: Int[Array, "*B"]) -> Carry:
    """Read a chunk: the first `count` (int32) of the T token ids of each stream; the rest is padding.

    A stream with count 0 stays exactly as it is; with more, one that was done goes on.
    """

    def read(carry: Carry, token_ids: Int[Array, " T"], count: Int[Array, ""]) -> Carry:
        attend = attend_chunk(module.config, module.dtype, carry.state, len(token_ids), count)
        state, logits = forward(module, params, carry.state, token_ids, attend, rows=jnp.maximum(count - 1, 0))
        return carry.replace(
            state=advance(state, token_ids, count),
            logits=jnp.where(count > 0, logits, carry.logits),
            done=carry.done & (count == 0),
        )

    return over_streams(read, carry.state)(carry, token_ids, count)


@partial(jax.jit, static_argnames=("module", "steps"), donate_argnames="carry")
def decode(
    module: Any,
    params: Any,
    carry: Carry,
    options: Sampling,
    eos_ids: Int[Array, " N"],
    limit: Int[Array, ""],
    steps: int,
) -> tuple[Carry, Int[Array, "*B steps"]]:
    """Write up to `steps` tokens, at most `limit`: sample one, feed it back, and so on, without a word to the host.

    A stream that has written one of `eos_ids` stands still, as do all once `limit` tokens are written: frozen streams
    write `NO_TOKEN`. A stream whose logits hold a NaN or an infinity stands still too, and writes `NOT_FINITE`. Returns
    the carry and the tokens.
    """

    def write(carry: Carry, i: Int[Array, ""]) -> tuple[Carry, Int[Array, ""]]:
        ended = carry.done | (i >= limit)
        finite = jnp.isfinite(carry.logits.max())  # a NaN and an infinity are the largest of any numbers
        frozen = ended | ~finite
        greedy = options.temperature is None
        next_key, key = (carry.key, carry.key) if greedy else jax.random.split(carry.key)
        state = carry.state
        token = sample(options, carry.logits, key, state.token_ids, live(state))
        fed, logits = forward(
            module, params, state, token[None], attend_one(module.config, module.dtype, state), rows=0
        )
        written = Carry(
            state=advance(fed, token[None], jnp.where(frozen, 0, 1)),
            logits=jnp.where(frozen, carry.logits, logits),
            done=carry.done | (~frozen & jnp.isin(token, eos_ids)),
            key=jnp.where(frozen, carry.key, next_key),
        )
        return written, jnp.where(ended, NO_TOKEN, jnp.where(finite, token, NOT_FINITE))

    step = over_streams(write, carry.state, in_axes=(0, None))
    carry, tokens = jax.lax.scan(step, carry, jnp.arange(steps, dtype=jnp.int32))
    return carry, jnp.moveaxis(tokens, 0, -1)


def chunks(token_ids: np.ndarray) -> Iterator[tuple[np.ndarray, np.int32]]:
    """Cut token ids [N] into padded chunks of a few sizes, each with the number of tokens in it."""
    while len(token_ids):
        size = next((size for size in CHUNK_SIZES if size >= len(token_ids)), CHUNK_SIZES[-1])
        chunk, token_ids = token_ids[:size], token_ids[size:]
        yield np.pad(chunk, (0, size - len(chunk))).astype(np.int32), np.int32(len(chunk))


def read(module: Any, params: Any, carry: Carry, token_ids: np.ndarray) -> Carry:
    """Read a prompt of any length into one stream, in chunks."""
    for chunk, count in chunks(token_ids):
        carry = extend(module, params, carry, chunk, count)
    return carry


def forward(
    module: Any, params: Any, state: KVState, token_ids: Int[Array, " T"], attend: Attend, rows: Any
) -> tuple[KVState, Float[Array, "*t V"]]:
    """The state with the keys and values of T tokens written, and the logits of those that `rows` selects."""
    caches = tuple(zip(state.k, state.v, strict=True))
    logits, caches = module.apply({"params": params}, token_ids, caches, attend, rows)
    k, v = zip(*caches, strict=True)
    return state.replace(k=k, v=v), logits
