"""The state of a stream: sink and window tokens of every layer in arrays of fixed shape.

Axis letters:

    S    start_size, the sink slots
    R    recent_size + 1, the window slots; one of them is for the token being processed
    C    S + R, the slots in use; between calls, cache_size = C - 1 of them hold tokens
    A    the slots allocated: C rounded up to a multiple of 128; the rest stays unused
    P    cache positions
    T    tokens of a chunk
    K    key/value heads
    D    head dimension

Everything here is written for one stream; for a batch, use `jax.vmap` (see `over_streams`).

The newest token takes the slot of the oldest one. A token's *cache position* is its index in the list of cached tokens,
as in the paper's code: the sinks first, then the window, oldest first. `next_slot` and `filled` stay below C, and the
positions to which queries and keys are rotated below C + max(R, T), however long the stream gets: nothing counts the
tokens of the stream.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from sllm_jax.common.errors import SllmError
from sllm_jax.core.arrays import Leaf
from sllm_jax.core.memory import bytes_of, check_free
from sllm_jax.models.attend import LayerCache
from sllm_jax.models.config import ModelConfig
from sllm_jax.models.position import AngleTable, Rope, rotate

MAX_CACHE_SIZE = 2**30 - 2  # so that the numbers of a state fit int32
_SLOT_MULTIPLE = 128  # with other sizes XLA pads or copies whole caches on GPU and TPU
_SCATTER: Any = {"mode": "drop", "unique_indices": True}  # skip indices out of range; all indices differ


class KVState(struct.PyTreeNode):
    """The cached tokens of one stream; or of a batch of B streams, then every array has a leading axis B."""

    # One array per layer. The key in slot i is rotated to position i. Keys are transposed, which makes decoding faster
    # on a CPU (docs/speed).
    k: tuple[Leaf, ...]  # [K, D, A]
    v: tuple[Leaf, ...]  # [K, A, D]
    token_ids: Leaf  # [A] int32, the token in each slot
    next_slot: Leaf  # [] int32, the slot of the next token; the token that it holds now is already evicted
    filled: Leaf  # [] int32, the number of tokens in the cache, at most cache_size
    start_size: int = struct.field(pytree_node=False)
    recent_size: int = struct.field(pytree_node=False)

    @property
    def cache_size(self) -> int:
        """C - 1, the number of tokens kept between calls."""
        return self.start_size + self.recent_size

    @property
    def window(self) -> int:
        """R, the number of window slots."""
        return self.recent_size + 1

    @property
    def slots(self) -> int:
        """C, the number of slots in use."""
        return self.start_size + self.window

    @property
    def allocated(self) -> int:
        """A, the number of slots that the arrays have."""
        return self.token_ids.shape[-1]

    def copy(self) -> KVState:
        """A deep copy. Needed to keep a state, because `extend` and `decode` donate theirs."""
        return jax.tree.map(jnp.copy, self)


# States and their size in memory.


def init_state(
    config: ModelConfig, start_size: int, recent_size: int, dtype: jax.typing.DTypeLike, streams: int | None = None
) -> KVState:
    """An empty state.

    `dtype` is that of keys and values. With `streams` = B, every array has a leading axis B; with None, none has.
    Raises `SllmError` for invalid sizes, and before allocating anything if the state does not fit in free memory.
    """
    check_memory(config, start_size, recent_size, dtype, streams)
    shapes = state_shapes(config, start_size, recent_size, dtype, streams)
    # Every field gets a buffer of its own: a donated tree must not contain the same buffer twice.
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)


def check_sizes(start_size: int, recent_size: int) -> None:
    """Raises `SllmError` unless both sizes are non-negative integers and their sum is at most `MAX_CACHE_SIZE`."""
    for name, size in (("start_size", start_size), ("recent_size", recent_size)):
        if not isinstance(size, int | np.integer) or size < 0:
            raise SllmError(f"{name} must be a non-negative integer; got {size!r}")
    if start_size + recent_size > MAX_CACHE_SIZE:
        raise SllmError(f"a cache holds {MAX_CACHE_SIZE} tokens at most; got {start_size} + {recent_size}")


def check_memory(
    config: ModelConfig, start_size: int, recent_size: int, dtype: jax.typing.DTypeLike, streams: int | None = None
) -> None:
    """Raises `SllmError` for invalid sizes, and if the state of `init_state` does not fit in free memory."""
    batch_note = "" if streams in (None, 1) else f" for {streams} streams"
    check_free(
        bytes_of(state_shapes(config, start_size, recent_size, dtype, streams)),
        f"a cache of {start_size} + {recent_size} tokens{batch_note}",
        "give a smaller recent_size, or in dense mode a shorter text",
    )


def state_shapes(
    config: ModelConfig, start_size: int, recent_size: int, dtype: jax.typing.DTypeLike, streams: int | None = None
) -> KVState:
    """The state of `init_state` with a `jax.ShapeDtypeStruct` for each array; allocates nothing.

    Raises `SllmError` for invalid sizes.
    """
    check_sizes(start_size, recent_size)
    if streams is not None and (not isinstance(streams, int | np.integer) or streams < 1):
        raise SllmError(f"streams must be a positive integer or None; got {streams!r}")
    batch = () if streams is None else (streams,)
    allocated = allocated_slots(start_size, recent_size)
    heads, dim, layers = config.num_key_value_heads, config.head_dim, config.num_hidden_layers

    def leaf(leaf_dtype: jax.typing.DTypeLike, *shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((*batch, *shape), leaf_dtype)

    return KVState(
        k=(leaf(dtype, heads, dim, allocated),) * layers,
        v=(leaf(dtype, heads, allocated, dim),) * layers,
        token_ids=leaf(jnp.int32, allocated),
        next_slot=leaf(jnp.int32),
        filled=leaf(jnp.int32),
        start_size=start_size,
        recent_size=recent_size,
    )


def allocated_slots(start_size: int, recent_size: int) -> int:
    """A, the number of slots allocated."""
    slots = start_size + recent_size + 1
    return (slots + _SLOT_MULTIPLE - 1) // _SLOT_MULTIPLE * _SLOT_MULTIPLE


def is_possible(state: KVState, vocab_size: int) -> bool:
    """Whether the library can have made this state, of one stream or a batch, or it must be damaged.

    Checks that all numbers are in range, and that `next_slot` is the next sink while sinks are missing, and a window
    slot from then on.
    """
    slot, filled, tokens = (np.asarray(one) for one in (state.next_slot, state.filled, state.token_ids))
    in_range = (slot >= 0) & (slot < state.slots) & (filled >= 0) & (filled <= state.cache_size)
    in_order = np.where(filled < state.start_size, slot == filled, slot >= state.start_size)
    in_vocabulary = (tokens >= 0) & (tokens < vocab_size)
    finite = all(bool(jnp.isfinite(leaf).all()) for leaf in (*state.k, *state.v))
    return bool(in_range.all() and in_order.all() and in_vocabulary.all() and finite)


def over_streams(function: Callable[..., Any], state: KVState, in_axes: Any = 0) -> Callable[..., Any]:
    """`jax.vmap(function, in_axes)` if `state` is a batch; `function` itself if it is of a single stream."""
    return jax.vmap(function, in_axes=in_axes) if state.filled.ndim else function


# Slots and cache positions.


def slots_after(state: KVState, length: int) -> Int[Array, " {length}"]:
    """The slots of the next `length` tokens: upward to C - 1, then around the window slots S ... C - 1."""
    unwrapped = state.next_slot + jnp.arange(length)
    return jnp.where(unwrapped < state.slots, unwrapped, state.start_size + (unwrapped - state.slots) % state.window)


def ages(state: KVState) -> Int[Array, " A"]:
    """The age of each window slot's token: 1 for the newest, R for the evicted one at `next_slot`.

    The entries of sinks and unused slots are arbitrary; callers mask them.
    """
    return (state.next_slot - 1 - jnp.arange(state.allocated)) % state.window + 1


def live(state: KVState) -> Bool[Array, " A"]:
    """Which slots hold a token that is still in the cache."""
    slot = jnp.arange(state.allocated)
    is_live_window = (slot < state.slots) & (ages(state) <= state.filled - state.start_size)
    return jnp.where(slot < state.start_size, slot < state.filled, is_live_window)


def cache_order(state: KVState) -> Int[Array, " P"]:
    """The slot of the token at each of the P = `cache_size` positions, oldest token first.

    The entries from `filled` on are arbitrary; callers mask them.
    """
    position = jnp.arange(state.cache_size)
    # The token at a window position was written `filled - position` tokens ago.
    window_slot = state.start_size + (state.next_slot - state.start_size - (state.filled - position)) % state.window
    return jnp.where(position < state.start_size, position, window_slot)


def slots_at(state: KVState, positions: Int[Array, " P"]) -> Int[Array, " P"]:
    """The slots of the tokens at P cache positions; 0 for positions of `cache_size` or more, which callers mask."""
    # A gather with a fill value would do, but not from the empty array of a cache of size 0.
    return jnp.append(cache_order(state), 0)[jnp.minimum(positions, state.cache_size)]


def visible_token_ids(state: KVState) -> Int[Array, " P"]:
    """The P = `cache_size` token ids that the model can still see, in cache order and padded with -1."""
    position = jnp.arange(state.cache_size)
    return jnp.where(position < state.filled, state.token_ids[cache_order(state)], -1)


# Writing and evicting.


def write_token(
    cache: LayerCache, slot: Int[Array, ""], k: Float[Array, "K 1 D"], v: Float[Array, "K 1 D"]
) -> LayerCache:
    """Write the key and value of one token into `slot` of a layer's cache; in place if its buffers are donated."""
    keys, values = cache
    return (
        jax.lax.dynamic_update_slice_in_dim(keys, k.swapaxes(1, 2).astype(keys.dtype), slot, axis=2),
        jax.lax.dynamic_update_slice_in_dim(values, v.astype(values.dtype), slot, axis=1),
    )


