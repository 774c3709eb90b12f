"""The state of a stream: sink and window tokens of every layer in arrays of fixed shape.

Axis letters: S sinks (`start_size`), R window slots (`recent_size` + 1, the token being processed takes one), C = S + R
slots in use, A slots allocated (C rounded up to a multiple of 128; the rest stays unused), K key/value heads, D head
dimension, T tokens of a chunk, N cache positions. Everything here is written for one stream; `jax.vmap` makes it many.

The newest token takes the slot of the oldest one. A token's *cache position* is its index in the list that the paper's
code keeps: the sinks first, then the window, oldest first. Every number in a state stays below 2C, however long the
stream gets.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from sllm_jax.core.memory import bytes_of, check_free
from sllm_jax.models.attend import LayerCache
from sllm_jax.models.config import ModelConfig
from sllm_jax.models.position import AngleTable, Rope, rotate

_SLOT_MULTIPLE = 128  # an odd number of slots makes XLA pad or copy whole caches on a GPU and a TPU
Leaf = Any  # an array, or what JAX puts in its place while it transforms a tree: a shape, an axis


class KVState(struct.PyTreeNode):
    """What one stream keeps between calls, or B streams with an axis B in front of every array."""

    k: tuple[Leaf, ...]  # a layer: [K, D, A], each key rotated by the number of its slot
    v: tuple[Leaf, ...]  # a layer: [K, A, D]
    token_ids: Leaf  # [A] int32, the token in each slot
    next_slot: Leaf  # [] int32, where the next token goes; between calls its content counts as evicted
    filled: Leaf  # [] int32, live tokens; at most cache_size
    start_size: int = struct.field(pytree_node=False)
    recent_size: int = struct.field(pytree_node=False)

    @property
    def cache_size(self) -> int:
        """Tokens kept between calls."""
        return self.start_size + self.recent_size

    @property
    def window(self) -> int:
        """R, the window slots."""
        return self.recent_size + 1

    @property
    def slots(self) -> int:
        """C, the slots in use."""
        return self.start_size + self.window

    @property
    def allocated(self) -> int:
        """A, the slots that the arrays have."""
        return self.token_ids.shape[-1]

    def copy(self) -> KVState:
        """The same state in arrays of its own, for programs consume the state they are given."""
        return jax.tree.map(jnp.copy, self)


def init_state(
    config: ModelConfig, start_size: int, recent_size: int, dtype: jax.typing.DTypeLike, streams: int | None = None
) -> KVState:
    """An empty state for one stream, or for `streams` side by side.

    Raises `SllmError` if it does not fit into the memory that is free; nothing is allocated then.
    """
    check_memory(config, start_size, recent_size, dtype, streams)
    shapes = state_shapes(config, start_size, recent_size, dtype, streams)
    # A buffer that two fields share cannot be donated, so each gets its own zeros.
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)


def check_memory(
    config: ModelConfig, start_size: int, recent_size: int, dtype: jax.typing.DTypeLike, streams: int | None = None
) -> None:
    """Raises `SllmError` for a state that does not fit into the memory that is free."""
    of_streams = "" if streams in (None, 1) else f" for {streams} streams"
    check_free(
        bytes_of(state_shapes(config, start_size, recent_size, dtype, streams)),
        f"a cache of {start_size} + {recent_size} tokens{of_streams}",
        "give a smaller recent_size, or in dense mode a shorter text",
    )


def state_shapes(
    config: ModelConfig, start_size: int, recent_size: int, dtype: jax.typing.DTypeLike, streams: int | None = None
) -> KVState:
    """The state of `init_state` with a `jax.ShapeDtypeStruct` for each array; allocates nothing."""
    batch = () if streams is None else (streams,)
    allocated = _round_up(start_size + recent_size + 1)
    heads, dim, layers = config.num_key_value_heads, config.head_dim, config.num_hidden_layers

    def array(dtype: jax.typing.DTypeLike, *shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((*batch, *shape), dtype)

    return KVState(
        k=(array(dtype, heads, dim, allocated),) * layers,
        v=(array(dtype, heads, allocated, dim),) * layers,
        token_ids=array(jnp.int32, allocated),
        next_slot=array(jnp.int32),
        filled=array(jnp.int32),
        start_size=start_size,
        recent_size=recent_size,
    )


def is_possible(state: KVState, vocab_size: int) -> bool:
    """Whether reading tokens can lead to a state with these numbers, of one stream or several."""
    slot, filled, tokens = (np.asarray(one) for one in (state.next_slot, state.filled, state.token_ids))
    counts = (slot >= 0) & (slot < state.slots) & (filled >= 0) & (filled <= state.cache_size)
    finite = all(bool(jnp.isfinite(leaf).all()) for leaf in (*state.k, *state.v))
    return bool(counts.all() and ((tokens >= 0) & (tokens < vocab_size)).all() and finite)


def over_streams(function: Callable, state: KVState, in_axes: Any = 0) -> Callable:
    """`function`, written for one stream, mapped over the streams of the state."""
    return jax.vmap(function, in_axes=in_axes) if state.filled.ndim else function


def slots_after(state: KVState, count: int) -> Int[Array, " {count}"]:
    """Slots that the next `count` tokens take: up to C - 1, then around the window for ever."""
    number = state.next_slot + jnp.arange(count)
    return jnp.where(number < state.slots, number, state.start_size + (number - state.slots) % state.window)


def ages(state: KVState) -> Int[Array, " A"]:
    """The age of each window slot's token: 1 for the newest, R for the one at `next_slot`. Meaningless for sinks."""
    return (state.next_slot - 1 - jnp.arange(state.allocated)) % state.window + 1


