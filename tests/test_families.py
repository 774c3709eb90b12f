"""Every family with each of its options: against PyTorch transformers, against the list, and there and back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from checkpoints import assert_same_tensors, tensors_of
from families import CASES, VOCABULARY, random_model
from reference import ListModel
from safetensors.torch import save_file
from transformers import FalconForCausalLM

from sllm_jax import convert
from sllm_jax.decode import NO_TOKEN, decode, extend, init_carry, read
from sllm_jax.files import load_config, write_json
from sllm_jax.loading import load
from sllm_jax.model import dense_logits, init_params
from sllm_jax.models import module_for
from sllm_jax.perplexity import token_nll
from sllm_jax.sampling import sampling

TOLERANCE = 1e-4  # of logits, float32 on both sides
PLACES = 20  # of a padded chunk


@pytest.fixture(scope="module", params=CASES, ids=" ".join)
def case(request, tmp_path_factory):
    """The random model, the folder it is saved in, and what is loaded from there."""
    theirs, folder = random_model(*request.param), tmp_path_factory.mktemp("model")
    theirs.save_pretrained(folder)
    return theirs, folder, load(folder, dtype="float32")[0]


def tokens_of(length, seed=0):
    return np.random.default_rng(seed).integers(0, VOCABULARY, length)


def test_dense_logits_equal_those_of_transformers(case):
    theirs, _, ours = case
    tokens = tokens_of(50)
    with torch.no_grad():
        expected = theirs(torch.tensor(tokens[None])).logits[0].numpy()
    assert expected.std() > 0.5
    np.testing.assert_allclose(dense_logits(ours.module, ours.params, jnp.array(tokens)), expected, atol=TOLERANCE)
    dense = read(ours.module, ours.params, init_carry(ours.module, 0, 49), tokens)
    np.testing.assert_allclose(dense.logits, expected[-1], atol=TOLERANCE)


@pytest.mark.parametrize(
    "lengths", [[20, 1, 7, 20, 13, 9], [1] * 45, [3, 20, 2, 20, 5]], ids=["mixed", "single", "other"]
)
def test_streaming_in_chunks_equals_the_list(case, lengths):
    *_, ours = case
    tokens, carry = tokens_of(sum(lengths), 1), init_carry(ours.module, 3, 12)
    expected = ListModel(ours.module, ours.params, 3, 12).extend(tokens)
    done = 0
    for length in lengths:
        chunk = np.full(PLACES, 7, np.int32)
        chunk[:length] = tokens[done : done + length]
        carry = extend(ours.module, ours.params, carry, chunk, np.int32(length))
        done += length
        np.testing.assert_allclose(carry.logits, expected[done - 1], atol=TOLERANCE)


def test_ragged_streams_read_and_write_as_the_lists_do(case):
    *_, ours = case
    rounds = np.array([[20, 3, 0], [13, 20, 1], [0, 20, 20], [5, 6, 7]], np.int32)
    tokens = [tokens_of(total, seed) for seed, total in enumerate(rounds.sum(0))]
    carry, done = init_carry(ours.module, 2, 9, streams=3), np.zeros(3, int)
    for lengths in rounds:
        chunk = np.full((3, PLACES), 7, np.int32)
        for row, length in enumerate(lengths):
            chunk[row, :length] = tokens[row][done[row] : done[row] + length]
        carry = extend(ours.module, ours.params, carry, chunk, lengths)
        done += lengths
    no_eos = jnp.array([NO_TOKEN], jnp.int32)
    carry, written = decode(ours.module, ours.params, carry, sampling(), no_eos, jnp.int32(14), 14)
    for row in range(3):
        text = np.concatenate([tokens[row], written[row]])
        expected = ListModel(ours.module, ours.params, 2, 9).extend(text)
        np.testing.assert_array_equal(written[row], expected[len(tokens[row]) - 1 : -1].argmax(-1))
        np.testing.assert_allclose(carry.logits[row], expected[-1], atol=TOLERANCE)


def test_recomputation_equals_a_fresh_pass_of_transformers(case):
    theirs, _, ours = case
    tokens = tokens_of(30)
    nll = np.concatenate(list(token_nll(ours, tokens, "recompute", 4, 7)))
    with torch.no_grad():
        for i in (0, 5, 11, 28):
            seen = torch.tensor(tokens[None, max(0, i - 11) : i + 1])
            expected = -torch.log_softmax(theirs(seen).logits[0, -1], -1)[tokens[i + 1]]
            assert abs(nll[i] - expected) < TOLERANCE


def test_there_and_back_is_exact(case, tmp_path):
    _, folder, _ = case
    convert.convert(folder, tmp_path / "converted")
    convert.to_huggingface(tmp_path / "converted", tmp_path / "back")
    assert_same_tensors(tensors_of(tmp_path / "back"), tensors_of(folder))
    assert load_config(tmp_path / "back") == load_config(folder)


@pytest.mark.parametrize("platforms", [("tpu", "cuda")])
def test_both_programs_lower_for_tpu_and_cuda_in_bfloat16(case, platforms):
    module = module_for(case[2].hf_config, jnp.bfloat16)
    params = jax.eval_shape(lambda: init_params(module))
    carry = jax.eval_shape(lambda: init_carry(module, 4, 250, streams=3))
    tokens, count = jax.ShapeDtypeStruct((3, 128), jnp.int32), jax.ShapeDtypeStruct((3,), jnp.int32)
    assert jax.export.export(extend, platforms=platforms)(module, params, carry, tokens, count).platforms == platforms
    rest = (sampling(0.8, top_p=0.9), jnp.array([2], jnp.int32), jnp.int32(8))
    assert jax.export.export(decode, platforms=platforms)(module, params, carry, *rest, steps=8).platforms == platforms


def test_zero_sinks_are_those_of_the_list(case):
    _, folder, _ = case
    hf_config = load_config(folder) | {"attention_sink": "zero"}
    module = module_for(hf_config, jnp.float32)
    params = convert.load_params(folder, module)
    tokens = tokens_of(PLACES)
    carry = extend(module, params, init_carry(module, 2, 9), tokens.astype(np.int32), np.int32(PLACES))
    np.testing.assert_allclose(carry.logits, ListModel(module, params, 2, 9).extend(tokens)[-1], atol=TOLERANCE)


def test_a_falcon_as_first_published_becomes_one_of_today(tmp_path):
    model = random_model("falcon", "7B")
    model.save_pretrained(tmp_path / "first")
    config = load_config(tmp_path / "first")
    heads, layers = config.pop("num_attention_heads"), config.pop("num_hidden_layers")
    config |= {"model_type": "RefinedWebModel", "architectures": ["RWForCausalLM"], "n_head": heads, "n_layer": layers}
    write_json(tmp_path / "first/config.json", config)
    convert.to_huggingface(tmp_path / "first", tmp_path / "today")
    loaded = FalconForCausalLM.from_pretrained(tmp_path / "today")
    tokens = torch.tensor(tokens_of(30)[None])
    with torch.no_grad():
        assert torch.equal(loaded(tokens).logits, model(tokens).logits)


class NormedQKV(torch.nn.Linear):
    """What `qk_ln` means in MosaicML's own code, and transformers leaves out: norms over all heads together."""

    def __init__(self, hidden_size, size, bias):
        super().__init__(hidden_size, size, bias)
        self.q_ln, self.k_ln = (torch.nn.LayerNorm(hidden_size, bias=False) for _ in range(2))

    def forward(self, hidden):
        q, k, v = super().forward(hidden).chunk(3, dim=2)
        return torch.cat([self.q_ln(q), self.k_ln(k), v], dim=2)