def write_chunk(
    cache: LayerCache, slots: Int[Array, " T"], k: Float[Array, "K T D"], v: Float[Array, "K T D"]
) -> LayerCache:
    """Write the keys and values of T tokens into their slots. Slots must differ; those of A or more are skipped."""
    keys, values = cache
    return (
        keys.at[:, :, slots].set(k.swapaxes(1, 2).astype(keys.dtype), **_SCATTER),
        values.at[:, slots].set(v.astype(values.dtype), **_SCATTER),
    )


def slots_to_write(state: KVState, length: int, count: Int[Array, ""]) -> Int[Array, " {length}"]:
    """Indices for scattering a padded chunk of `length` tokens, of which `count` are real.

    A token that is not to be written (padding, or one that a later token of the chunk overwrites) gets a distinct index
    of A or more, which the scatter skips, so all indices differ.
    """
    t = jnp.arange(length)
    slots = slots_after(state, length)
    # Sinks, and the last R tokens of the chunk.
    is_written = (t < count) & ((slots < state.start_size) | (t >= count - state.window))
    return jnp.where(is_written, slots, state.allocated + t)


def advance(state: KVState, token_ids: Int[Array, " T"], count: Int[Array, ""]) -> KVState:
    """Advance `token_ids`, `next_slot` and `filled` by the first `count` of T tokens.

    `k` and `v` are left as they are: the forward pass has already written them.
    """
    length = len(token_ids)
    return state.replace(
        token_ids=state.token_ids.at[slots_to_write(state, length, count)].set(token_ids, **_SCATTER),
        next_slot=slots_after(state, length + 1)[count],  # the slot after the last token's
        filled=jnp.minimum(state.filled + count, state.cache_size),
    )


