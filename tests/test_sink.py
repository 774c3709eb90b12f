"""Attention sinks of training: softmax-off-by-one in every program, the sink token in every text, and export."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from conftest import TINY
from reference import ListModel
from test_cli import assert_refused
from training import done, prepared
from transformers import AutoModelForCausalLM, AutoTokenizer

from sllm_jax.common.errors import SllmError
from sllm_jax.convert import convert, to_huggingface
from sllm_jax.convert.families import module_for
from sllm_jax.core.blocks import MASKED, sink_logit_of, sink_softmax
from sllm_jax.core.decode import NO_TOKEN, decode, extend, init_carry
from sllm_jax.core.kv_state import visible_token_ids
from sllm_jax.core.model import Model, dense_logits, nll_of
from sllm_jax.core.sampling import sampling
from sllm_jax.evaluate.perplexity import token_nll
from sllm_jax.loading.pretrained import load
from sllm_jax.streams.stream import Stream

TOLERANCE = 1e-4  # of logits, float32 on both sides
TEXT = "the cat sat on a mat and saw the rain"


@pytest.fixture(scope="module")
def zero(tiny) -> Model:
    """The parameters of `tiny` under softmax-off-by-one."""
    config = TINY | {"attention_sink": "zero"}
    return Model(module_for(config, jnp.float32), tiny.params, config)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Folder of a model trained with a sink, made when it is first asked for."""
    folders = {}

    def folder_of(sink):
        if sink not in folders:
            run = done(prepared(tmp_path_factory.mktemp(sink), sink=sink, steps=3))
            folders[sink] = run.folder / "model"
        return folders[sink]

    return folder_of


def rows_of_scores() -> jax.Array:
    """Rows [8, 9] of ordinary, large, small, equal and masked scores."""
    rows = np.random.default_rng(0).normal(size=(8, 9)).astype(np.float32)
    rows[1] += 1e4
    rows[2] -= 1e4
    rows[3] *= 300
    rows[4, 2:] = MASKED
    rows[5, :] = MASKED
    rows[6] = 0
    rows[7, :4], rows[7, 4:6] = 80, -80
    return jnp.asarray(rows)


def test_zero_sink_is_softmax_off_by_one(zero):
    scores = rows_of_scores()
    powers = np.exp(np.asarray(scores, np.longdouble))  # as the paper writes it; exp(1e4) needs more than float64
    expected = powers / (1 + powers.sum(-1, keepdims=True))
    np.testing.assert_allclose(
        sink_softmax(scores, sink_logit_of(zero.config)), expected.astype(np.float64), rtol=1e-5, atol=1e-9
    )
    assert not np.asarray(sink_softmax(scores, sink_logit_of(zero.config)))[5].any(), "nothing to see is nothing mixed"


def test_gradient_of_zero_sink_is_that_of_softmax_over_one_more(zero):
    scores = rows_of_scores()
    weights = jnp.asarray(np.random.default_rng(1).normal(size=scores.shape), jnp.float32)

    def ours(scores):
        return jnp.sum(weights * sink_softmax(scores, sink_logit_of(zero.config)))

    def over_one_more(scores):
        longer = jnp.concatenate([scores, jnp.zeros((len(scores), 1))], axis=-1)
        return jnp.sum(weights * jax.nn.softmax(longer, axis=-1)[:, :-1])

    gradient = jax.grad(ours)(scores)
    assert np.isfinite(gradient).all()
    np.testing.assert_allclose(gradient, jax.grad(over_one_more)(scores), atol=1e-6)


@pytest.mark.parametrize("sink", ["none", "learnable"])
def test_other_sinks_leave_the_softmax_alone(tiny, sink):
    config = replace(tiny.config, attention_sink=sink)
    np.testing.assert_array_equal(
        sink_softmax(rows_of_scores(), sink_logit_of(config)), jax.nn.softmax(rows_of_scores(), axis=-1)
    )


@pytest.mark.parametrize("sizes", [(0, 12), (4, 12)])
@pytest.mark.parametrize("lengths", [[1] * 6 + [34], [7, 0, 16, 17], [40]], ids=str)
def test_zero_model_streams_as_the_list_for_every_chunking(zero, sizes, lengths):
    tokens, start = np.random.default_rng(2).integers(0, 101, 40), 0
    carry = init_carry(zero, *sizes)
    for length in lengths:
        chunk = np.full(40, 7, np.int32)
        chunk[:length] = tokens[start : start + length]
        carry, start = extend(zero, carry, chunk, np.int32(length)), start + length
    expected = ListModel(zero, *sizes)
    np.testing.assert_allclose(carry.logits, expected.extend(tokens)[-1], atol=TOLERANCE)
    no_eos, options = jnp.array([NO_TOKEN], jnp.int32), sampling(temperature=0)
    carry, written = decode(zero, carry, options, no_eos, jnp.int32(9), 9)
    np.testing.assert_allclose(carry.logits, expected.extend(written.tolist())[-1], atol=TOLERANCE)


