"""`Model` as a pytree, and the public functions: accepted and refused arguments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sllm_jax.common.errors import SllmError
from sllm_jax.core.decode import decode, decode_program, extend, extend_program, init_carry, prefill
from sllm_jax.core.model import Model, dense_logits
from sllm_jax.core.sampling import sampling

TOKENS = [5, 9, 100, 7]


def test_a_model_is_a_tree_of_its_parameters(tiny):
    leaves = jax.tree.leaves(tiny)
    assert len(leaves) == len(jax.tree.leaves(tiny.params)) > 10
    halves = jax.tree.map(lambda leaf: leaf / 2, tiny)
    assert (halves.module, halves.hf_config) == (tiny.module, tiny.hf_config)
    np.testing.assert_array_equal(jax.tree.leaves(halves.params)[0], jax.tree.leaves(tiny.params)[0] / 2)


def test_jitted_functions_take_a_model_whole(tiny):
    inside = jax.jit(lambda model, ids: dense_logits(model, ids))(tiny, jnp.array(TOKENS))
    np.testing.assert_allclose(inside, dense_logits(tiny, jnp.array(TOKENS)), atol=1e-5)


def test_other_parameters_of_the_same_module_and_files_share_a_program(tiny):
    traced = []

    @jax.jit
    def first(model):
        traced.append(model.hf_config)
        return jax.tree.leaves(model)[0]

    first(tiny)
    first(Model(tiny.module, jax.tree.map(jnp.zeros_like, tiny.params), dict(tiny.hf_config)))
    assert traced == [tiny.hf_config]
    first(Model(tiny.module, tiny.params, {"other": [1]}))
    assert traced == [tiny.hf_config, {"other": [1]}]


@pytest.mark.parametrize("kind", [int, np.int32, np.int64, np.uint16, jnp.int32, jnp.asarray])
def test_integers_of_every_kind_share_one_program(tiny, kind):
    def run(tokens, count, eos, limit):
        carry = extend(tiny, init_carry(tiny, 2, 6), tokens, count)
        return decode(tiny, carry, sampling(), eos, limit, 3)[1].tolist()

    expected = run(np.array([*TOKENS, 0], np.int32), np.int32(4), np.array([100], np.int32), np.int32(3))
    before = extend_program._cache_size(), decode_program._cache_size()
    tokens = [*TOKENS, 0] if kind is int else kind([*TOKENS, 0])
    assert run(tokens, kind(4), [100] if kind is int else kind([100]), kind(3)) == expected
    assert (extend_program._cache_size(), decode_program._cache_size()) == before


@pytest.mark.parametrize(
    ("tokens", "count", "said"),
    [
        ([5, 101], 2, "token id must be from 0 to 100; got 101"),
        ([5, -1], 2, "token id must be from 0 to 100; got -1"),
        ([5, 2**40], 2, "token_ids must be from -2147483648 to 2147483647; got 1099511627776"),
        ([5, 7], 3, "count must be from 0 to 2; got 3"),
        ([5, 7], -1, "count must be from 0 to 2; got -1"),
        ([5.0, 7.0], 2, "token_ids must be integers; got float64"),
        ([[5, 7]], 2, "token_ids must be integers with 1 axis; got int64 of shape (1, 2)"),
        ([5, 7], [2], "counts must be a single integer; got int64 of shape (1,)"),
    ],
)
def test_what_cannot_be_read_is_refused_before_the_carry_is_donated(tiny, tokens, count, said):
    carry = init_carry(tiny, 2, 6)
    with pytest.raises(SllmError) as refused:
        extend(tiny, carry, tokens, count)
    assert str(refused.value).startswith(said)
    assert not carry.logits.is_deleted()


@pytest.mark.parametrize(
    ("streams", "tokens", "counts", "said"),
    [
        (2, [[1, 2], [3]], [2, 1], "token_ids must be an array; pad all rows to the same length"),
        (None, [[1], 2], 2, "token_ids must be an array; pad all rows to the same length"),
        (3, [[1, 2]] * 2, [2, 1, 1], "token_ids have shape (2, 2), counts (3,), and the carry has streams (3,)"),
        (2, [[1, 2]] * 2, [2, 1, 1], "token_ids have shape (2, 2), counts (3,), and the carry has streams (2,)"),
        (3, [[1, 2]] * 2, [2, 1], "token_ids have shape (2, 2), counts (2,), and the carry has streams (3,)"),
        (2, jnp.ones((3, 4), jnp.int32), jnp.ones(2, jnp.int32), "token_ids have shape (3, 4), counts (2,)"),
    ],
)
def test_rows_that_do_not_fit_together_are_refused(tiny, streams, tokens, counts, said):
    carry = init_carry(tiny, 2, 6, streams=streams)
    with pytest.raises(SllmError) as refused:
        extend(tiny, carry, tokens, counts)
    assert str(refused.value).startswith(said)


@pytest.mark.parametrize("streams", [None, 2])
def test_an_empty_chunk_changes_nothing(tiny, streams):
    shape = () if streams is None else (streams,)
    carry = extend(tiny, init_carry(tiny, 2, 6, streams=streams), np.full((*shape, 3), 7), np.full(shape, 3))
    before = carry.copy()
    after = extend(tiny, carry, np.zeros((*shape, 0), np.int32), np.zeros(shape, np.int32))
    for one, other in zip(jax.tree.leaves(after.state), jax.tree.leaves(before.state), strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(prefill(tiny, after, []).logits if streams is None else after.logits, before.logits)


@pytest.mark.parametrize(
    ("tokens", "counts", "said"),
    [
        (np.ones(4, np.float32), np.int32(2), "token_ids must be integers; got float32 of shape (4,)"),
        (np.ones((1, 4), np.int32), np.int32(2), "token_ids must be integers with 1 axis; got int32 of shape (1, 4)"),
        (np.ones(4, np.int32), np.ones(1, np.int32), "counts must be a single integer; got int32 of shape (1,)"),
        (np.ones(4, np.int32), np.float32(2), "counts must be integers; got float32 of shape ()"),
        (np.ones(4, bool), np.int32(2), "token_ids must be integers; got bool of shape (4,)"),
    ],
)
@pytest.mark.parametrize("array", [np.asarray, jnp.asarray])
def test_arrays_of_another_kind_are_refused(tiny, tokens, counts, said, array):
    carry = init_carry(tiny, 2, 6)
    with pytest.raises(SllmError) as refused:
        extend(tiny, carry, array(tokens), array(counts))
    assert str(refused.value) == said


@pytest.mark.parametrize("dtype", [jnp.uint8, jnp.uint32, jnp.int8, jnp.int16])
def test_counts_of_every_integer_dtype_of_jax_write_the_same_tokens(tiny, dtype):
    expected = extend(tiny, init_carry(tiny, 1, 9), TOKENS, 3)
    before = extend_program._cache_size()
    found = extend(tiny, init_carry(tiny, 1, 9), jnp.array(TOKENS, dtype), dtype(3))
    assert extend_program._cache_size() == before
    for one, other in zip(jax.tree.leaves(found.state), jax.tree.leaves(expected.state), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("name", "value"), [("eos_ids", np.ones(1)), ("eos_ids", np.int32(3)), ("limit", np.ones(1, np.int32))]
)
def test_arrays_of_jax_of_another_kind_are_refused_by_decode(tiny, name, value):
    given = {"eos_ids": [3], "limit": 2} | {name: jnp.asarray(value)}
    with pytest.raises(SllmError, match=f"^{name} must be "):
        decode(tiny, init_carry(tiny, 2, 6), sampling(), steps=2, **given)


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ((4, -1), "recent_size must be a non-negative integer; got -1"),
        ((4, -2), "recent_size must be a non-negative integer; got -2"),
        ((-1, 8), "start_size must be a non-negative integer; got -1"),
        ((2**30, 2**30), "a cache holds 1073741822 tokens at most; got 1073741824 + 1073741824"),
        ((4, 8, 0, 0), "streams must be a positive integer or None; got 0"),
        ((4, 8, 0, -2), "streams must be a positive integer or None; got -2"),
    ],
)
def test_sizes_that_no_stream_can_have_are_refused(tiny, sizes, said):
    with pytest.raises(SllmError) as refused:
        init_carry(tiny, *sizes)
    assert str(refused.value) == said


@pytest.mark.parametrize(("tokens", "bad"), [([5, 101], 101), ([5, -1], -1), ([2**20], 2**20)])
@pytest.mark.parametrize("kind", [list, np.array])
def test_dense_logits_refuse_tokens_outside_the_vocabulary(tiny, tokens, bad, kind):
    with pytest.raises(SllmError, match=f"token id must be from 0 to 100; got {bad}$"):
        dense_logits(tiny, kind(tokens))


def test_dense_logits_take_integers_of_every_kind(tiny):
    expected = dense_logits(tiny, jnp.array(TOKENS))
    for tokens in (TOKENS, np.array(TOKENS), np.array(TOKENS, np.uint8), jnp.array(TOKENS, jnp.uint8)):
        np.testing.assert_array_equal(dense_logits(tiny, tokens), expected)


def test_a_prompt_outside_the_vocabulary_is_refused(tiny):
    with pytest.raises(SllmError, match="token id must be from 0 to 100; got 200"):
        prefill(tiny, init_carry(tiny, 2, 6), [1] * 20 + [200])


@pytest.mark.parametrize("streams", [None, 2])
def test_a_donated_carry_is_named(tiny, streams):
    carry = init_carry(tiny, 2, 6, streams=streams)
    tokens, counts = ([5, 7], 2) if streams is None else ([[5, 7]] * 2, [2, 1])
    after = extend(tiny, carry, tokens, counts)
    for again in (
        lambda: extend(tiny, carry, tokens, counts),
        lambda: decode(tiny, carry, sampling(), [3], 2, 2),
    ):
        with pytest.raises(SllmError, match=r"this carry was donated to an earlier call; .* carry.copy\(\)"):
            again()
    kept = after.copy()
    decode(tiny, after, sampling(), [3], 2, 2)
    decode(tiny, kept, sampling(), [3], 2, 2)
