"""Sink-plus-window attention: pure functions of arrays (paper, section 3.2).

Positions are counted inside the cache. A key is rotated once, to the position of its slot. A query is rotated so that
its position minus the slot equals the distance in the cache. That takes up to three rotations of each query: for sinks,
for keys of the current lap of the ring, and for keys of its previous lap. A *lap* is one pass over the R window slots:
slots before the next one hold tokens of the current lap, slots after it tokens of the previous lap.

With 2 sinks and 5 window slots (R = 5), when token 9 has just taken the slot of token 4:

                      sinks  |  current lap  |  previous lap
    slot              0   1  |  2    3    4  |  5    6
    token             0   1  |  7    8    9  |  5    6
    cache position    0   1  |  4    5    6  |  2    3
    query rotated to  6   6  |  4    4    4  |  9    9    cache position (6) | slot (4) | slot + R (9) of token 9
    distance          6   5  |  2    1    0  |  4    3    = (query rotated to) - slot

Models with ALiBi use no rotation: their scores get a bias that depends on the cache positions.

`attend_one` (for `decode`) writes the token, then attends to the ring. `attend_chunk` (for `extend`) attends to the
ring and to the chunk, then writes, because a chunk may overwrite slots that its earlier tokens still attend to. Both
get slots, masks and positions from one `Plan`, made once per call. `dtype` is that of the attention weights and the
output, and equals that of the cache.

Axis letters as in `kv_state.py` and `blocks.py`, and W rotations of a query.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
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
    sink_logit_of,
    sink_softmax,
)
from sllm_jax.core.kv_state import (
    KVState,
    Ring,
    ages,
    angle_table,
    live,
    slots_after,
    slots_to_write,
    write_chunk,
    write_token,
)
from sllm_jax.models.attend import Attend, LayerCache
from sllm_jax.models.config import ModelConfig
from sllm_jax.models.linear import precision_of
from sllm_jax.models.position import AngleTable, rotate

# Which rotation of the query a key needs.
THIS_LAP, PREVIOUS_LAP, SINK = 0, 1, 2


class Plan(struct.PyTreeNode):
    """The slots and positions of the next T tokens, and which tokens that are already in the ring each attends to."""

    slots: Int[Array, " T"]  # slot of each token
    write_slot: Int[Array, " T"]  # the same, or A and more for tokens that are not written (see `slots_to_write`)
    unwrapped_slot: Int[Array, " T"]  # next_slot + t, to which queries and keys of a chunk are rotated
    position: Int[Array, " T"]  # cache position of each token
    key_position: Int[Array, "T A"]  # cache position of each slot's token at the time of query t
    mask: Bool[Array, "T A"]  # which slots each token attends to
    previous_lap: Bool[Array, " A"]  # slots after next_slot, whose tokens are of the previous lap


def plan(ring: Ring, length: int, count: Int[Array, ""]) -> Plan:
    """The plan of a padded chunk of `length` tokens, of which `count` are real."""
    t, slot = jnp.arange(length), jnp.arange(ring.allocated)
    is_sink = slot < ring.start_size
    # How many tokens before token t each window slot's token was written.
    distance = t[:, None] + ages(ring)  # [T, A]
    # The cache grows by one position per token until it is full; from then on the newest token has position C - 1.
    position = jnp.minimum(ring.filled + t, ring.slots - 1)
    return Plan(
        slots=slots_after(ring, length),
        write_slot=slots_to_write(ring, length, count),
        unwrapped_slot=ring.next_slot + t,
        position=position,
        key_position=jnp.where(is_sink, slot, position[:, None] - distance),
        mask=live(ring) & (is_sink | (distance < ring.window)),
        previous_lap=slot > ring.next_slot,
    )


# Decoding: one token.


def attend_one(config: ModelConfig, dtype: Any, state: KVState) -> Attend:
    """Attention for decoding one token: writes its key and value to the ring, then attends to the ring."""
    ring = state.ring_of(config)
    start_size = ring.start_size
    p = plan(ring, 1, jnp.int32(1))
    angles = angle_table(config.rope, ring, state.ring)
    key_angles = angles(p.slots)
    rotations, choice = query_rotations(ring, p)
    query_angles = angles(rotations[: _rotations_needed(config, start_size)]).for_queries(config.rope)
    # The token attends to itself as well, in the slot that it is written to.
    is_own_slot = jnp.arange(ring.allocated) == p.slots[0]
    mask = p.mask[0] | is_own_slot  # [A]
    bias = position_bias(config, jnp.where(is_own_slot, p.position, p.key_position), p.position[:, None])

    def attend(
        cache: LayerCache, q: Float[Array, "1 H D"], k: Float[Array, "1 K D"], v: Float[Array, "1 K D"]
    ) -> tuple[LayerCache, Float[Array, "1 H D"]]:
        with jax.named_scope("cache_write"):
            keys, values = write_token(cache, p.slots[0], rotate(heads_first(k), key_angles), heads_first(v))
        # One copy of the query per rotation: [K, G, 1, D] -> [K, G, W, D].
        query = grouped(q, len(values))
        K, G, _, D = query.shape  # noqa: N806
        query = jnp.broadcast_to(query, (K, G, len(query_angles.cos), D))
        products = _chosen_products(rotate(query, query_angles), keys, choice, dtype)  # [K, G, A]
        scores = masked_scores(products, mask, config, None if bias is None else bias[:, :, 0])
        weights = sink_softmax(scores, sink_logit_of(config)).astype(dtype)  # [K, G, A]
        product = partial(jnp.einsum, precision=precision_of(dtype), preferred_element_type=jnp.float32)
        output = product("kga,kad->kgd", weights, values).astype(dtype)
        return (keys, values), output.reshape(1, *q.shape[1:])

    return attend


def query_rotations(ring: Ring, p: Plan) -> tuple[Int[Array, " W"], Int[Array, " A"]]:
    """The W = 3 positions that the next token's query is rotated to, and for each slot which of them its key needs.

    That position minus the slot, the position of the key, is their distance in the cache.
    """
    slot = jnp.arange(ring.allocated)
    rotations = jnp.concatenate([p.slots, p.slots + ring.window, p.position])  # THIS_LAP, PREVIOUS_LAP, SINK
    # False is THIS_LAP, True is PREVIOUS_LAP.
    return rotations, jnp.where(slot < ring.start_size, SINK, p.previous_lap)


def _rotations_needed(config: ModelConfig, start_size: int) -> int:
    """W, how many of the rotations of `query_rotations` are needed; `choice` is unused if it is 1."""
    if config.rope.dim == 0:  # without RoPE, `rotate` is the identity: one product serves all keys
        return 1
    return 3 if start_size else 2


def _chosen_products(
    queries: Float[Array, "K G W D"], keys: Float[Array, "K D A"], choice: Int[Array, " A"], dtype: Any
) -> Float[Array, "K G A"]:
    """The dot product, in float32, of each key with the query in the rotation that its slot needs (`choice`).

    Computes all W products and selects: as one matrix product, or on a CPU as W matrix-vector products, since one
    product with three rows takes up to 1.5 times as long there.
    """
    product = partial(jnp.einsum, precision=precision_of(dtype), preferred_element_type=jnp.float32)

    def choose(products: list[Array]) -> Array:
        chosen = products[0]
        for i in range(1, len(products)):
            chosen = jnp.where(choice == i, products[i], chosen)
        return chosen

    def one_matmul(queries: Array, keys: Array) -> Array:
        products = product("kgwd,kda->kgwa", queries, keys)
        return choose([products[:, :, i] for i in range(queries.shape[2])])

    def w_matvecs(queries: Array, keys: Array) -> Array:
        return choose([product("kgd,kda->kga", queries[:, :, i], keys) for i in range(queries.shape[2])])

    return jax.lax.platform_dependent(queries, keys, cpu=w_matvecs, default=one_matmul)


# Prefill: a chunk of tokens.


def attend_chunk(config: ModelConfig, dtype: Any, state: KVState, length: int, count: Int[Array, ""]) -> Attend:
    """Attention for the next `count` tokens, padded to `length`: equal to `count` single steps up to rounding.

    Queries and keys of the chunk are rotated to unwrapped slots, next_slot + t, so that one rotation of a query serves
    all keys of the window. Sinks need another.
    """
    ring = state.ring_of(config)
    p = plan(ring, length, count)
    angles = angle_table(config.rope, ring, state.ring, length)
    slot_angles, query_angles = angles(p.slots), angles(p.unwrapped_slot)
    make_ring_block = ring_block(config, ring, p, angles)
    make_chunk_block = chunk_block(config, ring, p)
    make_sink_block = sink_block(config, ring, p, angles)  # used only if there are sinks

    def attend(
        cache: LayerCache, q: Float[Array, "T H D"], k: Float[Array, "T K D"], v: Float[Array, "T K D"]
    ) -> tuple[LayerCache, Float[Array, "T H D"]]:
        keys, values = cache
        q, k, v = grouped(q, len(values)), heads_first(k), heads_first(v).astype(values.dtype)
        cache_k = rotate(k, slot_angles).astype(keys.dtype)
        rotated_q = rotate(q, query_angles.for_queries(config.rope))
        blocks = [make_ring_block(rotated_q, cache), make_chunk_block(rotated_q, rotate(k, query_angles), v)]
        if ring.start_size:
            blocks.append(make_sink_block(q, cache, cache_k, v))
        output = attend_to_blocks(blocks, config, dtype)
        with jax.named_scope("cache_write"):
            return write_chunk(cache, p.write_slot, cache_k, v), output

    return attend


def ring_block(
    config: ModelConfig, ring: Ring, p: Plan, angles: AngleTable
) -> Callable[[Float[Array, "K G T D"], LayerCache], Block]:
    """Returns a function that makes the block of the window tokens that are already in the ring.

    Its queries are rotated to their unwrapped slots.
    """
    # The distance to a key of the previous lap is next_slot + t - (slot - R): rotate such keys back by R.
    rotate_back = angles(jnp.where(p.previous_lap, ring.window, 0)).inverse()
    # The sinks have a block of their own.
    is_window = jnp.arange(ring.allocated) >= ring.start_size  # [A]
    mask = p.mask & is_window  # [T, A]
    bias = position_bias(config, p.key_position, p.position[:, None])

    def block(q: Float[Array, "K G T D"], cache: LayerCache) -> Block:
        keys, values = cache  # [K, D, A] and [K, A, D]
        return Block(q, rotate(keys.swapaxes(1, 2), rotate_back), values, mask, bias)

    return block


def chunk_block(
    config: ModelConfig, ring: Ring, p: Plan
) -> Callable[[Float[Array, "K G T D"], Float[Array, "K T D"], Float[Array, "K T D"]], Block]:
    """Returns a function that makes the block of the window tokens of the chunk itself.

    Its queries and keys are rotated to their unwrapped slots.
    """
    t = jnp.arange(len(p.slots))
    distance = t[:, None] - t  # [T, T]
    in_window = (distance >= 0) & (distance < ring.window)
    # The sinks have a block of their own.
    mask = in_window & (p.slots >= ring.start_size)  # [T, T] & [T], over the keys
    bias = position_bias(config, p.position[:, None] - distance, p.position[:, None])

    def block(q: Float[Array, "K G T D"], k: Float[Array, "K T D"], v: Float[Array, "K T D"]) -> Block:
        return Block(q, k, v, mask, bias)

    return block


def sink_block(
    config: ModelConfig, ring: Ring, p: Plan, angles: AngleTable
) -> Callable[[Float[Array, "K G T D"], LayerCache, Float[Array, "K T D"], Float[Array, "K T D"]], Block]:
    """Returns a function that makes the block of the S sinks.

    They come from the ring or, while the stream is shorter than S, from this chunk. The function takes unrotated
    queries and rotates them to their cache positions.
    """
    length, sink = len(p.slots), jnp.arange(ring.start_size)
    position_angles = angles(p.position).for_queries(config.rope)
    index = sink - ring.next_slot  # index in the chunk; negative for sinks that are cached already
    is_new = (sink >= ring.next_slot)[:, None]  # [S, 1]
    token = jnp.clip(index, 0, length - 1)
    # A new sink is visible to itself and the tokens after it; a cached one to all (it is below `filled` in every state
    # that the library makes, see `is_possible`).
    mask = jnp.where(is_new[:, 0], jnp.arange(length)[:, None] >= index, sink < ring.filled)  # [T, S]
    bias = position_bias(config, sink[None], p.position[:, None])

    def block(
        q: Float[Array, "K G T D"], cache: LayerCache, cache_k: Float[Array, "K T D"], v: Float[Array, "K T D"]
    ) -> Block:
        keys, values = cache
        sink_k = jnp.where(is_new, cache_k[:, token], keys[:, :, : len(sink)].swapaxes(1, 2))
        sink_v = jnp.where(is_new, v[:, token], values[:, : len(sink)])
        return Block(rotate(q, position_angles), sink_k, sink_v, mask, bias)

    return block


# Dense attention: a whole sequence, without a cache.


def attend_causally(config: ModelConfig, dtype: Any, length: int) -> Attend:
    """Dense causal attention over a whole sequence of `length` tokens, without a cache."""
    block = causal_block(config, length)

    def attend(
        cache: LayerCache, q: Float[Array, "T H D"], k: Float[Array, "T K D"], v: Float[Array, "T K D"]
    ) -> tuple[LayerCache, Float[Array, "T H D"]]:
        return cache, attend_to_blocks([block(q, k, v)], config, dtype)

    return attend


def causal_block(
    config: ModelConfig, length: int
) -> Callable[[Float[Array, "T H D"], Float[Array, "T K D"], Float[Array, "T K D"]], Block]:
    """Returns a function that makes one block of a whole sequence.

    Each token attends to itself and to earlier ones, inside the model's sliding window if it has one.
    """
    t = jnp.arange(length)
    angles = AngleTable.of(config.rope, length, length)(t)
    distance = t[:, None] - t  # [T, T]
    window = length if config.sliding_window is None else config.sliding_window
    mask = (distance >= 0) & (distance < window)
    bias = position_bias(config, t[None], t[:, None])

    def block(q: Float[Array, "T H D"], k: Float[Array, "T K D"], v: Float[Array, "T K D"]) -> Block:
        k, v = heads_first(k), heads_first(v)
        return Block(rotate(grouped(q, len(k)), angles.for_queries(config.rope)), rotate(k, angles), v, mask, bias)

    return block
