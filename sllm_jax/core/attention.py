"""Sink-plus-window attention: pure functions of arrays (paper, section 3.2).

Positions are counted inside the cache. A key is rotated once, by the number of its slot; the query is rotated to match.
With 2 sinks and 5 window slots, when token 9 has just taken the slot of token 4:

    slot              0   1  |   2    3    4    5    6
    token             0   1  |   7    8    9    5    6    slots 2-4: this lap of the ring, 5-6: the previous one
    cache position    0   1  |   4    5    6    2    3
    query rotated by  6   6  |   4    4    4    9    9    its cache position, its slot, its slot + R
    distance          6   5  |   2    1    0    4    3    the row above minus the slot = distance in the cache

Models with ALiBi rotate nothing: their scores get a bias that depends on the cache positions.

`attend_one` (for `decode`) writes the token, then attends to the ring. `attend_chunk` (for `extend`) attends to the
ring as it was and to the chunk, then writes. Both get slots, masks and positions from one `Plan`, made once per call.

Axis letters as in `kv_state.py` and `blocks.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from sllm_jax.core.blocks import (
    Block,
    attend_to_blocks,
    grouped,
    heads_first,
    masked_scores,
    position_bias,
    sink_logits_of,
    sink_softmax,
)
from sllm_jax.core.kv_state import KVState, ages, angle_table, live, slots_after, write_chunk, write_slots, write_token
from sllm_jax.models.attend import Attend, LayerCache
from sllm_jax.models.config import ModelConfig
from sllm_jax.models.linear import precision_of
from sllm_jax.models.position import AngleTable, rotate


class Plan(struct.PyTreeNode):
    """Where the next T tokens of a stream go, and what each sees of the ring as it is before they are written."""

    slots: Int[Array, " T"]  # slot of each token
    write_slot: Int[Array, " T"]  # the same, or A and more for tokens that are not written (see `write_slots`)
    unwrapped_slot: Int[Array, " T"]  # next_slot + t, not wrapped around the ring
    position: Int[Array, " T"]  # cache position of each token
    key_position: Int[Array, "T A"]  # cache position of the token in each slot, when token t is the newest
    mask: Bool[Array, "T A"]  # which slots each token attends to
    previous_lap: Bool[Array, " A"]  # window slots still holding the previous lap, when the first token is the newest


def plan(state: KVState, length: int, count: Int[Array, ""], sliding_window: int | None = None) -> Plan:
    """The plan of a chunk of `length` places, of which the first `count` hold tokens and the rest padding.

    A model with a sliding window sees no further back than that, except for the sinks.
    """
    t, slot = jnp.arange(length), jnp.arange(state.allocated)
    is_sink = slot < state.start_size
    # Distance, in tokens, from token t back to the one in each window slot.
    distance = t[:, None] + ages(state)  # [T, A]
    # The cache grows by one position a token until it is full; then the newest token is always the last.
    position = jnp.minimum(state.filled + t, state.slots - 1)
    return Plan(
        slots=slots_after(state, length),
        write_slot=write_slots(state, length, count),
        unwrapped_slot=state.next_slot + t,
        position=position,
        key_position=jnp.where(is_sink, slot, position[:, None] - distance),
        mask=live(state) & (is_sink | (distance < _visible_window(state, sliding_window))),
        previous_lap=slot > state.next_slot,
    )


def _visible_window(state: KVState, sliding_window: int | None) -> int:
    """How many tokens of the window a token sees, itself included."""
    return min(state.window, sliding_window or state.window)


# Decoding: one token.


def attend_one(config: ModelConfig, dtype: Any, state: KVState) -> Attend:
    """Attention of a layer for the next token of a stream: write it, then attend to the ring, itself included."""
    start_size = state.start_size
    p = plan(state, 1, jnp.int32(1), config.sliding_window)
    angles = angle_table(config.rope, start_size, state.recent_size)
    key_angles = angles(p.slots)
    rotations, choice = query_rotations(state, p)
    query_angles = angles(rotations[: _rotations_needed(config, start_size)])
    # The token attends to itself as well, in the slot that it is written to.
    itself = jnp.arange(state.allocated) == p.slots[0]
    mask = p.mask[0] | itself  # [A]
    bias = position_bias(config, jnp.where(itself, p.position, p.key_position), p.position[:, None])

    def attend(
        cache: LayerCache, q: Float[Array, "1 H D"], k: Float[Array, "1 K D"], v: Float[Array, "1 K D"]
    ) -> tuple[LayerCache, Float[Array, "1 H D"]]:
        with jax.named_scope("cache_write"):
            keys, values = write_token(cache, p.slots[0], rotate(heads_first(k), key_angles), heads_first(v))
        # The query in each of its rotations: [K, G, 1, D] -> [K, G, W, D].
        query = grouped(q, len(values))
        query = jnp.broadcast_to(query, (*query.shape[:2], len(query_angles.cos), query.shape[3]))
        products = _chosen_products(rotate(query, query_angles), keys, choice, dtype)  # [K, G, A]
        scores = masked_scores(products, mask, config.score_scale, None if bias is None else bias[:, :, 0])
        weights = sink_softmax(scores, sink_logits_of(config)).astype(dtype)  # [K, G, A]
        mixed = jnp.einsum("kga,kad->kgd", weights, values, precision=precision_of(dtype))
        return (keys, values), mixed.reshape(1, *q.shape[1:])

    return attend


def query_rotations(state: KVState, p: Plan) -> tuple[Int[Array, " W"], Int[Array, " A"]]:
    """The W = 3 numbers by which the next token's query is rotated, and the index of the one for each slot's key.

    A rotation minus the number of the slot, by which its key was rotated, is their distance in cache positions.
    """
    slot = jnp.arange(state.allocated)
    rotations = jnp.concatenate([p.slots, p.slots + state.window, p.position])  # this lap, the previous one, sinks
    return rotations, jnp.where(slot < state.start_size, 2, p.previous_lap)


def _rotations_needed(config: ModelConfig, start_size: int) -> int:
    """W: how many of the query's rotations there are keys for."""
    if config.rope.dim == 0:
        return 1
    return 3 if start_size else 2


