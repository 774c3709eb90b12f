"""Tensor names in checkpoints of every family, as training scripts write them: wrapped, nested, without a prefix."""

import checkpoints
import pytest
import torch
from checkpoints import Q_PROJ, assert_same, load, refusal
from families import FAMILIES
from safetensors.torch import save_model

from sllm_jax.common.files import load_config
from sllm_jax.convert.families import family_of
from sllm_jax.convert.names import own_name

HEAD = "lm_head.weight"


def random_model(family, tied):
    """A random PyTorch model of the family's first variant, tied or not."""
    sizes, variants = FAMILIES[family].sizes, FAMILIES[family].variants
    layers = {"n_layers" if family == "mpt" else "num_hidden_layers": 2}
    options = sizes | next(iter(variants.values())) | layers | {"vocab_size": 101, "tie_word_embeddings": tied}
    torch.manual_seed(0)
    return FAMILIES[family].model(FAMILIES[family].config(**options)).eval()


@pytest.fixture
def folder(tmp_path):
    checkpoints.save_llama(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("save", ["save_model", "torch.save"])
def test_what_scripts_write_of_each_family_loads(tmp_path, family, tied, save):
    theirs = random_model(family, tied)
    theirs.save_pretrained(tmp_path)
    expected = load(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    if save == "save_model":
        save_model(theirs, str(tmp_path / "model.safetensors"))  # of tied matrices only the first by name
    else:
        torch.save(theirs.state_dict(), tmp_path / "pytorch_model.bin")
    assert_same(load(tmp_path), expected)


@pytest.mark.parametrize(
    ("family", "head"), [("gpt_neox", "embed_out.weight"), *((family, "lm_head.weight") for family in FAMILIES)]
)
def test_tied_and_only_the_head_is_stored_in_each_family(tmp_path, family, head):
    random_model(family, tied=True).save_pretrained(tmp_path)
    expected = load(tmp_path)
    embedding = family_of(load_config(tmp_path)).table.tied.copy_of
    checkpoints.rewrite(tmp_path, lambda tensors: tensors.update({head: tensors.pop(embedding)}))
    assert_same(load(tmp_path), expected)


WRAPPINGS = {
    "_orig_mod.": lambda name: f"_orig_mod.{name}",
    "_orig_mod. amid": lambda name: name.replace("model.layers.", "model._orig_mod.layers."),
    "module.": lambda name: f"module.{name}",
    "base_model.model.": lambda name: f"base_model.model.{name}",
    "module._orig_mod.": lambda name: f"module._orig_mod.{name}",
    "model. of Lightning": lambda name: f"model.{name}",
    "no model.": lambda name: name.removeprefix("model."),
    "_fsdp_wrapped_module.": lambda name: name.replace(".self_attn", "._fsdp_wrapped_module.self_attn"),
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
@pytest.mark.parametrize("pickled", [False, True])
def test_names_that_training_scripts_give_are_understood(folder, wrapping, pickled):
    expected = load(folder)

    def rename(tensors):
        renamed = {WRAPPINGS[wrapping](name): tensor for name, tensor in tensors.items()}
        tensors.clear()
        tensors.update(renamed)

    checkpoints.rewrite(folder, rename)
    if pickled:
        checkpoints.to_pickle(folder)
    assert_same(load(folder), expected)


@pytest.mark.parametrize(
    ("frame", "known", "bare"),
    [
        ("transformer.", "transformer.h.0.self_attention.dense.weight", "h.0.self_attention.dense.weight"),
        ("gpt_neox.", "gpt_neox.layers.0.attention.dense.weight", "layers.0.attention.dense.weight"),
        ("transformer.", "transformer.blocks.0.ffn.up_proj.weight", "module.blocks.0.ffn.up_proj.weight"),
    ],
)
def test_names_without_the_frame_of_other_families(frame, known, bare):
    assert own_name(bare, {known}.__contains__, frame) == known
    assert own_name("other.weight", {known}.__contains__, frame) == "other.weight"


@pytest.mark.parametrize("family", FAMILIES)
def test_a_bare_model_with_its_head_beside_it_loads(tmp_path, family):
    theirs = random_model(family, tied=False)
    theirs.save_pretrained(tmp_path)
    expected = load(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    bare = theirs.base_model.state_dict()
    torch.save(bare | {"lm_head.weight": theirs.lm_head.weight}, tmp_path / "pytorch_model.bin")
    assert_same(load(tmp_path), expected)
    torch.save(bare, tmp_path / "pytorch_model.bin")
    assert "; this looks like a model without its head, such as an embedding model" in refusal(tmp_path)


@pytest.mark.parametrize("prefix", ["actor.", "_forward_module.", "student.model.module.", "a b\n."])
def test_an_unknown_prefix_is_named(folder, prefix):
    def rename(tensors):
        renamed = {f"{prefix}{name}": tensor for name, tensor in tensors.items()}
        tensors.clear()
        tensors.update(renamed)

    checkpoints.rewrite(folder, rename)
    summary, *lines = refusal(folder).split("\n")
    assert f"this looks like a checkpoint whose tensor names begin with {prefix.partition('.')[0] + '.'!r}" in summary
    assert len(lines) == 11


def test_a_prefix_of_the_head_alone_is_named(folder):
    checkpoints.rewrite(folder, lambda tensors: tensors.update({f"base_model.{HEAD}": tensors.pop(HEAD)}))
    assert "a checkpoint whose tensor names begin with 'base_model.'" in refusal(folder)


@pytest.mark.parametrize("name", ["mtp.norm.weight", "draft.layers.0.input_layernorm.weight"])
def test_what_stands_beside_a_whole_model_is_no_prefix(folder, name):
    checkpoints.rewrite(folder, lambda tensors: tensors.update({name: torch.ones(24)}))
    assert refusal(folder) == f"unknown tensor {name} of shape (24,)"


def test_a_name_of_any_length_is_cut(folder):
    name = "module." * 100_000 + "a" * 100_000
    checkpoints.rewrite(folder, lambda tensors: tensors.update({name: torch.ones(2)}))
    assert len(refusal(folder)) < 1000


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model", "module"])
def test_a_nested_state_dict_is_understood(folder, key):
    expected = load(folder)
    checkpoints.to_pickle(folder)
    path = folder / "pytorch_model.bin"
    torch.save({key: torch.load(path), "epoch": 3}, path)
    assert_same(load(folder), expected)


def test_a_state_dict_nested_twice_is_understood(folder):
    expected = load(folder)
    checkpoints.to_pickle(folder)
    path = folder / "pytorch_model.bin"
    torch.save({"model": {"state_dict": torch.load(path)}, "optimizer": {"state": {}}}, path)
    assert_same(load(folder), expected)


@pytest.mark.parametrize("keys", [("ema",), ("generator", "discriminator"), ("model", "weights")])
def test_another_nesting_is_named(folder, keys):
    checkpoints.to_pickle(folder)
    path = folder / "pytorch_model.bin"
    state = torch.load(path)
    nested = {"model": {"weights": state}} if keys[0] == "model" else dict.fromkeys(keys, state)
    torch.save(nested | {"epoch": 3}, path)
    found = "'weights'" if keys[0] == "model" else ", ".join(map(repr, keys))
    assert refusal(folder) == f"{path} has several groups of tensors ({found}); save only the model's"


def test_a_tensor_under_two_names_is_a_duplicate(folder):
    checkpoints.rewrite(folder, lambda tensors: tensors.update({f"module.{Q_PROJ}": tensors[Q_PROJ].clone()}))
    assert refusal(folder) == f"duplicate tensor {Q_PROJ}"
