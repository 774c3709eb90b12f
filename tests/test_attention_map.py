"""Attention on the first positions, against PyTorch transformers and its definition in NumPy."""

from dataclasses import replace

import checkpoints
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from conftest import TINY
from reference import rotate_at

from sllm_jax.convert.families import module_for
from sllm_jax.core.attention import attend_causally
from sllm_jax.core.model import Model
from sllm_jax.evaluate.attention_map import (
    ON_FIRST,
    attend_and_measure,
    attention_maps,
    attention_on_first,
    uniform_mass,
)
from sllm_jax.models.attend import no_caches

WINDOWS = np.random.default_rng(0).integers(0, 101, (5, 21))


def test_masses_equal_pytorch(tmp_path):
    theirs = checkpoints.save_llama(tmp_path)
    theirs.set_attn_implementation("eager")
    ours = Model(checkpoints.module_of(tmp_path), checkpoints.load(tmp_path))
    with torch.no_grad():
        layers = theirs(torch.tensor(WINDOWS), output_attentions=True).attentions  # L of [B, H, T, T]
    whole = torch.stack(layers, 1)
    np.testing.assert_allclose(attention_maps(ours, WINDOWS), whole.mean(0), atol=1e-5)
    expected = whole[:, :, :, 10:, :4].mean((0, 3))
    mass, _ = attention_on_first(ours, WINDOWS)
    assert mass.shape == (3, 6, 4)
    np.testing.assert_allclose(mass, expected, atol=1e-5)


@pytest.mark.parametrize(("length", "window"), [(8, None), (21, None), (21, 9)])
def test_logits_and_masses_equal_their_definition(length, window):
    """Of a layer with a sliding window too: it hides positions 0 and 1 from all queries that count."""
    rng = np.random.default_rng(0)
    q, k, v = rng.normal(size=(length, 6, 10)), rng.normal(size=(length, 3, 10)), rng.normal(size=(length, 3, 10))
    config = replace(module_for(TINY, jnp.float32).config, sliding_window=window)
    arrays = [jnp.asarray(x, jnp.float32) for x in (q, k, v)]
    nothing = no_caches(config)[0]
    (mass, logits), mixed = attend_and_measure(config, jnp.float32, length, ON_FIRST)(nothing, *arrays)
    np.testing.assert_array_equal(mixed, attend_causally(config, jnp.float32, length)(nothing, *arrays)[1])

    at = np.arange(length)
    keys = np.repeat(rotate_at(k, at, config.rope, 64), 2, axis=1)
    scores = np.einsum("thd,nhd->htn", rotate_at(q, at, config.rope, 64), keys) / np.sqrt(10)
    hidden = at[:, None] - at >= (window or length)
    scores = np.where(np.tri(length, dtype=bool) & ~hidden, scores, np.nan)
    queries = range(length // 2, length)
    rest = np.mean([np.nanmean(scores[:, t, 4 : t + 1], -1) for t in queries], 0)
    with np.errstate(invalid="ignore"):
        shares = np.exp(scores[:, queries]) / np.nansum(np.exp(scores[:, queries]), -1, keepdims=True)
    np.testing.assert_allclose(mass, np.nan_to_num(shares)[..., :4].mean(1), atol=1e-5)
    np.testing.assert_allclose(logits[:, 4], rest, atol=1e-5)
    seen = [i for i in range(4) if not hidden[length // 2, i]]
    assert seen == ([2, 3] if window else [0, 1, 2, 3])
    np.testing.assert_allclose(logits[:, seen], np.nanmean(scores[:, queries][..., seen], 1), atol=1e-5)
    assert np.isnan(np.delete(logits[:, :4], seen, axis=1)).all()


def test_batches_never_change_the_result(tiny, monkeypatch):
    told = []
    expected = attention_on_first(tiny, WINDOWS)
    monkeypatch.setattr("sllm_jax.evaluate.attention_map._BATCH_TOKENS", 50)
    measured = attention_on_first(tiny, WINDOWS, lambda done, total: told.append((done, total)))
    for one, other in zip(measured, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    assert told == [(2, 5), (4, 5), (5, 5)]


@pytest.mark.parametrize("size", [1, 4, 10, 20])
def test_blocks_of_queries_never_change_the_result(tiny, monkeypatch, size):
    expected, maps = attention_on_first(tiny, WINDOWS), attention_maps(tiny, WINDOWS)
    monkeypatch.setattr("sllm_jax.evaluate.attention_map._QUERIES", size)
    jax.clear_caches()
    for one, other in zip(attention_on_first(tiny, WINDOWS), expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    np.testing.assert_allclose(attention_maps(tiny, WINDOWS), maps, atol=1e-5)
    jax.clear_caches()


def test_uniform_attention():
    assert uniform_mass(8) == pytest.approx((1 / 5 + 1 / 6 + 1 / 7 + 1 / 8) / 4)
