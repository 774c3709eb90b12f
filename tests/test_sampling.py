"""Sampling against the logits processors of transformers, on random logits and on ties."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from sllm_jax.common.errors import SllmError
from sllm_jax.core import sampling as functions
from sllm_jax.core.sampling import penalize, sample, sampling, sampling_for

keep_top_k, keep_top_p, keep_min_p = map(jax.jit, (functions.keep_top_k, functions.keep_top_p, functions.keep_min_p))

NONE = jnp.zeros(1, jnp.int32), jnp.zeros(1, bool)


def random_logits(seed: int, size: int = 257) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=size).astype(np.float32) * 3


def kept(logits) -> np.ndarray:
    return np.isfinite(np.asarray(logits))


@pytest.mark.parametrize("logits", [[0.0, 3.0, 1.0, 3.0], [-jnp.inf, -jnp.inf, -2.0], [-jnp.inf, -jnp.inf], [7.0]])
def test_the_argmax_is_argmax(logits):
    assert functions.argmax(jnp.array(logits)) == jnp.argmax(jnp.array(logits))


def test_broken_logits_give_a_token_of_the_vocabulary():
    assert functions.argmax(jnp.array([jnp.nan, 1.0, jnp.nan])) in range(3)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), k=st.integers(1, 300))
def test_top_k(seed, k):
    logits = random_logits(seed)
    theirs = TopKLogitsWarper(k)(None, torch.tensor(logits[None]))[0]
    np.testing.assert_array_equal(keep_top_k(jnp.asarray(logits), jnp.int32(k)), theirs.numpy())


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), p=st.floats(0.01, 0.999))
def test_top_p(seed, p):
    logits = random_logits(seed)
    theirs = TopPLogitsWarper(p)(None, torch.tensor(logits[None]))[0].numpy()
    ours = keep_top_p(jnp.asarray(logits), jnp.float32(p))
    if (kept(ours) != kept(theirs)).any():  # the sum may fall on p to rounding: then one token more or less
        total = np.exp(logits - logits.max())[kept(theirs)].sum() / np.exp(logits - logits.max()).sum()
        assert abs(total - p) < 1e-5
        assert abs(kept(ours).sum() - kept(theirs).sum()) == 1
    else:
        np.testing.assert_array_equal(ours, theirs)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), p=st.floats(0.001, 1))
def test_min_p(seed, p):
    logits = random_logits(seed)
    theirs = MinPLogitsWarper(p)(None, torch.tensor(logits[None]))[0]
    np.testing.assert_array_equal(kept(keep_min_p(jnp.asarray(logits), jnp.float32(p))), kept(theirs.numpy()))


def test_ties_and_infinities_keep_the_order():
    logits = jnp.array([1.0, 2.0, 2.0, -jnp.inf, -3.0, 0.0, -0.5])
    assert kept(keep_top_k(logits, jnp.int32(2))).tolist() == [False, True, True, False, False, False, False]
    assert kept(keep_top_k(logits, jnp.int32(1))).sum() == 2, "equal logits stay together"
    assert kept(keep_top_k(logits, jnp.int32(99))).sum() == 6
    assert kept(keep_top_p(logits, jnp.float32(1e-6))).sum() == 2


def test_zeros_of_either_sign_are_equal():
    assert kept(keep_top_k(jnp.array([0.0, -0.0, -1.0]), jnp.int32(1))).tolist() == [True, True, False]


def test_every_option_can_come_from_the_model():
    own = {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.05, "repetition_penalty": 1.1}
    assert_same_options(sampling_for({"do_sample": True, "eos_token_id": 0} | own), sampling(**own))
    changed = own | {"top_p": 0.5, "repetition_penalty": 1.0}
    given = {"top_p": 0.5, "repetition_penalty": 1.0, "temperature": None}
    assert_same_options(sampling_for({"do_sample": True} | own, **given), sampling(**changed))


def assert_same_options(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    assert jax.tree.leaves(one) == jax.tree.leaves(other)


@pytest.mark.parametrize("temperature", [1e-3, 1e-30, 1e-38, 1e-45])
def test_the_smallest_temperatures_are_greedy(temperature):
    logits = jnp.array([1.0, 30.0, 50.0, -3.0, 49.0])
    assert sample(sampling(temperature), logits, jax.random.key(0), *NONE) == 2


def test_a_large_top_k_keeps_all():
    logits = jnp.asarray(random_logits(2))
    np.testing.assert_array_equal(keep_top_k(logits, sampling(1.0, top_k=2**40).top_k), logits)


def test_repetition_penalty_covers_the_live_slots_only():
    logits, ids = random_logits(0), np.array([3, 5, 5, 250, 9])
    live = np.array([True, True, True, False, True])
    theirs = RepetitionPenaltyLogitsProcessor(1.3)(torch.tensor(ids[live][None]), torch.tensor(logits[None]))[0]
    ours = penalize(jnp.asarray(logits), jnp.float32(1.3), jnp.asarray(ids), jnp.asarray(live))
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-6)


def test_greedy_takes_the_largest_and_needs_no_key():
    logits = random_logits(1)
    assert sample(sampling(), jnp.asarray(logits), jax.random.key(0), *NONE) == logits.argmax()
    assert sampling(temperature=0, top_k=5, top_p=0.5) == sampling()


def test_sampled_frequencies_follow_the_probabilities():
    logits = jnp.log(jnp.array([0.5, 0.3, 0.15, 0.05]))
    options = sampling(temperature=1.0, top_p=0.9)
    draw = jax.vmap(lambda key: sample(options, logits, key, *NONE))
    counts = np.bincount(draw(jax.random.split(jax.random.key(0), 20_000)), minlength=4) / 20_000
    np.testing.assert_allclose(counts, np.array([0.5, 0.3, 0.15, 0]) / 0.95, atol=0.015)


def test_low_temperature_sharpens():
    logits, keys = jnp.array([1.0, 0.0]), jax.random.split(jax.random.key(1), 4000)
    share = np.mean(jax.vmap(lambda key: sample(sampling(temperature=0.5), logits, key, *NONE))(keys) == 0)
    assert abs(share - 1 / (1 + np.exp(-2))) < 0.02


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"temperature": -1.0}, "temperature must be 0 .greedy. or more; got -1.0"),
        ({"temperature": float("inf")}, "temperature must be 0 .greedy. or more; got inf"),
        ({"temperature": float("nan")}, "temperature must be 0 .greedy. or more; got nan"),
        ({"top_k": -2}, "top_k must be 1 or more, or 0 or -1 .off.; got -2"),
        ({"top_p": 0.0}, "top_p must be above 0 and at most 1 .off.; got 0.0"),
        ({"min_p": 1.5}, "min_p must be from 0 .off. to 1; got 1.5"),
        ({"repetition_penalty": 0.0}, "repetition_penalty must be above 0 .1 is off.; got 0.0"),
    ],
)
def test_options_out_of_range_are_refused(option, message):
    with pytest.raises(SllmError, match=message):
        sampling(**option)
