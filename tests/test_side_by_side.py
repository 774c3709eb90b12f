"""Three caches side by side: each side's text and figures against what makes them one at a time."""

import jax.numpy as jnp
import numpy as np
import pytest

from sllm_jax.common.errors import SllmError
from sllm_jax.core.model import dense_logits
from sllm_jax.evaluate import side_by_side
from sllm_jax.evaluate.perplexity import token_nll
from sllm_jax.evaluate.side_by_side import RUNNING, SideBySide, default_recent_size
from sllm_jax.streams.stream import Stream
from sllm_jax.text.tokenizer import encode, start_ids

PROMPT, LONG = "The cat sat on the mat.", "The cat sat on the mat. " * 5
CONTEXT = 128


def written(trio, **options):
    """The three sides, after all is written."""
    for _ in trio.write(**options):
        pass
    return dict(zip(("dense", "window", "streaming"), trio.sides, strict=True))


@pytest.fixture(scope="module")
def sampled(loaded):
    """A run past the trained context, and its sides."""
    trio = SideBySide(*loaded, PROMPT, 300, start_size=3, recent_size=20, seed=5)
    return trio, written(trio, temperature=1.0)


def ids_before(loaded, prompt):
    return encode(loaded[1], prompt, True) if prompt else start_ids(loaded[1])


@pytest.mark.parametrize("prompt", [None, PROMPT, LONG], ids=["no prompt", "a prompt", "longer than the cache"])
def test_a_side_writes_what_a_stream_with_its_cache_writes(loaded, prompt):
    sides = written(SideBySide(*loaded, prompt, 70, 3, 20, seed=5), temperature=1.0)
    for name, sizes in {"streaming": (3, 20), "window": (0, 23)}.items():
        found, stream = sides[name], Stream(*loaded, *sizes, seed=5)
        if prompt:
            stream.feed(prompt)
        assert found.text == "".join(stream.generate(70, ignore_eos=True, temperature=1.0))
        assert found.ids == stream.last_ids[-70:]
        assert (found.stream.cache_in_use, found.stream.cache_size) == (23, 23)
        assert found.stream.tokens_seen == stream.tokens_seen


def test_everything_kept_is_dense_mode_up_to_the_trained_context(loaded, sampled):
    stream = Stream(*loaded, mode="dense", seed=5)
    stream.feed(PROMPT)
    text = "".join(stream.generate(ignore_eos=True, temperature=1.0))
    assert sampled[1]["dense"].text.startswith(text.rstrip("\ufffd"))
    assert len(text) > 50


def test_everything_kept_is_dense_attention_past_the_trained_context(loaded):
    """Greedily, the most probable token after all before it; ties within rounding aside."""
    side = written(SideBySide(*loaded, PROMPT, 300, 3, 20), temperature=0.0)["dense"]
    before = ids_before(loaded, PROMPT)
    ids = np.array([*before, *side.ids])
    logits = np.asarray(dense_logits(loaded[0], jnp.asarray(ids[:-1])))[len(before) - 1 :]
    chosen = np.take_along_axis(logits, ids[len(before) :, None], 1)[:, 0]
    assert len(chosen) == 300 > CONTEXT
    np.testing.assert_allclose(chosen, logits.max(1), atol=1e-4)
    assert side.stream.cache_in_use == len(ids) == side.stream.cache_size


def test_the_sides_are_alike_until_the_caches_are_full(sampled, loaded):
    trio, sides = sampled
    rows = list(zip(*(side.ids for side in trio.sides), strict=True))
    alike = next(i for i, row in enumerate(rows) if len(set(row)) > 1)
    assert trio.agreement == alike
    assert alike + len(ids_before(loaded, PROMPT)) >= 23
    assert len(sides["streaming"].ids) == 300 == trio.written


MODES = {"dense": ("dense", 0, 0), "window": ("window", 0, 23), "streaming": ("streaming", 3, 20)}


def nll_of_streaming(loaded, sides, name, prompt):
    """By `token_nll` at once, of what streaming wrote."""
    mode, start, recent = MODES[name]
    before = ids_before(loaded, prompt)
    ids = np.array([*before, *sides["streaming"].ids], np.int32)
    return np.concatenate(list(token_nll(loaded[0], ids, mode, start, recent)))[max(len(before) - 1, 0) :]