def _chosen_products(
    queries: Float[Array, "K G W D"], keys: Float[Array, "K D A"], choice: Int[Array, " A"], dtype: Any
) -> Float[Array, "K G A"]:
    """The product of each key with the rotation of the query, one of W, that its slot needs. float32.

    One matrix product with W rows. On a CPU, where three rows take up to 1.5 x as long as three products, W products.
    """
    product = partial(jnp.einsum, precision=precision_of(dtype), preferred_element_type=jnp.float32)

    def choose(products: list[Array]) -> Array:
        return reduce(
            lambda chosen, i: jnp.where(choice == i, products[i], chosen), range(1, len(products)), products[0]
        )

    def together(queries: Array, keys: Array) -> Array:
        products = product("kgwd,kda->kgwa", queries, keys)
        return choose([products[:, :, i] for i in range(queries.shape[2])])

    def apart(queries: Array, keys: Array) -> Array:
        return choose([product("kgd,kda->kga", queries[:, :, i], keys) for i in range(queries.shape[2])])

    return jax.lax.platform_dependent(queries, keys, cpu=apart, default=together)


# Reading: a chunk of tokens.


def attend_chunk(config: ModelConfig, dtype: Any, state: KVState, length: int, count: Int[Array, ""]) -> Attend:
    """Attention of a layer for the next `count` tokens, padded to `length`: equal to `count` single steps.

    The tokens' slots are not wrapped around the ring, so that one rotation of the query serves the ring and the chunk.
    """
    p = plan(state, length, count, config.sliding_window)
    angles = angle_table(config.rope, state.start_size, state.recent_size, length)
    slot_angles, query_angles = angles(p.slots), angles(p.unwrapped_slot)
    ring, chunk = ring_block(config, state, p, angles), chunk_block(config, state, p)
    sinks = sink_block(config, state, p, angles)

    def attend(
        cache: LayerCache, q: Float[Array, "T H D"], k: Float[Array, "T K D"], v: Float[Array, "T K D"]
    ) -> tuple[LayerCache, Float[Array, "T H D"]]:
        keys, values = cache
        q, k, v = grouped(q, len(values)), heads_first(k), heads_first(v).astype(values.dtype)
        written = rotate(k, slot_angles).astype(keys.dtype)
        rotated = rotate(q, query_angles)
        blocks = [ring(rotated, cache), chunk(rotated, rotate(k, query_angles), v)]
        if state.start_size:
            blocks.append(sinks(q, cache, written, v))
        mixed = attend_to_blocks(blocks, config, dtype)
        with jax.named_scope("cache_write"):
            return write_chunk(cache, p.write_slot, written, v), mixed

    return attend


