"""The cache methods of the paper's code: equal to its list semantics, followed by ordinary streaming."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from families import random_model
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import ListModel

from sllm_jax.common.errors import SllmError
from sllm_jax.core import decode, kv_state
from sllm_jax.core.model import Model
from sllm_jax.loading.pretrained import load
from sllm_jax.models.position import Rope
from sllm_jax.streams.kv_cache import StartRecentKVCache, enable_streaming_llm

TOLERANCE = 1e-4  # of logits with a spread of about 1, float32 against float64 attention


class Ring:
    """The program under test with the reference's interface; chunks are read in one padded size."""

    PLACES = 24

    def __init__(self, model: Model, start_size: int, recent_size: int):
        self.model = model
        self.cache = enable_streaming_llm(model, start_size, recent_size)
        self.carry = decode.init_carry(model, start_size, recent_size)

    def extend(self, token_ids) -> np.ndarray:
        """Logits of the last token."""
        for i in range(0, len(token_ids), self.PLACES):
            chunk = np.zeros(self.PLACES, np.int32)
            chunk[: len(token_ids[i:])][: self.PLACES] = token_ids[i : i + self.PLACES]
            count = np.int32(min(len(token_ids) - i, self.PLACES))
            self.carry = decode.extend(self.model, self.carry, chunk, count)
        return np.asarray(self.carry.logits)

    def apply(self, method, *args) -> None:
        self.carry = self.carry.replace(state=method(self.carry.state, *args))


SIZES = [(0, 0), (0, 7), (1, 0), (3, 1), (4, 12), (5, 0)]
STEPS = st.one_of(
    st.tuples(st.just("extend"), st.integers(1, 40)),
    st.tuples(st.just("evict_for_space"), st.integers(0, 30)),
    st.tuples(st.just("move"), st.sampled_from(SIZES)),
    st.tuples(st.just("evict_range"), st.tuples(st.floats(0, 1), st.floats(0, 1))),
)


@pytest.fixture(scope="module", params=["default", "dynamic"])
def of_kind(request, tiny):
    """The tiny model with plain RoPE, and with one whose angles depend on the capacity of the state."""
    if request.param == "default":
        return tiny
    rope = Rope(dim=10, max_position_embeddings=8, rope_theta=1000.0, rope_type="dynamic", factor=3.0)
    module = tiny.module.clone(config=replace(tiny.config, rope=rope))
    return Model(module, tiny.params)


@settings(max_examples=30, deadline=None)
@given(sizes=st.sampled_from(SIZES), steps=st.lists(STEPS, max_size=6), seed=st.integers(0, 1000))
def test_any_program_of_chunks_evictions_and_moves_equals_the_list(of_kind, sizes, steps, seed):
    run_both(of_kind, sizes, steps, seed)


@pytest.fixture(
    scope="module",
    params=[
        ("falcon", "RW"),
        ("mpt", "plain"),
        ("mistral", "sliding window"),
        ("qwen2", "a window in one layer"),
        ("qwen2", "a window in one layer", "without sinks"),
        ("qwen2", "a window in one layer", "with dynamic RoPE"),
    ],
    ids=" ".join,
)
def of_family(request, tmp_path_factory):
    """Models that tell positions by other means, or see less than the cache holds."""
    (family, variant, *change), folder = request.param, tmp_path_factory.mktemp("model")
    random_model(family, variant).save_pretrained(folder)
    model, _ = load(folder, dtype="float32")
    config = model.config
    if change == ["without sinks"]:
        config = replace(config, sinks_in_windows=False)
    elif change == ["with dynamic RoPE"]:
        ropes = [replace(one.rope, max_position_embeddings=8, rope_type="dynamic", factor=3.0) for one in config.layers]
        layers = [replace(one, rope=rope) for one, rope in zip(config.layers, ropes, strict=True)]
        config = replace(config, layers=tuple(layers))
    return Model(model.module.clone(config=config), model.params)