def test_zero_model_read_densely_equals_the_list(tiny, zero):
    tokens = np.random.default_rng(3).integers(0, 101, 30)
    logits = dense_logits(zero, jnp.asarray(tokens))
    expected = ListModel(zero, 0, 63).extend(tokens)
    np.testing.assert_allclose(logits, expected, atol=TOLERANCE)
    ordinary = dense_logits(tiny, jnp.asarray(tokens))
    assert np.abs(logits - ordinary).max() > 0.1, "the sink changes nothing"


def test_zero_model_has_one_nll_in_every_mode_within_the_cache(zero):
    tokens = np.random.default_rng(4).integers(0, 101, 20)
    dense, streaming, recomputed = (
        np.concatenate(list(token_nll(zero, tokens, mode, 4, 40, 6))) for mode in ("dense", "streaming", "recompute")
    )
    np.testing.assert_allclose(streaming, dense, atol=TOLERANCE)
    np.testing.assert_allclose(recomputed, dense, atol=TOLERANCE)


@pytest.mark.parametrize("sink", ["none", "learnable"])
def test_recomputation_keeps_the_sink_token_that_a_model_was_trained_with(tiny, sink):
    module = tiny.module.clone(config=replace(tiny.config, attention_sink=sink))
    tokens = np.random.default_rng(5).integers(0, 101, 30)
    nll = np.concatenate(list(token_nll(replace(tiny, module=module), tokens, "recompute", 2, 7)))
    window = tokens[12:22].copy()  # as many as a step sees, before token 22
    if sink == "learnable":
        window[0] = tokens[0]
    expected = nll_of(dense_logits(replace(tiny, module=module), jnp.asarray(window))[-1:], jnp.asarray(tokens[22:23]))
    np.testing.assert_allclose(nll[21], expected[0], atol=TOLERANCE)


def test_an_unknown_sink_is_refused():
    with pytest.raises(SllmError, match="must be one of none, zero, learnable; got 'a'"):
        module_for(TINY | {"attention_sink": "a"}, jnp.float32)


@pytest.mark.parametrize("sink", ["none", "zero", "learnable"])
def test_the_sink_is_recorded_and_honoured_by_loading_and_converting(trained, tmp_path, sink):
    model, _ = load(trained(sink))
    assert model.hf_config["attention_sink"] == model.config.attention_sink == sink
    convert(trained(sink), tmp_path / "copy")
    assert load(tmp_path / "copy")[0].config.attention_sink == sink


def test_zero_cannot_go_to_hugging_face(run, trained, zero, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(SllmError, match="cannot be exported: Hugging Face does not support its softmax"):
        to_huggingface(zero, out)
    refused = run("convert", trained("zero"), out, "--to", "huggingface")
    assert_refused(refused, "a model with attention_sink 'zero' cannot be exported")
    assert len(refused[2].splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("sink", ["none", "learnable"])
def test_exported_model_and_tokenizer_equal_ours_in_transformers(trained, tmp_path, sink):
    ours, our_tokenizer = load(trained(sink))
    to_huggingface(trained(sink), tmp_path / "out")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    ids = tokenizer(TEXT)["input_ids"]
    assert ids == our_tokenizer(TEXT)["input_ids"]
    assert (tokenizer.convert_ids_to_tokens(ids)[0] == "<|sink|>") == (sink == "learnable")
    assert tokenizer.decode(ids, skip_special_tokens=True) == TEXT
    with torch.no_grad():
        expected = theirs(torch.tensor([ids])).logits[0].numpy()
    np.testing.assert_allclose(dense_logits(ours, jnp.asarray(ids)), expected, atol=TOLERANCE)


def test_a_stream_begins_with_the_sink_token_and_keeps_it(trained):
    model, tokenizer = load(trained("learnable"))
    sink = tokenizer.convert_tokens_to_ids("<|sink|>")
    for begin in (TEXT, None):
        stream = Stream(model, tokenizer, start_size=1, recent_size=8)
        if begin:
            stream.feed(begin)
        "".join(stream.generate(max_tokens=30, ignore_eos=True))
        visible = visible_token_ids(stream._carry.state)
        visible = visible[visible >= 0].tolist()
        assert stream.tokens_seen > stream.cache_size, "nothing was evicted"
        assert visible[0] == sink
        assert sink not in visible[1:]


@pytest.mark.parametrize(("sink", "more"), [("none", 0), ("learnable", 1)])
def test_perplexity_of_a_text_begins_with_the_sink_token(run, trained, tmp_path, sink, more):
    (tmp_path / "text.txt").write_text(TEXT)
    _, tokenizer = load(trained(sink))
    count = len(tokenizer.encode(TEXT, add_special_tokens=False))
    arguments = ("--model", trained(sink), "--text", tmp_path / "text.txt", "--start-size", 1, "--recent-size", 8)
    code, out, _ = run("perplexity", *arguments, "--nll-out", tmp_path / "nll.npy")
    assert (code, out.split()[-2]) == (0, str(count - 1 + more))
    ids = tokenizer(TEXT)["input_ids"]
    model, _ = load(trained(sink))
    first = dense_logits(model, jnp.asarray(ids))[0]
    expected = -jax.nn.log_softmax(first)[ids[1]]
    np.testing.assert_allclose(np.load(tmp_path / "nll.npy")[0], expected, atol=TOLERANCE)
