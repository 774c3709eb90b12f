"""Tiny random Hugging Face checkpoints, all of whose sizes differ."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from flax.traverse_util import flatten_dict
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

import sllm_jax
from sllm_jax import convert
from sllm_jax.common.errors import SllmError
from sllm_jax.common.files import load_config
from sllm_jax.convert.dtypes import FLOATS
from sllm_jax.convert.families import module_for

VARIANTS = [
    {"tie_word_embeddings": False},
    {"tie_word_embeddings": True},
    {"tie_word_embeddings": False, "attention_bias": True, "mlp_bias": True},
]
Q_PROJ = "model.layers.1.self_attn.q_proj.weight"  # [48, 24]
SIZES = {
    "vocab_size": 101,
    "hidden_size": 24,
    "intermediate_size": 44,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
}


def llama(seed=0, **options):
    """A random `LlamaForCausalLM`; biases and norms are random too, so that none can be mistaken for another."""
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(**SIZES | options)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model


def save_llama(folder, dtype=torch.float32, max_shard_size="1GB", **options):
    """Save a random Llama as safetensors; returns it."""
    model = llama(**options).to(dtype)
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    return model


def tensors_of(folder):
    """Name -> tensor of all safetensors files in a folder."""
    return {
        name: value for path in sorted(Path(folder).glob("*.safetensors")) for name, value in load_file(path).items()
    }


def rewrite(folder, change):
    """Replace the tensors in `model.safetensors` by what `change` makes of them in place."""
    tensors = tensors_of(folder)
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def to_pickle(folder, shards=1, **options):
    """Turn `model.safetensors` into `pytorch_model.bin`, or several and their index."""
    tensors = tensors_of(folder)
    (folder / "model.safetensors").unlink()
    names = list(tensors)
    if shards == 1:
        torch.save(tensors, folder / "pytorch_model.bin", **options)
        return
    weight_map = {}
    for i in range(shards):
        path = folder / f"pytorch_model-{i + 1:05}-of-{shards:05}.bin"
        torch.save({name: tensors[name] for name in names[i::shards]}, path, **options)
        weight_map |= dict.fromkeys(names[i::shards], path.name)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))


def module_of(folder, dtype="float32"):
    return module_for(load_config(folder), FLOATS[dtype])


def load(folder, dtype="float32"):
    return convert.load_params(folder, module_of(folder, dtype))


def assert_same(one, other):
    """Two trees, equal bit for bit."""
    one, other = flatten_dict(one, sep="/"), flatten_dict(other, sep="/")
    assert one.keys() == other.keys()
    for path in one:
        assert one[path].dtype == other[path].dtype, path
        assert np.asarray(one[path]).tobytes() == np.asarray(other[path]).tobytes(), path


def assert_same_tensors(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert one[name].dtype == other[name].dtype, name
        assert torch.equal(one[name], other[name]), name


def problems(folder, dtype="float32"):
    with pytest.raises(SllmError) as error:
        load(folder, dtype)
    headline, *lines = str(error.value).split("\n")
    if lines:
        number = re.match(r"(\d+) tensors? do(?:es)? not match config\.json \((\d+ [a-z]+(, )?)+\)", headline)
        assert number is not None
        assert int(number[1]) == len(lines)
    return lines or [headline.partition("; this looks like ")[0]]


def refusal(folder) -> str:
    """The message with which a folder is refused."""
    with pytest.raises(SllmError) as error:
        sllm_jax.load(folder, "float32")
    return str(error.value)
