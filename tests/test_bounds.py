"""Sizes that are implausible, or too large for the weights beside the config, are refused before allocation."""

import json
import shutil
from importlib import import_module

import numpy as np
import pytest
from checkpoints import save_llama
from families import FAMILIES, small_config
from safetensors.numpy import save_file

import sllm_jax
from sllm_jax.benchmark.random_weights import random_model
from sllm_jax.common.errors import SllmError
from sllm_jax.convert import convert
from sllm_jax.convert.families import module_for
from sllm_jax.convert.plausible import fewest_parameters
from sllm_jax.core import memory
from sllm_jax.core.model import parameter_shapes

LLAMA = {
    "model_type": "llama",
    "vocab_size": 101,
    "hidden_size": 24,
    "intermediate_size": 44,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
}
MPT = {"model_type": "mpt", "vocab_size": 101, "d_model": 24, "n_layers": 3, "n_heads": 6}
FALCON = {name: value for name, value in LLAMA.items() if name != "intermediate_size"} | {"model_type": "falcon"}


ASSEMBLE = import_module("sllm_jax.convert.assemble")  # beside the function of that name


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    save_llama(folder)
    return folder


@pytest.fixture
def folder(made, tmp_path):
    return shutil.copytree(made, tmp_path / "llama")


@pytest.fixture
def nothing_built(monkeypatch):
    def refuse(*_):
        raise AssertionError("shapes of parameters were asked for")

    monkeypatch.setattr(ASSEMBLE, "parameter_shapes", refuse)


def change_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("config", "name", "value"),
    [
        (LLAMA, "num_hidden_layers", 10**9),
        (LLAMA, "vocab_size", 2**32),
        (LLAMA, "hidden_size", 6 * 10**4000),
        (LLAMA, "head_dim", 2**40),
        (LLAMA, "max_position_embeddings", 10**15),
        (LLAMA | {"model_type": "mistral"}, "sliding_window", 2**40),
        (MPT, "n_layers", 10**9),
        (MPT, "n_heads", 2**33),
        (MPT, "expansion_ratio", 2**33),
        (FALCON | {"alibi": True}, "num_attention_heads", 2**33),
        (FALCON, "ffn_hidden_size", 2**33),
    ],
)
def test_a_size_that_no_model_has(config, name, value):
    with pytest.raises(SllmError, match=rf"^{name} in config.json must be at most \d+; got [^\n]*$") as error:
        module_for(config | {name: value}, np.float32)
    assert len(str(error.value)) < 250


@pytest.mark.parametrize("value", [-1, 0, -(10**9), 1.5, "3", True])
def test_a_negative_number_of_layers(value):
    with pytest.raises(SllmError, match="needs a positive integer for each of num_hidden_layers"):
        module_for(LLAMA | {"num_hidden_layers": value}, np.float32)


@pytest.mark.parametrize(
    "changes",
    [
        {"vocab_size": 2**24},
        {"hidden_size": 2**20, "num_attention_heads": 2**10, "num_key_value_heads": 2**10, "head_dim": 2**10},
        {"num_hidden_layers": 1000, "head_dim": 2**12},
        {"num_attention_heads": 2**19, "num_key_value_heads": 2**19},
    ],
)
@pytest.mark.usefixtures("nothing_built")
def test_a_config_of_far_more_parameters_than_the_weights_have(folder, changes):
    change_config(folder, **changes)
    with pytest.raises(SllmError, match=r"describes a model of more than [^\n]* but the weights hold at most [^\n]*$"):
        sllm_jax.load(folder, "float32")


@pytest.mark.usefixtures("nothing_built")
def test_the_same_of_pytorch_files_and_converted_checkpoints(folder, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(ASSEMBLE, "parameter_shapes", parameter_shapes)
        convert(folder, tmp_path / "converted")
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"PK")
    for changed in (folder, tmp_path / "converted"):
        change_config(changed, vocab_size=2**24)
        with pytest.raises(SllmError, match="but the weights hold at most"):
            sllm_jax.load(changed, "float32")


def test_a_config_of_a_somewhat_larger_model_is_told_tensor_by_tensor(folder):
    change_config(folder, num_hidden_layers=12)
    with pytest.raises(SllmError, match=r"a model of 3 layers, or a part of one; config.json says 12"):
        sllm_jax.load(folder, "float32")


@pytest.mark.parametrize("name", FAMILIES)
def test_the_fewest_parameters_of_a_config_are_no_more_than_it_has(name):
    for variant in FAMILIES[name].variants:
        module = module_for(small_config(name, variant).to_dict() | {"torch_dtype": "float32"}, np.float32)
        has = memory.bytes_of(parameter_shapes(module)) // 4
        assert has / 8 < fewest_parameters(module.config) <= has


def test_random_weights_that_memory_cannot_hold(monkeypatch):
    monkeypatch.setattr(memory, "free_memory", lambda: 2**14)
    with pytest.raises(SllmError, match=r"a model of this config takes .* of memory, and .* are free; use a smaller"):
        random_model(LLAMA, np.float32)


def test_a_thousand_layers_of_nothing_take_no_time(folder):
    change_config(folder, num_hidden_layers=1024)
    save_file({"model.embed_tokens.weight": np.zeros((101, 24), np.float32)}, folder / "model.safetensors")
    with pytest.raises(SllmError, match=r"config\.json says 1024"):
        sllm_jax.load(folder, "float32")
