"""The bundled models: found by name, complete, small, and equal to PyTorch."""

import inspect
import os
import re
import subprocess
import sys
from pathlib import Path
from pydoc_data.topics import topics

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from reference import ListModel
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from sllm_jax.cli.chat import chat
from sllm_jax.cli.generate import generate
from sllm_jax.cli.perplexity import perplexity
from sllm_jax.common.errors import SllmError
from sllm_jax.core.decode import extend, init_carry
from sllm_jax.core.model import dense_logits
from sllm_jax.evaluate.perplexity import token_nll
from sllm_jax.loading import hub
from sllm_jax.loading.bundle import DEFAULT_MODEL, FOLDER, bundled_names
from sllm_jax.loading.pretrained import load
from sllm_jax.streams.stream import Stream
from sllm_jax.text.tokenizer import encode

FILES = ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
ZERO = "bundled:sink-zero"
MEGABYTES = {DEFAULT_MODEL: 12}  # the others 2
TEXT = """The old boat lay on the sand all winter, and in spring two brothers came to paint it. The elder one held the
bucket. The younger one asked where they would sail, and his brother said that a boat knows this better than a sailor.
So they waited for a good wind. In the evening their mother brought bread and soup, and the three of them looked at the
sea until it was dark. Nobody spoke of the storm any more; it had been a long time ago, and the house had a new roof.
"""


@pytest.mark.parametrize(("dtype", "rounding"), [("float32", 2e-5), ("bfloat16", 0.1)])
def test_any_chunking_is_exact_but_for_the_rounding_of_its_dtype(dtype, rounding):
    """Six times the cache, so that the ring has gone round; logits are up to 11."""
    model, tokenizer = load(DEFAULT_MODEL, dtype)
    ids = encode(tokenizer, TEXT * 8, start=True)[:640]
    found = {size: logits_of(model, ids, size) for size in (1, 7, 64, 256)}
    largest = max(float(np.abs(logits - found[1]).max()) for logits in found.values())
    print(f"{dtype}: chunks differ by {largest:.2g} at most, of logits up to {np.abs(found[1]).max():.1f}")
    assert 0 < largest < rounding


def logits_of(model, ids, size):
    """Of the last token, read in chunks of `size` at 4 + 100."""
    carry = init_carry(model, 4, 100)
    for begin in range(0, len(ids), size):
        part = ids[begin : begin + size]
        padded = np.pad(part, (0, size - len(part))).astype(np.int32)
        carry = extend(model, carry, padded, np.int32(len(part)))
    return np.asarray(carry.logits)


@pytest.fixture(params=bundled_names())
def name(request):
    return request.param


def test_the_default_is_there():
    assert DEFAULT_MODEL in bundled_names()
    assert hub.resolve(DEFAULT_MODEL) == FOLDER / "llama"


@pytest.mark.parametrize("wrong", ["bundled:nothing", "bundled:", "bundled:../bundled/llama", "bundled:llama/"])
def test_an_unknown_name_is_told_those_there_are(wrong):
    with pytest.raises(SllmError) as refusal:
        hub.resolve(wrong)
    assert (
        str(refusal.value)
        == f"there is no model {wrong!r} in this package; expected one of {', '.join(bundled_names())}"
    )


def test_every_folder_is_whole(name):
    folder = hub.resolve(name)
    assert sorted(path.name for path in folder.iterdir()) == sorted([*FILES, "README.md", "loss.png"])
    assert name in (folder / "README.md").read_text(encoding="utf-8")
    with safe_open(folder / "model.safetensors", "np") as weights:
        assert {weights.get_slice(key).get_dtype() for key in weights.keys()} == {"BF16"}  # noqa: SIM118 it is no dict


def test_every_folder_has_a_name():
    assert [path for path in FOLDER.iterdir() if f"bundled:{path.name}" not in bundled_names()] == []


def test_it_is_small(name):
    assert sum(path.stat().st_size for path in hub.resolve(name).iterdir()) <= MEGABYTES.get(name, 2) * 1e6


def test_load_without_a_name():
    model, tokenizer = load()
    assert model.hf_config == load(DEFAULT_MODEL)[0].hf_config
    assert tokenizer.name_or_path == str(FOLDER / "llama")


