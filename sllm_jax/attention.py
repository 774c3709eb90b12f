"""Sink-plus-window attention as pure functions of arrays (paper, section 3.2; positions counted inside the cache).

A key is rotated once, by the number of its slot, and the query is shifted instead of the keys. It is rotated three
ways: for the sinks by its own cache position, for window slots written in this lap of the ring by its slot, for those
that still hold the previous lap by its slot + R. The slot number alone decides which of the three a key meets. Models
with ALiBi rotate nothing; their scores get a bias that follows from the key's cache position.

`attend_one` (decode) writes the token, then attends to the ring. `attend_chunk` (extend) attends to the ring as it was
and to the chunk, then writes. Both take slots, masks and numbers from one `Plan`, made once per call, not per layer.

Axis letters as in `kv_state.py`, and H query heads, G query heads per key/value head.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from sllm_jax.kv_state import KVState, ages, angle_table, live, slots_after, write_chunk, write_token, written_slots
from sllm_jax.models.config import ModelConfig
from sllm_jax.models.layers import Attend, LayerCache
from sllm_jax.models.linear import precision_of
from sllm_jax.position import AngleTable, rotate

MASKED = -1e30  # finite: a row with nothing to see must not become NaN and reach valid rows through the next layer


class Block(NamedTuple):
    """T queries and n keys, which of the keys each query sees, and what is added to their scores."""

    q: Float[Array, "K G T D"]
    k: Float[Array, "K n D"]
    v: Float[Array, "K n D"]
    sees: Bool[Array, "T n"]
    bias: Float[Array, "K G T n"] | None = None


class Plan(struct.PyTreeNode):
    """What T tokens that come next do to a state: where each goes, which position it has, what it sees."""

    slots: Int[Array, " T"]  # the slot each token takes
    written: Int[Array, " T"]  # the same; A or more for padding and for tokens overwritten inside the chunk
    position: Int[Array, " T"]  # cache position at which each token attends
    number: Int[Array, " T"]  # numbered onwards from next_slot, without going round
    sees: Bool[Array, "T A"]  # which slots of the state, as it is before the chunk, each token attends to
    key_position: Int[Array, "T A"]  # cache position of the token in each slot, as each token finds it
    old_lap: Bool[Array, " A"]  # window slots that hold the previous lap, as seen by the first token


def plan(state: KVState, length: int, count: Int[Array, ""], sliding_window: int | None = None) -> Plan:
    """The plan of a chunk of `length` places, of which the first `count` hold tokens.

    A model with a sliding window sees no further back than that, but for the sinks.
    """
    t, slot = jnp.arange(length), jnp.arange(state.allocated)
    is_sink, distance = slot < state.start_size, t[:, None] + ages(state)
    position = jnp.minimum(state.filled + t, state.slots - 1)
    return Plan(
        slots=slots_after(state, length),
        written=written_slots(state, length, count),
        position=position,
        number=state.next_slot + t,
        sees=live(state) & (is_sink | (distance < _reach(state, sliding_window))),
        key_position=jnp.where(is_sink, slot, position[:, None] - distance),
        old_lap=slot > state.next_slot,
    )


def _reach(state: KVState, sliding_window: int | None) -> int:
    """How many tokens of the window a token sees, itself included."""
    return min(state.window, sliding_window or state.window)


def attend_one(config: ModelConfig, dtype: Any, state: KVState) -> Attend:
    """Attention for the next token of a stream: write it, then attend to the ring, itself included."""
    size = state.start_size
    p = plan(state, 1, jnp.int32(1), config.sliding_window)
    angles = angle_table(config.rope, size, state.recent_size)
    at_slot = angles(p.slots)
    numbers, way = query_rotations(state, p)
    at_ways = angles(numbers[: _ways(config, size)])
    itself = jnp.arange(state.allocated) == p.slots[0]
    sees = p.sees[0] | itself
    bias = position_bias(config, jnp.where(itself, p.position, p.key_position), p.position[:, None])

    def attend(
        cache: LayerCache, q: Float[Array, "1 H D"], k: Float[Array, "1 K D"], v: Float[Array, "1 K D"]
    ) -> tuple[LayerCache, Float[Array, "1 H D"]]:
        with jax.named_scope("cache_write"):
            keys, values = write_token(cache, p.slots[0], rotate(_heads_first(k), at_slot), _heads_first(v))
        grouped = _grouped(q, len(values))  # [K, G, 1, D]
        rows = rotate(jnp.broadcast_to(grouped, (*grouped.shape[:2], len(at_ways.cos), grouped.shape[3])), at_ways)
        chosen = config.score_scale * _chosen_products(rows, keys, way, dtype)  # [K, G, A]
        if bias is not None:
            chosen += bias[:, :, 0]
        weights = sink_softmax(jnp.where(sees, chosen, MASKED), config).astype(dtype)  # [K, G, A]
        mixed = jnp.einsum("kga,kad->kgd", weights, values, precision=precision_of(dtype))
        return (keys, values), mixed.reshape(1, *q.shape[1:])

    return attend


def _chosen_products(
    rows: Float[Array, "K G W D"], keys: Float[Array, "K D A"], way: Int[Array, " A"], dtype: Any
) -> Float[Array, "K G A"]:
    """The product of each key with the query as it is rotated for it, one of W ways.

    All ways are one matrix product; on a CPU, where one of three rows takes up to 1.5 x as long, they are W products.
    """
    product = partial(jnp.einsum, precision=precision_of(dtype), preferred_element_type=jnp.float32)

    def choose(products: list[Array]) -> Array:
        return reduce(lambda chosen, i: jnp.where(way == i, products[i], chosen), range(1, len(products)), products[0])

    def together(rows: Array, keys: Array) -> Array:
        products = product("kgwd,kda->kgwa", rows, keys)
        return choose([products[:, :, i] for i in range(rows.shape[2])])

    def apart(rows: Array, keys: Array) -> Array:
        return choose([product("kgd,kda->kga", rows[:, :, i], keys) for i in range(rows.shape[2])])

    return jax.lax.platform_dependent(rows, keys, cpu=apart, default=together)


def query_rotations(state: KVState, p: Plan) -> tuple[Int[Array, " W"], Int[Array, " A"]]:
    """By which W = 3 numbers the next token's query is rotated, and which of them (0, 1, 2) meets each slot's key.

    The number less that of the slot, by which the key was rotated, is the distance of the two in cache positions.
    """
    slot = jnp.arange(state.allocated)
    numbers = jnp.concatenate([p.slots, p.slots + state.window, p.position])  # this lap, the previous one, sinks
    return numbers, jnp.where(slot < state.start_size, 2, p.old_lap)


def _ways(config: ModelConfig, start_size: int) -> int:
    """In how many ways a query is rotated to meet the keys of a ring."""
    if config.rope.dim == 0:
        return 1
    return 3 if start_size else 2


def attend_chunk(config: ModelConfig, dtype: Any, state: KVState, length: int, count: Int[Array, ""]) -> Attend:
    """Attention for the next `count` tokens of a stream, padded to `length`: equal to `count` single steps.

    The chunk's tokens are numbered onwards from `next_slot`, so that one rotation of the query serves the window and
    the chunk; keys of the previous lap are turned back by R once. The sinks get a product of their own.
    """
    size, window = state.start_size, state.window
    p = plan(state, length, count, config.sliding_window)
    angles = angle_table(config.rope, size, state.recent_size, length)
    at_slots, at_numbers, at_position = angles(p.slots), angles(p.number), angles(p.position)
    lap_back = angles(jnp.where(p.old_lap, window, 0)).inverse()
    slot, t, sink = jnp.arange(state.allocated), jnp.arange(length), jnp.arange(size)
    sees_ring = p.sees & (slot >= size)  # [T, A]
    distance = t[:, None] - t  # [T, T]
    sees_chunk = (distance >= 0) & (distance < _reach(state, config.sliding_window)) & (p.slots >= size)
    sink_is_new = (sink >= state.next_slot)[:, None]  # [S, 1]: a sink that comes with this chunk, as its token
    sink_token = jnp.clip(sink - state.next_slot, 0, length - 1)
    sees_sink = jnp.where(sink_is_new[:, 0], t[:, None] >= sink - state.next_slot, sink < state.filled)  # [T, S]
    at = p.position[:, None]
    ring_bias = position_bias(config, p.key_position, at)
    chunk_bias = position_bias(config, at - distance, at)
    sink_bias = position_bias(config, sink[None], at)

    def attend(
        cache: LayerCache, q: Float[Array, "T H D"], k: Float[Array, "T K D"], v: Float[Array, "T K D"]
    ) -> tuple[LayerCache, Float[Array, "T H D"]]:
        keys, values = cache
        k, v, grouped = _heads_first(k), _heads_first(v).astype(values.dtype), _grouped(q, len(values))
        k_written = rotate(k, at_slots).astype(keys.dtype)
        in_window = rotate(grouped, at_numbers)
        blocks = [
            Block(in_window, rotate(keys.swapaxes(1, 2), lap_back), values, sees_ring, ring_bias),
            Block(in_window, rotate(k, at_numbers), v, sees_chunk, chunk_bias),
        ]
        if size:
            sink_k = jnp.where(sink_is_new, k_written[:, sink_token], keys[:, :, :size].swapaxes(1, 2))
            sink_v = jnp.where(sink_is_new, v[:, sink_token], values[:, :size])
            blocks.append(Block(rotate(grouped, at_position), sink_k, sink_v, sees_sink, sink_bias))
        mixed = _attend_blocks(blocks, config, dtype)
        with jax.named_scope("cache_write"):
            return write_chunk(cache, p.written, k_written, v), mixed

    return attend


def attend_causally(config: ModelConfig, dtype: Any, length: int) -> Attend:
    """Ordinary dense attention over a text of `length` tokens; keeps nothing."""
    block_of = causal_block(config, length)

    def attend(
        cache: LayerCache, q: Float[Array, "T H D"], k: Float[Array, "T K D"], v: Float[Array, "T K D"]
    ) -> tuple[LayerCache, Float[Array, "T H D"]]:
        return cache, _attend_blocks([block_of(q, k, v)], config, dtype)

    return attend


def causal_block(
    config: ModelConfig, length: int
) -> Callable[[Float[Array, "T H D"], Float[Array, "T K D"], Float[Array, "T K D"]], Block]:
    """What makes one block of a text of `length` tokens: each sees itself and all before it in its sliding window."""
    at = AngleTable.of(config.rope, max(length, config.rope.max_position_embeddings), length)(jnp.arange(length))
    t = jnp.arange(length)
    distance = t[:, None] - t
    sees = (distance >= 0) & (distance < (config.sliding_window or length))
    bias = position_bias(config, t[None], t[:, None])

    def block_of(q: Float[Array, "T H D"], k: Float[Array, "T K D"], v: Float[Array, "T K D"]) -> Block:
        k, v = _heads_first(k), _heads_first(v)
        return Block(rotate(_grouped(q, len(k)), at), rotate(k, at), v, sees, bias)

    return block_of


def position_bias(
    config: ModelConfig, key: Int[Array, "#T n"], query: Int[Array, "T 1"]
) -> Float[Array, "K G T n"] | None:
    """What a model with ALiBi adds to its scores, given the cache positions of keys and queries."""
    if config.alibi is None:
        return None
    bias = config.alibi.bias(key, query)  # [H, T, n]
    kv_heads = config.num_key_value_heads
    return bias.reshape(kv_heads, config.num_attention_heads // kv_heads, *bias.shape[1:])


def masked_scores(blocks: list[Block], config: ModelConfig, dtype: Any) -> Float[Array, "K G T n"]:
    """The scores of several blocks side by side, float32, `MASKED` where a query does not see."""
    scores = []
    for block in blocks:
        plain = _scores(block.q, block.k, config, dtype)
        scores.append(jnp.where(block.sees, plain if block.bias is None else plain + block.bias, MASKED))
    return jnp.concatenate(scores, axis=-1)


def mix(weights: Float[Array, "K G T n"], blocks: list[Block], dtype: Any) -> Float[Array, "T H D"]:
    """The values of several blocks, mixed by the weights of all of them side by side."""
    ends = [sum(block.k.shape[1] for block in blocks[: i + 1]) for i in range(len(blocks) - 1)]
    product = partial(jnp.einsum, "kgtn,knd->kgtd", precision=precision_of(dtype), preferred_element_type=jnp.float32)
    parts = jnp.split(weights.astype(dtype), ends, axis=-1)
    mixed = reduce(jnp.add, [product(w, block.v) for w, block in zip(parts, blocks, strict=True)])
    K, G, T, D = mixed.shape  # noqa: N806
    return mixed.transpose(2, 0, 1, 3).reshape(T, K * G, D).astype(dtype)


def _attend_blocks(blocks: list[Block], config: ModelConfig, dtype: Any) -> Float[Array, "T H D"]:
    """One softmax over several blocks."""
    return mix(sink_softmax(masked_scores(blocks, config, dtype), config), blocks, dtype)


def _scores(
    q: Float[Array, "K *rows D"], keys: Float[Array, "K n D"], config: ModelConfig, dtype: Any
) -> Float[Array, "K *rows n"]:
    """Scaled scores in float32."""
    precision = precision_of(dtype)
    products = jnp.einsum("k...d,knd->k...n", q, keys, precision=precision, preferred_element_type=jnp.float32)
    return products * config.score_scale


def sink_softmax(scores: Float[Array, "*rows n"], config: ModelConfig) -> Float[Array, "*rows n"]:
    """Softmax over n keys; with a zero sink over n + 1, of which one has score 0 and value 0 (paper, equation 2)."""
    if config.attention_sink != "zero":
        return jax.nn.softmax(scores, axis=-1)
    top = jax.lax.stop_gradient(jnp.maximum(scores.max(axis=-1, keepdims=True), 0))
    weights = jnp.exp(scores - top)
    return weights / (jnp.exp(-top) + weights.sum(axis=-1, keepdims=True))


def _heads_first(x: Float[Array, "T K D"]) -> Float[Array, "K T D"]:
    return x.swapaxes(0, 1)


def _grouped(q: Float[Array, "T H D"], kv_heads: int) -> Float[Array, "K G T D"]:
    """Query head h belongs to key/value head h // G."""
    T, H, D = q.shape  # noqa: N806
    return q.reshape(T, kv_heads, H // kv_heads, D).transpose(1, 2, 0, 3)
