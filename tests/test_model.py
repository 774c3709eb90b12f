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


@pytest.mark.parametrize("kind", [int, np.int32, np.int64, np.uint16, jnp.int32])
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
        ([5.0, 7.0], 2, "token_ids must be integers with 1 axes; got float64"),
        ([[5, 7]], 2, "token_ids must be integers with 1 axes; got int64 of shape (1, 2)"),
        ([5, 7], [2], "counts must be integers with 0 axes"),
    ],
)
def test_what_cannot_be_read_is_refused_before_the_carry_is_consumed(tiny, tokens, count, said):
    carry = init_carry(tiny, 2, 6)
    with pytest.raises(SllmError) as refused:
        extend(tiny, carry, tokens, count)
    assert str(refused.value).startswith(said)
    assert not carry.logits.is_deleted()


def test_a_prompt_outside_the_vocabulary_is_refused(tiny):
    with pytest.raises(SllmError, match="token id must be from 0 to 100; got 200"):
        prefill(tiny, init_carry(tiny, 2, 6), [1] * 20 + [200])


@pytest.mark.parametrize("streams", [None, 2])
def test_a_consumed_carry_is_named(tiny, streams):
    carry = init_carry(tiny, 2, 6, streams=streams)
    tokens, counts = ([5, 7], 2) if streams is None else ([[5, 7]] * 2, [2, 1])
    after = extend(tiny, carry, tokens, counts)
    for again in (
        lambda: extend(tiny, carry, tokens, counts),
        lambda: decode(tiny, carry, sampling(), [3], 2, 2),
    ):
        with pytest.raises(SllmError, match=r"this carry was consumed by an earlier call; .* carry.copy\(\)"):
            again()
    kept = after.copy()
    decode(tiny, after, sampling(), [3], 2, 2)
    decode(tiny, kept, sampling(), [3], 2, 2)