def test_every_command_that_takes_a_model_has_the_default():
    for command in (generate, chat, perplexity):
        assert inspect.signature(command).parameters["model"].default == DEFAULT_MODEL


def test_it_is_sampled_from_by_default(name):
    model, _ = load(name)
    assert model.generation_config["do_sample"] is True
    assert 0 < model.generation_config["temperature"] <= 1


@pytest.mark.parametrize("name", [name for name in bundled_names() if name != ZERO])
def test_logits_equal_those_of_transformers(name):
    model, tokenizer = load(name, dtype="float32")
    assert model.config.attention_sink != "zero"
    tokens = encode(tokenizer, TEXT, start=True)[:100]
    assert len(tokens) == 100
    theirs = AutoModelForCausalLM.from_pretrained(hub.resolve(name), dtype=torch.float32, local_files_only=True).eval()
    with torch.no_grad():
        expected = theirs(torch.tensor(tokens[None], dtype=torch.int64)).logits[0].numpy()
    ours = dense_logits(model, jnp.asarray(tokens))
    np.testing.assert_allclose(ours, expected, atol=1e-4)


def test_logits_of_the_zero_sink_equal_the_list():
    """transformers has no such softmax, and would compute something else."""
    model, tokenizer = load(ZERO, dtype="float32")
    tokens = encode(tokenizer, TEXT, start=True)[:60]
    ours = dense_logits(model, jnp.asarray(tokens))
    np.testing.assert_allclose(ours, ListModel(model, 0, 127).extend(tokens), atol=1e-4)


@pytest.fixture(scope="module")
def prose():
    """What the largest of the models writes."""
    stream = Stream(*load(dtype="float32"), seed=3, steps=250)
    return "".join(stream.generate(max_tokens=1500, ignore_eos=True, temperature=0.9))


@pytest.mark.parametrize(("sink", "loss"), [("none", (0.99, 1.01)), ("zero", (0.99, 1.01)), ("learnable", (1.1, 1.4))])
def test_only_the_model_with_a_sink_token_needs_its_sink(prose, sink, loss):
    """What README, notebooks and cards say."""
    model, tokenizer = load(f"bundled:sink-{sink}", dtype="float32")
    tokens = encode(tokenizer, prose, start=True)
    without, with_one = (np.concatenate(list(token_nll(model, tokens, "streaming", s, 127 - s)))[128:] for s in (0, 1))
    assert loss[0] < np.exp(np.mean(without) - np.mean(with_one)) < loss[1]


def test_streaming_is_as_good_as_recomputation_where_a_sink_is_needed(prose):
    model, tokenizer = load("bundled:sink-learnable", dtype="float32")
    tokens = encode(tokenizer, prose[:3000], start=True)
    streaming, recomputed = (
        np.concatenate(list(token_nll(model, tokens, m, 1, 126))) for m in ("streaming", "recompute")
    )
    assert np.mean(streaming) == pytest.approx(np.mean(recomputed), rel=0.01)


@pytest.mark.slow
def test_chunks_equal_token_by_token_over_20000_tokens():
    """The language reference that comes with Python is the text."""
    model, tokenizer = load(dtype="float32")
    tokens = encode(tokenizer, "\n\n".join(topics.values())[:200_000], start=True)[:20_001]
    assert len(tokens) == 20_001
    in_chunks, one_by_one = (np.concatenate(list(token_nll(model, tokens, "streaming", 4, 251, n))) for n in (256, 1))
    print(f"largest difference of 20,000 nll: {np.abs(in_chunks - one_by_one).max():.1e}")
    np.testing.assert_allclose(in_chunks, one_by_one, rtol=0, atol=1e-4)


def test_a_first_text_without_network_checkpoint_or_home(tmp_path):
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "XDG_"))}
    done = subprocess.run(
        [Path(sys.executable).with_name("sllm-jax"), "generate", "--max-tokens", "20"],
        cwd=tmp_path,
        env=environment | {"HF_HUB_OFFLINE": "1", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip()
    assert re.search(r"^\d+ tokens.*, cache \d+ of \d+ tokens", done.stderr, re.MULTILINE)