@pytest.mark.parametrize("name", MODES)
def test_perplexity_is_that_of_the_streaming_text_in_each_mode(loaded, sampled, name):
    side = sampled[1][name]
    nll = nll_of_streaming(loaded, sampled[1], name, PROMPT)
    assert len(nll) == 300
    np.testing.assert_allclose(side.perplexity, np.exp(nll[-RUNNING:].mean()), rtol=1e-5)
    np.testing.assert_allclose(side.whole_perplexity, np.exp(nll.mean()), rtol=1e-5)
    # The whole chunks of 32 tokens, prompt included, and then the rest.
    begin = len(ids_before(loaded, PROMPT)) - 1
    ends = [*range(32, begin + 300, 32), begin + 300]
    running = [np.exp(nll[max(end - begin - RUNNING, 0) : end - begin].mean()) for end in ends if end > begin]
    np.testing.assert_allclose(side.curve, running, rtol=1e-5)


@pytest.mark.parametrize(("prompt", "count"), [(LONG, 41), (None, 33), (PROMPT, 1)])
def test_perplexity_of_short_texts_and_after_long_prompts(loaded, prompt, count):
    sides = written(SideBySide(*loaded, prompt, count, 3, 20, seed=2), temperature=1.0)
    for name, side in sides.items():
        nll = nll_of_streaming(loaded, sides, name, prompt)
        np.testing.assert_allclose(side.perplexity, np.exp(nll.mean()), rtol=1e-5)


def test_speed_leaves_the_first_block_out(loaded, monkeypatch):
    clock = iter(range(10**6))
    monkeypatch.setattr(side_by_side.time, "perf_counter", lambda: next(clock))
    sides = written(SideBySide(*loaded, PROMPT, 16, 3, 20), temperature=0.0)
    # Three blocks of 4 tokens after the first, and two last pieces without one, a second each.
    assert {side.tokens_per_second for side in sides.values()} == {12 / 5}


def test_a_stopped_run_has_its_figures(loaded):
    trio = SideBySide(*loaded, PROMPT, 300, 3, 20)
    assert [side.perplexity for side in trio.sides] == [None] * 3
    writing = trio.write()
    for count in writing:
        if count >= 50:
            break
    assert {len(side.ids) for side in trio.sides} == {52}
    assert all(side.perplexity and side.tokens_per_second for side in trio.sides)


@pytest.mark.parametrize(
    ("context", "start", "recent"), [(128, 4, 60), (8192, 4, 252), (256, 4, 124), (32, 4, 16), (128, 200, 16)]
)
def test_the_default_cache_is_soon_full(context, start, recent):
    assert default_recent_size(context, start) == recent


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start_size": 0}, "start_size must be 1 or more: without sinks, streaming is the same as the window"),
        ({"start_size": -1}, "start_size must be a non-negative integer; got -1"),
        ({"recent_size": -1}, "recent_size must be a non-negative integer; got -1"),
        ({"max_tokens": 0}, "max-tokens must be 1 or more; got 0"),
        ({"max_tokens": 10**9}, r"keeping \d+ tokens in two caches takes .* GiB of memory, .*; give a smaller max-t"),
        ({"seed": -1}, "seed must be from 0 to"),
        ({"prompt": ""}, "the text is empty"),
    ],
    ids=lambda one: str(one)[:30],
)
def test_bad_arguments_are_refused(loaded, options, message):
    with pytest.raises(SllmError, match=message):
        list(SideBySide(*loaded, **options).write())


@pytest.mark.filterwarnings("default")
def test_a_cache_beyond_the_trained_context_is_warned_of_once_and_keeping_everything_is_not(loaded, recwarn):
    SideBySide(*loaded, PROMPT, 500, 4, 20)
    assert len(recwarn) == 0
    SideBySide(*loaded, PROMPT, 500, 4, 200)
    assert ["a step attends to 205 tokens" in str(one.message) for one in recwarn] == [True]
