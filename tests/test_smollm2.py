"""A real model: SmolLM2-135M-Instruct from its GGUF file, against `transformers` with the same file."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from fetch_smollm2 import SMOLLM2
from reference import ListModel
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer

import sllm_jax
from sllm_jax.evaluate.perplexity import token_nll
from sllm_jax.text.tokenizer import encode

pytestmark = pytest.mark.skipif(
    not SMOLLM2.is_there(), reason="needs SmolLM2: run `python tests/fetch_smollm2.py` once while online"
)
TEXT = (
    "The lighthouse keeper wrote in his log that on 12 March 1874, at about a quarter past four, the fog lifted. "
    "He saw two ships: a brig, bound for Bristol, and a schooner that flew no flag. He didn't know either of them. "
) * 3


@pytest.fixture(scope="module")
def file():
    return SMOLLM2.path()


@pytest.fixture(scope="module")
def ours(file):
    return sllm_jax.load(file, "float32")


@pytest.fixture(scope="module")
def theirs(file):
    return AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32).eval()


def test_it_is_the_model_that_transformers_reads(ours, theirs):
    model, tokenizer = ours
    ids = encode(tokenizer, TEXT, start=True)
    with torch.no_grad():
        logits = theirs(torch.tensor(ids[None]).long()).logits[0]
    expected = -torch.log_softmax(logits, -1).numpy()[np.arange(len(ids) - 1), ids[1:]]
    nll = np.concatenate(list(token_nll(model, ids, "dense")))
    assert np.abs(nll - expected).max() < 1e-4


@pytest.mark.slow
def test_a_stream_past_its_cache_equals_the_list(ours):
    """What `reproduce fig3` calls streaming is the paper's cache on this model too."""
    model, tokenizer = ours
    ids = encode(tokenizer, TEXT, start=True)
    logits = ListModel(model, 4, 60).extend(ids[:-1]).astype(np.float64)
    expected = np.logaddexp.reduce(logits, axis=-1) - logits[np.arange(len(ids) - 1), ids[1:]]
    nll = np.concatenate(list(token_nll(model, ids, "streaming", 4, 60)))
    assert len(ids) > 150
    assert np.abs(nll - expected).max() < 1e-4


def test_greedy_text(ours, theirs):
    model, tokenizer = ours
    stream = sllm_jax.Stream(model, tokenizer, recent_size=252)
    stream.feed("The lighthouse keeper wrote in his log that")
    text = "".join(stream.generate(max_tokens=48, temperature=0.0, ignore_eos=True))
    ids = torch.tensor(encode(tokenizer, "The lighthouse keeper wrote in his log that", start=True)[None]).long()
    expected = theirs.generate(ids, max_new_tokens=48, min_new_tokens=48, do_sample=False)[0, ids.shape[1] :]
    assert text == tokenizer.decode(expected, skip_special_tokens=True)


def test_token_ids(file, ours):
    theirs = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    # The published tokenizer.json cuts single digits first; transformers passes over the name of the pre-tokenizer.
    cuts = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    theirs.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(cuts)
    for text in [TEXT, "1 22 333 4444", "x = [1,\n\t2]  # naïve café", "日本語 🙂", "don't I'LL we've"]:
        assert encode(ours[1], text, start=True).tolist() == theirs(text)["input_ids"]


def test_a_chat_answers(ours):
    stream = sllm_jax.Stream(*ours, recent_size=252)
    answer = "".join(stream.chat("What is the capital of France? Answer in one short sentence.", temperature=0.0))
    assert "Paris" in answer


def test_loading_takes_the_parameters_and_one_tensor(file):
    """Peak memory: parameters in bfloat16, the largest tensor in float32, the file mapped; 128 MB for the rest."""
    program = (
        "import resource, sys, sllm_jax\n"
        "from pathlib import Path\n"
        "def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024\n"
        "sllm_jax.load('bundled:llama', 'bfloat16')\n"  # libraries, the device
        "before = peak()\n"
        "sllm_jax.load(sys.argv[1], 'bfloat16', tokenizer='bundled:llama')\n"
        "print(peak() - before)"
    )
    taken = int(subprocess.run([sys.executable, "-c", program, file], check=True, capture_output=True).stdout)
    parameters, largest, mapped = 134_515_008 * 2, 49152 * 576 * 4, file.stat().st_size
    assert taken < parameters + largest + mapped + 2**27
