"""Perplexity: the same result for every chunk size, in pieces, and each mode against its plain definition."""

import numpy as np
import pytest
from reference import ListModel

from sllm_jax.common.errors import SllmError
from sllm_jax.evaluate.perplexity import EVALUATION_MODES, perplexity, token_nll

TOLERANCE = 1e-4


def whole(model, tokens, *args, **kwargs) -> np.ndarray:
    return np.concatenate(list(token_nll(model, tokens, *args, **kwargs)))


def nll_of(logits: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    logits = logits.astype(np.float64)
    return np.log(np.exp(logits).sum(-1)) - np.take_along_axis(logits, tokens[1:, None], -1)[:, 0]


@pytest.fixture(scope="module")
def tokens() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 101, 60)


@pytest.mark.parametrize("mode", EVALUATION_MODES)
@pytest.mark.parametrize("chunk_size", [1, 5, 59, 300])
def test_chunk_size_never_changes_the_result(tiny, tokens, mode, chunk_size):
    expected = whole(tiny, tokens, mode, 3, 20, 16)
    np.testing.assert_allclose(whole(tiny, tokens, mode, 3, 20, chunk_size), expected, atol=TOLERANCE)


@pytest.mark.parametrize(("mode", "sizes"), [("streaming", (3, 20)), ("window", (0, 20)), ("dense", (0, 1000))])
def test_modes_equal_the_list(tiny, tokens, mode, sizes):
    logits = ListModel(tiny, *sizes).extend(tokens[:-1])
    np.testing.assert_allclose(whole(tiny, tokens, mode, 3, 20), nll_of(logits, tokens), atol=TOLERANCE)


def test_recompute_is_a_fresh_pass_over_the_last_tokens(tiny, tokens):
    ends = range(1, len(tokens))
    logits = [ListModel(tiny, 0, 1000).extend(tokens[max(0, end - 24) : end])[-1] for end in ends]
    np.testing.assert_allclose(
        whole(tiny, tokens, "recompute", 3, 20), nll_of(np.array(logits), tokens), atol=TOLERANCE
    )


def test_recompute_in_several_batches_of_windows(tiny, tokens, monkeypatch):
    expected = whole(tiny, tokens, "recompute", 3, 20)
    monkeypatch.setattr("sllm_jax.evaluate.perplexity._WINDOW_TOKENS", 5 * 24 + 3)
    np.testing.assert_allclose(whole(tiny, tokens, "recompute", 3, 20), expected, atol=TOLERANCE)
    sizes = [len(piece) for piece in token_nll(tiny, tokens, "recompute", 3, 20)]
    assert sizes == [24, *[5] * 7]


@pytest.mark.parametrize("mode", EVALUATION_MODES)
@pytest.mark.parametrize(("stride", "chunk_size"), [(7, 16), (25, 5)])
def test_a_stride_is_every_so_many_of_the_whole(tiny, tokens, mode, stride, chunk_size):
    expected = whole(tiny, tokens, mode, 3, 20, chunk_size)[::stride]
    np.testing.assert_allclose(whole(tiny, tokens, mode, 3, 20, chunk_size, stride=stride), expected, rtol=0, atol=1e-6)


def test_a_stride_recomputes_no_others(tiny, tokens, monkeypatch):
    monkeypatch.setattr("sllm_jax.evaluate.perplexity._WINDOW_TOKENS", 24)
    sizes = [len(piece) for piece in token_nll(tiny, tokens, "recompute", 3, 20, stride=7)]
    assert sizes == [4, 1, 1, 1, 1, 1]  # 0, 7, 14, 21 in one pass, then 28, 35, 42, 49, 56


def test_two_tokens_are_enough(tiny):
    for mode in EVALUATION_MODES:
        assert whole(tiny, np.array([5, 7]), mode, 3, 20).shape == (1,)


def test_pieces_come_as_they_are_made(tiny, tokens):
    assert [len(piece) for piece in token_nll(tiny, tokens, "streaming", 3, 20, 16)] == [16, 16, 16, 11]


def test_perplexity_is_the_exponential_of_the_mean():
    assert perplexity(np.array([0.0, np.log(4.0)], np.float32)) == pytest.approx(2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.array([1, 101]),), "token id 101 at index 1 is outside the vocabulary of 101"),
        ((np.array([-1, 1]),), "token id -1 at index 0 is outside the vocabulary"),
        ((np.array([1]),), "a perplexity needs 2 tokens or more; got 1"),
        ((np.array([1.0, 2.0]),), "token ids must be one row of integers; got float64 of shape .2,."),
        ((np.array([[1, 2]]),), "token ids must be one row of integers; got int64 of shape .1, 2."),
        ((np.arange(9), "sparse"), "mode 'sparse' is not one of streaming, window, dense, recompute"),
        ((np.arange(9), "streaming", -1), "start_size must be a non-negative integer; got -1"),
        ((np.arange(9), "streaming", 4, 8, 0), "chunk size must be 1 or more; got 0"),
        ((np.arange(9), "recompute", 4, 8, 8, 0), "stride must be 1 or more; got 0"),
    ],
)
def test_bad_input_is_one_sentence(tiny, arguments, message):
    with pytest.raises(SllmError, match=message):
        token_nll(tiny, *arguments)
