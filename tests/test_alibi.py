"""ALiBi: bitwise equal to PyTorch transformers, and bounded in streams of any length."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.falcon.modeling_falcon import build_alibi_tensor
from transformers.models.mpt.modeling_mpt import build_mpt_alibi_tensor

from sllm_jax.core.attention import plan
from sllm_jax.core.kv_state import KVState, Ring, advance
from sllm_jax.models.alibi import falcon_alibi, mpt_alibi

LENGTH = 5000


def biases(alibi, query: int) -> np.ndarray:
    """[H, n] of the first `LENGTH` cache positions, compiled as it is in a program."""
    keys = jnp.arange(LENGTH)[None]
    return np.asarray(jax.jit(alibi.bias)(keys, jnp.array([[query]]))[:, 0])


@pytest.mark.parametrize("heads", [1, 2, 6, 12, 32, 71, 112])
def test_falcons_is_that_of_transformers_to_the_bit(heads):
    theirs = build_alibi_tensor(torch.ones(1, LENGTH, dtype=torch.long), heads, torch.float32)[:, 0]
    expected = (theirs * torch.tensor(64**-0.5)).numpy()
    np.testing.assert_array_equal(biases(falcon_alibi(heads, 64), query=0), expected)


def test_falcons_really_is_rounded():
    exact = np.outer(falcon_alibi(32, 64).slopes, np.arange(LENGTH)) / 8
    ours = biases(falcon_alibi(32, 64), query=0)
    assert np.abs(ours - exact)[:, 257:].max() > 0.5
    assert len(np.unique(ours[0, 256:512])) <= 128  # of two positions past 256 one is rounded to the other


@pytest.mark.parametrize("heads", [1, 2, 6, 12, 32, 40])
@pytest.mark.parametrize("bias_max", [8, 4, 16])
def test_mpts_is_that_of_transformers(heads, bias_max):
    expected = build_mpt_alibi_tensor(heads, LENGTH, bias_max)[:, 0].numpy()
    np.testing.assert_allclose(biases(mpt_alibi(heads, bias_max), query=LENGTH - 1), expected, rtol=2e-7)


def test_mpts_is_exact_where_its_slopes_are():
    slopes = 2.0 ** -np.arange(1, 9)
    exact = np.outer(slopes, np.arange(LENGTH) - (LENGTH - 1))
    np.testing.assert_array_equal(biases(mpt_alibi(8, 8), query=LENGTH - 1), exact)


def state_after(read: int, start_size: int, recent_size: int) -> KVState:
    """The numbers of a state that has read tokens 0, 1, ..., one at a time."""
    empty = jnp.zeros(128, jnp.int32)
    state = KVState((), (), empty, (Ring(jnp.int32(0), jnp.int32(0), start_size, recent_size),))
    for token in range(read):
        state = advance(state, jnp.array([token], jnp.int32), jnp.int32(1))
    return state


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 4), st.integers(0, 9), st.integers(0, 60), st.integers(1, 12))
def test_a_plan_knows_the_cache_position_of_every_key(start_size, recent_size, read, length):
    state = state_after(read, start_size, recent_size)
    planned = plan(state.ring, length, jnp.int32(length))
    for t in range(length):
        now = read + t
        seen = [*range(min(start_size, now)), *range(max(start_size, now - recent_size), now)]  # the list, by token
        for slot in np.flatnonzero(planned.mask[t]):
            assert planned.key_position[t, slot] == seen.index(int(state.token_ids[slot]))
        assert planned.position[t] == len(seen)


def test_cache_positions_stay_bounded_however_long_the_stream():
    state = state_after(20, 2, 9)
    ahead = jax.jit(
        lambda state: jax.lax.fori_loop(0, 1_000_000, lambda i, s: advance(s, i[None], jnp.int32(1)), state)
    )
    planned = plan(ahead(state).ring, 4, jnp.int32(4))
    positions = np.where(planned.mask, planned.key_position, 0)
    assert positions.min() == 0
    assert positions.max() < state.ring.slots