@settings(max_examples=8, deadline=None)
@given(sizes=st.sampled_from([(0, 12), (4, 12)]), steps=st.lists(STEPS, max_size=5), seed=st.integers(0, 1000))
def test_other_families_evict_and_move_as_the_list_does(of_family, sizes, steps, seed):
    run_both(of_family, sizes, [("extend", 20), *steps], seed)


def run_both(model, sizes, steps, seed):
    """The same steps on the ring and on the list, which must agree after each."""
    rng = np.random.default_rng(seed)
    ring, expected = Ring(model, *sizes), ListModel(model, *sizes)
    for name, size in [*steps, ("extend", 3)]:
        if name == "extend":
            tokens = rng.integers(0, 101, size)
            np.testing.assert_allclose(ring.extend(tokens), expected.extend(tokens)[-1], atol=TOLERANCE)
        elif name == "evict_for_space":
            expected.evict_for_space(size)
            ring.apply(ring.cache.evict_for_space, size)
        elif name == "move":
            cache = enable_streaming_llm(model, *size)
            if size[0] > expected.start_size and expected.has_lost_sinks():
                with pytest.raises(SllmError, match="would become sinks"):
                    ring.apply(cache)
                continue
            if expected.would_differ(*size):
                with pytest.raises(SllmError, match="keeps in all layers"):
                    ring.apply(cache)
                continue
            expected.resize(*size)
            ring.cache = cache
            ring.apply(ring.cache)
        else:
            start, end = sorted(int(share * len(expected)) for share in size)
            is_moving = start < min(end, expected.start_size) and end < len(expected)
            if is_moving and expected.has_lost_sinks():
                with pytest.raises(SllmError, match="would become sinks"):
                    ring.apply(ring.cache.evict_range, start, end)
                continue
            expected.evict_range(start, end)
            ring.apply(ring.cache.evict_range, start, end)
        state = ring.carry.state
        assert int(state.filled) == len(expected) <= ring.cache.cache_size
        assert 0 <= int(state.ring.next_slot) < max(state.ring.slots, 1)


@pytest.mark.parametrize("read", [0, 3, 9, 17, 40])
@pytest.mark.parametrize("sizes", [(0, 5), (4, 12), (2, 30)])
def test_call_keeps_first_and_last_of_a_dense_state(tiny, read, sizes):
    rng = np.random.default_rng(read)
    tokens, more = rng.integers(0, 101, (2, 40))
    ring, expected = Ring(tiny, 0, 60), ListModel(tiny, 0, 60)
    if read:
        ring.extend(tokens[:read]), expected.extend(tokens[:read])
    expected.resize(*sizes)
    ring.apply(enable_streaming_llm(tiny, *sizes))
    assert ring.carry.state.cache_size == sum(sizes)
    np.testing.assert_allclose(ring.extend(more), expected.extend(more)[-1], atol=TOLERANCE)


def test_a_wrapped_ring_can_become_another_ring(tiny):
    tokens = np.arange(50) * 7 % 101
    ring, expected = Ring(tiny, 3, 20), ListModel(tiny, 3, 20)
    ring.extend(tokens), expected.extend(tokens)
    expected.resize(2, 9)
    ring.apply(enable_streaming_llm(tiny, 2, 9))
    np.testing.assert_allclose(ring.extend(tokens), expected.extend(tokens)[-1], atol=TOLERANCE)


def test_evict_for_space_takes_a_state_of_any_capacity(tiny):
    ring = Ring(tiny, 0, 60)
    ring.extend(np.arange(50))
    cache = enable_streaming_llm(tiny, 4, 12)
    ids = kv_state.visible_token_ids(cache.evict_for_space(ring.carry.state, 5))
    assert ids.tolist() == [0, 1, 2, 3, *range(43, 50), *[-1] * 5]


