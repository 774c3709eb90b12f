"""Every family with each option: against PyTorch transformers and the list-based cache, and converted both ways."""

import re
import shutil
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from checkpoints import assert_same_tensors, tensors_of
from families import CASES, ONE_OF_EACH, VOCABULARY, random_model
from reference import ListModel, dense_logits
from safetensors.torch import save_file
from transformers import FalconForCausalLM
from transformers.models.mpt.modeling_mpt import build_mpt_alibi_tensor

import sllm_jax.models
from sllm_jax import convert
from sllm_jax.common.files import load_config, write_json
from sllm_jax.convert.families import module_for
from sllm_jax.core.decode import NO_TOKEN, decode, decode_program, extend, extend_program, init_carry, prefill
from sllm_jax.core.model import Model, init_params
from sllm_jax.core.sampling import sampling
from sllm_jax.evaluate.perplexity import token_nll
from sllm_jax.loading.pretrained import load

TOLERANCE = 1e-4  # of logits, float32 on both sides
PLACES = 20  # of a padded chunk


@pytest.fixture(scope="module", params=CASES, ids=" ".join)
def case(request, tmp_path_factory):
    """The random model, the folder it is saved in, and what is loaded from there.

    One option of each family runs as users run it; the others without most of XLA's optimizations, which take longer
    to compile than the programs to run.
    """
    theirs, folder = random_model(*request.param), tmp_path_factory.mktemp("model")
    theirs.save_pretrained(folder)
    ours, _ = load(folder, dtype="float32")
    jax.config.update("jax_disable_most_optimizations", request.param not in ONE_OF_EACH)
    yield theirs, folder, ours
    jax.config.update("jax_disable_most_optimizations", False)
    jax.clear_caches()


def tokens_of(length, seed=0):
    return np.random.default_rng(seed).integers(0, VOCABULARY, length)


def test_dense_logits_equal_those_of_transformers(case):
    theirs, _, ours = case
    tokens = tokens_of(50)
    with torch.no_grad():
        expected = theirs(torch.tensor(tokens[None])).logits[0].numpy()
    assert expected.std() > 0.5
    np.testing.assert_allclose(dense_logits(ours, jnp.array(tokens)), expected, atol=TOLERANCE)
    dense = prefill(ours, init_carry(ours, 0, 49), tokens)
    np.testing.assert_allclose(dense.logits, expected[-1], atol=TOLERANCE)


@pytest.mark.parametrize(
    ("sizes", "lengths"),
    [((3, 12), [20, 1, 7, 20, 13, 9]), ((3, 12), [1] * 45), ((0, 12), [3, 20, 2, 20, 5])],
    ids=["mixed", "single", "no sinks"],
)
def test_streaming_in_chunks_equals_the_list(case, sizes, lengths):
    *_, ours = case
    tokens, carry = tokens_of(sum(lengths), 1), init_carry(ours, *sizes)
    expected = ListModel(ours, *sizes).extend(tokens)
    done = 0
    for length in lengths:
        chunk = np.full(PLACES, 7, np.int32)
        chunk[:length] = tokens[done : done + length]
        carry = extend(ours, carry, chunk, np.int32(length))
        done += length
        np.testing.assert_allclose(carry.logits, expected[done - 1], atol=TOLERANCE)


def test_ragged_streams_read_and_write_as_the_lists_do(case):
    *_, ours = case
    rounds = np.array([[20, 3, 0], [13, 20, 1], [0, 20, 20], [5, 6, 7]], np.int32)
    tokens = [tokens_of(total, seed) for seed, total in enumerate(rounds.sum(0))]
    carry, done = init_carry(ours, 2, 9, streams=3), np.zeros(3, int)
    for lengths in rounds:
        chunk = np.full((3, PLACES), 7, np.int32)
        for row, length in enumerate(lengths):
            chunk[row, :length] = tokens[row][done[row] : done[row] + length]
        carry = extend(ours, carry, chunk, lengths)
        done += lengths
    no_eos = jnp.array([NO_TOKEN], jnp.int32)
    carry, written = decode(ours, carry, sampling(), no_eos, jnp.int32(14), 14)
    for row in range(3):
        text = np.concatenate([tokens[row], written[row]])
        expected = ListModel(ours, 2, 9).extend(text)
        np.testing.assert_array_equal(written[row], expected[len(tokens[row]) - 1 : -1].argmax(-1))
        np.testing.assert_allclose(carry.logits[row], expected[-1], atol=TOLERANCE)


@pytest.mark.parametrize("case", ONE_OF_EACH, indirect=True, ids=" ".join)
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


@pytest.mark.parametrize("case", ONE_OF_EACH, indirect=True, ids=" ".join)  # the other options have the same operations
@pytest.mark.parametrize("platforms", [("tpu", "cuda")])
def test_both_programs_lower_for_tpu_and_cuda_in_bfloat16(case, platforms):
    module = module_for(case[2].hf_config, jnp.bfloat16)
    params = jax.eval_shape(lambda: init_params(module))
    model = Model(module, params)
    carry = jax.eval_shape(lambda: init_carry(model, 4, 250, streams=3))
    tokens, count = jax.ShapeDtypeStruct((3, 128), jnp.int32), jax.ShapeDtypeStruct((3,), jnp.int32)
    assert jax.export.export(extend_program, platforms=platforms)(model, carry, tokens, count).platforms == platforms
    rest = (sampling(0.8, top_p=0.9), jnp.array([2], jnp.int32), jnp.int32(8))
    assert jax.export.export(decode_program, platforms=platforms)(model, carry, *rest, steps=8).platforms == platforms


