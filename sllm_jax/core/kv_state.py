"""The state of a stream: sink and window tokens of every layer in arrays of fixed shape.

Layers that keep the same number of tokens share a `Ring`, which says what is in which slot. A layer with a sliding
window keeps no more than it sees, in a ring of its own size.

Axis letters, for one ring:

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


class Ring(struct.PyTreeNode):
    """Where the layers of one kind keep which tokens. In a batch of B streams both arrays have a leading axis B."""

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
        """A, the number of slots allocated: C rounded up."""
        return (self.slots + _SLOT_MULTIPLE - 1) // _SLOT_MULTIPLE * _SLOT_MULTIPLE


class KVState(struct.PyTreeNode):
    """The cached tokens of one stream; or of a batch of B streams, then every array has a leading axis B."""

    # One array per layer, with the A of its ring. The key in slot i is rotated to position i. Keys are transposed,
    # which makes decoding faster on a CPU (docs/speed).
    k: tuple[Leaf, ...]  # [K, D, A]
    v: tuple[Leaf, ...]  # [K, A, D]
    token_ids: Leaf  # [A] int32, the token in each slot of the stream's ring
    rings: tuple[Ring, ...]  # the stream's, start_size + recent_size; then those of layers that keep less

    @property
    def ring(self) -> Ring:
        """The stream's ring."""
        return self.rings[0]

    @property
    def start_size(self) -> int:
        """S of the stream's ring."""
        return self.ring.start_size

    @property
    def recent_size(self) -> int:
        """R - 1 of the stream's ring."""
        return self.ring.recent_size

    @property
    def cache_size(self) -> int:
        """C - 1 of the stream's ring."""
        return self.ring.cache_size

    @property
    def filled(self) -> Leaf:
        """The number of tokens in the stream's ring."""
        return self.ring.filled

    def ring_of(self, config: ModelConfig) -> Ring:
        """The ring of a layer with this config; raises `SllmError` if the state is of another model."""
        start_size, recent_size = layer_sizes(config, self.start_size, self.recent_size)
        for ring in self.rings:
            if (ring.start_size, ring.recent_size) == (start_size, recent_size):
                return ring
        raise SllmError(f"this state has no layers of {start_size} + {recent_size} tokens; it is of another model")

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
    heads, dim, layers = config.num_key_value_heads, config.head_dim, range(config.num_hidden_layers)

    def leaf(leaf_dtype: jax.typing.DTypeLike, *shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((*batch, *shape), leaf_dtype)

    sizes = [layer_sizes(config.at_layer(i), start_size, recent_size) for i in layers]
    distinct = dict.fromkeys([(start_size, recent_size), *sizes])  # the stream's first, each once
    rings = {size: Ring(leaf(jnp.int32), leaf(jnp.int32), *size) for size in distinct}
    allocated = [rings[size].allocated for size in sizes]
    return KVState(
        k=tuple(leaf(dtype, heads, dim, a) for a in allocated),
        v=tuple(leaf(dtype, heads, a, dim) for a in allocated),
        token_ids=leaf(jnp.int32, rings[start_size, recent_size].allocated),
        rings=tuple(rings.values()),
    )


def layer_sizes(config: ModelConfig, start_size: int, recent_size: int) -> tuple[int, int]:
    """The start and recent size of a layer with this config, in a stream of these sizes.

    A token of a layer with a sliding window attends to itself and to `sliding_window` - 1 earlier ones, and to the
    sinks if the model keeps them in such layers. The layer never keeps a token that the stream has evicted.
    """
    if config.sliding_window is None:
        return start_size, recent_size
    return start_size if config.sinks_in_windows else 0, min(recent_size, config.sliding_window - 1)


def is_possible(state: KVState, vocab_size: int) -> bool:
    """Whether the library can have made this state, of one stream or a batch, or it must be damaged.

    Checks that all numbers are in range, and that `next_slot` is the next sink while sinks are missing, and a window
    slot from then on.
    """
    tokens = np.asarray(state.token_ids)
    in_vocabulary = (tokens >= 0) & (tokens < vocab_size)
    finite = all(bool(jnp.isfinite(leaf).all()) for leaf in (*state.k, *state.v))
    return bool(all(map(_is_possible_ring, state.rings)) and in_vocabulary.all() and finite)


def _is_possible_ring(ring: Ring) -> bool:
    slot, filled = np.asarray(ring.next_slot), np.asarray(ring.filled)
    in_range = (slot >= 0) & (slot < ring.slots) & (filled >= 0) & (filled <= ring.cache_size)
    in_order = np.where(filled < ring.start_size, slot == filled, slot >= ring.start_size)
    return bool(in_range.all() and in_order.all())


def over_streams(function: Callable[..., Any], state: KVState, in_axes: Any = 0) -> Callable[..., Any]:
    """`jax.vmap(function, in_axes)` if `state` is a batch; `function` itself if it is of a single stream."""
    return jax.vmap(function, in_axes=in_axes) if state.filled.ndim else function


# Slots and cache positions.


def slots_after(ring: Ring, length: int) -> Int[Array, " {length}"]:
    """The slots of the next `length` tokens: upward to C - 1, then around the window slots S ... C - 1."""
    unwrapped = ring.next_slot + jnp.arange(length)
    return jnp.where(unwrapped < ring.slots, unwrapped, ring.start_size + (unwrapped - ring.slots) % ring.window)


def ages(ring: Ring) -> Int[Array, " A"]:
    """The age of each window slot's token: 1 for the newest, R for the evicted one at `next_slot`.

    The entries of sinks and unused slots are arbitrary; callers mask them.
    """
    return (ring.next_slot - 1 - jnp.arange(ring.allocated)) % ring.window + 1


def live(ring: Ring) -> Bool[Array, " A"]:
    """Which slots hold a token that is still in the cache."""
    slot = jnp.arange(ring.allocated)
    is_live_window = (slot < ring.slots) & (ages(ring) <= ring.filled - ring.start_size)
    return jnp.where(slot < ring.start_size, slot < ring.filled, is_live_window)


def cache_order(ring: Ring) -> Int[Array, " P"]:
    """The slot of the token at each of the P = `cache_size` positions, oldest token first.

    The entries from `filled` on are arbitrary; callers mask them.
    """
    position = jnp.arange(ring.cache_size)
    # The token at a window position was written `filled - position` tokens ago.
    window_slot = ring.start_size + (ring.next_slot - ring.start_size - (ring.filled - position)) % ring.window
    return jnp.where(position < ring.start_size, position, window_slot)


def slots_at(ring: Ring, positions: Int[Array, " P"]) -> Int[Array, " P"]:
    """The slots of the tokens at P cache positions; 0 for positions of `cache_size` or more, which callers mask."""
    # A gather with a fill value would do, but not from the empty array of a cache of size 0.
    return jnp.append(cache_order(ring), 0)[jnp.minimum(positions, ring.cache_size)]


def visible_token_ids(state: KVState) -> Int[Array, " P"]:
    """The P = `cache_size` token ids that the model can still see, in cache order and padded with -1."""
    position = jnp.arange(state.ring.cache_size)
    return jnp.where(position < state.filled, state.token_ids[cache_order(state.ring)], -1)


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


def slots_to_write(ring: Ring, length: int, count: Int[Array, ""]) -> Int[Array, " {length}"]:
    """Indices for scattering a padded chunk of `length` tokens, of which `count` are real.

    A token that is not to be written (padding, or one that a later token of the chunk overwrites) gets a distinct index
    of A or more, which the scatter skips, so all indices differ.
    """
    t = jnp.arange(length)
    slots = slots_after(ring, length)
    # Sinks, and the last R tokens of the chunk.
    is_written = (t < count) & ((slots < ring.start_size) | (t >= count - ring.window))
    return jnp.where(is_written, slots, ring.allocated + t)


def advance(state: KVState, token_ids: Int[Array, " T"], count: Int[Array, ""]) -> KVState:
    """Advance `token_ids` and the rings by the first `count` of T tokens.

    `k` and `v` are left as they are: the forward pass has already written them.
    """
    length = len(token_ids)

    def advanced(ring: Ring) -> Ring:
        return ring.replace(
            next_slot=slots_after(ring, length + 1)[count],  # the slot after the last token's
            filled=jnp.minimum(ring.filled + count, ring.cache_size),
        )

    return state.replace(
        token_ids=state.token_ids.at[slots_to_write(state.ring, length, count)].set(token_ids, **_SCATTER),
        rings=tuple(map(advanced, state.rings)),
    )


def evict_for_space(state: KVState, num_coming: Int[Array, ""] | int) -> KVState:
    """Drop the oldest window tokens until there is space for `num_coming` tokens, or only sinks remain.

    Layers that keep less drop what the stream's window drops. Keys and values stay where they are and are not cleared;
    only `filled` changes.
    """
    stream = state.ring
    kept = jnp.maximum(jnp.minimum(stream.filled, stream.start_size), stream.cache_size - num_coming)
    filled = jnp.minimum(stream.filled, kept)
    recent = jnp.maximum(filled - stream.start_size, 0)  # window tokens of the stream that remain

    def evicted(ring: Ring) -> Ring:
        remaining = jnp.minimum(ring.filled, ring.start_size) + recent
        return ring.replace(filled=jnp.where(filled < stream.filled, jnp.minimum(ring.filled, remaining), ring.filled))

    return state.replace(rings=(stream.replace(filled=filled), *map(evicted, state.rings[1:])))


# Angles, and keys without them.


def angle_table(rope: Rope, ring: Ring, stream: Ring, chunk: int = 1) -> AngleTable:
    """The angles of all positions that a layer rotates queries and keys to, for chunks of up to `chunk` = T tokens.

    These are slots of its `ring`, up to C - 1; slots plus R, for queries that attend to the previous lap, up to
    C - 1 + R; and unwrapped slots of a chunk, up to C - 2 + T. Some frequencies depend on the length of the sequence
    (dynamic NTK, longrope), which is the C of the `stream`'s ring.
    """
    return AngleTable.of(rope, stream.slots, ring.slots + max(ring.window, chunk))


def keys_and_values(
    cache: LayerCache, ring: Ring, positions: Int[Array, " P"], angles: AngleTable
) -> tuple[Float[Array, "K P D"], Float[Array, "K P D"]]:
    """The keys and values of a layer at P cache positions of its ring. `angles` are those of the `angle_table`.

    Keys are unrotated and in float32; values have the dtype of the cache.
    """
    keys, values = cache
    slots = slots_at(ring, positions)
    undo_rotation = angles(slots).inverse()
    return rotate(keys[:, :, slots].swapaxes(1, 2).astype(jnp.float32), undo_rotation), values[:, slots]
