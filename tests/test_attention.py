"""The plan of a chunk against a ring updated token by token, and attention against its plain definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import TINY
from hypothesis import given, settings
from hypothesis import strategies as st

from sllm_jax.convert.families import module_for
from sllm_jax.core.attention import attend_causally, attend_chunk, attend_one, plan
from sllm_jax.core.kv_state import advance, ages, cache_order, init_state, live

MODULE = module_for(TINY, jnp.float32)


def ring_after(read: int, start_size: int, recent_size: int):
    """A state that has read tokens 0, 1, ..., their ids in its slots."""
    state = init_state(MODULE.config, start_size, recent_size, jnp.float32)
    for token in range(read):
        state = advance(state, jnp.array([token], jnp.int32), jnp.int32(1))
    return state


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 4), st.integers(0, 9), st.integers(0, 40), st.integers(1, 30), st.integers(1, 30))
def test_a_plan_says_what_single_steps_would_do(start_size, recent_size, read, length, count):
    count = min(count, length)
    state = ring_after(read, start_size, recent_size)
    planned = plan(state.ring, length, jnp.int32(count))
    expected, holds = ring_after(read, start_size, recent_size), np.asarray(state.token_ids)
    alive = np.asarray(live(state.ring))
    for t in range(count):
        assert planned.slots[t] == expected.ring.next_slot
        assert planned.position[t] == expected.filled
        now = read + t
        in_reach = alive & ((holds < start_size) | (now - holds <= recent_size))
        np.testing.assert_array_equal(planned.mask[t], in_reach)
        expected = advance(expected, jnp.array([now], jnp.int32), jnp.int32(1))
    final = advance(state, read + jnp.arange(length, dtype=jnp.int32), jnp.int32(count))
    jax.tree.map(np.testing.assert_array_equal, final, expected)
    written = np.asarray(planned.write_slot)
    assert len(set(written.tolist())) == length
    assert sorted(written[written < state.ring.allocated]) == sorted({int(slot) for slot in planned.slots[:count]})


@pytest.mark.parametrize("read", [0, 3, 7, 8, 20])
def test_ages_order_and_liveness_after_a_number_of_tokens(read):
    state = ring_after(read, 2, 5)
    kept = [*range(min(read, 2)), *range(max(2, read - 5), read)]
    assert state.token_ids[cache_order(state.ring)][: len(kept)].tolist() == kept
    assert sorted(state.token_ids[live(state.ring)].tolist()) == kept
    for slot in range(2, min(max(state.ring.slots, 2), read)):
        assert ages(state.ring)[slot] == read - state.token_ids[slot]


def test_causal_attention_equals_its_definition():
    rng = np.random.default_rng(0)
    q, k, v = rng.normal(size=(7, 6, 10)), rng.normal(size=(7, 3, 10)), rng.normal(size=(7, 3, 10))
    attend = attend_causally(MODULE.config, jnp.float32, 7)
    _, mixed = attend((jnp.zeros(0), jnp.zeros(0)), *(jnp.asarray(x, jnp.float32) for x in (q, k, v)))
    angle = np.outer(np.arange(7), MODULE.config.rope.frequencies(64))[:, None]

    def rotated(x):
        a, b = x[..., :5], x[..., 5:]
        return np.concatenate([a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)], -1)

    scores = np.einsum("thd,nhd->htn", rotated(q), np.repeat(rotated(k), 2, 1)) / np.sqrt(10)
    scores[:, np.triu_indices(7, 1)[0], np.triu_indices(7, 1)[1]] = -np.inf
    expected = np.einsum("htn,nhd->thd", jax.nn.softmax(scores, -1), np.repeat(v, 2, 1))
    np.testing.assert_allclose(mixed, expected, atol=1e-5)


@pytest.mark.parametrize("of", ["one token", "chunk", "sequence"])
def test_products_of_attention_accumulate_in_float32_whatever_the_dtype(of):
    config, state = MODULE.config, init_state(MODULE.config, 2, 5, jnp.bfloat16)
    length = 1 if of == "one token" else 7
    attend = {
        "one token": lambda: attend_one(config, jnp.bfloat16, state),
        "chunk": lambda: attend_chunk(config, jnp.bfloat16, state, length, jnp.int32(length)),
        "sequence": lambda: attend_causally(config, jnp.bfloat16, length),
    }[of]()
    q, k = jnp.zeros((length, 6, 10), jnp.bfloat16), jnp.zeros((length, 3, 10), jnp.bfloat16)
    program = jax.make_jaxpr(attend)((state.k[0], state.v[0]), q, k, k)
    products = [line for line in str(program).splitlines() if "dot_general" in line]
    assert len(products) >= 2
    assert all(":f32" in line.split("=")[0] for line in products), products
