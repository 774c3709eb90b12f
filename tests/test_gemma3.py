"""A real model whose layers differ: Gemma 3 270M from its GGUF file, against `transformers` with the same file."""

import numpy as np
import pytest
import torch
from fetch_gemma3 import GEMMA3
from reference import ListModel
from transformers import AutoModelForCausalLM, AutoTokenizer

import sllm_jax
from sllm_jax.core.decode import init_carry
from sllm_jax.evaluate.perplexity import token_nll
from sllm_jax.text.tokenizer import encode

pytestmark = pytest.mark.skipif(
    not GEMMA3.is_there(), reason="needs Gemma 3 270M: run `python tests/fetch_gemma3.py` once while online"
)
TEXT = (
    "The lighthouse keeper wrote in his log that on 12 March 1874, at about a quarter past four, the fog lifted. "
    "He saw two ships: a brig, bound for Bristol, and a schooner that flew no flag. He didn't know either of them. "
)
OPENING = "The lighthouse keeper wrote in his log that"


@pytest.fixture(scope="module")
def ours():
    return sllm_jax.load(GEMMA3.path(), "float32")


@pytest.fixture(scope="module")
def theirs():
    path = GEMMA3.path()
    return AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()


def nll_of(logits, ids):
    return np.logaddexp.reduce(logits, axis=-1) - logits[np.arange(len(ids) - 1), ids[1:]]


def test_it_is_the_model_that_transformers_reads(ours, theirs):
    model, tokenizer = ours
    ids = encode(tokenizer, TEXT * 12, start=True)
    assert len(ids) > 600  # past the window of 512 tokens
    with torch.no_grad():
        logits = theirs(torch.tensor(ids[None]).long()).logits[0, :-1].double().numpy()
    nll = np.concatenate(list(token_nll(model, ids, "dense")))
    assert np.abs(nll - nll_of(logits, ids)).max() < 1e-4


def test_greedy_text(ours, theirs):
    model, tokenizer = ours
    stream = sllm_jax.Stream(model, tokenizer, recent_size=252)
    stream.feed(OPENING)
    text = "".join(stream.generate(max_tokens=40, temperature=0.0, ignore_eos=True))
    ids = torch.tensor(encode(tokenizer, OPENING, start=True)[None]).long()
    expected = theirs.generate(ids, max_new_tokens=40, min_new_tokens=40, do_sample=False)[0, ids.shape[1] :]
    assert text == tokenizer.decode(expected, skip_special_tokens=True)


def test_token_ids(ours):
    theirs = AutoTokenizer.from_pretrained(GEMMA3.path().parent, gguf_file=GEMMA3.name)
    for text in [TEXT, "1 22 333 4444", "x = [1,\n\t2]  # naïve café", "日本語 🙂", "don't I'LL we've"]:
        assert encode(ours[1], text, start=True).tolist() == theirs(text)["input_ids"]


def test_layers_with_a_window_keep_a_ring_of_their_own(ours):
    state = init_carry(ours[0], 4, 8188).state
    assert sorted({one.shape[-1] for one in state.k}) == [512, 8320]
    assert [one.shape[-1] for one in state.k].count(512) == 15


@pytest.mark.slow
def test_a_stream_past_its_cache_equals_the_list(ours):
    model, tokenizer = ours
    ids = encode(tokenizer, TEXT * 2, start=True)
    logits = ListModel(model, 4, 40).extend(ids[:-1]).astype(np.float64)
    nll = np.concatenate(list(token_nll(model, ids, "streaming", 4, 40)))
    assert len(ids) > 100
    assert np.abs(nll - nll_of(logits, ids)).max() < 1e-4
