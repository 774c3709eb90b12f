"""`extend` and `decode`: any chunking, ragged batches, frozen streams, continuation, and a fixed number of programs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import ListModel

from sllm_jax.core import decode as programs
from sllm_jax.core.decode import NO_TOKEN, decode, decode_program, extend, extend_program, init_carry, prefill
from sllm_jax.core.model import Model
from sllm_jax.core.sampling import sampling

TOLERANCE = 1e-4
SIZES = [(0, 0), (0, 1), (1, 0), (2, 1), (4, 12), (0, 30), (3, 60)]
NO_EOS = jnp.array([NO_TOKEN], jnp.int32)
SAMPLED = sampling(temperature=0.9, top_p=0.95)


def tokens_of(length: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 101, length)


def in_chunks(model, carry, token_ids, lengths, places):
    """Read `token_ids` cut into `lengths`, each padded to `places` with junk."""
    for length in lengths:
        chunk = np.full(places, 7, np.int32)
        chunk[:length], token_ids = token_ids[:length], token_ids[length:]
        carry = extend(model, carry, chunk, np.int32(length))
    return carry


def write(model, carry, steps, limit=None, options=SAMPLED, eos=NO_EOS):
    limit = jnp.int32(steps if limit is None else limit)
    return decode(model, carry, options, eos, limit, steps)


@settings(max_examples=30, deadline=None)
@given(
    sizes=st.sampled_from(SIZES),
    lengths=st.lists(st.integers(0, 40), min_size=1, max_size=6),
    seed=st.integers(0, 1000),
)
def test_any_chunking_equals_the_list(tiny, sizes, lengths, seed):
    tokens = tokens_of(sum(lengths) + 1, seed)
    carry = in_chunks(tiny, init_carry(tiny, *sizes), tokens, [*lengths, 1], 40)
    expected = ListModel(tiny, *sizes)
    np.testing.assert_allclose(carry.logits, expected.extend(tokens)[-1], atol=TOLERANCE)
    assert int(carry.state.filled) == len(expected)


@settings(max_examples=15, deadline=None)
@given(
    sizes=st.sampled_from(SIZES),
    rounds=st.lists(st.tuples(*[st.integers(0, 40)] * 3), min_size=1, max_size=4),
    seed=st.integers(0, 1000),
)
def test_any_chunking_of_ragged_streams_equals_the_lists(tiny, sizes, rounds, seed):
    batch = init_carry(tiny, *sizes, streams=3)
    expected = [ListModel(tiny, *sizes) for _ in range(3)]
    logits = np.zeros((3, 101), np.float32)
    for turn, lengths in enumerate(rounds):
        chunk = tokens_of(3 * 40, seed + turn).reshape(3, 40).astype(np.int32)
        batch = extend(tiny, batch, chunk, np.array(lengths, np.int32))
        for i, length in enumerate(lengths):
            if length:
                logits[i] = expected[i].extend(chunk[i, :length])[-1]
    np.testing.assert_allclose(batch.logits, logits, atol=TOLERANCE)
    assert batch.state.filled.tolist() == [len(one) for one in expected]


@pytest.mark.parametrize("padding", [101, 32_000, 2**31 - 1, -102, -(2**31)])
def test_padding_outside_the_vocabulary_changes_nothing(tiny, padding):
    tokens = tokens_of(30)
    expected, found = init_carry(tiny, 4, 12), init_carry(tiny, 4, 12)
    for part in (tokens[:9], tokens[9:]):
        chunk = np.full(40, padding, np.int32)
        chunk[: len(part)] = part
        found = extend(tiny, found, chunk, np.int32(len(part)))
        expected = extend(tiny, expected, np.pad(part, (0, 40 - len(part))), np.int32(len(part)))
    np.testing.assert_array_equal(found.logits, expected.logits)
    for one, other in zip(jax.tree.leaves(found.state), jax.tree.leaves(expected.state), strict=True):
        np.testing.assert_array_equal(one, other)


def test_padding_outside_the_vocabulary_of_an_empty_stream_in_a_batch_changes_nothing(tiny):
    chunk = np.array([[5, 9, 101, 101], [101] * 4], np.int32)
    batch = extend(tiny, init_carry(tiny, 2, 6, streams=2), chunk, [2, 0])
    alone = extend(tiny, init_carry(tiny, 2, 6), [5, 9, 0, 0], 2)
    np.testing.assert_allclose(batch.logits[0], alone.logits, atol=TOLERANCE)
    assert np.isfinite(np.concatenate([np.ravel(one) for one in (*batch.state.k, *batch.state.v)])).all()


@pytest.mark.parametrize("sizes", SIZES)
def test_decode_equals_the_list(tiny, sizes):
    tokens = tokens_of(23)
    carry, written = write(tiny, in_chunks(tiny, init_carry(tiny, *sizes), tokens, [23], 40), 50)
    expected = ListModel(tiny, *sizes)
    logits = expected.extend([*tokens, *written.tolist()])[-1]
    np.testing.assert_allclose(carry.logits, logits, atol=TOLERANCE)


def test_a_prompt_ten_times_the_cache_equals_token_by_token(tiny):
    tokens = tokens_of(10 * 17)
    whole = prefill(tiny, init_carry(tiny, 4, 12), tokens)
    single = in_chunks(tiny, init_carry(tiny, 4, 12), tokens, [1] * len(tokens), 40)
    np.testing.assert_allclose(whole.logits, single.logits, atol=TOLERANCE)
    for one, other in zip(jax.tree.leaves(whole.state), jax.tree.leaves(single.state), strict=True):
        np.testing.assert_allclose(one, other, atol=TOLERANCE)


def test_ragged_streams_equal_single_streams(tiny):
    rounds = [[5, 0, 40, 1], [0, 33, 2, 1], [17, 17, 0, 0]]
    batch = init_carry(tiny, 3, 12, seed=5, streams=4)
    singles = [init_carry(tiny, 3, 12).replace(key=key) for key in batch.key]
    for turn, lengths in enumerate(rounds):
        chunk = np.stack([tokens_of(40, 10 * turn + i) for i in range(4)]).astype(np.int32)
        batch = extend(tiny, batch, chunk, np.array(lengths))
        batch, written = write(tiny, batch, 6)
        for i, length in enumerate(lengths):
            one = extend(tiny, singles[i], chunk[i], np.int32(length))
            singles[i], tokens = write(tiny, one, 6)
            np.testing.assert_array_equal(written[i], tokens)
            np.testing.assert_allclose(batch.logits[i], singles[i].logits, atol=TOLERANCE)
    assert batch.state.filled.tolist() == [int(one.state.filled) for one in singles]


def test_decode_in_parts_equals_decode_in_one(tiny):
    carry = in_chunks(tiny, init_carry(tiny, 2, 9, seed=3), tokens_of(20), [20], 40)
    whole, tokens = write(tiny, carry.copy(), 30)
    first, some = write(tiny, carry, 11)
    second, rest = write(tiny, first, 19)
    np.testing.assert_array_equal(np.concatenate([some, rest]), tokens)
    for one, other in zip(jax.tree.leaves(second.state), jax.tree.leaves(whole.state), strict=True):
        np.testing.assert_array_equal(one, other)
    assert second.key == whole.key


def test_a_limit_writes_fewer_and_changes_nothing_else(tiny):
    carry = in_chunks(tiny, init_carry(tiny, 2, 9, seed=3), tokens_of(20), [20], 40)
    whole, tokens = write(tiny, carry.copy(), 30)
    limited, some = write(tiny, carry, 30, limit=11)
    assert some[11:].tolist() == [NO_TOKEN] * 19
    final, rest = write(tiny, limited, 30, limit=19)
    np.testing.assert_array_equal(np.concatenate([some[:11], rest[:19]]), tokens)
    assert final.key == whole.key


def test_a_stream_freezes_after_its_end_of_text_and_goes_on_after_extend(tiny):
    start = init_carry(tiny, 2, 9, seed=1, streams=2)
    chunk = np.stack([tokens_of(20, 1), tokens_of(20, 2)]).astype(np.int32)
    start = extend(tiny, start, chunk, np.array([20, 20]))
    free, tokens = write(tiny, start.copy(), 12)
    stops = next(i for i, token in enumerate(tokens[0].tolist()) if token not in tokens[1].tolist())
    eos = tokens[0, stops][None]
    carry, written = write(tiny, start, 12, eos=eos)
    stops = tokens[0].tolist().index(int(eos[0]))
    assert written[0].tolist() == [*tokens[0, : stops + 1].tolist(), *[NO_TOKEN] * (11 - stops)]
    np.testing.assert_array_equal(written[1], tokens[1])
    assert carry.done.tolist() == [True, False]
    np.testing.assert_array_equal(carry.logits[1], free.logits[1])

    more = tokens_of(9, 3)
    carry = extend(tiny, carry, np.stack([more, more]), np.array([9, 0]))
    assert carry.done.tolist() == [False, False]
    expected = ListModel(tiny, 2, 9)
    logits = expected.extend([*chunk[0], *tokens[0, : stops + 1].tolist(), *more])[-1]
    np.testing.assert_allclose(carry.logits[0], logits, atol=TOLERANCE)
    np.testing.assert_array_equal(carry.logits[1], free.logits[1])


def test_a_frozen_stream_keeps_everything_but_its_dead_slot(tiny):
    carry = in_chunks(tiny, init_carry(tiny, 2, 9), tokens_of(20), [20], 40).replace(done=jnp.array(True))
    before = carry.copy()
    after, written = write(tiny, carry, 8)
    assert written.tolist() == [NO_TOKEN] * 8
    dead = int(before.state.ring.next_slot)
    for name, axis in (("k", 2), ("v", 1)):
        for one, other in zip(getattr(before.state, name), getattr(after.state, name), strict=True):
            np.testing.assert_array_equal(np.delete(one, dead, axis), np.delete(other, dead, axis))
    assert (after.state.ring.next_slot, after.state.filled, after.key) == (dead, before.state.filled, before.key)
    np.testing.assert_array_equal(after.state.token_ids, before.state.token_ids)
    np.testing.assert_array_equal(after.logits, before.logits)


def test_repetition_penalty_sees_what_is_in_the_cache(tiny):
    options = sampling(repetition_penalty=1e9)
    carry = in_chunks(tiny, init_carry(tiny, 2, 30), tokens_of(5), [5], 40)
    _, written = write(tiny, carry, 25, options=options)
    assert len({*tokens_of(5).tolist(), *written.tolist()}) == len({*tokens_of(5).tolist()}) + 25


def test_the_number_of_programs_is_fixed(tiny):
    count = len(programs.CHUNK_SIZES)
    before = extend_program._cache_size(), decode_program._cache_size()
    carry = init_carry(tiny, 5, 11)
    for length in [1, 2, 15, 16, 17, 100, 128, 129, 500, 600, 1100, *range(1, 30)]:
        carry = prefill(tiny, carry, tokens_of(length))
        for options in (sampling(temperature=0.5, top_k=3), sampling(temperature=1.5, top_k=9)):
            carry, _ = write(tiny, carry, 8, limit=length % 9, options=options)
    assert extend_program._cache_size() - before[0] == count
    assert decode_program._cache_size() - before[1] == 1


def test_every_number_of_a_state_stays_below_twice_its_slots(tiny):
    carry = init_carry(tiny, 3, 6)
    for _ in range(40):
        carry, _ = write(tiny, carry, 50)
        assert 0 <= int(carry.state.ring.next_slot) < 2 * carry.state.ring.slots
        assert 0 <= int(carry.state.filled) < 2 * carry.state.ring.slots


@pytest.mark.parametrize("streams", [None, 3])
def test_bfloat16_and_float16_run_on_a_cpu(tiny, streams):
    for dtype in (jnp.bfloat16, jnp.float16):
        module = tiny.module.clone(dtype=dtype)
        params = jax.tree.map(lambda leaf, dtype=dtype: leaf.astype(dtype), tiny.params)
        batch = () if streams is None else (streams,)
        model = Model(module, params)
        carry = init_carry(model, 2, 9, streams=streams)
        carry = extend(model, carry, np.full((*batch, 16), 7), np.full(batch, 14))
        carry, written = decode(model, carry, SAMPLED, NO_EOS, jnp.int32(8), 8)
        assert carry.state.k[0].dtype == dtype
        assert np.isfinite(carry.logits).all()
        assert (written >= 0).all()