def ring_block(
    config: ModelConfig, state: KVState, p: Plan, angles: AngleTable
) -> Callable[[Float[Array, "K G T D"], LayerCache], Block]:
    """The window slots as they were before the chunk. Queries are rotated by their unwrapped slots."""
    # Such a query is R too far along for keys of the previous lap, so those turn back by R.
    turn_back = angles(jnp.where(p.previous_lap, state.window, 0)).inverse()
    # The sinks have a block of their own.
    mask = p.mask & (jnp.arange(state.allocated) >= state.start_size)  # [T, A]
    bias = position_bias(config, p.key_position, p.position[:, None])

    def block(q: Float[Array, "K G T D"], cache: LayerCache) -> Block:
        keys, values = cache  # [K, D, A] and [K, A, D]
        return Block(q, rotate(keys.swapaxes(1, 2), turn_back), values, mask, bias)

    return block


def chunk_block(
    config: ModelConfig, state: KVState, p: Plan
) -> Callable[[Float[Array, "K G T D"], Float[Array, "K T D"], Float[Array, "K T D"]], Block]:
    """The chunk's own window tokens. Queries and keys are rotated by their unwrapped slots."""
    t = jnp.arange(len(p.slots))
    distance = t[:, None] - t  # [T, T]
    in_window = (distance >= 0) & (distance < _visible_window(state, config.sliding_window))
    mask = in_window & (p.slots >= state.start_size)
    bias = position_bias(config, p.position[:, None] - distance, p.position[:, None])

    def block(q: Float[Array, "K G T D"], k: Float[Array, "K T D"], v: Float[Array, "K T D"]) -> Block:
        return Block(q, k, v, mask, bias)

    return block


def sink_block(
    config: ModelConfig, state: KVState, p: Plan, angles: AngleTable
) -> Callable[[Float[Array, "K G T D"], LayerCache, Float[Array, "K T D"], Float[Array, "K T D"]], Block]:
    """The S sinks, of the ring or of this chunk. Queries come unrotated and are rotated by their cache positions."""
    length, sink = len(p.slots), jnp.arange(state.start_size)
    position_angles = angles(p.position)
    # Sinks from next_slot on come with this chunk: sink s is its token s - next_slot.
    is_new = (sink >= state.next_slot)[:, None]  # [S, 1]
    token = jnp.clip(sink - state.next_slot, 0, length - 1)
    # An earlier sink is seen if it is there; a new one by the tokens from itself on.
    seen_from = sink - state.next_slot
    mask = jnp.where(is_new[:, 0], jnp.arange(length)[:, None] >= seen_from, sink < state.filled)  # [T, S]
    bias = position_bias(config, sink[None], p.position[:, None])

    def block(
        q: Float[Array, "K G T D"], cache: LayerCache, written: Float[Array, "K T D"], v: Float[Array, "K T D"]
    ) -> Block:
        keys, values = cache
        sink_k = jnp.where(is_new, written[:, token], keys[:, :, : len(sink)].swapaxes(1, 2))
        sink_v = jnp.where(is_new, v[:, token], values[:, : len(sink)])
        return Block(rotate(q, position_angles), sink_k, sink_v, mask, bias)

    return block


# Dense attention: a whole text, nothing kept.


def attend_causally(config: ModelConfig, dtype: Any, length: int) -> Attend:
    """Ordinary causal attention of a layer over a text of `length` tokens; keeps nothing."""
    block = causal_block(config, length)

    def attend(
        cache: LayerCache, q: Float[Array, "T H D"], k: Float[Array, "T K D"], v: Float[Array, "T K D"]
    ) -> tuple[LayerCache, Float[Array, "T H D"]]:
        return cache, attend_to_blocks([block(q, k, v)], config, dtype)

    return attend


def causal_block(
    config: ModelConfig, length: int
) -> Callable[[Float[Array, "T H D"], Float[Array, "T K D"], Float[Array, "T K D"]], Block]:
    """A whole text as one block: each token sees itself and those before it, inside the model's sliding window."""
    t = jnp.arange(length)
    angles = AngleTable.of(config.rope, max(length, config.rope.max_position_embeddings), length)(t)
    distance = t[:, None] - t  # [T, T]
    mask = (distance >= 0) & (distance < (config.sliding_window or length))
    bias = position_bias(config, t[None], t[:, None])

    def block(q: Float[Array, "T H D"], k: Float[Array, "T K D"], v: Float[Array, "T K D"]) -> Block:
        k, v = heads_first(k), heads_first(v)
        return Block(rotate(grouped(q, len(k)), angles), rotate(k, angles), v, mask, bias)

    return block
