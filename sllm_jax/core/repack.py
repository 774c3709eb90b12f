"""Moving the tokens of a state to other slots: the cache methods of the paper's code that need it.

Axis letters as in `kv_state.py`.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Int

from sllm_jax.core.kv_state import KVState, allocated_slots, angle_table, keys_and_values, slots_at
from sllm_jax.models.position import Rope, rotate


def evict_range(state: KVState, start: Int[Array, ""], end: Int[Array, ""], rope: Rope) -> KVState:
    """Drop the tokens at cache positions in [start, end), and repack the rest in cache order."""
    position = jnp.arange(state.cache_size)
    survivors = jnp.where(position < start, position, position + (end - start))
    return repack(state, survivors, state.filled - (end - start), state.start_size, state.recent_size, rope)


def first_and_last(state: KVState, start_size: int, recent_size: int, rope: Rope) -> KVState:
    """A state of the given capacity with the first `start_size` and the last `recent_size` tokens of `state`.

    The same as `StartRecentKVCache.__call__` of the paper's code.
    """
    position = jnp.arange(start_size + recent_size)
    skipped = jnp.maximum(state.filled - len(position), 0)
    kept = jnp.where(position < start_size, position, position + skipped)
    return repack(state, kept, state.filled - skipped, start_size, recent_size, rope)


def repack(
    state: KVState, positions: Int[Array, " P"], count: Int[Array, ""], start_size: int, recent_size: int, rope: Rope
) -> KVState:
    """A state of the given capacity, with the tokens at cache positions `positions[:count]` in slots 0, 1, ...

    Keys are rotated from their old slots to their new ones.
    """
    allocated = allocated_slots(start_size, recent_size)
    # One position for each slot; those from `count` on are masked below.
    positions = jnp.pad(positions, (0, allocated - len(positions)))
    slot = jnp.arange(allocated)
    kept = slot < count
    new_rotation = angle_table(rope, start_size, recent_size)(jnp.where(kept, slot, 0))
    new_k, new_v = [], []
    for (k, v), old_k in zip(keys_and_values(state, positions, rope), state.k, strict=True):
        new_k.append(jnp.where(kept, rotate(k, new_rotation).swapaxes(1, 2), 0).astype(old_k.dtype))
        new_v.append(jnp.where(kept[:, None], v, 0))
    return KVState(
        k=tuple(new_k),
        v=tuple(new_v),
        token_ids=jnp.where(kept, state.token_ids[slots_at(state, positions)], 0),
        next_slot=count,
        filled=count,
        start_size=start_size,
        recent_size=recent_size,
    )
