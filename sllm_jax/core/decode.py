"""The two compiled programs of a stream: `extend` processes given tokens, `decode` generates new ones.

Both donate their carry: its buffers are reused, and it must not be used afterwards. Each program compiles once per
shape and serves a stream of any length. A carry can hold a batch of B streams: then every array has a leading axis B,
and the streams advance together, each with its own state.

`extend` and `decode` check their arguments and run `extend_program` and `decode_program`, which are `jax.jit` functions
of arrays.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float, Int, PRNGKeyArray

from sllm_jax.common.errors import SllmError
from sllm_jax.core.arrays import IntArrayLike, Leaf, check_in_range, int32_array
from sllm_jax.core.attention import attend_chunk, attend_one
from sllm_jax.core.kv_state import KVState, advance, init_state, live, over_streams
from sllm_jax.core.model import Model
from sllm_jax.core.sampling import Sampling, sample
from sllm_jax.models.attend import Attend, attend_by_layer

# A prompt of any length is processed in chunks of these sizes, one program each; the last chunk is padded.
CHUNK_SIZES = (16, 128, 512)
NO_TOKEN = -1  # marks the steps of a stream that has ended, or reached the limit
NOT_FINITE = -2  # marks the steps of a stream whose logits are not finite numbers


class Carry(struct.PyTreeNode):
    """The state of generation of one stream; or of a batch of B streams, then every array has a leading axis B.

    `state` holds every token that was processed or generated, and `logits` predict the next one. They depend only on
    the tokens, not on how these were cut into chunks (up to rounding). Sampling options are arguments of `decode`.
    """

    state: KVState
    logits: Leaf  # [V] float32
    done: Leaf  # [] bool: the stream has generated an end-of-text token, and is frozen until it is extended
    key: Leaf  # [] typed PRNG key (jax.random.key)

    def copy(self) -> Carry:
        """A deep copy. Needed to keep a carry, because `extend` and `decode` donate theirs."""
        return jax.tree.map(jnp.copy, self)


def init_carry(model: Model, start_size: int, recent_size: int, seed: int = 0, streams: int | None = None) -> Carry:
    """An empty stream that keeps the first `start_size` and the last `recent_size` tokens.

    With `streams` = B, a batch of B empty streams; each gets a random key of its own, made from `seed`. Raises
    `SllmError` for invalid sizes, and before allocating anything if the state does not fit in free memory.
    """
    state = init_state(model.config, start_size, recent_size, model.dtype, streams)
    batch = () if streams is None else (streams,)
    key = jax.random.key(seed)
    return Carry(
        state=state,
        logits=jnp.zeros((*batch, model.config.vocab_size), jnp.float32),
        done=jnp.zeros(batch, bool),
        key=key if streams is None else jax.random.split(key, streams),
    )


def extend(model: Model, carry: Carry, token_ids: IntArrayLike, counts: IntArrayLike) -> Carry:
    """Process one chunk of tokens, and return the new carry.

    `token_ids` [*B, T] are padded on the right with any number; `counts` [*B] are the numbers of real tokens. T is a
    shape: each new T compiles. A stream with count 0 is unchanged; any tokens un-freeze a stream that was done.

    Raises `SllmError` for a carry that was donated before, for arrays whose dtypes or shapes do not fit, for token ids
    outside the vocabulary, and for counts above T. The values in JAX arrays are not checked, since that would wait for
    the device.
    """
    check_not_donated(carry)
    ids = int32_array(token_ids, carry.done.ndim + 1, "token_ids")
    count = int32_array(counts, carry.done.ndim, "counts")
    if not ids.shape[:-1] == count.shape == carry.done.shape:
        raise SllmError(
            f"token_ids have shape {ids.shape}, counts {count.shape}, and the carry has streams {carry.done.shape}; "
            "expected one row of token_ids and one count for each stream"
        )
    check_in_range(count, 0, ids.shape[-1] + 1, "count")
    if isinstance(ids, np.ndarray) and isinstance(count, np.ndarray):
        is_real = np.arange(ids.shape[-1]) < count[..., None]
        check_in_range(ids[is_real], 0, model.config.vocab_size, "token id")
    if ids.shape[-1] == 0:
        return carry
    return extend_program(model, carry, jnp.asarray(ids), jnp.asarray(count))


def decode(
    model: Model, carry: Carry, options: Sampling, eos_ids: IntArrayLike, limit: IntArrayLike, steps: int
) -> tuple[Carry, Int[Array, "*B steps"]]:
    """Generate up to min(`steps`, `limit`) tokens per stream without host round-trips; return the carry and the tokens.

    `steps` is static: the program always runs this many. `limit` is traced, so that shorter runs reuse the program.

    A stream stops after it generates one of the token ids `eos_ids`, which is the last token of the output and is in
    the cache. The remaining steps yield `NO_TOKEN`. A stream also stops if its logits hold a NaN or +inf, or are
    all -inf; its remaining steps up to `limit` yield `NOT_FINITE`. Each number of `eos_ids` compiles anew.

    Raises `SllmError` for a carry that was donated before, and for arrays whose dtype or shape does not fit.
    """
    check_not_donated(carry)
    eos_ids, limit = int32_array(eos_ids, 1, "eos_ids"), int32_array(limit, 0, "limit")
    return decode_program(model, carry, options, jnp.asarray(eos_ids), jnp.asarray(limit), steps=steps)


@partial(jax.jit, donate_argnames="carry")
def extend_program(model: Model, carry: Carry, token_ids: Int[Array, "*B T"], counts: Int[Array, "*B"]) -> Carry:
    """`extend` as one compiled program of int32 arrays."""

    def extend_one(carry: Carry, token_ids: Int[Array, " T"], count: Int[Array, ""]) -> Carry:
        last = jnp.maximum(count - 1, 0)
        state, logits = read_chunk(model, carry.state, token_ids, count, rows=last)
        return carry.replace(
            state=state,
            logits=jnp.where(count > 0, logits, carry.logits),
            done=carry.done & (count == 0),
        )

    return over_streams(extend_one, carry.state)(carry, token_ids, counts)


@partial(jax.jit, static_argnames="steps", donate_argnames="carry")
def decode_program(
    model: Model,
    carry: Carry,
    options: Sampling,
    eos_ids: Int[Array, " num_eos"],
    limit: Int[Array, ""],
    steps: int,
) -> tuple[Carry, Int[Array, "*B steps"]]:
    """`decode` as one compiled program of int32 arrays."""

    def decode_one(carry: Carry, i: Int[Array, ""]) -> tuple[Carry, Int[Array, ""]]:
        is_over = carry.done | (i >= limit)
        # max() is NaN if any logit is, and +inf if any is. A logit of -inf is a token of probability 0.
        is_finite = jnp.isfinite(carry.logits.max())
        is_frozen = is_over | ~is_finite

        token, next_key = _next_token(carry, options)

        # Frozen streams run too, for vmap has no branches, but write only to the masked slot at next_slot, and do not
        # advance.
        attend = partial(attend_one, dtype=model.dtype, state=carry.state)
        state, logits = forward(model, carry.state, token[None], attend_by_layer(model.config, attend), rows=0)
        next_carry = Carry(
            state=advance(state, token[None], jnp.where(is_frozen, 0, 1)),
            logits=jnp.where(is_frozen, carry.logits, logits),
            done=carry.done | (~is_frozen & jnp.isin(token, eos_ids)),
            key=jnp.where(is_frozen, carry.key, next_key),
        )
        return next_carry, jnp.where(is_over, NO_TOKEN, jnp.where(is_finite, token, NOT_FINITE))

    step = over_streams(decode_one, carry.state, in_axes=(0, None))
    carry, tokens = jax.lax.scan(step, carry, jnp.arange(steps, dtype=jnp.int32))
    return carry, jnp.moveaxis(tokens, 0, -1)  # [steps, *B] -> [*B, steps]


def _next_token(carry: Carry, options: Sampling) -> tuple[Int[Array, ""], PRNGKeyArray]:
    """Sample from the logits; the token, and the key for the next one."""
    greedy = options.temperature is None
    next_key, key = (carry.key, carry.key) if greedy else jax.random.split(carry.key)
    return sample(options, carry.logits, key, carry.state.token_ids, live(carry.state.ring)), next_key


def chunks(token_ids: np.ndarray) -> Iterator[tuple[np.ndarray, np.int32]]:
    """Yield (chunk, count): pieces of one stream's `token_ids`, each padded with 0 to a size in `CHUNK_SIZES`.

    The size is the smallest that holds all remaining tokens, or else the largest: a chunk of few tokens is not padded
    to 512, and a long text takes few calls.
    """
    while len(token_ids):
        size = next((size for size in CHUNK_SIZES if size >= len(token_ids)), CHUNK_SIZES[-1])
        chunk, token_ids = token_ids[:size], token_ids[size:]
        yield np.pad(chunk, (0, size - len(chunk))).astype(np.int32), np.int32(len(chunk))


def prefill(model: Model, carry: Carry, token_ids: IntArrayLike) -> Carry:
    """Process a prompt [T] of any length in chunks, with one program per chunk size, and return the new carry.

    For a single stream; for a batch use `extend`. Raises `SllmError` as `extend` does, but checks JAX arrays too.
    """
    ids = np.asarray(int32_array(token_ids, 1, "token_ids"))
    check_in_range(ids, 0, model.config.vocab_size, "token id")
    for chunk, count in chunks(ids):
        carry = extend(model, carry, chunk, count)
    return carry


def read_chunk(
    model: Model, state: KVState, token_ids: Int[Array, " T"], count: Int[Array, ""], rows: Any = slice(None)
) -> tuple[KVState, Float[Array, "*t V"]]:
    """Process the first `count` of T tokens of one stream: the new state, and logits.

    `rows` is an index or a slice over the T tokens: logits [*t, V] are computed for these tokens only, since the
    projection to the vocabulary is large. `*t` is no axis for an index, and one for a slice.
    """
    # Padding may be any number. An id outside the vocabulary would become a NaN embedding, and 0 * NaN is NaN.
    token_ids = jnp.where(jnp.arange(len(token_ids)) < count, token_ids, 0)
    attend = partial(attend_chunk, dtype=model.dtype, state=state, length=len(token_ids), count=count)
    state, logits = forward(model, state, token_ids, attend_by_layer(model.config, attend), rows)
    return advance(state, token_ids, count), logits


def forward(
    model: Model, state: KVState, token_ids: Int[Array, " T"], attends: tuple[Attend, ...], rows: Any
) -> tuple[KVState, Float[Array, "*t V"]]:
    """Run the model on T tokens: the state with new `k` and `v`, not advanced, and the logits at `rows`."""
    caches = tuple(zip(state.k, state.v, strict=True))
    logits, caches = model.module.apply({"params": model.params}, token_ids, caches, attends, rows)
    k, v = zip(*caches, strict=True)
    return state.replace(k=k, v=v), logits


def check_not_donated(carry: Carry) -> None:
    """Raises `SllmError` for a carry whose arrays were donated to an earlier call."""
    logits = carry.logits
    if isinstance(logits, jax.Array) and not isinstance(logits, jax.core.Tracer) and logits.is_deleted():
        raise SllmError(
            "this carry was donated to an earlier call; continue with the carry that the call returned, "
            "or call with carry.copy() to keep it"
        )