@pytest.mark.parametrize("case", ONE_OF_EACH, indirect=True, ids=" ".join)
def test_zero_sinks_are_those_of_the_list(case):
    _, folder, _ = case
    hf_config = load_config(folder) | {"attention_sink": "zero"}
    module = module_for(hf_config, jnp.float32)
    model = Model(module, convert.load_params(folder, module))
    tokens = tokens_of(PLACES)
    carry = extend(model, init_carry(model, 2, 9), tokens, PLACES)
    np.testing.assert_allclose(carry.logits, ListModel(model, 2, 9).extend(tokens)[-1], atol=TOLERANCE)


@pytest.mark.parametrize("file", sorted(Path(sllm_jax.models.__path__[0]).glob("*.py")), ids=lambda path: path.stem)
def test_no_family_knows_what_is_kept_of_a_stream(file):
    assert not re.search(r"\b(slots?|rings?|evict\w*|next_slot|filled)\b", file.read_text(), re.IGNORECASE)


def with_config(folder, tmp_path, without=(), **changes):
    """A copy of a model's folder with some of its config changed."""
    copy = tmp_path / "changed"
    shutil.copytree(folder, copy)
    kept = {name: value for name, value in load_config(folder).items() if name not in without}
    write_json(copy / "config.json", kept | changes)
    return copy


def assert_dense_equal(ours, theirs):
    tokens = tokens_of(40)
    with torch.no_grad():
        expected = theirs(torch.tensor(tokens[None])).logits[0].numpy()
    np.testing.assert_allclose(dense_logits(ours, jnp.array(tokens)), expected, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("family", "variant", "old_spelling"),
    [
        ("gpt_neox", "theta, epsilon", {"rotary_pct": 0.25, "rotary_emb_base": 500}),
        ("gpt_neox", "half rotates, tied", {"rotary_pct": 0.5, "rotary_emb_base": 10000}),
        (
            *("gpt_neox", "rope linear"),
            {"rope_scaling": {"type": "linear", "factor": 3.0}, "rotary_emb_base": 500, "rotary_pct": 0.25},
        ),
        (
            *("falcon", "rope dynamic, tanh gelu, epsilon"),
            {"rope_scaling": {"type": "dynamic", "factor": 2.5}, "rope_theta": 500.0},
        ),
    ],
)
def test_rope_as_published_configs_spell_it(tmp_path, family, variant, old_spelling):
    theirs = random_model(family, variant)
    theirs.save_pretrained(tmp_path / "new")
    folder = with_config(tmp_path / "new", tmp_path, without=["rope_parameters"], **old_spelling)
    assert_dense_equal(load(folder, dtype="float32")[0], theirs)


FIRST_NAMES = {"num_attention_heads": "n_head", "num_hidden_layers": "n_layer", "num_kv_heads": "n_head_kv"}


@pytest.mark.parametrize(
    ("variant", "model_type"), [("7B", "RefinedWebModel"), ("RW", "RefinedWebModel"), ("40B", "RefinedWeb")]
)
def test_a_falcon_as_first_published_becomes_one_of_today(tmp_path, variant, model_type):
    model = random_model("falcon", variant)
    model.save_pretrained(tmp_path / "new")
    config = load_config(tmp_path / "new")
    first = {old: config[new] for new, old in FIRST_NAMES.items()}
    unknown = [*FIRST_NAMES, "new_decoder_architecture", "num_ln_in_parallel_attn"]
    folder = with_config(tmp_path / "new", tmp_path, unknown, model_type=model_type, **first)
    assert_dense_equal(load(folder, dtype="float32")[0], model)
    convert.to_huggingface(folder, tmp_path / "today")
    loaded = FalconForCausalLM.from_pretrained(tmp_path / "today")
    tokens = torch.tensor(tokens_of(30)[None])
    with torch.no_grad():
        assert torch.equal(loaded(tokens).logits, model(tokens).logits)


def test_mpt_with_a_bias_maximum_and_a_width_of_its_own(tmp_path):
    """As in MosaicML's own code; transformers ignores both."""
    theirs = random_model("mpt", "plain")
    theirs.transformer.build_mpt_alibi_tensor = partial(build_mpt_alibi_tensor, alibi_bias_max=16)
    for block in theirs.transformer.blocks:
        block.ffn.up_proj, block.ffn.down_proj = (torch.nn.Linear(*sizes, bias=False) for sizes in ((48, 96), (96, 48)))
    theirs.save_pretrained(tmp_path / "new")
    folder = with_config(tmp_path / "new", tmp_path, expansion_ratio=2, attn_config={"alibi_bias_max": 16})
    assert_dense_equal(load(folder, dtype="float32")[0], theirs)


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
    assert_dense_equal(ours, theirs)
    tokens = tokens_of(40)
    streamed = prefill(ours, init_carry(ours, 3, 12), tokens).logits
    np.testing.assert_allclose(streamed, ListModel(ours, 3, 12).extend(tokens)[-1], atol=TOLERANCE)
