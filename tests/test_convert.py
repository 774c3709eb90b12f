"""Tensors to parameters: mapped and dropped tensors, and all problems in one error."""

from types import SimpleNamespace

import checkpoints
import jax
import numpy as np
import pytest
import torch
from checkpoints import Q_PROJ, VARIANTS, assert_same, load, module_of, problems
from safetensors.torch import save_file

from sllm_jax.common import orbax
from sllm_jax.common.errors import SllmError
from sllm_jax.convert import sources
from sllm_jax.convert.assemble import assemble, disassemble, shapes_of
from sllm_jax.convert.llama import LLAMA
from sllm_jax.convert.table import STACKED, Drop, Rule, Table, Transform


@pytest.fixture
def folder(tmp_path):
    checkpoints.save_llama(tmp_path / "hf")
    return tmp_path / "hf"


# the table


@pytest.mark.parametrize("options", VARIANTS)
def test_the_table_covers_every_parameter_once(tmp_path, options):
    model = checkpoints.save_llama(tmp_path, **options)
    module = module_of(tmp_path)
    rules = LLAMA.rules_for(shapes_of(module), module.config.num_hidden_layers)
    targets = [target for rule in rules.values() for target in rule.targets]
    assert sorted(targets) == sorted(shapes_of(module))
    tied = {"lm_head.weight"} if options["tie_word_embeddings"] else set()
    assert set(rules) == set(model.state_dict()) - tied


@pytest.mark.parametrize("options", VARIANTS)
def test_each_tensor_becomes_its_parameter(tmp_path, options):
    state = checkpoints.save_llama(tmp_path, **options).state_dict()
    params = load(tmp_path)
    assert jax.tree.map(np.shape, params) == jax.tree.map(lambda leaf: leaf.shape, params_shapes(tmp_path))
    assert np.array_equal(params["embed_tokens"]["embedding"], state["model.embed_tokens.weight"])
    assert np.array_equal(params["layers_1"]["self_attn"]["q_proj"]["weight"], state[Q_PROJ])
    assert np.array_equal(
        params["layers_2"]["input_layernorm"]["scale"], state["model.layers.2.input_layernorm.weight"]
    )
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(params))
    if "mlp_bias" in options:
        assert np.array_equal(params["layers_0"]["mlp"]["up_proj"]["bias"], state["model.layers.0.mlp.up_proj.bias"])


def params_shapes(folder):
    from sllm_jax.core.model import parameter_shapes

    return parameter_shapes(module_of(folder))


def test_a_fused_tensor_becomes_several_parameters_and_comes_back(folder):
    def split(array, config):
        ends = (config.num_attention_heads * config.head_dim,)
        return tuple(np.split(array, ends))

    fuse = Transform("fused", split, lambda arrays, _: np.concatenate(arrays))
    both = ("layers_{i}/self_attn/q_proj/weight", "layers_{i}/self_attn/k_proj/weight")
    kept = tuple(rule for rule in LLAMA.rules if not set(rule.targets) & set(both))
    table = Table((*kept, Rule("model.layers.{i}.self_attn.qk.weight", both, fuse)), LLAMA.drops)
    module, params = module_of(folder), load(folder)
    tensors = [
        sources.Tensor(name, array.shape, "float32", lambda array=array: array)
        for name, array in disassemble(params, table, module)
    ]
    fused = {tensor.name: tensor for tensor in tensors}["model.layers.1.self_attn.qk.weight"]
    assert fused.shape == (6 * 8 + 2 * 8, 24)
    assert_same(assemble(tensors, table, module, dtype=None, place=lambda array: array), params)
    tensors.remove(fused)
    with pytest.raises(SllmError, match=r"missing tensor model\.layers\.1\.self_attn\.qk\.weight of shape \(64, 24\)$"):
        assemble(tensors, table, module, dtype=None, place=lambda array: array)


