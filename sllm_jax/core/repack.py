"""Moving the tokens of a state to other slots: the cache methods of the paper's code that need it.

Axis letters as in `kv_state.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Int

from sllm_jax.core.kv_state import KVState, Ring, angle_table, keys_and_values, layer_sizes, slots_at
from sllm_jax.models.attend import LayerCache
from sllm_jax.models.config import ModelConfig
from sllm_jax.models.position import AngleTable, rotate


class Move(NamedTuple):
    """Which tokens of a ring go to slots 0, 1, ... of another one."""

    old: Ring
    new: Ring
    positions: Int[Array, " A"]  # cache positions in `old`, one for each slot of `new`; from `new.filled` on arbitrary


def evict_range(state: KVState, start: Int[Array, ""], end: Int[Array, ""], config: ModelConfig) -> KVState:
    """Drop the tokens at cache positions in [start, end) of the stream, and repack the rest in cache order.

    A layer that keeps fewer tokens than the stream drops those of [start, end) that it still has.
    """
    stream = state.ring

    def move(ring: Ring, start_size: int, recent_size: int) -> Move:
        lost, sinks = stream.filled - ring.filled, ring.start_size
        # A sink has the same position in every layer; other tokens are counted from the newest one.
        first, last = (jnp.where(x <= sinks, x, jnp.maximum(x - lost, sinks)) for x in (start, end))
        position = jnp.arange(ring.cache_size)
        survivors = jnp.where(position < first, position, position + (last - first))
        return _move(ring, start_size, recent_size, survivors, ring.filled - (last - first))

    return _moved(state, stream.start_size, stream.recent_size, move, config)


def first_and_last(state: KVState, start_size: int, recent_size: int, config: ModelConfig) -> KVState:
    """A state of the given capacity with the first `start_size` and the last `recent_size` tokens of `state`.

    The same as `StartRecentKVCache.__call__` of the paper's code. A layer that keeps less than the stream keeps the
    tokens that it has.
    """

    def move(ring: Ring, start_size: int, recent_size: int) -> Move:
        position = jnp.arange(start_size + recent_size)
        skipped = jnp.maximum(ring.filled - len(position), 0)
        kept = jnp.where(position < start_size, position, position + skipped)
        return _move(ring, start_size, recent_size, kept, ring.filled - skipped)

    return _moved(state, start_size, recent_size, move, config)


def _move(old: Ring, start_size: int, recent_size: int, positions: Int[Array, " P"], count: Int[Array, ""]) -> Move:
    """The move of the tokens at `positions[:count]` of `old` to a ring of the given sizes."""
    new = Ring(count, count, start_size, recent_size)
    return Move(old, new, jnp.pad(positions, (0, new.allocated - len(positions))))


def _moved(
    state: KVState,
    start_size: int,
    recent_size: int,
    move: Callable[[Ring, int, int], Move],
    config: ModelConfig,
) -> KVState:
    """The state of the given capacity after the move of every ring. Layers that share a ring share its move."""
    stream = move(state.ring, start_size, recent_size)
    moves: dict[tuple[int, ...], Move] = {}
    caches = []
    for i, cache in enumerate(zip(state.k, state.v, strict=True)):
        layer = config.at_layer(i)
        ring, sizes = state.ring_of(layer), layer_sizes(layer, start_size, recent_size)
        key = (ring.start_size, ring.recent_size, *sizes)
        if key not in moves:
            moves[key] = move(ring, *sizes)
        old_angles = angle_table(layer.rope, ring, state.ring)
        new_angles = angle_table(layer.rope, moves[key].new, stream.new)
        caches.append(_moved_cache(cache, moves[key], old_angles, new_angles))
    k, v = zip(*caches, strict=True)
    is_kept = jnp.arange(stream.new.allocated) < stream.new.filled
    token_ids = state.token_ids[slots_at(state.ring, stream.positions)]
    # Layers with rings of the same new sizes hold the same tokens.
    rings = {(one.new.start_size, one.new.recent_size): one.new for one in (stream, *moves.values())}
    return KVState(k, v, jnp.where(is_kept, token_ids, 0), tuple(rings.values()))


def _moved_cache(cache: LayerCache, move: Move, old_angles: AngleTable, new_angles: AngleTable) -> LayerCache:
    """The cache of a layer after a move. Keys are rotated from their old slots to their new ones."""
    slot = jnp.arange(move.new.allocated)
    is_kept = slot < move.new.filled
    keys, values = keys_and_values(cache, move.old, move.positions, old_angles)
    new_rotation = new_angles(jnp.where(is_kept, slot, 0))
    new_keys = jnp.where(is_kept, rotate(keys, new_rotation).swapaxes(1, 2), 0).astype(cache[0].dtype)
    return new_keys, jnp.where(is_kept[:, None], values, 0)