def evict_for_space(state: KVState, num_coming: Int[Array, ""] | int) -> KVState:
    """Drop the oldest window tokens until there is space for `num_coming` tokens, or only sinks remain.

    Keys and values stay where they are and are not cleared; only `filled` changes.
    """
    kept = jnp.maximum(jnp.minimum(state.filled, state.start_size), state.cache_size - num_coming)
    return state.replace(filled=jnp.minimum(state.filled, kept))


# Angles, and keys without them.


def angle_table(rope: Rope, start_size: int, recent_size: int, chunk: int = 1) -> AngleTable:
    """The angles of all positions that queries and keys are rotated to, for chunks of up to `chunk` = T tokens.

    These are slots, up to C - 1; slots plus R, for queries that attend to the previous lap, up to C - 1 + R; and
    unwrapped slots of a chunk, up to C - 2 + T. Dynamic NTK, whose frequencies depend on the length of the sequence,
    takes the larger of C and the trained context for it.
    """
    slots, window = start_size + recent_size + 1, recent_size + 1
    return AngleTable.of(rope, max(slots, rope.max_position_embeddings), slots + max(window, chunk))


def keys_and_values(state: KVState, positions: Int[Array, " P"], rope: Rope) -> list[tuple[Array, Array]]:
    """For each layer, the keys and values at P cache positions, both [K, P, D].

    Keys are unrotated and in float32; values have the dtype of the cache.
    """
    slots = slots_at(state, positions)
    undo_rotation = angle_table(rope, state.start_size, state.recent_size)(slots).inverse()
    keys = [k[:, :, slots].swapaxes(1, 2).astype(jnp.float32) for k in state.k]
    return [(rotate(k, undo_rotation), v[:, slots]) for k, v in zip(keys, state.v, strict=True)]
