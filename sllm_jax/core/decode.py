"""The two programs of a stream: `extend` reads tokens, `decode` writes them. Both consume the carry they are given.

Each compiles once per shape and serves a stream of any length. A carry with an axis B in front of every array holds B
streams, which advance side by side, each with its own state.

`extend` and `decode` check their arguments and run `extend_program` and `decode_program`, which are `jax.jit` functions
of arrays.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from sllm_jax.common.errors import SllmError
from sllm_jax.core.attention import attend_chunk, attend_one
from sllm_jax.core.kv_state import KVState, Leaf, advance, init_state, live, over_streams
from sllm_jax.core.model import Model
from sllm_jax.core.sampling import Sampling, sample
from sllm_jax.models.attend import Attend, attend_by_layer

CHUNK_SIZES = (16, 128, 512)  # a prompt of any length is read in chunks of these sizes, the last one padded
Integers = ArrayLike | Sequence[Any]  # whatever becomes an array of integers
NO_TOKEN = -1  # what a frozen stream writes
NOT_FINITE = -2  # what a stream writes whose logits are not numbers


class Carry(struct.PyTreeNode):
    """All that one stream carries from call to call; or B streams, with an axis B in front of every array.

    Every token that was read or written is in `state`, and `logits` say what may come next. They depend on the tokens
    of the stream alone, not on how it was cut into chunks. How to sample from them is decided when writing.
    """

    state: KVState
    logits: Leaf  # [V] float32
    done: Leaf  # [] bool: the stream has written an end-of-text token and is frozen until more is read
    key: Leaf  # [] random key

    def copy(self) -> Carry:
        """The same carry in arrays of its own."""
        return jax.tree.map(jnp.copy, self)


def init_carry(model: Model, start_size: int, recent_size: int, seed: int = 0, streams: int | None = None) -> Carry:
    """An empty stream, or `streams` of them, each with a random key of its own."""
    batch = () if streams is None else (streams,)
    key = jax.random.key(seed)
    return Carry(
        state=init_state(model.config, start_size, recent_size, model.dtype, streams),
        logits=jnp.zeros((*batch, model.config.vocab_size), jnp.float32),
        done=jnp.zeros(batch, bool),
        key=key if streams is None else jax.random.split(key, streams),
    )


def extend(model: Model, carry: Carry, token_ids: Integers, counts: Integers) -> Carry:
    """Read a chunk: the first `counts` [*B] of the token ids [*B, T] of each stream; the rest is padding.

    A stream with count 0 stays as it is; with more, one that was done goes on. Raises `SllmError` for a carry that was
    consumed before, and for token ids outside the vocabulary and counts above T, unless they are on a device already.
    """
    check_not_consumed(carry)
    ids, count = _int32(token_ids, carry.done.ndim + 1, "token_ids"), _int32(counts, carry.done.ndim, "counts")
    check_in_range(count, ids.shape[-1] + 1, "count")
    if isinstance(ids, np.ndarray) and isinstance(count, np.ndarray):
        check_in_range(ids[np.arange(ids.shape[-1]) < count[..., None]], model.config.vocab_size, "token id")
    return extend_program(model, carry, jnp.asarray(ids), jnp.asarray(count))


def decode(
    model: Model, carry: Carry, options: Sampling, eos_ids: Integers, limit: Integers, steps: int
) -> tuple[Carry, Int[Array, "*B steps"]]:
    """Write up to `steps` tokens, at most `limit`: sample one, feed it back, and so on, without host round-trips.

    A stream freezes after one of `eos_ids` [N], and all do once `limit` tokens are written. Frozen streams write
    `NO_TOKEN`. A stream whose logits hold a NaN or an infinity freezes too, and writes `NOT_FINITE`. Returns the carry
    and the tokens. Raises `SllmError` for a carry that was consumed before. Another number N of `eos_ids` compiles
    another program.
    """
    check_not_consumed(carry)
    ends, most = _int32(eos_ids, 1, "eos_ids"), _int32(limit, 0, "limit")
    return decode_program(model, carry, options, jnp.asarray(ends), jnp.asarray(most), steps=steps)


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
    model: Model, carry: Carry, options: Sampling, eos_ids: Int[Array, " N"], limit: Int[Array, ""], steps: int
) -> tuple[Carry, Int[Array, "*B steps"]]:
    """`decode` as one compiled program of int32 arrays."""

    def decode_one(carry: Carry, i: Int[Array, ""]) -> tuple[Carry, Int[Array, ""]]:
        state = carry.state
        ended = carry.done | (i >= limit)
        finite = jnp.isfinite(carry.logits.max())  # a NaN and an infinity are the largest of any numbers
        frozen = ended | ~finite

        # Sample from the logits of the last token.
        greedy = options.temperature is None
        next_key, key = (carry.key, carry.key) if greedy else jax.random.split(carry.key)
        token = sample(options, carry.logits, key, state.token_ids, live(state))

        # Feed it back. A frozen stream does too: what it writes into the dead slot is never seen.
        attend = partial(attend_one, dtype=model.dtype, state=state)
        fed, logits = forward(model, state, token[None], attend_by_layer(model.config, attend), rows=0)

        # Advance, unless frozen.
        written = Carry(
            state=advance(fed, token[None], jnp.where(frozen, 0, 1)),
            logits=jnp.where(frozen, carry.logits, logits),
            done=carry.done | (~frozen & jnp.isin(token, eos_ids)),
            key=jnp.where(frozen, carry.key, next_key),
        )
        return written, jnp.where(ended, NO_TOKEN, jnp.where(finite, token, NOT_FINITE))

    step = over_streams(decode_one, carry.state, in_axes=(0, None))
    carry, tokens = jax.lax.scan(step, carry, jnp.arange(steps, dtype=jnp.int32))
    return carry, jnp.moveaxis(tokens, 0, -1)


def chunks(token_ids: np.ndarray) -> Iterator[tuple[np.ndarray, np.int32]]:
    """Cut token ids [N] into padded chunks of a few sizes, each with the number of tokens in it."""
    while len(token_ids):
        size = next((size for size in CHUNK_SIZES if size >= len(token_ids)), CHUNK_SIZES[-1])
        chunk, token_ids = token_ids[:size], token_ids[size:]
        yield np.pad(chunk, (0, size - len(chunk))).astype(np.int32), np.int32(len(chunk))


def prefill(model: Model, carry: Carry, token_ids: Integers) -> Carry:
    """Read a prompt of any length into one stream, in chunks. Raises `SllmError` as `extend` does."""
    ids = np.asarray(_int32(token_ids, 1, "token_ids"))
    check_in_range(ids, model.config.vocab_size, "token id")
    for chunk, count in chunks(ids):
        carry = extend(model, carry, chunk, count)
    return carry


def read_chunk(
    model: Model, state: KVState, token_ids: Int[Array, " T"], count: Int[Array, ""], rows: Any = slice(None)
) -> tuple[KVState, Float[Array, "*t V"]]:
    """The state of one stream after the first `count` of T tokens, and the logits of those that `rows` selects."""
    attend = partial(attend_chunk, dtype=model.dtype, state=state, length=len(token_ids), count=count)
    state, logits = forward(model, state, token_ids, attend_by_layer(model.config, attend), rows)
    return advance(state, token_ids, count), logits


def forward(
    model: Model, state: KVState, token_ids: Int[Array, " T"], attends: tuple[Attend, ...], rows: Any
) -> tuple[KVState, Float[Array, "*t V"]]:
    """The state with the keys and values of T tokens written, and the logits of those that `rows` selects."""
    caches = tuple(zip(state.k, state.v, strict=True))
    logits, caches = model.module.apply({"params": model.params}, token_ids, caches, attends, rows)
    k, v = zip(*caches, strict=True)
    return state.replace(k=k, v=v), logits


def check_not_consumed(carry: Carry) -> None:
    """Raises `SllmError` for a carry whose arrays were donated to an earlier call."""
    logits = carry.logits
    if isinstance(logits, jax.Array) and not isinstance(logits, jax.core.Tracer) and logits.is_deleted():
        raise SllmError(
            "this carry was consumed by an earlier call; go on with the carry that the call returned, "
            "or call with carry.copy() to keep it"
        )


def check_in_range(values: Any, end: int, what: str, begin: int = 0) -> None:
    """Raises `SllmError` unless `begin` <= values < `end`. Arrays on a device are not looked at: that would wait."""
    if isinstance(values, np.ndarray) and values.size and not (begin <= values.min() and values.max() < end):
        bad = values.min() if values.min() < begin else values.max()
        raise SllmError(f"{what} must be from {begin} to {end - 1}; got {bad}")


def _int32(values: Any, ndim: int, what: str) -> Any:
    """Python and NumPy integers as an int32 array, which shares the program of JAX's; those pass as they are."""
    if isinstance(values, jax.Array):
        return values
    array = np.asarray(values)
    if array.ndim != ndim or (array.size and array.dtype.kind not in "iu"):
        raise SllmError(f"{what} must be integers with {ndim} axes; got {array.dtype} of shape {array.shape}")
    check_in_range(array, 2**31, what, begin=-(2**31))
    return array.astype(np.int32)