def test_mpt_with_norms_of_queries_and_keys(tmp_path):
    theirs = random_model("mpt", "plain")
    for block in theirs.transformer.blocks:
        plain, block.attn.Wqkv = block.attn.Wqkv, NormedQKV(48, 3 * 48, bias=False)
        block.attn.Wqkv.weight = plain.weight
        for norm in (block.attn.Wqkv.q_ln, block.attn.Wqkv.k_ln):
            torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
    tensors = {
        name.replace("Wqkv.q_ln", "q_ln").replace("Wqkv.k_ln", "k_ln"): value
        for name, value in theirs.state_dict().items()
    }
    tensors.pop("lm_head.weight")
    save_file(tensors, tmp_path / "model.safetensors")
    write_json(tmp_path / "config.json", theirs.config.to_dict() | {"attn_config": {"qk_ln": True}})
    ours, _ = load(tmp_path, dtype="float32")
    tokens = tokens_of(40)
    with torch.no_grad():
        expected = theirs(torch.tensor(tokens[None])).logits[0].numpy()
    np.testing.assert_allclose(dense_logits(ours.module, ours.params, jnp.array(tokens)), expected, atol=TOLERANCE)
    streamed = read(ours.module, ours.params, init_carry(ours.module, 3, 12), tokens).logits
    np.testing.assert_allclose(streamed, ListModel(ours.module, ours.params, 3, 12).extend(tokens)[-1], atol=TOLERANCE)