def test_a_transform_that_yields_another_shape_is_named(folder):
    halves = Transform(
        "in halves", lambda array, _: tuple(np.split(array, 2)), lambda arrays, _: np.concatenate(arrays)
    )
    both = ("layers_{i}/self_attn/q_proj/weight", "layers_{i}/self_attn/k_proj/weight")  # 6 and 2 heads of 8
    kept = tuple(rule for rule in LLAMA.rules if not set(rule.targets) & set(both))
    table = Table((*kept, Rule("model.layers.{i}.self_attn.qk.weight", both, halves)), LLAMA.drops)
    module = module_of(folder)
    tensors = [
        sources.Tensor(name, array.shape, "float32", lambda array=array: array)
        for name, array in disassemble(load(folder), table, module)
    ]
    said = (
        r"tensor model\.layers\.0\.self_attn\.qk\.weight: the transform 'in halves' gives \(32, 24\) for "
        r"layers_0/self_attn/q_proj/weight, expected \(48, 24\)"
    )
    with pytest.raises(SllmError, match=said):
        assemble(tensors, table, module, dtype=None, place=lambda array: array)


def test_stacked_queries_keys_and_values_may_differ_in_size():
    config = SimpleNamespace(num_attention_heads=6, num_key_value_heads=2, head_dim=5)
    parts = tuple(np.full((heads * 5, 7), i) for i, heads in enumerate((6, 2, 2)))
    found = STACKED.forward(STACKED.inverse(parts, config), config)
    for part, expected in zip(found, parts, strict=True):
        np.testing.assert_array_equal(part, expected)


def test_a_parameter_without_a_rule_is_missing(folder):
    table = Table(LLAMA.rules[1:], LLAMA.drops)
    with pytest.raises(SllmError, match=r"missing tensor no rule"):
        assemble([], table, module_of(folder), dtype=None, place=lambda array: array)


def test_two_tensors_for_one_parameter_are_a_problem(folder):
    table = Table((*LLAMA.rules, Rule("model.final_norm.weight", ("norm/scale",))), LLAMA.drops)
    checkpoints.rewrite(folder, lambda tensors: tensors.update({"model.final_norm.weight": torch.ones(24)}))
    with pytest.raises(
        SllmError, match=r"duplicate tensor model\.norm\.weight: model\.final_norm\.weight already gives"
    ):
        assemble(sources.tensors(folder), table, module_of(folder), dtype=None, place=lambda array: array)


# names that hold no parameter


def test_dropped_by_name_whatever_their_type(folder):
    expected = load(folder)
    checkpoints.rewrite(
        folder,
        lambda tensors: tensors.update(
            {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.full((4,), torch.nan) for i in range(3)}
            | {"model.rotary_emb.inv_freq": torch.arange(4)}
        ),
    )
    assert_same(load(folder), expected)


def test_a_drop_serves_buffers_of_types_that_cannot_be_read(folder):
    table = Table(LLAMA.rules, (*LLAMA.drops, Drop("model.layers.{i}.attention.bias", "a causal mask")))
    mask = torch.ones(1, 1, 5, 5, dtype=torch.bool)
    checkpoints.rewrite(folder, lambda tensors: tensors.update({"model.layers.12.attention.bias": mask}))
    assemble(sources.tensors(folder), table, module_of(folder), dtype=None, place=lambda array: array)


@pytest.mark.parametrize("pickled", [False, True])
def test_an_output_layer_equal_to_the_tied_embedding_is_dropped(tmp_path, pickled):
    checkpoints.save_llama(tmp_path, tie_word_embeddings=True)
    expected = load(tmp_path)
    checkpoints.rewrite(tmp_path, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}))
    if pickled:
        checkpoints.to_pickle(tmp_path)
    assert_same(load(tmp_path), expected)