def live(state: KVState) -> Bool[Array, " A"]:
    """Which slots hold a token that is still in the cache; follows from `filled` and the ages alone."""
    slot = jnp.arange(state.allocated)
    in_window = (slot < state.slots) & (ages(state) <= state.filled - state.start_size)
    return jnp.where(slot < state.start_size, slot < state.filled, in_window)


def cache_order(state: KVState) -> Int[Array, " N"]:
    """The slot of the token at each of the N = `cache_size` positions; meaningless from `filled` on."""
    position = jnp.arange(state.cache_size)
    in_window = state.start_size + (state.next_slot - state.start_size - (state.filled - position)) % state.window
    return jnp.where(position < state.start_size, position, in_window)


def visible_token_ids(state: KVState) -> Int[Array, " N"]:
    """Token ids in cache order, N = `cache_size`, -1 from `filled` on: what the model can still see."""
    position = jnp.arange(state.cache_size)
    return jnp.where(position < state.filled, state.token_ids[cache_order(state)], -1)


def write_token(
    cache: LayerCache, slot: Int[Array, ""], k: Float[Array, "K 1 D"], v: Float[Array, "K 1 D"]
) -> LayerCache:
    """Write the keys and values of one token into `slot` of a layer's cache; in place where the cache is donated."""
    keys, values = cache
    return (
        jax.lax.dynamic_update_slice_in_dim(keys, k.swapaxes(1, 2).astype(keys.dtype), slot, axis=2),
        jax.lax.dynamic_update_slice_in_dim(values, v.astype(values.dtype), slot, axis=1),
    )


def write_chunk(
    cache: LayerCache, slots: Int[Array, " T"], k: Float[Array, "K T D"], v: Float[Array, "K T D"]
) -> LayerCache:
    """The same for T tokens. A token whose slot is A or more is not written."""
    keys, values = cache
    dropped: Any = {"mode": "drop", "unique_indices": True}
    return (
        keys.at[:, :, slots].set(k.swapaxes(1, 2).astype(keys.dtype), **dropped),
        values.at[:, slots].set(v.astype(values.dtype), **dropped),
    )


def write_slots(state: KVState, length: int, count: Int[Array, ""]) -> Int[Array, " {length}"]:
    """Where to write each token of a padded chunk: its slot, or a number from A on for one that is not written.

    Of `length` places the first `count` hold tokens, the rest padding. Of tokens that share a slot only the last is
    written. All numbers differ, so that a scatter may assume unique indices.
    """
    t = jnp.arange(length)
    slots = slots_after(state, length)
    stays = (t < count) & ((slots < state.start_size) | (t >= count - state.window))
    return jnp.where(stays, slots, state.allocated + t)