def test_more_coming_than_the_window_leaves_the_sinks_and_stays_within_the_cache(tiny):
    ring = Ring(tiny, 4, 12)
    ring.extend(np.arange(50))
    ring.apply(ring.cache.evict_for_space, 100)
    assert int(ring.carry.state.filled) == 4
    ring.extend(np.arange(100) % 101)
    assert int(ring.carry.state.filled) == ring.cache.cache_size == 16


def test_visible_token_ids_and_keys_in_cache_order(tiny):
    ring, expected = Ring(tiny, 2, 5), ListModel(tiny, 2, 5)
    tokens = np.arange(30)
    ring.extend(tokens), expected.extend(tokens)
    state = ring.carry.state
    assert kv_state.visible_token_ids(state).tolist() == [0, 1, 25, 26, 27, 28, 29]
    angles = kv_state.angle_table(tiny.config.rope, state.ring, state.ring)
    for *layer, cache in zip(state.k, state.v, expected.caches, strict=True):
        k, v = kv_state.keys_and_values(tuple(layer), state.ring, jnp.arange(7), angles)
        np.testing.assert_allclose(k.swapaxes(0, 1), np.stack(cache.k), atol=TOLERANCE)
        np.testing.assert_allclose(v.swapaxes(0, 1), np.stack(cache.v), atol=TOLERANCE)


def test_methods_leave_the_state_they_are_given_as_it_was(tiny):
    ring = Ring(tiny, 2, 5)
    ring.extend(np.arange(30))
    state, before = ring.carry.state, ring.carry.state.copy()
    ring.cache(state), ring.cache.evict_for_space(state, 3), ring.cache.evict_range(state, 1, 4)
    for now, then in zip(state.k + state.v, before.k + before.v, strict=True):
        np.testing.assert_array_equal(now, then)
    assert int(state.filled) == int(before.filled)


def test_methods_serve_several_streams(tiny):
    cache = enable_streaming_llm(tiny, 2, 5)
    carry = decode.init_carry(tiny, 2, 5, streams=3)
    tokens, counts = np.arange(90).reshape(3, 30), np.array([30, 4, 17])  # two rings are turned, each in its own way
    carry = decode.extend(tiny, carry, tokens, counts)
    state = cache.evict_range(cache.evict_for_space(carry.state, 3), 0, 1)
    singles = []
    for row, count in zip(tokens, counts, strict=True):
        ring = Ring(tiny, 2, 5)
        ring.extend(row[:count])
        singles.append(cache.evict_range(cache.evict_for_space(ring.carry.state, 3), 0, 1))
    assert state.filled.tolist() == [int(single.filled) for single in singles] == [3, 3, 3]
    np.testing.assert_allclose(state.k[1], np.stack([single.k[1] for single in singles]), atol=TOLERANCE)


def test_names_and_defaults_of_the_original(tiny):
    cache = StartRecentKVCache(tiny.config, tiny.dtype)
    assert (cache.start_size, cache.recent_size, cache.cache_size) == (4, 512, 516)
    assert cache.init_state().cache_size == 516
    assert cache.init_state(streams=3).filled.shape == (3,)


def test_bad_arguments_are_refused_in_a_sentence(tiny):
    cache = enable_streaming_llm(tiny, 2, 5)
    state = cache.init_state()
    with pytest.raises(SllmError, match="start_size must be a non-negative integer; got -1"):
        enable_streaming_llm(tiny, -1, 5)
    with pytest.raises(SllmError, match="num_coming must be 0 or more; got -2"):
        cache.evict_for_space(state, -2)
    with pytest.raises(SllmError, match="evict_range needs 0 <= start <= end <= 0"):
        cache.evict_range(state, 0, 1)


def test_an_unsupported_family_is_named_with_those_supported(tiny):
    class Config:
        model_type = "gpt2"

    class Other(Model):
        config = Config()

    with pytest.raises(SllmError, match=r"'gpt2' is not supported; supported are .*llama"):
        enable_streaming_llm(Other(None, None), 4, 8)