def test_an_output_layer_unlike_the_tied_embedding_is_a_problem(tmp_path):
    checkpoints.save_llama(tmp_path, tie_word_embeddings=True)
    checkpoints.rewrite(tmp_path, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"] + 1}))
    assert problems(tmp_path) == [
        "unknown tensor lm_head.weight: the config ties it to model.embed_tokens.weight, but they differ"
    ]


# problems


def test_missing(folder):
    checkpoints.rewrite(folder, lambda tensors: tensors.pop(Q_PROJ))
    assert problems(folder) == [f"missing tensor {Q_PROJ} of shape (48, 24)"]


def test_missing_output_layer_of_an_untied_model(folder):
    checkpoints.rewrite(folder, lambda tensors: tensors.pop("lm_head.weight"))
    assert problems(folder) == ["missing tensor lm_head.weight of shape (101, 24)"]


def test_extra(folder):
    bias = Q_PROJ.replace("weight", "bias")  # the config says that there is none
    checkpoints.rewrite(folder, lambda tensors: tensors.update({bias: torch.zeros(48)}))
    assert problems(folder) == [f"unknown tensor {bias} of shape (48,)"]


def test_extra_layer(folder):
    checkpoints.rewrite(folder, lambda tensors: tensors.update({Q_PROJ.replace("1", "3"): torch.zeros(48, 24)}))
    assert problems(folder) == ["unknown tensor model.layers.3.self_attn.q_proj.weight of shape (48, 24)"]


def test_misshapen(folder):
    checkpoints.rewrite(folder, lambda tensors: tensors.update({Q_PROJ: tensors[Q_PROJ].T.contiguous()}))
    assert problems(folder) == [f"misshapen tensor {Q_PROJ}: expected (48, 24), got (24, 48)"]


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn, torch.bool])
@pytest.mark.parametrize("pickled", [False, True])
def test_of_another_type(folder, dtype, pickled):
    checkpoints.rewrite(folder, lambda tensors: tensors.update({Q_PROJ: tensors[Q_PROJ].to(dtype)}))
    if pickled:
        checkpoints.to_pickle(folder)
    (line,) = problems(folder)
    assert line.startswith(f"tensor {Q_PROJ} of type ")
    assert line.endswith(": expected one of float32, bfloat16, float16, float64")


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_not_finite(folder, value):
    checkpoints.rewrite(folder, lambda tensors: tensors[Q_PROJ].flatten()[[3, 700]].fill_(value))
    checkpoints.rewrite(folder, lambda tensors: tensors[Q_PROJ].view(-1)[3:5].fill_(value))
    assert problems(folder) == [f"tensor {Q_PROJ}: 2 of 1152 not finite in float32"]
    assert problems(folder, "bfloat16") == [f"tensor {Q_PROJ}: 2 of 1152 not finite in bfloat16"]


def test_not_finite_after_the_cast(folder):
    checkpoints.rewrite(folder, lambda tensors: tensors[Q_PROJ].view(-1)[:1].fill_(1e5))
    load(folder)
    assert problems(folder, "float16") == [f"tensor {Q_PROJ}: 1 of 1152 not finite in float16 after the cast"]


def test_duplicate(tmp_path):
    checkpoints.save_llama(tmp_path, max_shard_size="10KB")
    one, other, *_ = sorted(tmp_path.glob("*.safetensors"))
    name, tensor = next(iter(checkpoints.load_file(one).items()))
    save_file({**checkpoints.load_file(other), name: tensor}, other)
    assert problems(tmp_path) == [f"duplicate tensor {name}"]


def test_all_problems_are_reported_together(folder):
    def spoil(tensors):
        del tensors["model.norm.weight"]
        tensors["extra"] = torch.zeros(2, 5)
        tensors["model.layers.0.input_layernorm.weight"] = torch.zeros(23)
        tensors[Q_PROJ][0, 0] = torch.nan

    checkpoints.rewrite(folder, spoil)
    assert sorted(problems(folder)) == [
        "misshapen tensor model.layers.0.input_layernorm.weight: expected (24,), got (23,)",
        "missing tensor model.norm.weight of shape (24,)",
        "tensor model.layers.1.self_attn.q_proj.weight: 1 of 1152 not finite in float32",
        "unknown tensor extra of shape (2, 5)",
    ]


def test_a_checkpoint_of_the_first_version_is_refused(tmp_path, folder):
    old = tmp_path / "old"
    old.mkdir()
    orbax.save(old, {"lm_head": {"kernel": np.zeros((24, 101), np.float32)}})
    (old / "config.json").write_bytes((folder / "config.json").read_bytes())
    with pytest.raises(SllmError, match="old was made by an earlier version of sllm-jax; convert or train the model"):
        load(old)
