"""int8 weights: rounding, every family against the same weights as floats, perplexity, and checkpoints."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoints import llama, rewrite, save_llama
from conftest import TINY
from families import CASES, ONE_OF_EACH, random_model
from flax.traverse_util import flatten_dict, unflatten_dict
from hypothesis import given, settings
from hypothesis import strategies as st
from test_cli import assert_refused
from test_compiled import EOS, LIMIT, OPTIONS

import sllm_jax
from sllm_jax import convert
from sllm_jax.common.errors import SllmError
from sllm_jax.convert.dtypes import FLOATS
from sllm_jax.convert.families import module_for
from sllm_jax.core.decode import decode, decode_program, init_carry, prefill
from sllm_jax.core.int8 import is_quantized, quantize, quantize_model, scale_path
from sllm_jax.core.model import Model, init_params
from sllm_jax.evaluate.perplexity import perplexity
from sllm_jax.loading import pretrained as loading
from sllm_jax.models.linear import matmul_t_int8
from sllm_jax.text.tokenizer import encode

NOT_FASTER = pytest.mark.filterwarnings(f"ignore:{loading.SLOW_INT8}")
POSITIONS = re.compile("rope|rotates$|ALiBi|window|theta|power of two|scale|tanh")  # options that no weight knows of
MODELS = [
    pytest.param(*case, marks=pytest.mark.slow if case not in ONE_OF_EACH and POSITIONS.search(case[1]) else ())
    for case in CASES
]


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([np.float32, FLOATS["bfloat16"]]))
def test_no_weight_is_off_by_more_than_half_a_step(seed, dtype):
    rng = np.random.default_rng(seed)
    weight = (rng.normal(size=(7, 33)) * 10.0 ** rng.integers(-4, 4, (7, 1))).astype(dtype)
    weight[3] = 0
    whole, scale = quantize(weight)
    weight = weight.astype(np.float32)
    assert (whole.dtype, scale.dtype) == (np.int8, np.float32)
    assert np.abs(whole.astype(int)).max(axis=1).tolist() == [127] * 3 + [0] + [127] * 3
    assert (np.abs(whole * scale[:, None] - weight) <= scale[:, None] * 0.5001).all()


def as_floats(model: Model) -> Model:
    """The model that an int8 one stands for."""
    flat = flatten_dict(model.params, sep="/")
    scales = {path: flat.pop(scale) for path in [*flat] if (scale := scale_path(path)) in flat}
    whole = {path: leaf * scales[path][:, None] if path in scales else leaf for path, leaf in flat.items()}
    return Model(model.module, unflatten_dict(whole, sep="/"), model.hf_config)


@pytest.mark.parametrize("shape", [(33,), (1, 33), (5, 33), (2, 3, 33)])
@pytest.mark.parametrize("streams", [None, 4])
def test_a_product_is_that_of_the_weight_as_floats(shape, streams):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(*([streams] if streams else []), *shape)), jnp.float32)
    weight, scale = map(jnp.asarray, quantize(rng.normal(size=(20, 33))))

    def product(x):
        return matmul_t_int8(x, weight, scale, jnp.float32)

    ours = jax.jit(jax.vmap(product) if streams else product)(x)
    expected = np.asarray(x, np.float64) @ (np.asarray(weight, np.float64) * np.asarray(scale)[:, None]).T
    np.testing.assert_allclose(ours, expected, atol=1e-5)


@NOT_FASTER
@pytest.mark.parametrize(("name", "variant"), MODELS)
def test_every_family_reads_and_writes_as_with_floats(tmp_path, name, variant):
    random_model(name, variant).save_pretrained(tmp_path / "hf")
    model, _ = loading.load(tmp_path / "hf", weights="int8")
    floats = as_floats(model)
    assert is_quantized(model.params)
    assert not is_quantized(floats.params)
    assert {path for path, leaf in flatten_dict(model.params, sep="/").items() if leaf.dtype != jnp.int8} >= {
        path for path in flatten_dict(model.params, sep="/") if "norm" in path or "embed" in path or "bias" in path
    }
    tokens = np.random.default_rng(0).integers(0, 101, 40, np.int32)
    results = []
    for one in (model, floats):
        carry = prefill(one, init_carry(one, 3, 12), tokens)
        logits = carry.logits.copy()
        _, written = decode(one, carry, OPTIONS["greedy"], EOS, LIMIT, 8)
        results.append((logits, written))
    np.testing.assert_allclose(results[0][0], results[1][0], atol=1e-4)
    assert results[0][1].tolist() == results[1][1].tolist()


@NOT_FASTER
@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_a_converted_checkpoint_keeps_them(tmp_path, dtype):
    save_llama(tmp_path / "hf", tie_word_embeddings=False, attention_bias=True)
    convert.convert(tmp_path / "hf", tmp_path / "int8", dtype, weights="int8")
    direct, _ = loading.load(tmp_path / "hf", dtype or "float32", weights="int8")
    for weights in (None, "int8"):
        again, _ = loading.load(tmp_path / "int8", dtype or "float32", weights=weights)
        flat, expected = flatten_dict(again.params, sep="/"), flatten_dict(direct.params, sep="/")
        assert flat.keys() == expected.keys()
        for path, leaf in flat.items():
            assert leaf.dtype == expected[path].dtype, path
            np.testing.assert_array_equal(leaf, expected[path], err_msg=path)


def test_a_model_in_memory_becomes_what_loading_makes_of_it(tmp_path, tiny):
    convert.to_huggingface(tiny, tmp_path / "hf")
    with pytest.warns(UserWarning, match="no faster with them"):
        loaded, _ = loading.load(tmp_path / "hf", weights="int8")
    jax.tree.map(np.testing.assert_array_equal, quantize_model(tiny).params, loaded.params)
    assert quantize_model(loaded).params.keys() == loaded.params.keys()


@NOT_FASTER
def test_what_cannot_be_is_refused(tmp_path, tiny):
    with pytest.raises(SllmError, match=r"weights must be int8 or left out; got 'int4'"):
        loading.load(weights="int4")
    with pytest.raises(SllmError, match="int8 weights cannot be exported to Hugging Face"):
        convert.to_huggingface(quantize_model(tiny), tmp_path / "out", dtype="bfloat16")
    model = llama()
    model.model.layers[1].mlp.up_proj.weight.data[3, 5] = float("inf")
    model.save_pretrained(tmp_path / "hf")
    with pytest.raises(SllmError, match=r"tensor model\.layers\.1\.mlp\.up_proj\.weight: .* not finite"):
        loading.load(tmp_path / "hf", weights="int8")


def test_what_is_missing_or_misshapen_is_named_once(tmp_path):
    save_llama(tmp_path)
    rewrite(tmp_path, lambda state: state.pop("model.layers.1.mlp.up_proj.weight"))
    with pytest.raises(SllmError) as missing:
        loading.load(tmp_path, weights="int8")
    assert str(missing.value) == "missing tensor model.layers.1.mlp.up_proj.weight of shape (44, 24)"


def test_the_command_line_refuses_in_one_sentence(tmp_path, run):
    refused = run("convert", "bundled:llama", tmp_path / "out", "--weights", "int8", "--to", "huggingface")
    assert_refused(refused, "--weights int8 needs --to orbax")
    assert_refused(run("generate", "--weights", "int3"), "weights must be int8 or left out; got 'int3'")


@pytest.mark.parametrize("options", OPTIONS)
def test_no_weight_becomes_floats_in_memory(options):
    """The conversion stays inside the products: not moved out of the loop over steps, not written out in it."""
    sizes = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 4, "head_dim": 20}
    module = module_for(TINY | sizes, jnp.float32)
    model = quantize_model(Model(module, init_params(module)))
    arguments = model, init_carry(model, 4, 50), OPTIONS[options], EOS, LIMIT
    needs = decode_program.lower(*arguments, steps=8).compile().memory_analysis()
    assert needs.temp_size_in_bytes < 4 * 512 * 128  # of one weight


@NOT_FASTER
@pytest.mark.slow
@pytest.mark.parametrize("name", ["bundled:llama", "bundled:gpt-neox", "bundled:falcon"])
def test_it_costs_less_than_half_a_percent_of_perplexity(name, shared):
    text, found = (shared / "data" / "text" / "tinyshakespeare.txt").read_text()[:300_000], []
    for weights in (None, "int8"):
        model, tokenizer = sllm_jax.load(name, weights=weights)
        ids = encode(tokenizer, text, start=True)
        nll = np.concatenate(list(sllm_jax.token_nll(model, ids, start_size=4, recent_size=251)))
        found.append(perplexity(nll))
    print(f"{name}: perplexity {found[0]:.4f}, with int8 weights {found[1]:.4f}")
    assert abs(found[1] / found[0] - 1) < 0.005
