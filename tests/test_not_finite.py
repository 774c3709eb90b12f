"""Non-finite numbers: an error that says where they occurred, in which dtype, and what to do."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from sllm_jax.common.errors import SllmError
from sllm_jax.core.decode import NO_TOKEN, NOT_FINITE, decode, extend, init_carry
from sllm_jax.core.model import Model
from sllm_jax.core.sampling import sampling
from sllm_jax.evaluate.attention_map import attention_maps
from sllm_jax.evaluate.perplexity import EVALUATION_MODES, token_nll, token_nll_batch
from sllm_jax.streams.stream import Stream

EOS = np.array([NO_TOKEN], np.int32)


@pytest.fixture(params=[np.nan, np.inf, -np.inf])
def damaged(tiny, request):
    """A model in which one token's embedding holds a number that is not finite."""
    embedding = tiny.params["embed_tokens"]["embedding"].at[7, 3].set(request.param)
    return Model(tiny.module, {**tiny.params, "embed_tokens": {"embedding": embedding}}, tiny.hf_config)


def test_decode_says_at_which_token(damaged):
    carry = init_carry(damaged, 2, 20)
    carry = extend(damaged, carry, np.full(16, 7, np.int32), np.int32(1))
    carry, tokens = decode(damaged, carry, sampling(), EOS, np.int32(3), 5)
    assert tokens.tolist() == [NOT_FINITE] * 3 + [NO_TOKEN] * 2
    assert int(carry.state.filled) == 1, "the stream stands still"


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0}, {"temperature": 1.0, "top_k": 3, "top_p": 0.9}])
def test_a_stream_that_is_not_finite_leaves_those_beside_it_alone(damaged, tiny, options):
    def written(model, firsts):
        carry = init_carry(model, 2, 20, streams=len(firsts))
        chunk = np.pad(np.array(firsts, np.int32)[:, None], ((0, 0), (0, 15)))
        carry = extend(model, carry, chunk, np.ones(len(firsts), np.int32))
        return np.asarray(decode(model, carry, sampling(**options), EOS, np.int32(4), 4)[1])

    found, expected = written(damaged, [5, 7, 9]), written(tiny, [5, 6, 9])
    assert (found[1] == NOT_FINITE).all()
    if not (found == 7).any():
        np.testing.assert_array_equal(found[[0, 2]], expected[[0, 2]])


@pytest.mark.parametrize("mode", EVALUATION_MODES)
@pytest.mark.parametrize("stride", [1, 3])
def test_perplexity_says_at_which_token(damaged, mode, stride):
    ids = np.arange(10, 60, dtype=np.int32)
    ids[30] = 7  # what comes after it is lost
    with pytest.raises(SllmError, match=r"not finite .* between tokens \d+ and \d+ of the text, in float32") as e:
        list(token_nll(damaged, ids, mode, 0 if mode == "window" else 2, 20, chunk_size=8, stride=stride))
    first, last = map(int, re.search(r"tokens (\d+) and (\d+)", str(e.value)).groups())
    assert first <= 30 < last


def test_perplexity_of_texts_side_by_side_is_checked_too(damaged):
    texts = [np.arange(10, 60, dtype=np.int32), np.full(20, 7, np.int32)]
    with pytest.raises(SllmError, match="between tokens 0 and 8 of the text"):
        list(token_nll_batch(damaged, texts, "streaming", 2, 20, 8))


def test_attention_maps_are_checked(damaged):
    windows = np.arange(10, 42, dtype=np.int32).reshape(2, 16)
    windows[1, 3] = 7
    with pytest.raises(SllmError, match=r"not finite .* in windows 0 to 1 of 2"):
        attention_maps(damaged, windows)


@pytest.mark.parametrize(
    ("dtype", "remedy"),
    [
        ("float32", "the weights may be damaged: fetch the checkpoint again$"),
        ("bfloat16", "fetch the checkpoint again, or try float32"),
        ("float16", "many models overflow float16; choose bfloat16 or float32"),
    ],
)
def test_the_error_names_the_dtype_and_a_remedy(loaded, dtype, remedy):
    model, tokenizer = loaded
    module = model.module.clone(dtype=jnp.dtype(dtype))
    params = jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan, dtype), model.params)
    stream = Stream(Model(module, params, model.hf_config), tokenizer, 2, 20)
    stream.feed("The cat sat")
    count = stream.tokens_seen
    with pytest.raises(SllmError, match=rf"after {count} tokens, in {dtype}; .*{remedy}"):
        list(stream.generate(5))


@pytest.mark.parametrize(
    "command",
    [
        ["generate", "--prompt", "The cat", "--max-tokens", "5"],
        ["chat", "--prompts", "prompts.jsonl"],
        ["perplexity", "--text", "text.txt"],
        ["reproduce", "fig2", "--text", "text.txt", "--out", "out"],
        ["reproduce", "table2", "--text", "text.txt", "--out", "out"],
        ["reproduce", "streamqa", "--questions", "arc.jsonl", "--out", "out", "--recent-size", "60"],
        ["reproduce", "fig10", "--out", "out", "--cache-size", "20"],
        ["benchmark", "--rounds", "1", "--recent-size", "20"],
    ],
    ids=lambda command: " ".join(command[:2]),
)
def test_a_damaged_weight_ends_every_command_with_one_sentence(run, model, tmp_path, monkeypatch, command):
    folder = tmp_path / "model"
    folder.mkdir()
    for path in model.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    weights = load_file(folder / "model.safetensors")
    name = "model.layers.0.input_layernorm.weight"
    weights[name] = np.full_like(weights[name], 3e38)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("The cat sat by the window, and the rain fell on the roof. " * 40)
    (tmp_path / "prompts.jsonl").write_text('{"turns": ["Who is there?"]}')
    choices = {"text": ["a", "b"], "label": ["A", "B"]}
    question = {"id": "1", "question": "Which?", "choices": choices, "answerKey": "A"}
    (tmp_path / "arc.jsonl").write_text("\n".join([json.dumps(question)] * 3))
    code, _, error = run(*command, "--model", folder)
    assert code == 2
    assert "numbers that are not finite (NaN or infinity)" in error
    assert "Traceback" not in error