def advance(state: KVState, token_ids: Int[Array, " T"], count: Int[Array, ""]) -> KVState:
    """The state after the first `count` of T tokens, but for `k` and `v`, which the caller sets."""
    length = len(token_ids)
    return state.replace(
        token_ids=state.token_ids.at[write_slots(state, length, count)].set(
            token_ids, mode="drop", unique_indices=True
        ),
        next_slot=slots_after(state, length + 1)[count],
        filled=jnp.minimum(state.filled + count, state.cache_size),
    )


def evict_for_space(state: KVState, num_coming: Int[Array, ""] | int) -> KVState:
    """Drop the oldest window tokens until `num_coming` more fit or only sinks are left. No key moves."""
    room = jnp.maximum(jnp.minimum(state.filled, state.start_size), state.cache_size - num_coming)
    return state.replace(filled=jnp.minimum(state.filled, room))


def keys_and_values(state: KVState, positions: Int[Array, " N"], rope: Rope) -> list[tuple[Array, Array]]:
    """Keys, unrotated and in float32, and values [K, N, D] of each layer at N cache positions."""
    slots = _slots_at(state, positions)
    back = angle_table(rope, state.start_size, state.recent_size)(slots).inverse()
    keys = [k[:, :, slots].swapaxes(1, 2).astype(jnp.float32) for k in state.k]
    return [(rotate(k, back), v[:, slots]) for k, v in zip(keys, state.v, strict=True)]


def select(
    state: KVState, positions: Int[Array, " N"], count: Int[Array, ""], start_size: int, recent_size: int, rope: Rope
) -> KVState:
    """A state of another capacity, with the tokens at `positions`[:count] in slots 0, 1, ...

    Each key is rotated from its old slot to its new one.
    """
    allocated = _round_up(start_size + recent_size + 1)
    positions = jnp.pad(positions, (0, allocated - len(positions)))
    slot = jnp.arange(allocated)
    kept = slot < count
    forth = angle_table(rope, start_size, recent_size)(jnp.where(kept, slot, 0))
    moved = [(rotate(k, forth).swapaxes(1, 2), v) for k, v in keys_and_values(state, positions, rope)]
    return KVState(
        k=tuple(jnp.where(kept, k, 0).astype(old.dtype) for (k, _), old in zip(moved, state.k, strict=True)),
        v=tuple(jnp.where(kept[:, None], v, 0) for _, v in moved),
        token_ids=jnp.where(kept, state.token_ids[_slots_at(state, positions)], 0),
        next_slot=count,
        filled=count,
        start_size=start_size,
        recent_size=recent_size,
    )


def evict_range(state: KVState, start: Int[Array, ""], end: Int[Array, ""], rope: Rope) -> KVState:
    """Drop the tokens at cache positions `start` ... `end` - 1, and move the rest to slots 0, 1, ... in cache order."""
    position = jnp.arange(state.cache_size)
    survivors = jnp.where(position < start, position, position + (end - start))
    return select(state, survivors, state.filled - (end - start), state.start_size, state.recent_size, rope)


def first_and_last(state: KVState, start_size: int, recent_size: int, rope: Rope) -> KVState:
    """A state of another capacity with the first `start_size` and the last `recent_size` tokens of this one."""
    position = jnp.arange(start_size + recent_size)
    skipped = jnp.maximum(state.filled - len(position), 0)
    kept = jnp.where(position < start_size, position, position + skipped)
    return select(state, kept, state.filled - skipped, start_size, recent_size, rope)


def angle_table(rope: Rope, start_size: int, recent_size: int, chunk: int = 1) -> AngleTable:
    """Angles for a state of this capacity and chunks of this length.

    Angles that depend on the length of the text (dynamic NTK) are those of the longer of C and the trained context.
    """
    slots, window = start_size + recent_size + 1, recent_size + 1
    return AngleTable.of(rope, max(slots, rope.max_position_embeddings), slots + max(window, chunk))


def _slots_at(state: KVState, positions: Int[Array, " N"]) -> Int[Array, " N"]:
    return jnp.append(cache_order(state), 0)[jnp.minimum(positions, state.cache_size)]


def _round_up(slots: int) -> int:
    return -(-slots // _SLOT_MULTIPLE) * _SLOT_MULTIPLE
